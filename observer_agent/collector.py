"""The collector of one source type: a heap of due jobs, worked off by a pool of threads.

Every thread of the pool repeats `step`. One of them, the leader, sleeps until the next job is due, takes it and passes
the lead on (lead.py), so there is no scheduler thread and no hand-over. A job is taken off the heap while it runs: one
run per definition at a time. Readings are judged here and, where they matter, put into the queue.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from observer_agent.bursts import Bursts
from observer_agent.clock import Clock
from observer_agent.errors import QueueError
from observer_agent.job import Job, Stuck
from observer_agent.lead import Lead
from observer_agent.logs import Throttle
from observer_agent.model import Definition, Reading, Sample, Status, Transition, Verdict
from observer_agent.verdict import TOGETHER, judge
from observer_agent.worker import Thread

log = logging.getLogger(__name__)

POOL_MAX = 32
SLOW_MAX = POOL_MAX * 3 // 4  # threads that slow definitions may hold; the others are for those that answer
SLOW_MS = 1000.0
LONGEST_SLEEP = 3600.0
# From one waking to the next, at least: this share of the shortest interval, and at most so many seconds. To wake costs
# more than a quick look, and a cold look twice as much as one that follows another.
BREATH_SHARE, BREATH_MOST = 0.08, 0.1
BURST = 0.05  # seconds after which another burst may have its turn
STILL = 2.0  # a wait that lasts this much longer than it should is no lateness, but a standstill
WARN = 60.0

Look = Callable[[Definition], Reading]
Put = Callable[[Sequence[Sample]], object]
OnTransition = Callable[[Transition], object]


class Listener:
    """Who hears of runs, from the threads of the pool; this one does nothing."""

    def ran(self, definition: Definition, reading: Reading, late: float, in_time: bool) -> None:
        """A look has ended that began `late` seconds after its moment."""

    def skipped(self, definition: Definition, slots: int, starved: bool) -> None:
        """Slots went by: no thread was free (`starved`), or the run before was still going."""

    def missed(self, definition: Definition, slots: int) -> None:
        """Slots went by while nothing ran at all."""

    def stood(self, seconds: float) -> None:
        """Nothing ran at all for this long."""


class Collector:
    """See the module. `grow` is asked for another thread when all are busy; it may refuse.

    `bursts` is one for all collectors.
    """

    def __init__(
        self,
        look: Look,
        put: Put,
        clock: Clock,
        *,
        on_target_fault: Status = Status.NO_DATA,
        grow: Callable[[], bool] = lambda: False,
        listener: Listener | None = None,
        on_transition: OnTransition = lambda transition: None,
        bursts: Bursts | None = None,
    ) -> None:
        self._look = look
        self._put = put
        self._clock = clock
        self.on_target_fault = on_target_fault
        self._grow = grow
        self._listener = listener or Listener()
        self._on_transition = on_transition
        self._lock = threading.Lock()
        self._lead = Lead(self._lock, clock, self._ready)
        self._alarm = clock.alarm()
        self._bursts = bursts or Bursts(clock)
        self._heap: list[tuple[float, int, Job]] = []
        self._jobs: dict[str, Job] = {}
        self._order = itertools.count()
        self._runs: dict[Thread, Job] = {}
        self._slow_runs = 0
        self._parked: deque[Job] = deque()  # slow ones that wait for another slow one to end
        self._stopping = False
        self._slept = clock.slept()
        self._breath = 0.0  # seconds from one waking to the next, at least
        self._woke = 0.0  # when the leader's last sleep ended
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
            self._parked = deque(job for job in self._parked if not job.cancelled)
            heapq.heapify(self._heap)
            shortest = min((each.interval for each in wanted.values()), default=0.0)
            self._breath = min(shortest * BREATH_SHARE, BREATH_MOST)
            self._lead.rouse()
        self._alarm.ring()
        return len(added), len(changed), len(gone)

    def hasten(self, ids: Container[str]) -> None:
        """These are looked at as soon as threads allow, besides their moments; one that is being looked at is not."""
        now = self._clock.monotonic()
        with self._lock:
            for job in self._jobs.values():
                if job.definition.id in ids and not job.running:
                    job.push.due, job.unused = now, False
            self._heap = [(job.due, order, job) for _, order, job in self._heap]
            heapq.heapify(self._heap)
            self._lead.rouse()
        self._alarm.ring()

    def give_up(self, thread: Thread, reading: Reading) -> None:
        """Lets the run go that hangs on `thread`: its job gets `reading`, and goes on without it."""
        with self._lock:
            job = self._runs.pop(thread, None)
            if job is None:
                return
            self._bursts.end(thread)
            self._unpark(job)
            fresh = job.successor if job.cancelled else copy.copy(job)
            job.cancelled = True
            if fresh is None or fresh.cancelled:
                return
            if fresh is not job.successor:
                fresh.running, fresh.stuck = False, Stuck(thread, reading)
                if passed := fresh.end(self._clock.monotonic()):
                    self._listener.skipped(fresh.definition, passed, False)
                self._jobs[job.definition.id] = fresh
            self._push(fresh)

    def stop(self) -> None:
        """Ends the leader's sleep for good."""
        self._stopping = True
        with self._lock:
            self._lead.rouse(at_once=True)
        self._alarm.ring()

    def jobs(self) -> list[Job]:
        """The jobs, for showing: read only."""
        with self._lock:
            return list(self._jobs.values())

    # -- the turn

    def step(self, idle: Callable[[], AbstractContextManager[None]] = nullcontext) -> float:
        """Waits for the next due job, which is rest and happens inside `idle`, and runs it."""
        me = threading.current_thread()
        try:
            with idle():
                job, alone = self._take(me)
            if job is None:
                return 1.0
            if alone:
                self._grow()
            until = self._clock.monotonic() + BURST
            while job is not None:
                job = self._one(job, me, until)
            return 0.0
        finally:
            self._bursts.end(me)

    def _one(self, job: Job, me: Thread, until: float) -> Job | None:
        """One run; returns the job that comes at once after it."""
        if not job.instant:
            self._bursts.end(me)
        self._runs[me] = job
        try:
            self._run(job, me)
        finally:
            with self._lock:
                given_up = self._over(job, me)
        return None if given_up else self._another(me, until)

    def _take(self, me: Thread) -> tuple[Job | None, bool]:
        """The next due job, and whether all threads are busy now."""
        still, job = self._lead.take(), None
        try:
            if still >= STILL:
                self._stand(self._clock.monotonic(), still, 0.0)
            job = self._next(me)
            return job, not self._lead.waiting
        finally:
            with self._lock:
                self._lead.pass_on(job is not None and job.quick, job is not None and job.instant)

    def _another(self, me: Thread, until: float) -> Job | None:
        """What this thread would be back for at once: the next job, if it is due and the lead still lies free."""
        with self._lock:
            now = self._clock.monotonic()
            if now >= until or self._stopping or not self._is_due(now):
                return None
            if not self._lead.free(now, self._heap[0][2].instant):
                return None
            job = self._pop()
            if job and not job.quick:
                self._lead.pass_on(False)
        self._bursts.goes_on(me, now)
        return job

    def _next(self, me: Thread) -> Job | None:
        """The leader's sleep; None when the collector stops."""
        begun = False
        while not self._stopping:
            with self._lock:
                now = self._clock.monotonic()
                due = self._is_due(now)
                if due and (begun or not self._heap[0][2].instant or not self._lead.waiting):
                    if job := self._pop():
                        return job
                    continue
                ready = self._ready()
            if due:
                self._queue_up(me, now)
            else:
                self._bursts.end(me)
                self._rest(now, min(ready - now, LONGEST_SLEEP))
            begun = due
        return None

    def _queue_up(self, me: Thread, now: float) -> None:
        """Waits for a burst's turn, as the leader: there is no use in others who wait as well."""
        self._bursts.begin(me)
        after = self._clock.monotonic()
        if after - now >= STILL:
            self._stand(after, after - now, 0.0)

    def _is_due(self, now: float) -> bool:
        return bool(self._heap) and self._heap[0][0] <= now + TOGETHER

    def _pop(self) -> Job | None:
        """The first job, marked as running; None where it is slow and has to be put off."""
        job = heapq.heappop(self._heap)[2]
        if job.slow and self._slow_runs >= SLOW_MAX:
            self._park(job)
            return None
        job.running = True
        job.holds = job.slow
        self._slow_runs += job.holds
        return job

    def _over(self, job: Job, me: Thread) -> bool:
        """A run has ended; says whether it was given up meanwhile, so that another thread goes on with its job."""
        if not self._runs.pop(me, None):
            return True
        job.running = False
        self._unpark(job)
        following = job.successor if job.cancelled else job
        if following and not following.cancelled:
            self._push(following)
        return False

    def _rest(self, now: float, seconds: float) -> None:
        """The leader's wait; one that lasts longer than it should means that nothing ran meanwhile."""
        self._alarm.wait(seconds)
        after, slept = self._clock.monotonic(), self._clock.slept()
        self._woke = after
        still, asleep = after - now - seconds, slept - self._slept
        if still >= STILL or asleep >= STILL:
            self._slept = slept
            self._stand(after, still, asleep)

    def _stand(self, after: float, still: float, asleep: float) -> None:
        """Nothing ran for a while: until `after` the process stood still, or the machine was asleep."""
        self._listener.stood(max(still, asleep))
        with self._lock:
            for _, _, job in self._heap:
                missed = job.stood(after, max(asleep, 0.0), max(still, 0.0))
                if missed:
                    self._listener.missed(job.definition, missed)
            self._heap = [(job.due, order, job) for _, order, job in self._heap]
            heapq.heapify(self._heap)

    def _park(self, job: Job) -> None:
        """Puts a slow definition off; one that had its turn within reach keeps its place."""
        first = self._parked and job.due < self._parked[0].due
        (self._parked.appendleft if first else self._parked.append)(job)

    def _unpark(self, job: Job) -> None:
        """A run has ended: another slow definition may have its turn."""
        self._slow_runs -= job.holds
        if self._parked and self._slow_runs < SLOW_MAX:
            self._push(self._parked.popleft())

    def _push(self, job: Job) -> None:
        heapq.heappush(self._heap, (job.due, next(self._order), job))
        if self._heap[0][2] is job:
            self._alarm.ring()
            self._lead.rouse()

    def _ready(self) -> float:
        """When the leader is to wake for the next job; those that are due before that are taken together."""
        return max(self._heap[0][0], self._woke + self._breath) if self._heap else math.inf

    def _run(self, job: Job, me: Thread) -> None:
        now = self._clock.monotonic()
        try:
            late, reusable = max(0.0, now - job.due), job.reusable(now)
            if passed := job.begin(now):
                self._listener.skipped(job.definition, passed, job.stuck is None)
            if not reusable:
                self._read(job, late, me)
            now = self._clock.monotonic()
            verdict = job.verdict
            if verdict and not job.cancelled and (verdict.status != job.pushed or job.push.is_due(now)):
                self._emit(job, verdict)
        finally:
            if me in self._runs:
                if passed := job.end(self._clock.monotonic()):
                    self._listener.skipped(job.definition, passed, False)

    def _read(self, job: Job, late: float, me: Thread) -> None:
        reading = self._look_at(job) if job.stuck else self._look(job.definition)
        if me not in self._runs:
            return  # given up while it hung
        now = self._clock.now()
        job.read_at, job.ended = self._clock.monotonic(), now
        before, job.reading = job.reading, reading
        status = job.verdict.status if job.verdict else None
        verdict = job.verdict = judge(reading, job.definition.thresholds, self.on_target_fault)
        if verdict.status is not status and not job.cancelled:
            self._on_transition(Transition(job.definition, status, verdict, reading, now, job.past))
        job.remember(now, reading, verdict)
        job.unused, job.slow = True, reading.duration_ms >= SLOW_MS
        if not job.stuck:
            self._listener.ran(job.definition, reading, late, job.in_time)
        if reading.reason and (before is None or before.reason != reading.reason):
            log.info("Metric %s (%s) gives no value: %s", job.definition.id, job.definition.source_type, _why(reading))

    def _look_at(self, job: Job) -> Reading:
        """Whose last look hangs is not looked at again before that has ended."""
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
