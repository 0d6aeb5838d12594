"""The collector of one source type: a heap of due jobs, worked off by a pool of threads.

Every thread of the pool repeats `step`. One of them, the leader, sleeps until the next job is due, takes it and hands
the lead to the next thread, so there is no scheduler thread and no hand-over. A job is taken off the heap while it
runs: one run per definition at a time. Readings are judged here and, where they matter, put into the queue.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from observer_agent.clock import Clock, iso
from observer_agent.errors import QueueError
from observer_agent.logs import Throttle
from observer_agent.model import Definition, Reading, Sample, Status, Verdict
from observer_agent.verdict import Grid, first_delay, judge
from observer_agent.worker import Thread

log = logging.getLogger(__name__)

POOL_MAX = 32
LONGEST_SLEEP = 3600.0
WARN = 60.0

Look = Callable[[Definition], Reading]
Put = Callable[[Sequence[Sample]], object]


@dataclass(frozen=True)
class Stuck:
    """A look that hangs: while its thread lives, `reading` is what is known, and there is no other look."""

    thread: Thread
    reading: Reading


class Job:
    """One definition's schedule and memory; touched only by the thread that has taken it from the heap."""

    def __init__(self, definition: Definition, now: float) -> None:
        self.definition = definition
        first = now + first_delay(definition.id)
        self.poll = Grid(first, definition.interval)
        self.push = Grid(first + definition.push_interval, definition.push_interval)
        self.pushed: Status | None = None
        self.verdict: Verdict | None = None
        self.reading: Reading | None = None
        self.read_at = 0.0
        self.stamp = ""
        self.unused = False  # the last reading has not become a row yet
        self.cancelled = False
        self.running = False
        self.successor: Job | None = None  # waits for this one's run to end
        self.stuck: Stuck | None = None  # a look at this definition that has never ended

    @property
    def due(self) -> float:
        """The moment of the next run, on the monotonic clock."""
        return min(self.poll.due, self.push.due)

    def reusable(self, now: float) -> bool:
        """Whether a forced push alone is due and may use the last reading: young, and not a row already."""
        youth = min(self.definition.interval, self.definition.push_interval) / 2
        return self.unused and not self.poll.is_due(now) and now - self.read_at < youth

    def advance(self, now: float) -> int:
        """Moves what was due on; returns the polls that were skipped."""
        skipped = self.poll.advance(now) if self.poll.is_due(now) else 0
        if self.push.is_due(now):
            self.push.advance(now)
        return skipped


@dataclass(frozen=True)
class Listener:
    """Who hears of runs: counters of the agent."""

    ran: Callable[[Definition, Reading, float], object] = lambda definition, reading, late: None
    skipped: Callable[[Definition, int], object] = lambda definition, n: None


class Collector:
    """See the module. `grow` is asked for another thread when all are busy; it may refuse."""

    def __init__(
        self,
        look: Look,
        put: Put,
        clock: Clock,
        *,
        on_target_fault: Status = Status.NO_DATA,
        grow: Callable[[], bool] = lambda: False,
        listener: Listener | None = None,
    ) -> None:
        self._look = look
        self._put = put
        self._clock = clock
        self.on_target_fault = on_target_fault
        self._grow = grow
        self._listener = listener or Listener()
        self._leader = threading.Lock()
        self._lock = threading.Lock()
        self._alarm = clock.alarm()
        self._heap: list[tuple[float, int, Job]] = []
        self._jobs: dict[str, Job] = {}
        self._order = itertools.count()
        self._runs: dict[Thread, Job] = {}
        self._idle = 0
        self._stopping = False
        self._warn = Throttle(clock, WARN)

    # -- what other threads call

    def apply(self, definitions: Iterable[Definition]) -> tuple[int, int, int]:
        """The definitions of this source type as they are now; returns how many were added, changed, removed.

        A changed definition starts afresh, an unchanged one keeps its phase and its last status, a vanished one stops.
        """
        wanted = {definition.id: definition for definition in definitions}
        now = self._clock.monotonic()
        with self._lock:
            gone = [i for i in self._jobs if i not in wanted]
            changed = [
                i
                for i, job in self._jobs.items()
                if i in wanted and job.definition.fingerprint != wanted[i].fingerprint
            ]
            added = [i for i in wanted if i not in self._jobs]
            old = {metric_id: self._jobs.pop(metric_id) for metric_id in gone + changed}
            for job in old.values():
                job.cancelled = True
            for metric_id in changed + added:
                job = self._jobs[metric_id] = Job(wanted[metric_id], now)
                before = old.get(metric_id)
                if before and before.running:
                    before.successor = job
                else:
                    self._push(job)
            self._heap = [entry for entry in self._heap if not entry[2].cancelled]
            heapq.heapify(self._heap)
        self._alarm.ring()
        return len(added), len(changed), len(gone)

    def give_up(self, thread: Thread, reading: Reading) -> None:
        """Lets the run go that hangs on `thread`: its job gets `reading`, and goes on without it."""
        with self._lock:
            job = self._runs.pop(thread, None)
            if job is None:
                return
            fresh = job.successor if job.cancelled else copy.copy(job)
            job.cancelled = True
            if fresh is None or fresh.cancelled:
                return
            if fresh is not job.successor:
                fresh.running, fresh.stuck = False, Stuck(thread, reading)
                self._jobs[job.definition.id] = fresh
            self._push(fresh)

    def stop(self) -> None:
        """Ends the leader's sleep for good."""
        self._stopping = True
        self._alarm.ring()

    def jobs(self) -> list[Job]:
        """The jobs, for showing: read only."""
        with self._lock:
            return list(self._jobs.values())

    # -- the turn

    def step(self, idle: Callable[[], AbstractContextManager[None]] = nullcontext) -> float:
        """Waits for the next due job, which is rest and happens inside `idle`, and runs it."""
        with idle():
            job, alone = self._take()
        if job is None:
            return 1.0
        if alone:
            self._grow()
        me = threading.current_thread()
        self._runs[me] = job
        try:
            self._run(job, me)
        finally:
            with self._lock:
                if self._runs.pop(me, None):  # else it was given up meanwhile, and another thread goes on
                    job.running = False
                    following = job.successor if job.cancelled else job
                    if following and not following.cancelled:
                        self._push(following)
        return 0.0

    def _take(self) -> tuple[Job | None, bool]:
        """The next due job, and whether all threads are busy now."""
        with self._lock:
            self._idle += 1
        with self._leader:
            job = self._next()
        with self._lock:
            self._idle -= 1
            return job, self._idle == 0

    def _next(self) -> Job | None:
        """The leader's sleep; None when the collector stops."""
        while not self._stopping:
            with self._lock:
                now = self._clock.monotonic()
                wait = self._heap[0][0] - now if self._heap else LONGEST_SLEEP
                if wait <= 0:
                    job = heapq.heappop(self._heap)[2]
                    job.running = True
                    return job
            self._alarm.wait(min(wait, LONGEST_SLEEP))
        return None

    def _push(self, job: Job) -> None:
        heapq.heappush(self._heap, (job.due, next(self._order), job))
        if self._heap[0][2] is job:
            self._alarm.ring()

    def _run(self, job: Job, me: Thread) -> None:
        now = self._clock.monotonic()
        try:
            if not job.reusable(now):
                self._read(job, late=max(0.0, now - job.due), me=me)
            now = self._clock.monotonic()
            verdict = job.verdict
            if verdict and not job.cancelled and (verdict.status != job.pushed or job.push.is_due(now)):
                self._emit(job, verdict)
        finally:
            if me in self._runs:
                skipped = job.advance(self._clock.monotonic())
                if skipped:
                    self._listener.skipped(job.definition, skipped)

    def _read(self, job: Job, late: float, me: Thread) -> None:
        reading = self._look_at(job)
        if me not in self._runs:
            return  # given up while it hung
        job.read_at, job.stamp = self._clock.monotonic(), iso(self._clock.now())
        before, job.reading = job.reading, reading
        job.verdict = judge(reading, job.definition.thresholds, self.on_target_fault)
        job.unused = True
        self._listener.ran(job.definition, reading, late)
        if reading.reason and (before is None or before.reason != reading.reason):
            log.info("Metric %s (%s) gives no value: %s", job.definition.id, job.definition.source_type, _why(reading))

    def _look_at(self, job: Job) -> Reading:
        if job.stuck and job.stuck.thread.is_alive():
            return job.stuck.reading
        job.stuck = None
        return self._look(job.definition)

    def _emit(self, job: Job, verdict: Verdict) -> None:
        sample = Sample(job.definition.id, verdict.value, job.stamp, verdict.status, verdict.reason)
        try:
            self._put((sample,))
        except QueueError as error:
            if self._warn.ready():
                log.error("A verdict could not be queued (%s); it is tried again at the next probe", error)
            job.pushed = None  # whatever the next verdict is, it is pushed
            return
        job.pushed, job.unused = verdict.status, False


def _why(reading: Reading) -> str:
    error: Any = reading.detail.get("error")
    return f"{reading.reason} ({error})" if error else str(reading.reason)
