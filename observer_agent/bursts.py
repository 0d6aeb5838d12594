"""One burst of instant looks at a time, of all pools together.

Two at once fight for the interpreter, and each look waits for it several times. This is a courtesy and no lock: where
the burst before does not get on for PATIENCE, because its target hangs, the next one goes ahead all the same.
"""

from __future__ import annotations

import threading
from collections import deque

from observer_agent.clock import Alarm, Clock
from observer_agent.worker import Thread

PATIENCE = 0.01


class Bursts:
    """See the module. Any thread may call, about any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._going: Thread | None = None
        self._at = 0.0  # when its last look began
        self._waiting: deque[tuple[Thread, Alarm]] = deque()

    def begin(self, me: Thread) -> None:
        """A thread is about to do looks that are likely to be over at once: waits for the bursts before, in order."""
        alarm = self._clock.alarm()
        with self._lock:
            if self._going in (None, me):
                self._give(me)
                return
            self._waiting.append((me, alarm))
        while not alarm.wait(PATIENCE):
            with self._lock:
                if self._going is me:
                    return  # just now
                if self._clock.monotonic() - self._at >= PATIENCE:
                    self._waiting.remove((me, alarm))
                    return

    def goes_on(self, me: Thread, now: float) -> None:
        """Another look of the burst begins."""
        if self._going is me:
            self._at = now

    def end(self, thread: Thread) -> None:
        """Its burst is over, or it hangs; does nothing where it went ahead without, or has ended before."""
        if self._going is not thread:
            return
        with self._lock:
            if self._going is thread:
                self._give(*self._waiting.popleft() if self._waiting else (None, None))

    def _give(self, thread: Thread | None, alarm: Alarm | None = None) -> None:
        self._going, self._at = thread, self._clock.monotonic()
        if alarm:
            alarm.ring()
