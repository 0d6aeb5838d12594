"""The local page: `/`, `/api/state`, `/metrics`, `/healthz`, `/readyz`, on loopback unless a token guards it.

Reads the agent's state and changes nothing. `server.py` answers, `access.py` keeps the door, `history.py` remembers the
last half hour, `static/` is the page itself: three files as they are served, no build step. A port in use is a
warning, not an end.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from observer_agent import status
from observer_agent.config import LIGHTHOUSE
from observer_agent.dashboard.history import History
from observer_agent.dashboard.private import PrivateServer, path_of
from observer_agent.dashboard.server import HANDLERS, LOGIN, NOTICE, Page, Pages, Server
from observer_agent.whole import Whole
from observer_agent.worker import Worker

__all__ = ["HANDLERS", "Page", "Pages", "Server", "pages", "serve", "static_pages"]

log = logging.getLogger(__name__)

LOGOUT_FORM = b'<form method="post" action="/logout"><button>Log out</button></form>'


class LocalPage(Server):
    """An agent's page; the worker that remembers its history ends with it."""

    history: Worker | None = None

    def stop(self) -> None:
        """Stops serving."""
        if self.history:
            self.history.stop()
        super().stop()


def pages(agent: Whole, history: History) -> Pages:
    """The paths of an agent's local page."""
    return {
        **static_pages(guarded=bool(agent.settings.debug_dashboard_token)),
        "/api/state": lambda: _json(status.state(agent, history.columns())),
        "/metrics": lambda: Page(200, "text/plain; version=0.0.4", agent.metrics.expose()),
        "/healthz": lambda: _verdict(status.unwell(agent)),
        "/readyz": lambda: _verdict(status.problem(agent)),
    }


def static_pages(guarded: bool) -> dict[str, Callable[[], Page]]:
    """The page as it is served; where a token guards it, with a form to log in and a button to log out."""
    notice = LOGOUT_FORM if guarded else b""
    home = _static("page.html", "text/html")
    made = {
        "/": home._replace(body=home.body.replace(NOTICE, notice)),
        "/page.js": _static("page.js", "text/javascript"),
        "/page.css": _static("page.css", "text/css"),
    }
    if guarded:
        made[LOGIN] = _static("login.html", "text/html")
    return {path: partial(_same, page) for path, page in made.items()}


def serve(agent: Whole) -> Server | None:
    """Starts the local page as the settings say; None when it is off or its port is taken."""
    settings = agent.settings
    if not settings.enable_debug_dashboard:
        return serve_privately(agent) if settings.cloud_dialect == LIGHTHOUSE else None
    host, port = settings.debug_dashboard_host, settings.debug_dashboard_port
    history = History(agent.queue, agent.clock)
    served = pages(agent, history)
    try:
        server = LocalPage(host, port, served, settings.debug_dashboard_token, clock=agent.clock)
    except OSError as error:
        log.warning("The local page cannot listen on %s:%d (%s); the agent goes on without", host, port, error.strerror)
        return None
    agent.metrics.delivering.set_function(lambda: status.problem(agent) is None)
    server.history = agent.supervisor.add(Worker("history", history.step, agent.clock))
    server.start()
    log.info("The local page listens on %s", server.url)
    return server


def serve_privately(agent: Whole) -> Server | None:
    """The state alone, for `status`, behind a socket file: no port is opened."""
    served = {"/api/state": lambda: _json(status.state(agent))}
    try:
        server = PrivateServer(path_of(agent.queue.file), served, agent.clock)
    except OSError as error:
        log.warning("The socket of the status command cannot be made (%s); the agent goes on without", error)
        return None
    server.start()
    return server


def _same(page: Page) -> Page:
    return page


def _static(name: str, content_type: str) -> Page:
    return Page(200, content_type, (Path(__file__).parent / "static" / name).read_bytes())


def _json(state: object) -> Page:
    return Page(200, "application/json", json.dumps(state, separators=(",", ":")).encode())


def _verdict(problem: str | None) -> Page:
    return Page(503, "text/plain", f"{problem}\n".encode()) if problem else Page(200, "text/plain", b"ok\n")
