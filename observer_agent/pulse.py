"""Notices that the agent itself was not let run: a step that should come every fifth of a second, and what the kernel
says of how long the agent's threads have waited for a processor.

`step` runs on the thread `pulse`; any thread asks. A stopped process, a machine that hangs or one without CPU to spare
shows here, and what was measured meanwhile says nothing about a target.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from pathlib import Path

from observer_agent.clock import Clock

EVERY = 0.2
LATE = 0.1
SAMPLES = 5  # beats from one look at the threads to the next
KEPT = 256


class Pulse:
    """See the module. `tasks` has a directory for each thread, as /proc/self/task."""

    def __init__(self, clock: Clock, tasks: Path = Path("/proc/self/task")) -> None:
        self._clock = clock
        self._tasks = tasks
        self._last = clock.monotonic()
        self._gaps: deque[tuple[float, float]] = deque(maxlen=KEPT)  # from when the beat was due until it came
        self._beats = 0
        self._lock = threading.Lock()
        self._threads: dict[str, int] = {}  # nanoseconds that each has waited
        self._waited: deque[tuple[float, float]] = deque(maxlen=KEPT)  # moment, seconds that all have waited so far
        self._sample()

    def step(self) -> float:
        """One beat; returns the seconds until the next."""
        now = self._clock.monotonic()
        if now - self._last > EVERY + LATE:
            self._gaps.append((self._last + EVERY, now))
        self._last = now
        self._beats += 1
        if self._beats % SAMPLES == 0:
            self._sample()
        return EVERY

    def stalled(self, begin: float, end: float) -> float:
        """For how many seconds between two moments the agent stood still, as far as the beats tell; mostly 0."""
        due, now = self._last + EVERY, self._clock.monotonic()
        gaps = [*self._gaps, (due, now)] if now - due > LATE else list(self._gaps)
        return sum(max(0.0, min(late, end) - max(early, begin)) for early, late in gaps)

    def starved(self, begin: float) -> float:
        """How many threads of the agent waited for a processor, on average from `begin` until now; mostly 0."""
        now, waited = self._sample()
        with self._lock:
            since, before = next((each for each in reversed(self._waited) if each[0] <= begin), self._waited[0])
        return (waited - before) / (now - since) if now > since else 0.0

    def _sample(self) -> tuple[float, float]:
        with self._lock:
            found = _waits(self._tasks)
            news = sum(max(0, ns - self._threads.get(task, 0)) for task, ns in found.items())
            total = (self._waited[-1][1] if self._waited else 0.0) + (news / 1e9 if self._waited else 0.0)
            self._threads = found
            self._waited.append((self._clock.monotonic(), total))
            return self._waited[-1]


def _waits(tasks: Path) -> dict[str, int]:
    """Nanoseconds that each thread has waited on a run queue (the second number of schedstat)."""
    out, folder = {}, str(tasks)
    for task in os.listdir(folder):
        try:
            with open(f"{folder}/{task}/schedstat", "rb", buffering=0) as file:
                out[task] = int(file.read(64).split()[1])
        except (OSError, IndexError, ValueError):
            continue  # the thread has ended, or the kernel does not count
    return out
