"""What is kept of each transition: why a status changed, for `observer-agent why`. None of it ever leaves.

Probe threads offer transitions, which costs them a moment and never waits; the thread `evidence` makes them plain,
redacts them and writes them to the ring (evidencefile.py). Nothing here may disturb probing: what cannot be kept is
dropped and counted, and the log says so once an hour.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from observer_agent.clock import Clock, iso
from observer_agent.errors import Damaged, QueueError
from observer_agent.evidencefile import Record, Ring, move_aside
from observer_agent.logs import Throttle
from observer_agent.model import Definition, Past, Status, Thresholds, Transition
from observer_agent.probes import facts, shown
from observer_agent.worker import Step, Thread

log = logging.getLogger(__name__)

WAITING_MAX = 1_000
BATCH = 100
HOUR = 3600.0
ENTRIES = 32  # of one map or list
DEPTH = 5
LARGEST = 16_384  # characters of a row

Redact = Callable[[str], str]


class Evidence:
    """See the module. `on_drop` is told why how many transitions were not kept; `wake` ends the worker's pause."""

    def __init__(
        self,
        file: Path,
        clock: Clock,
        redact: Redact,
        on_drop: Callable[[str, int], object] = lambda reason, n: None,
        *,
        open_ring: Callable[[Path], Ring] = Ring,
    ) -> None:
        self.file = file
        self.wake: Callable[[], object] = lambda: None
        self._clock = clock
        self._redact = redact
        self._on_drop = on_drop
        self._open_ring = open_ring
        self._lock = threading.Lock()
        self._waiting: deque[Transition] = deque()
        self._last: dict[str, str] = {}  # the status of each metric that is known already
        self._titles: dict[str, str] | None = None
        self._kept_at: float | None = None  # when the file was last told of the titles
        self._ring: Ring | None = None
        self._given_up = False
        self._warn = Throttle(clock, HOUR)

    # -- what other threads call

    def open(self) -> None:
        """Opens the file before anything is probed: what it holds of the last start is no transition now."""
        try:
            self._last = self._opened().last_statuses()
        except Damaged as error:
            self._renew(error)
        except QueueError as error:
            self._complain(error)

    def offer(self, transition: Transition) -> None:
        """Takes a transition, the first verdict of a metric only if it is news. Never waits for the disk."""
        metric_id, status = transition.definition.id, transition.verdict.status
        known = self._last.get(metric_id, Status.HEALTHY)
        if transition.before is None and known == status:
            return
        with self._lock:
            full = self._given_up or len(self._waiting) >= WAITING_MAX
            if not full:
                self._waiting.append(transition)
        if full:
            self._drop("overload", 1)
            return
        self.wake()

    def keep(self, definitions: Iterable[Definition]) -> None:
        """These are all the definitions there are."""
        titles = {each.id: each.title for each in definitions}
        if titles != self._titles:
            self._titles, self._kept_at = titles, None
            self.wake()

    # -- the turn

    def step(self) -> float:
        """Writes what waits; the worker repeats it."""
        while batch := self._take():
            self._write([self._record(each) for each in batch])
        self._tell()
        return HOUR

    def close(self) -> None:
        """Writes what still waits and closes the file; the worker has ended."""
        if self._given_up:
            return
        self.step()
        self._let_go()

    def give_up(self, hung: Thread) -> Step:
        """The thread hangs in the disk: evidence is dropped until the next start."""
        self._given_up = True
        log.warning("The file of evidence %s hangs; what changes is not kept until the next start", self.file)
        return self._discard

    def _discard(self) -> float:
        if batch := self._take():
            self._drop("disk", len(batch))
            return 0.0
        return HOUR

    def _take(self) -> list[Transition]:
        with self._lock:
            return [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]

    def _write(self, records: list[Record]) -> None:
        try:
            try:
                self._opened().add(records)
            except Damaged as error:
                self._renew(error)
                self._opened().add(records)
        except QueueError as error:
            self._drop("disk", len(records))
            self._complain(error)

    def _tell(self) -> None:
        """Tells the file which metrics there are, each hour anew: time passes for those that are gone."""
        now = self._clock.monotonic()
        if self._titles is None or (self._kept_at is not None and now - self._kept_at < HOUR):
            return
        self._kept_at = now
        titles = {metric_id: shown(title, self._redact) for metric_id, title in self._titles.items()}
        try:
            try:
                self._opened().keep(titles, self._clock.now())
            except Damaged as error:
                self._renew(error)
        except QueueError as error:
            self._complain(error)

    # -- the file

    def _opened(self) -> Ring:
        if self._ring is None:
            self._ring = self._open_ring(self.file)
        return self._ring

    def _let_go(self) -> None:
        ring, self._ring = self._ring, None
        if ring:
            ring.close()

    def _renew(self, error: Damaged) -> None:
        """Moves a file aside that is of no use; the next write begins a new one."""
        self._let_go()
        try:
            aside = move_aside(self.file, self._clock.now())
        except QueueError as problem:
            self._complain(problem)
            return
        log.warning("The file of evidence cannot be used (%s). It was moved to %s; a new one is begun", error, aside)

    def _complain(self, error: QueueError) -> None:
        self._let_go()
        if self._warn.ready():
            log.warning("Evidence of changes is not kept (%s); probes and verdicts are as they should be", error)

    def _drop(self, reason: str, count: int) -> None:
        self._on_drop(reason, count)
        if reason == "overload" and self._warn.ready(reason):
            log.warning("More statuses change than can be written down; evidence of some is not kept")

    # -- the record

    def _record(self, transition: Transition) -> Record:
        definition, status = transition.definition, transition.verdict.status
        before = transition.before or self._last.get(definition.id)
        self._last[definition.id] = status
        told = told_of(transition, before, self._redact)
        data = json.dumps(told)
        if len(data) > LARGEST:
            data = json.dumps({**told, "detail": {"cut": True}})
        title, source_type = (shown(text, self._redact) for text in (definition.title, definition.source_type))
        return Record(definition.id, title, source_type, status, data)


def told_of(transition: Transition, before: str | None, redact: Redact) -> dict[str, Any]:
    """A transition as plain data without secrets; docs/evidence.md names every field."""
    definition, reading, verdict = transition.definition, transition.reading, transition.verdict
    return {
        "at": iso(transition.at),
        "before": before,
        "status": verdict.status,
        "value": _finite(reading.value),
        "reason": reading.reason or verdict.reason,
        "fault": reading.fault,
        "duration_ms": reading.duration_ms,
        "interval_seconds": definition.interval,
        "thresholds": _rules(definition.thresholds),
        "phases": dict(reading.phases),
        "address": reading.address or None,
        "detail": _plain(reading.detail, redact),
        **_plain(facts(reading.evidence, redact), redact),
        "readings_before": [_short(each) for each in transition.past],
    }


def _short(past: Past) -> dict[str, Any]:
    return {**past._asdict(), "at": iso(past.at), "value": _finite(past.value)}


def _rules(rules: Thresholds | None) -> dict[str, str] | None:
    if rules is None:
        return None
    return {
        "healthy": f"{rules.healthy_operation} {rules.healthy_value:.10g}",
        "unhealthy": f"{rules.unhealthy_operation} {rules.unhealthy_value:.10g}",
    }


def _finite(value: float | None) -> float | None:
    """JSON has no word for the others."""
    return value if value is not None and math.isfinite(value) else None


def _plain(value: Any, redact: Redact, depth: int = DEPTH) -> Any:
    """Whatever a probe has put into a reading, as JSON without secrets."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return _finite(value)
    if isinstance(value, Mapping) and depth:
        pairs = list(value.items())[:ENTRIES]
        return {shown(str(name), redact): _plain(each, redact, depth - 1) for name, each in pairs}
    if isinstance(value, list | tuple) and depth:
        return [_plain(each, redact, depth - 1) for each in value[:ENTRIES]]
    return shown(str(value), redact)
