"""The table of dialects: what `CLOUD_DIALECT` names, and how an agent gets its connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from observer_agent.clock import Clock
from observer_agent.clouds import lighthouse, observer
from observer_agent.clouds._access import Access, Line, Place
from observer_agent.logs import Redactor
from observer_agent.sentlog import SentLog

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
        sent: SentLog | None = None,
    ) -> None:
        self._clock = clock
        self._redact = redact
        self._notice = observer.Notice(clock)
        self._access = Access(
            observer_place(settings),
            lambda key: observer.headers(key, started_at, version),
            clock=clock,
            redact=redact,
            read_key=read_key,
            sent=sent,
        )

    def connect(self) -> observer.Observer:
        """A connection for one thread."""
        return observer.Observer(Line(self._access, self._clock), self._clock, self._notice, self._redact)

    def renew(self, settings: Settings) -> None:
        """Every connection uses these settings, and reads its file of CAs again, from its next call on."""
        self._access.renew(observer_place(settings))


class LighthouseSettings(Protocol):
    """What this dialect has to know. `wire` is `current` or `seed`."""

    @property
    def url(self) -> str: ...
    @property
    def token(self) -> str: ...
    @property
    def wire(self) -> str: ...
    @property
    def instance_id(self) -> str: ...
    @property
    def verify(self) -> bool: ...


class LighthouseDialect:
    """Makes connections to a Lighthouse console: each thread gets one of its own; the access is shared.

    With None as `started_at` it is a command that calls, not an agent: instance id and uptime are left away.
    """

    def __init__(
        self,
        settings: LighthouseSettings,
        started_at: str | None,
        version: str,
        *,
        clock: Clock,
        redact: Redactor,
        read_key: ReadKey | None = None,
        sent: SentLog | None = None,
    ) -> None:
        self._clock = clock
        self._redact = redact
        self._version = version
        self._seed = settings.wire == "seed"
        self._process = lighthouse.Process(clock, settings.instance_id if started_at else None)
        self._access = Access(
            lighthouse_place(settings),
            lambda token: lighthouse.headers(token, version),
            clock=clock,
            redact=redact,
            read_key=read_key,
            sent=sent,
        )

    def connect(self) -> lighthouse.Lighthouse:
        """A connection for one thread."""
        line = Line(self._access, self._clock)
        return lighthouse.Lighthouse(
            line, self._clock, self._process, self._version, redact=self._redact, seed=self._seed
        )

    def renew(self, settings: LighthouseSettings) -> None:
        """Every connection uses this URL and token, and reads its file of CAs again, from its next call on."""
        self._access.renew(lighthouse_place(settings))


def observer_place(settings: Settings) -> Place:
    """Where an Observer cloud is, by the settings."""
    return Place(settings.cloud_server_url, settings.agent_key, not settings.skip_ssl_verification)


def lighthouse_place(settings: LighthouseSettings) -> Place:
    """Where a console is, by the settings."""
    return Place(settings.url, settings.token, settings.verify)


DIALECTS = {"observer": ObserverDialect, "lighthouse": LighthouseDialect}
