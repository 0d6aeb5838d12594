"""What the agent counts of its probes: runs, slots that were lost and why, and whether it has too much to do.

Collectors report from their threads; the local page and `status` read.
"""

from __future__ import annotations

import logging
import threading
from collections import deque

from observer_agent.clock import Clock
from observer_agent.collector import Listener
from observer_agent.logs import Throttle
from observer_agent.model import Definition, Reading
from observer_agent.selfmetrics import SelfMetrics

log = logging.getLogger(__name__)

WINDOW, BUCKET = 60.0, 5.0
WARN = 300.0


class _Kind:
    """What is counted of one source type. Its counters are looked up once: a look-up costs more than the count."""

    def __init__(self, metrics: SelfMetrics, kind: str) -> None:
        self.ran = metrics.probes.labels(kind).inc
        self.late = metrics.probes_late.labels(kind).inc
        self.lateness = 0.0
        metrics.probe_lateness.labels(kind).set_function(lambda: self.lateness)
        self.skipped = metrics.probes_skipped.labels(kind).inc


class Tally(Listener):
    """See the module. `active` holds the source types that have run since the start."""

    def __init__(self, metrics: SelfMetrics, clock: Clock) -> None:
        self._metrics = metrics
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: deque[list[float]] = deque()  # [begin, runs, starved]
        self._warn = Throttle(clock, WARN)
        self._kinds: dict[str, _Kind] = {}
        self.active: set[str] = set()

    def ran(self, definition: Definition, reading: Reading, late: float, in_time: bool) -> None:
        """A look has ended; it began `late` seconds after its moment."""
        if definition.problem:
            return
        name = definition.source_type
        kind = self._kind(name)
        self.active.add(name)
        kind.ran()
        kind.lateness = late
        if not in_time:
            kind.late()
        if reading.reason:
            self._metrics.probes_failed.labels(name, reading.reason).inc()
        self._note(1)

    def skipped(self, definition: Definition, slots: int, starved: bool) -> None:
        """Slots went by without a run: for want of a thread (`starved`), or because the run before was still going."""
        self._kind(definition.source_type).skipped(slots)
        if starved:
            self._note(0, slots)
            if self._warn.ready("overload"):  # first: to sum up costs more than the rest
                text = self.overload()
                log.warning("The agent cannot keep up: %s. Longer intervals, fewer definitions or more CPU help", text)

    def missed(self, definition: Definition, slots: int) -> None:
        """Slots went by while nothing ran at all."""
        self._metrics.probes_missed.labels(definition.source_type).inc(slots)

    def stood(self, seconds: float) -> None:
        """Nothing ran for a while."""
        if self._warn.ready("stood"):
            log.warning("Nothing was probed for %.0f s: the machine slept, or the agent was not let run", seconds)

    def overload(self) -> str | None:
        """That slots found no free thread in the last minute, in a few words; None where all did."""
        with self._lock:
            self._forget(self._clock.monotonic())
            runs, starved = (int(sum(bucket[at] for bucket in self._buckets)) for at in (1, 2))
        return f"{starved:,} of {runs + starved:,} probes of the last minute could not begin" if starved else None

    def _kind(self, name: str) -> _Kind:
        kind = self._kinds.get(name)
        if kind is None:
            kind = self._kinds[name] = _Kind(self._metrics, name)
        return kind

    def _note(self, runs: int, starved: int = 0) -> None:
        now = self._clock.monotonic()
        with self._lock:
            bucket = self._buckets[-1] if self._buckets else None
            if bucket is None or now - bucket[0] >= BUCKET:
                self._forget(now)
                bucket = [now, 0, 0]
                self._buckets.append(bucket)
            bucket[1] += runs
            bucket[2] += starved

    def _forget(self, now: float) -> None:
        while self._buckets and now - self._buckets[0][0] >= WINDOW:
            self._buckets.popleft()
