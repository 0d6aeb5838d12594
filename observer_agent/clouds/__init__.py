"""The table of dialects: what `CLOUD_DIALECT` names, and how an agent gets its connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from observer_agent.clock import Clock
from observer_agent.clouds import observer
from observer_agent.logs import Redactor
from observer_agent.resolver import Resolver
from observer_agent.transport import Transport

if TYPE_CHECKING:
    from observer_agent.config import Settings

Connect = Callable[[], observer.Observer]


def connect_observer(settings: Settings, started_at: str, version: str, clock: Clock, redact: Redactor) -> Connect:
    """A maker of connections to an Observer cloud; each caller gets one of its own, the notice is shared."""
    notice = observer.Notice(clock)
    resolver = Resolver(clock)
    lines = observer.headers(settings.agent_key, started_at, version)

    def connect() -> observer.Observer:
        verify = not settings.skip_ssl_verification
        transport = Transport(settings.cloud_server_url, lines, clock=clock, resolver=resolver, verify=verify)
        return observer.Observer(transport, clock, notice, redact)

    return connect


DIALECTS = {"observer": connect_observer}
