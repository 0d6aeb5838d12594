"""`/healthz/live` and `/healthz/ready`, only where LIGHTHOUSE_HEALTH_PORT is set; neither depends on the console (W8).

Live: every worker runs and makes progress. Ready: the agent has started, and its queue file takes events. A request in,
one word out; the server's threads answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from observer_agent.clock import Clock
from observer_agent.config import Settings
from observer_agent.keeper import Keeper
from observer_agent.listener import Handler, Listener
from observer_agent.worker import Supervisor

log = logging.getLogger(__name__)

HANDLERS = 4
Answer = Callable[[], str | None]


class Agent(Protocol):
    """What is asked of the agent."""

    settings: Settings
    clock: Clock
    supervisor: Supervisor
    keeper: Keeper


class Health(Listener):
    """The listening server; `pages` say what is wrong, None where all is well."""

    def __init__(self, place: tuple[str, int], pages: Mapping[str, Answer], clock: Clock) -> None:
        self.pages = pages
        super().__init__("health", place, _Handler, clock=clock, handlers=HANDLERS)


class _Handler(Handler):
    server: Health

    def do_GET(self) -> None:
        page = self.server.pages.get(self.path.partition("?")[0])
        if page is None:
            self.say(404, b"not found\n")
            return
        problem = page()
        self.say(503 if problem else 200, f"{problem or 'ok'}\n".encode())

    do_HEAD = do_GET


def serve(agent: Agent) -> Health | None:
    """Starts the endpoints as the settings say; a port that is taken is a warning."""
    place = agent.settings.lighthouse_health_host, agent.settings.lighthouse_health_port
    if not place[1]:
        return None
    pages = {"/healthz/live": lambda: not_alive(agent), "/healthz/ready": lambda: not_alive(agent) or not_ready(agent)}
    try:
        server = Health(place, pages, agent.clock)
    except OSError as error:
        log.warning(
            "The health endpoints cannot listen on %s:%d (%s); the agent goes on without", *place, error.strerror
        )
        return None
    server.start()
    log.info("The health endpoints listen on %s", server.at)
    return server


def not_alive(agent: Agent) -> str | None:
    """Which workers do not run, or hang."""
    workers = list(agent.supervisor.workers.items())
    bad = [name for name, worker in workers if not worker.alive or worker.hung]
    return f"workers that do not work: {', '.join(bad)}" if bad else None


def not_ready(agent: Agent) -> str | None:
    """That events cannot be kept."""
    kept, _ = agent.keeper.waiting()
    return f"the queue file takes no events; those of {kept} checks wait in memory" if kept else None
