"""The local page: `/api/state`, `/metrics`, `/healthz`, `/readyz`, on loopback unless a token guards it.

Reads the agent's state and changes nothing. Runs on the thread `dashboard` and, for each connection, on a thread of the
standard library's server. A port in use is a warning, not an end.
"""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from observer_agent import status
from observer_agent.agent import Agent
from observer_agent.config import LOOPBACK
from observer_agent.worker import spawn

log = logging.getLogger(__name__)

SLOWEST_CLIENT = 5.0
POLL = 0.1  # how soon the server notices that it shall stop


class Page(NamedTuple):
    """What a path answers."""

    status: int
    content_type: str
    body: bytes


Pages = dict[str, Callable[[], Page]]


class Server(ThreadingHTTPServer):
    """The listening server; `url` says where."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, pages: Pages, token: str | None) -> None:
        self.pages = pages
        self.token = token
        self.address_family = _family(host)
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """Where it listens."""
        host = str(self.server_address[0])
        return f"http://[{host}]:{self.server_port}" if ":" in host else f"http://{host}:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is nobody's fault."""
        log.debug("A client of the local page went away")

    def start(self) -> None:
        """Serves on a thread of its own until `stop`."""
        spawn("dashboard", lambda: self.serve_forever(poll_interval=POLL))

    def stop(self) -> None:
        """Stops serving and closes the socket."""
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of a known path, nothing else."""

    timeout = SLOWEST_CLIENT
    server: Server

    def do_GET(self) -> None:
        if self.server.token and not self._allowed(self.server.token):
            return self._send(Page(401, "text/plain", b"a bearer token is needed\n"))
        if not self.server.token and not self._is_local():
            return self._send(Page(403, "text/plain", b"this page is served under the names of this machine only\n"))
        make = self.server.pages.get(self.path.partition("?")[0])
        return self._send(make() if make else Page(404, "text/plain", b"not found\n"))

    do_HEAD = do_GET

    def _allowed(self, token: str) -> bool:
        given = self.headers.get("Authorization", "")
        return hmac.compare_digest(given.encode("utf-8", "replace"), f"Bearer {token}".encode())

    def _is_local(self) -> bool:
        """A web page elsewhere may point a name of its own at 127.0.0.1; its requests still carry that name."""
        host = self.headers.get("Host", "").strip()
        name = host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        return name.lower() in LOOPBACK

    def _send(self, page: Page) -> None:
        self.send_response(page.status)
        self.send_header("Content-Type", f"{page.content_type}; charset=utf-8")
        self.send_header("Content-Length", str(len(page.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", "default-src 'none'")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(page.body)

    def version_string(self) -> str:
        return "observer-agent"

    def log_message(self, format: str, *args: object) -> None:
        """Requests of the local page are not logged."""


def pages(agent: Agent) -> Pages:
    """The paths of an agent's local page."""
    return {
        "/": lambda: Page(200, "text/plain", b"/api/state\n/metrics\n/healthz\n/readyz\n"),
        "/api/state": lambda: Page(200, "application/json", json.dumps(status.state(agent)).encode()),
        "/metrics": lambda: Page(200, "text/plain; version=0.0.4", agent.metrics.expose()),
        "/healthz": lambda: _verdict(", ".join(status.dead_workers(agent)), "workers that do not run: "),
        "/readyz": lambda: _verdict(status.problem(agent), ""),
    }


def serve(agent: Agent) -> Server | None:
    """Starts the local page as the settings say; None when it is off or its port is taken."""
    settings = agent.settings
    if not settings.enable_debug_dashboard:
        return None
    host, port = settings.debug_dashboard_host, settings.debug_dashboard_port
    try:
        server = Server(host, port, pages(agent), settings.debug_dashboard_token)
    except OSError as error:
        log.warning("The local page cannot listen on %s:%d (%s); the agent goes on without", host, port, error.strerror)
        return None
    server.start()
    log.info("The local page listens on %s", server.url)
    return server


def _verdict(problem: str | None, prefix: str) -> Page:
    if not problem:
        return Page(200, "text/plain", b"ok\n")
    return Page(503, "text/plain", f"{prefix}{problem}\n".encode())


def _family(host: str) -> int:
    import socket

    return socket.AF_INET6 if ":" in host else socket.AF_INET
