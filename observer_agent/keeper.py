"""Lets verdicts gather on their way into the queue file, and keeps the newest of each metric while the file takes none.

Collectors put through `Keeper.put`, which never raises for the file's sake; `step` runs on the thread `keep`. A change
of a status goes into the file at once, and with it all that has gathered, in order. A verdict that repeats its metric's
last one waits until the thread `keep` comes by, which rests between two turns: many share a transaction then. A verdict
that a newer one of its metric replaces while the file takes none is lost as `disk_full`: it is declared in the account
when the file takes rows again, with row ids of its own, so that given = accepted + pending + lost still holds.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from observer_agent.clock import Clock
from observer_agent.errors import QueueError
from observer_agent.logs import Throttle
from observer_agent.model import Sample, Status

log = logging.getLogger(__name__)

AGAIN = 2.0
IDLE = 60.0
WARN = 60.0
GATHER_MAX = 500  # verdicts that gather; who brings the last one takes them to the file
KNOWN_MAX = 20_000


class Queue(Protocol):
    """What the keeper asks of the queue."""

    def put(self, samples: Sequence[Sample], missed: int = 0) -> int:
        """Stores samples, and declares `missed` others as lost; raises QueueError."""


class Keeper:
    """Stands between collectors and queue; any thread may put.

    `wake` ends the pause of the thread `keep`. Verdicts gather only while it is set; `close` unsets it.
    """

    def __init__(self, queue: Queue, clock: Clock) -> None:
        self.wake: Callable[[], object] | None = None
        self._queue = queue
        self._lock = threading.Lock()
        self._door = threading.Lock()  # one at a time takes to the file what has gathered: nothing overtakes
        self._gathered: list[Sample] = []
        self._said: dict[str, Status] = {}  # each metric's last status
        self._kept: dict[str, Sample] = {}
        self._missed = 0
        self._clock = clock
        self._not_before = 0.0
        self._warn = Throttle(clock, WARN)

    def put(self, samples: Sequence[Sample]) -> int:
        """Queues samples, or keeps them, or lets them gather; returns how many rows were dropped to make room."""
        with self._lock:
            if self._kept:
                self._all_gathered()
                self._keep(samples)
                return 0
            wake, first = self.wake, not self._gathered
            if wake:
                self._gathered += samples
                news = self._is_news(samples) or len(self._gathered) >= GATHER_MAX
        if not wake:
            return self._put(samples)  # threads that put together share a transaction
        if news:
            return self._flush()
        if first:
            wake()
        return 0

    def step(self) -> float:
        """Takes to the file what has gathered, and tries again what is kept; returns the seconds until the next try."""
        self._flush()
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

    def close(self) -> None:
        """Takes everything to the file; what is put from now on goes there by itself."""
        with self._door, self._lock:
            self.wake = None
            batch = self._all_gathered()
            if batch and self._store(batch) is None:
                self._keep(batch)
        self.step()

    def waiting(self) -> tuple[int, int]:
        """How many verdicts the file has not taken, and how many of those were replaced by newer ones meanwhile."""
        return len(self._kept), self._missed

    def _flush(self) -> int:
        with self._door:
            with self._lock:
                batch = self._all_gathered()
            return self._put(batch) if batch else 0

    def _all_gathered(self) -> list[Sample]:
        """Takes what has gathered; while older ones are kept it joins those."""
        batch, self._gathered = self._gathered, []
        if not self._kept:
            return batch
        self._keep(batch)
        return []

    def _put(self, samples: Sequence[Sample]) -> int:
        dropped = self._store(samples)
        if dropped is not None:
            return dropped
        with self._lock:
            self._keep(samples)
            wake = self.wake
        if wake:
            wake()
        return 0

    def _store(self, samples: Sequence[Sample]) -> int | None:
        """Rows dropped to make room; None where the file does not take them."""
        try:
            return self._queue.put(samples)
        except QueueError as error:
            self._complain(error)
            return None

    def _is_news(self, samples: Sequence[Sample]) -> bool:
        """Whether one of these says something else than its metric said last, or the metric was not known."""
        said = self._said
        if len(said) > KNOWN_MAX:
            said.clear()  # metrics that are gone, mostly
        news = [each for each in samples if said.get(each.metric_id) is not each.status]
        said.update((each.metric_id, each.status) for each in news)
        return bool(news)

    def _keep(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            if self._kept.pop(sample.metric_id, None):
                self._missed += 1
            self._kept[sample.metric_id] = sample

    def _complain(self, error: QueueError) -> None:
        if self._warn.ready():
            log.error("Verdicts cannot be queued (%s); the newest of each metric is kept in memory", error)
