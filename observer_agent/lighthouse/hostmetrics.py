"""Host metrics to a Lighthouse console, only while the operator allows it and the console orders it.

Orders enter from the worker `beat`, bodies leave through `send` on the worker `host-metrics`. Without
LIGHTHOUSE_HOST_METRICS=true nothing is even looked at, whatever the console says. What the console does not take is
lost, and counted: the next look is newer. Only the names that a collector declares can leave.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from observer_agent.clock import Clock
from observer_agent.lighthouse.figures import Figure, Look
from observer_agent.lighthouse.remotewrite import body
from observer_agent.logs import Throttle
from observer_agent.selfmetrics import SelfMetrics
from observer_agent.verdict import Grid

if TYPE_CHECKING:
    from observer_agent.lighthouse.clusterstats import Api
    from observer_agent.lighthouse.mounts import Places

log = logging.getLogger(__name__)

FALLBACK: Final = 30.0
LEAST: Final = 5.0
MOST: Final = 86_400.0
IDLE: Final = 60.0
HOST_ROLE: Final = "host_metrics"
LONGEST_REST: Final = 300.0
FIGURES_MAX: Final = 10_000  # of one request
WARN: Final = 900.0
WARN_SECTION: Final = 3_600.0
TAKEN: Final = (200, 202, 204)


class Order(Protocol):
    """What the console wants: `interval` is seconds."""

    @property
    def enabled(self) -> bool:
        """Whether metrics are wanted."""

    @property
    def interval(self) -> float | None:
        """How often; none, zero or less leaves it to the agent."""


class Collector(Protocol):
    """What looks at a machine or a cluster; `names` are all that may leave of it."""

    @property
    def names(self) -> frozenset[str]:
        """The closed list."""

    def restart(self) -> None:
        """The next look is a first one."""

    def collect(self) -> Look:
        """One look; never raises for what the machine does."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What has become of the metrics since the start, and what the last look left out or could not read."""

    sent: int = 0
    lost: int = 0
    status: int | None = None
    left_out: Mapping[str, int] | None = None
    faults: Mapping[str, str] | None = None


class HostMetrics:
    """See the module. `host` is the label that names this machine; `wake` ends the pause of the worker that steps."""

    def __init__(
        self,
        send: Callable[[bytes], int],
        collectors: Sequence[Collector],
        clock: Clock,
        *,
        allowed: bool,
        host: str,
        metrics: SelfMetrics | None = None,
        wake: Callable[[], object] = lambda: None,
    ) -> None:
        self._send = send
        self._collectors = collectors
        self._clock = clock
        self._allowed = allowed
        self._host = host
        self._metrics = metrics
        self.wake = wake
        self._lighthouse_id = ""
        self._heard: tuple[bool, float | None] | None = None
        self._plan: float | None = None  # the interval that is wanted
        self._changes = self._followed = 0
        self._grid: Grid | None = None
        self._rest_until = 0.0
        self._failures = 0
        self._most = FIGURES_MAX
        self._warn = Throttle(clock, WARN)
        self._warn_section = Throttle(clock, WARN_SECTION)
        self.tally = Tally()

    @property
    def interval(self) -> float | None:
        """Seconds between two looks; None while nothing is collected."""
        return self._plan

    def registered(self, lighthouse_id: str, order: Order | None) -> None:
        """The console has answered a registration: without an order its plan has no metrics."""
        self._lighthouse_id = lighthouse_id
        if order is not None:
            self.orders(order)
            return
        if self._allowed:
            log.info("The console's plan has no host metrics; none are collected")
        self._heard = None
        self._follow(None)

    def orders(self, order: Order | None) -> None:
        """The console has answered a heartbeat: without an order everything stays as it is."""
        if order is None:
            return
        heard = (order.enabled, order.interval)
        if heard == self._heard:
            return
        self._heard = heard
        self._say(order)
        self._follow(interval_of(order) if order.enabled and self._allowed else None)

    def step(self) -> float:
        """Looks and sends when it is time; returns the seconds until the next turn."""
        if self._followed != self._changes:
            self._begin()
        now = self._clock.monotonic()
        if self._grid is None:
            return IDLE
        if self._grid.is_due(now):
            if now >= self._rest_until:
                self._emit()
                now = self._clock.monotonic()
            self._grid.advance(now)
        return max(0.0, self._grid.due - now)

    def _follow(self, plan: float | None) -> None:
        if plan == self._plan:
            return
        self._plan = plan
        self._changes += 1
        self.wake()

    def _begin(self) -> None:
        """After a change: afresh, and at once."""
        self._followed, plan = self._changes, self._plan
        self._grid = Grid(self._clock.monotonic(), plan) if plan is not None else None
        self._rest_until, self._failures, self._most = 0.0, 0, FIGURES_MAX
        for collector in self._collectors:
            collector.restart()

    def _say(self, order: Order) -> None:
        if not order.enabled:
            why = "pauses" if (order.interval or 0) > 0 else "has no plan for"
            log.info("The console %s host metrics; none are collected", why)
        elif not self._allowed:
            log.info("The console asks for host metrics; none leave unless LIGHTHOUSE_HOST_METRICS=true is set here")
        else:
            log.info("Host metrics are sent every %.0f s", interval_of(order))

    def _emit(self) -> None:
        at = self._clock.now()
        figures, left_out, faults = list[Figure](), dict[str, int](), dict[str, str]()
        for collector in self._collectors:
            look = collector.collect()
            figures += [each for each in look.figures if each.name in collector.names and math.isfinite(each.value)]
            left_out.update(look.left_out)
            faults.update(look.faults)
        self._found(left_out, faults)
        self._deliver(figures, at)

    def _found(self, left_out: Mapping[str, int], faults: Mapping[str, str]) -> None:
        self.tally = replace(self.tally, left_out=left_out, faults=faults)
        if self._metrics:
            for kind, n in left_out.items():
                self._metrics.host_metrics_left_out.labels(kind).set(n)
        for section, text in faults.items():
            if self._warn_section.ready(section):
                log.warning("Host metrics lack the section %s: %s", section, text)

    def _deliver(self, figures: Sequence[Figure], at: float) -> None:
        """In one request, or in several where the console finds it too large; what it does not take is lost."""
        left = list(figures)
        while left and self._followed == self._changes:
            part = left[: self._most]
            status = self._post(part, at)
            if status == 413 and len(part) > 1:
                self._most = len(part) // 2
                continue
            if status not in TAKEN:
                self._refused(status, len(left))
                return
            del left[: len(part)]
            self._count(status, sent=len(part))
        self._failures = 0
        self._warn.reset()

    def _post(self, figures: Sequence[Figure], at: float) -> int:
        if log.isEnabledFor(logging.DEBUG):
            log.debug("Host metrics that are sent now: %s", "; ".join(map(text_of, figures)))
        return self._send(body(figures, at, {"lighthouse_id": self._lighthouse_id, "host": self._host}))

    def _refused(self, status: int, n: int) -> None:
        """After an answer that asks for patience, turns are left out: ever more of them, at most 5 minutes."""
        self._count(status, lost=n)
        self._failures += 1
        if status in (429, 503):
            rest = min(LONGEST_REST, (self._plan or FALLBACK) * 2.0 ** min(self._failures, 10))
            self._rest_until = self._clock.monotonic() + rest
        if self._warn.ready():
            log.warning("The console does not take host metrics (status %d); %d figures are lost", status, n)

    def _count(self, status: int, *, sent: int = 0, lost: int = 0) -> None:
        self.tally = replace(self.tally, sent=self.tally.sent + sent, lost=self.tally.lost + lost, status=status)
        if self._metrics:
            self._metrics.host_metrics.inc(sent)
            self._metrics.host_metrics_lost.inc(lost)


def collectors(clock: Clock, places: Places, *, role: str, in_cluster: bool, api: Api | None = None) -> list[Collector]:
    """What an agent looks at: its machine, or as the central pod of a cluster the cluster, where its API is known.

    Imported here, because few agents look at either.
    """
    if role == HOST_ROLE or not in_cluster:
        from observer_agent.lighthouse.hostfiles import HostFiles

        return [HostFiles(clock, places)]
    if not api:
        return []
    from observer_agent.lighthouse.clusterstats import ClusterStats

    return [ClusterStats(api, clock)]


def interval_of(order: Order) -> float:
    """Seconds between two looks, from 5 to a day; 30 where the console names none."""
    wanted = order.interval or 0.0
    return min(max(wanted, LEAST), MOST) if wanted > 0 else FALLBACK


def text_of(figure: Figure) -> str:
    """A figure as a person reads it: `name{label="value"} number`."""
    labels = ",".join(f'{name}="{value}"' for name, value in figure.labels)
    return f"{figure.name}{{{labels}}} {figure.value:g}" if labels else f"{figure.name} {figure.value:g}"
