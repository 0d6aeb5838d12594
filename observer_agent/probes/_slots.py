"""Functions of strangers, run so that they outlive neither their deadline nor anybody's patience.

A name, a job and a deadline in, the job's outcome out. Each name has one slot: its job runs on a helper thread, and a
thread cannot be ended, so one that hangs keeps the slot, and whoever comes later is told so at once. Where all helper
threads are taken, whoever comes waits for one until the deadline. Called from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from observer_agent.clock import Alarm, Clock
from observer_agent.worker import Outcome, outcome_of, spawn

THREADS: Final = 16
ANY: Final = ""  # whoever waits for no slot but for a thread


class Late(Exception):
    """The deadline has passed before there was an outcome."""


class Taken(Exception):
    """An earlier job of this name has outlived its deadline and still runs."""


class NoThread(Exception):
    """There is no thread for the job: the machine gives none, or all are taken by others until the deadline."""


class _Task:
    """One job that holds its slot, and the alarm of whoever waits for its outcome."""

    def __init__(self, deadline: float, alarm: Alarm) -> None:
        self.deadline = deadline
        self.alarm = alarm
        self.outcome: Outcome | None = None


class Slots:
    """See the module."""

    def __init__(self, clock: Clock, threads: int = THREADS) -> None:
        self._clock = clock
        self._threads = threads
        self._lock = threading.Lock()
        self._held: dict[str, _Task] = {}
        self._waiting: dict[str, list[Alarm]] = {}

    def run(self, name: str, job: Callable[[], Any], deadline: float) -> Outcome:
        """What the job returns or raises by the deadline; raises Late, Taken or NoThread."""
        alarm = self._clock.alarm()
        task = self._enter(name, job, deadline, alarm)
        while task.outcome is None:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise Late
            alarm.wait(left)
        return task.outcome

    def _enter(self, name: str, job: Callable[[], Any], deadline: float, alarm: Alarm) -> _Task:
        """Waits for the slot, no longer than its holder may have it, and for a thread."""
        while True:
            now = self._clock.monotonic()
            with self._lock:
                holder = self._held.get(name)
                if holder is None and len(self._held) < self._threads:
                    return self._start(name, job, _Task(deadline, alarm))
                if holder and now >= holder.deadline:
                    raise Taken
                if now >= deadline:
                    raise Late if holder else NoThread
                line, until = (name, min(deadline, holder.deadline)) if holder else (ANY, deadline)
                self._waiting.setdefault(line, []).append(alarm)
            alarm.wait(until - now)
            with self._lock:
                waiting = self._waiting.get(line, [])
                if alarm in waiting:
                    waiting.remove(alarm)

    def _start(self, name: str, job: Callable[[], Any], task: _Task) -> _Task:
        self._held[name] = task
        try:
            spawn("custom-" + name.strip("\0")[:32], lambda: self._work(name, job, task))
        except RuntimeError:
            del self._held[name]
            raise NoThread from None
        return task

    def _work(self, name: str, job: Callable[[], Any], task: _Task) -> None:
        outcome = outcome_of(job)
        with self._lock:
            task.outcome = outcome
            del self._held[name]
            waiting = [*self._waiting.pop(name, []), *self._waiting.pop(ANY, [])]
        for alarm in (task.alarm, *waiting):
            alarm.ring()
