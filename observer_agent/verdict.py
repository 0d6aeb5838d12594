"""Judging. Pure: a reading and thresholds in, a verdict out; and the grid of moments at which a job is due.

Rules: docs/wire.md, "Verdicts". A value exactly on an `over` or `under` threshold does not match.
"""

from __future__ import annotations

import math
import zlib

from observer_agent.model import Fault, Operation, Reading, Status, Thresholds, Verdict

FIRST_DELAY = 0.5
FIRST_SPREAD_MS = 7500
TOGETHER = 0.001  # seconds within which two due moments are one


def judge(reading: Reading, thresholds: Thresholds | None, on_target_fault: Status = Status.NO_DATA) -> Verdict:
    """The verdict of a reading.

    `on_target_fault` is the operator's PROBE_FAILURE_STATUS: with `unhealthy`, a fault of the target is pushed as
    unhealthy with value 0 and no reason.
    """
    if reading.value is None or thresholds is None:
        if on_target_fault is not Status.NO_DATA and reading.fault is Fault.TARGET:
            return Verdict(on_target_fault, 0, None)
        return Verdict(Status.NO_DATA, 0, reading.reason or "no_data")
    if not math.isfinite(reading.value):
        return Verdict(Status.NO_DATA, 0, "non_finite_value")
    if matches(thresholds.healthy_operation, reading.value, thresholds.healthy_value):
        return Verdict(Status.HEALTHY, reading.value, None)
    if matches(thresholds.unhealthy_operation, reading.value, thresholds.unhealthy_value):
        return Verdict(Status.UNHEALTHY, reading.value, None)
    return Verdict(Status.DEGRADED, reading.value, None)


def matches(operation: Operation, value: float, threshold: float) -> bool:
    """Whether `value` fulfils a rule; strict, exact for `equal`."""
    if operation is Operation.OVER:
        return value > threshold
    if operation is Operation.UNDER:
        return value < threshold
    return value == threshold


def first_delay(metric_id: str) -> float:
    """Seconds from learning a definition to its first probe: 0.5 plus a stable spread of up to 7.5."""
    return FIRST_DELAY + zlib.crc32(metric_id.encode()) % FIRST_SPREAD_MS / 1000


class Grid:
    """Moments `start + n * interval` on the monotonic clock; missed ones are skipped, the phase never drifts."""

    def __init__(self, start: float, interval: float) -> None:
        self.start = start
        self.interval = interval
        self.due = start
        self._n = 0

    def is_due(self, now: float) -> bool:
        """Whether the next moment has come, or is so near that it counts as now."""
        return self.due <= now + TOGETHER

    def reach(self, now: float) -> int:
        """Moves on to the last moment that is due; returns how many passed before it."""
        if now + TOGETHER < self.due + self.interval:
            return 0
        n = max(self._n, math.floor((now + TOGETHER - self.start) / self.interval))
        passed = n - self._n
        self._n = n
        self.due = self.start + n * self.interval
        return passed

    def shift(self, seconds: float) -> None:
        """Moves the whole grid."""
        self.start += seconds
        self.due = self.start + self._n * self.interval

    def defer(self, until: float) -> None:
        """Lets a moment that has passed count as `until`; the phase stays."""
        self.due = max(self.due, until)

    def advance(self, now: float) -> int:
        """Moves on to the first moment after `now`; returns how many were skipped between."""
        n = max(self._n + 1, math.floor((now + TOGETHER - self.start) / self.interval) + 1)
        skipped = n - self._n - 1
        self._n = n
        self.due = self.start + n * self.interval
        return skipped
