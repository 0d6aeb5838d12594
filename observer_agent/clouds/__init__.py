"""The table of dialects: what `CLOUD_DIALECT` names, and how an agent gets its connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from observer_agent.clock import Clock
from observer_agent.clouds import observer
from observer_agent.clouds._access import Access, Line
from observer_agent.logs import Redactor

if TYPE_CHECKING:
    from observer_agent.config import Settings

ReadKey = Callable[[], str]


class ObserverDialect:
    """Makes connections to an Observer cloud: each thread gets one of its own; access and notice are shared.

    `started_at` goes out with every request; None leaves the header away, for a command that is no agent.
    """

    def __init__(
        self,
        settings: Settings,
        started_at: str | None,
        version: str,
        *,
        clock: Clock,
        redact: Redactor,
        read_key: ReadKey | None = None,
    ) -> None:
        self._clock = clock
        self._redact = redact
        self._notice = observer.Notice(clock)
        self._access = Access(
            settings,
            lambda key: observer.headers(key, started_at, version),
            clock=clock,
            redact=redact,
            read_key=read_key,
        )

    def connect(self) -> observer.Observer:
        """A connection for one thread."""
        return observer.Observer(Line(self._access, self._clock), self._clock, self._notice, self._redact)

    def renew(self, settings: Settings) -> None:
        """Every connection uses these settings, and reads its file of CAs again, from its next call on."""
        self._access.renew(settings)


DIALECTS = {"observer": ObserverDialect}
