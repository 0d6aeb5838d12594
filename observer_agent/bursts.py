"""One burst of instant looks at a time, of all pools together.

Two at once fight for the interpreter, and each look waits for it several times. This is a courtesy and no lock: a burst
that does not get on for PATIENCE, because its target hangs, loses its turn, and nobody waits longer than LONGEST.
"""

from __future__ import annotations

import threading
from collections import deque

from observer_agent.clock import Alarm, Clock
from observer_agent.worker import Thread

PATIENCE = 0.01  # seconds, as LONGEST
LONGEST = 0.1


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
            first = self._clock.monotonic()
            if self._going in (None, me) or (not self._waiting and self._hangs(first)):
                self._give(me)
                return
            self._waiting.append((me, alarm))
        while not alarm.wait(PATIENCE):
            with self._lock:
                now = self._clock.monotonic()
                if self._going is me:
                    break  # just now
                if self._hangs(now) or now - first >= LONGEST:
                    self._waiting.remove((me, alarm))
                    if self._hangs(now):
                        self._give(me)
                    return
        self.goes_on(me, self._clock.monotonic())

    def goes_on(self, me: Thread, now: float) -> None:
        """Another look of the burst begins."""
        if self._going is me:
            self._at = now

    def end(self, thread: Thread) -> None:
        """Its burst is over, or it hangs; does nothing where it goes without, or has lost its turn."""
        if self._going is not thread:
            return
        with self._lock:
            if self._going is thread:
                self._give(*self._waiting.popleft() if self._waiting else (None, None))

    def _hangs(self, now: float) -> bool:
        return now - self._at >= PATIENCE

    def _give(self, thread: Thread | None, alarm: Alarm | None = None) -> None:
        self._going, self._at = thread, self._clock.monotonic()
        if alarm:
            alarm.ring()
