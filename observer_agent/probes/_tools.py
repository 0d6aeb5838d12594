"""What every probe is handed: clock, resolver, environment, redactor, settings, kept TLS contexts.

One `Tools` per agent, shared by all probe threads. A `Run` is one look in progress: its deadline and its stopwatch;
it belongs to the thread that probes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

from observer_agent.clock import Clock, to_ms
from observer_agent.logs import Redactor
from observer_agent.model import Reading
from observer_agent.policy import Policy
from observer_agent.probes._counters import Counters
from observer_agent.probes._disks import Disks
from observer_agent.probes._otlp import Receiver
from observer_agent.probes._reasons import SILENT, Failed, Reason, from_os_error, timed_out
from observer_agent.probes._registry import Registry
from observer_agent.probes._tls import Contexts
from observer_agent.probes._wallet import Wallet
from observer_agent.resolver import Address, Resolver

_DOING: Final[Mapping[str, str]] = {
    "resolve": "resolving the name",
    "connect": "connecting",
    "tls": "shaking hands (TLS)",
    "first_byte": "waiting for the answer",
    "login": "signing in",
    "query": "waiting for the query's answer",
    "body": "reading the body",
}


class Settings(Protocol):
    """The agent's settings that a probe may read."""

    @property
    def prometheus_server_url(self) -> str | None: ...
    @property
    def prometheus_basic_auth_enabled(self) -> bool: ...
    @property
    def prometheus_username(self) -> str: ...
    @property
    def prometheus_password(self) -> str: ...
    @property
    def prometheus_bearer_token(self) -> str | None: ...
    @property
    def prometheus_tenant_id(self) -> str | None: ...
    @property
    def prometheus_headers(self) -> str | None: ...
    @property
    def probe_env_allow(self) -> tuple[str, ...]: ...


class Tools:
    """The shared tools, one set for an agent."""

    def __init__(
        self,
        *,
        clock: Clock,
        resolver: Resolver,
        env: Mapping[str, str],
        redact: Redactor,
        settings: Settings,
        policy: Policy | None = None,
        custom: Registry | None = None,
        otlp: Receiver | None = None,
    ) -> None:
        self.clock = clock
        self.resolver = resolver
        self.env = env
        self.redact = redact
        self.settings = settings
        self.policy = policy or Policy()
        self.custom = custom or Registry(clock)
        self.otlp = otlp
        self.wallet = Wallet()
        self.contexts = Contexts()
        self.counters = Counters()
        self.disks = Disks(clock)  # an agent puts the same in after a reload, so that what hangs stays bounded


class Run:
    """One look in progress. `deadline` is a moment of the monotonic clock; phases are milliseconds.

    `other` is the reason for an operating system's error that the vocabulary does not name.
    """

    __slots__ = (
        "_monotonic",
        "_phase",
        "_phases",
        "_since",
        "address",
        "counted",
        "deadline",
        "evidence",
        "other",
        "silent",
        "started",
        "tools",
    )

    def __init__(self, tools: Tools, deadline: float, other: Reason) -> None:
        self.tools = tools
        self.deadline = deadline
        self.other = other
        self._monotonic = tools.clock.monotonic
        self._phases: dict[str, float] = {}
        self._phase = ""
        self.address = ""  # the last one that was tried
        self.silent = False  # nothing came back from it
        self.counted: tuple[tuple[Address, int | None], ...] = ()  # targets that the policy's rate has counted
        self.evidence: dict[str, Any] = {}  # what _evidence.facts understands; raw, it costs nothing until it is asked
        self.started = self._since = self._monotonic()

    def restart(self) -> None:
        """Begins to count now: what came before is not the target's time."""
        self.started = self._since = self._monotonic()

    def enter(self, phase: str) -> None:
        """Ends the phase that runs and begins the next; the hops of a redirect add up. An empty name only ends."""
        now = self._monotonic()
        if self._phase:
            self._phases[self._phase] = self._phases.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def left(self) -> float:
        """Seconds until the deadline, always positive; raises Failed when it has passed."""
        left = self.deadline - self._monotonic()
        if left <= 0:
            self.silent = True
            raise timed_out(self.doing)
        return left

    def hurry(self, seconds: float) -> None:
        """Brings the deadline forward to `seconds` from now, if that is earlier."""
        self.deadline = min(self.deadline, self._monotonic() + seconds)

    def ms(self) -> float:
        """Milliseconds since the start, with three decimals."""
        return to_ms(self._monotonic() - self.started)

    @property
    def doing(self) -> str:
        """The phase that runs, in words."""
        return _DOING.get(self._phase, "preparing")

    def explain(self, error: OSError) -> Failed:
        """What an error of a plain socket means."""
        failed = from_os_error(error, self.doing, self.other)
        self.silent = failed.reason in SILENT
        return failed

    def gave(self, value: float, **detail: Any) -> Reading:
        """The reading of a look that succeeded."""
        self.enter("")
        return Reading(
            value,
            phases=self._rounded(),
            detail=detail,
            address=self.address,
            silent=self.silent,
            evidence=self.evidence,
        )

    def failed(self, failure: Failed, **detail: Any) -> Reading:
        """The reading of a look that failed."""
        self.enter("")
        detail = {**detail, **failure.detail}
        return Reading(
            None,
            failure.reason,
            failure.fault,
            phases=self._rounded(),
            detail=detail,
            address=self.address,
            silent=self.silent,
            evidence=self.evidence,
        )

    def _rounded(self) -> dict[str, float]:
        return {name: to_ms(seconds) for name, seconds in self._phases.items()}
