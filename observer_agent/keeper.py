"""Keeps the newest verdict of each metric in memory while the queue file takes none, and queues them when it does.

Collectors put through `Keeper.put`, which never raises for the file's sake; `step` runs on the thread `keep`. A verdict
that a newer one of its metric replaces is lost as `disk_full`: it is declared in the account when the file takes rows
again, with row ids of its own, so that given = accepted + pending + lost still holds.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from observer_agent.clock import Clock
from observer_agent.errors import QueueError
from observer_agent.logs import Throttle
from observer_agent.model import Sample

log = logging.getLogger(__name__)

AGAIN = 2.0
IDLE = 60.0
WARN = 60.0


class Queue(Protocol):
    """What the keeper asks of the queue."""

    def put(self, samples: Sequence[Sample], missed: int = 0) -> int:
        """Stores samples, and declares `missed` others as lost; raises QueueError."""


class Keeper:
    """Stands between collectors and queue; any thread may put."""

    def __init__(self, queue: Queue, clock: Clock) -> None:
        self._queue = queue
        self._lock = threading.Lock()
        self._kept: dict[str, Sample] = {}
        self._missed = 0
        self._clock = clock
        self._not_before = 0.0
        self._warn = Throttle(clock, WARN)
        self.wake: Callable[[], object] = lambda: None

    def put(self, samples: Sequence[Sample]) -> int:
        """Queues samples, or keeps them; returns how many rows the queue dropped to make room."""
        if not self._kept:  # the usual case takes no lock: threads that put together share a transaction
            try:
                return self._queue.put(samples)
            except QueueError as error:
                self._complain(error)
        with self._lock:
            self._keep(samples)
        self.wake()
        return 0

    def step(self) -> float:
        """Tries again what is kept; returns the seconds until the next try."""
        with self._lock:
            if not self._kept:
                return IDLE
            left = self._not_before - self._clock.monotonic()
            if left > 0:
                return left
            try:
                self._queue.put(list(self._kept.values()), self._missed)
            except QueueError as error:
                self._complain(error)
                self._not_before = self._clock.monotonic() + AGAIN
                return AGAIN
            log.info("The queue file takes rows again; %d verdicts had waited, %d are lost", *self.waiting())
            self._kept.clear()
            self._missed = 0
        return IDLE

    def waiting(self) -> tuple[int, int]:
        """How many verdicts wait in memory, and how many were replaced by newer ones meanwhile."""
        return len(self._kept), self._missed

    def _keep(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            if self._kept.pop(sample.metric_id, None):
                self._missed += 1
            self._kept[sample.metric_id] = sample

    def _complain(self, error: QueueError) -> None:
        if self._warn.ready():
            log.error("Verdicts cannot be queued (%s); the newest of each metric is kept in memory", error)
