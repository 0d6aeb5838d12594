"""The lead among the threads of a pool: who has it sleeps until the next job is due, takes it and passes the lead on.

Waking another thread for each job would cost as much as a quick job itself. So after a job that is likely to be quick
the lead lies free for the moment: the same thread is back for the next job. One of those that wait, the deputy, looks
again GRACE after the next job was due; so a job that blocks all the same keeps the others waiting no longer than that.
A thread that gets on with instant jobs is left alone even where they are overdue: a second one would only slow it down.

All but `take` is called with the collector's lock held.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from observer_agent.clock import Clock

STILL = 1.0  # a deputy that is later than this was not let run
GRACE = 0.005  # the interpreter's switch interval: a thread that is woken instead may wait as long for its turn
LONGEST_WAIT = 3600.0
FOREVER = -1.0  # a lock's own word


class Lead:
    """See the module. `due` is the moment of the next job, on the monotonic clock; infinite where there is none."""

    def __init__(self, lock: threading.Lock, clock: Clock, due: Callable[[], float]) -> None:
        self._lock = lock
        self._clock = clock
        self._due = due
        self.held = False
        self.waiting: list[threading.Lock] = []  # each thread's own; the last to come is the first to lead: it is warm
        self._deputy: threading.Lock | None = None
        self._until = 0.0  # when the deputy looks again
        self._went_on = 0.0  # when an instant job was last begun while the lead lay free

    def take(self) -> float:
        """Waits for the lead; returns how late the deputy is where it lay free until now, in seconds."""
        with self._lock:
            if not self.held:
                self.held = True
                return self._clock.monotonic() - self._until if self._deputy else 0.0
            turn = threading.Lock()
            turn.acquire()
            self.waiting.append(turn)
        while True:
            with self._lock:
                if turn not in self.waiting:
                    return 0.0  # it was handed over just now
                now = self._clock.monotonic()
                late = now - self._until
                if turn is self._deputy and late >= 0 and self._take_over(turn, now):
                    return late
                seconds = self._duty(turn, now)
            if turn.acquire(timeout=seconds):
                return 0.0

    def free(self, now: float, instant: bool) -> bool:
        """Whether it lies free still, so that a thread may go on with the next job, which is likely to be instant."""
        if self.held or not self._deputy:
            return False
        if instant:
            self._went_on = now
        return now < self._until + (STILL if instant else GRACE)

    def pass_on(self, quick: bool, instant: bool = False) -> None:
        """The leader goes to its job, which is likely to be quick or not, or even instant."""
        if quick and self._deputy:
            now, due = self._clock.monotonic(), self._due()
            if instant:
                self._went_on = now
            if (instant or now < due + GRACE) and self._until <= max(now, due) + GRACE:
                self.held = False
                return
        self._hand_over()

    def rouse(self, at_once: bool = False) -> None:
        """A job is due earlier than was known; `at_once` wakes a thread whatever is due."""
        if not self.held and (at_once or not self._deputy or self._until > self._due() + GRACE):
            self._hand_over()

    def _duty(self, turn: threading.Lock, now: float) -> float:
        """For how long a waiting thread sleeps: the deputy until GRACE after the next job, the others until called."""
        if self._deputy not in (None, turn):
            return FOREVER
        self._deputy = turn
        self._until = min(max(now, self._due()) + GRACE, now + LONGEST_WAIT)
        return self._until - now

    def _take_over(self, turn: threading.Lock, now: float) -> bool:
        """The deputy takes a lead that lies free though a job has been due for long."""
        if self.held or now < max(self._due(), self._went_on) + GRACE:
            return False
        self.waiting.remove(turn)
        self._deputy, self.held = None, True
        return True

    def _hand_over(self) -> None:
        """To the one that came last; to the deputy only where there is no other."""
        self.held = bool(self.waiting)
        if not self.waiting:
            return
        turn = self.waiting.pop(-2 if self.waiting[-1] is self._deputy and len(self.waiting) > 1 else -1)
        if turn is self._deputy:
            self._deputy = None
        turn.release()
