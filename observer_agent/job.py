"""One definition's schedule, memory and account of slots.

Each moment of the poll grid opens a slot that lasts one interval. A slot ends as exactly one of: ran, late, skipped,
missed; so their sum is the number of slots that were due, always. Touched only by the thread that has taken the job.
"""

from __future__ import annotations

from dataclasses import dataclass

from observer_agent.clock import iso
from observer_agent.model import Definition, Past, Reading, Status, Verdict
from observer_agent.verdict import Grid, first_delay
from observer_agent.worker import Thread

QUICK_MS = 2.0  # a look that takes less is over before another thread has been woken
INSTANT_MS = 0.5  # one that takes less has hardly waited for anything
SHORTEST_MS = 0.05  # what a best time counts as at least: one of nothing could not grow
FORGET = 1.2  # by this factor the best time of a job grows with each look, so that an old one does not count for long
PAST = 5  # readings that are remembered
LATE_SHARE, LATE_MOST = 0.1, 1.0  # of the interval, and in seconds: a run that begins later than this is late


@dataclass(slots=True)
class Slots:
    """What became of the slots of one definition since it was learnt.

    `skipped`: the run could not begin, because the one before was still going or no thread was free. `missed`: the
    machine slept or the whole agent stood still.
    """

    ran: int = 0
    late: int = 0
    skipped: int = 0
    missed: int = 0

    @property
    def due(self) -> int:
        """How many slots have come to an end, or to their run."""
        return self.ran + self.late + self.skipped + self.missed


@dataclass(frozen=True)
class Stuck:
    """A look that hangs: while its thread lives, `reading` is what is known, and there is no other look."""

    thread: Thread
    reading: Reading


class Job:
    """See the module."""

    def __init__(self, definition: Definition, now: float) -> None:
        self.definition = definition
        first = now + first_delay(definition.id)
        self.poll = Grid(first, definition.interval)
        self.push = Grid(first + definition.push_interval, definition.push_interval)
        self.slots = Slots()
        self.pushed: Status | None = None
        self.verdict: Verdict | None = None
        self.reading: Reading | None = None
        self.past: tuple[Past, ...] = ()  # the last readings in short, `reading` among them
        self.read_at = 0.0
        self.best_ms = 0.0  # the shortest of late: a single look may have had to wait for other threads
        self.ended: float | None = None  # when the last reading was taken, seconds since 1970
        self.in_time = True  # the last run began early in its slot
        self._serves = False  # the run in progress serves a slot
        self.unused = False  # the last reading has not become a row yet
        self.cancelled = False
        self.running = False
        self.slow = False  # the last look took long
        self.holds = False  # the run in progress counts among the slow ones
        self.successor: Job | None = None  # waits for this one's run to end
        self.stuck: Stuck | None = None  # a look at this definition that has never ended

    @property
    def due(self) -> float:
        """The moment of the next run, on the monotonic clock."""
        return min(self.poll.due, self.push.due)

    @property
    def stamp(self) -> str:
        """When the last reading was taken, as the wire has it; empty where there was none."""
        return iso(self.ended) if self.ended is not None else ""

    @property
    def quick(self) -> bool:
        """Whether the next look is likely to be over at once."""
        return self.reading is not None and self.best_ms < QUICK_MS and not self.slow

    @property
    def instant(self) -> bool:
        """Whether the next look is likely to wait for hardly anything but the interpreter."""
        return self.reading is not None and self.best_ms < INSTANT_MS and not self.slow

    def reusable(self, now: float) -> bool:
        """Whether a forced push alone is due and may use the last reading: young, and not a row already."""
        if not self.unused or self.poll.is_due(now):
            return False
        return now - self.read_at < min(self.definition.interval, self.definition.push_interval) / 2

    def remember(self, at: float, reading: Reading, verdict: Verdict) -> None:
        """Keeps the reading that has just been judged."""
        took = reading.duration_ms
        if not self.stuck:
            self.best_ms = min(took, max(self.best_ms, SHORTEST_MS) * FORGET) if self.past else took
        reason = reading.reason or verdict.reason
        fresh = Past(at, verdict.status, reading.value, reason, took)
        self.past = (*self.past[1 - PAST :], fresh)

    def begin(self, now: float) -> int:
        """Enters the slot that a run beginning now serves; returns how many passed before any run could begin."""
        self._serves = self.poll.is_due(now)
        if not self._serves:
            return 0
        passed = self.poll.reach(now)
        self.slots.skipped += passed
        if self.stuck and self.stuck.thread.is_alive():
            self.slots.skipped += 1
            return passed + 1
        self.in_time = now - self.poll.due <= min(self.definition.interval * LATE_SHARE, LATE_MOST)
        if self.in_time:
            self.slots.ran += 1
        else:
            self.slots.late += 1
        return passed

    def end(self, now: float) -> int:
        """Moves what was due on; returns the slots that began and were lost while the run was going."""
        # A slot that began during a run for a forced push alone is still open.
        skipped = self.poll.advance(now) if self._serves else 0
        self.slots.skipped += skipped
        if self.push.is_due(now):
            self.push.advance(now)
        return skipped

    def stood(self, now: float, slept: float, still: float) -> int:
        """The machine slept for `slept` s, or the agent stood still for `still` s, until now; returns slots missed.

        Time asleep counts as passed. After a pause of an interval or more the job waits for its next moment: all of
        them at once would be a burst.
        """
        if slept:
            self.poll.shift(-slept)
            self.push.shift(-slept)
        if not self.poll.is_due(now):
            return 0
        missed = self.poll.reach(now)
        if max(slept, still) >= self.definition.interval:
            self.poll.advance(now)
            missed += 1
            self.push.defer(self.poll.due)
        self.slots.missed += missed
        return missed
