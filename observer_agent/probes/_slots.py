"""Functions of strangers, run so that they outlive neither their deadline nor anybody's patience.

A name, a job and a deadline in, the job's outcome out. Each name has one slot: its job runs on a helper thread, and a
thread cannot be ended, so one that hangs keeps the slot, and whoever comes later is told so at once. Names are few
(the registry bounds them), so helper threads are too. Called from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from observer_agent.clock import Alarm, Clock
from observer_agent.worker import Outcome, outcome_of, spawn


class Late(Exception):
    """The deadline has passed before there was an outcome."""


class Taken(Exception):
    """An earlier job of this name has outlived its deadline and still runs."""


class NoThread(Exception):
    """The machine gives no more threads."""


class _Task:
    """One job that holds its slot, and the alarm of whoever waits for its outcome."""

    def __init__(self, deadline: float, alarm: Alarm) -> None:
        self.deadline = deadline
        self.alarm = alarm
        self.outcome: Outcome | None = None


class Slots:
    """See the module."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
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
        """Waits for the slot, no longer than its holder may have it."""
        while True:
            now = self._clock.monotonic()
            with self._lock:
                holder = self._held.get(name)
                if holder is None:
                    return self._start(name, job, _Task(deadline, alarm))
                if now >= holder.deadline:
                    raise Taken
                if now >= deadline:
                    raise Late
                self._waiting.setdefault(name, []).append(alarm)
            alarm.wait(min(deadline, holder.deadline) - now)
            with self._lock:
                waiting = self._waiting.get(name, [])
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
            waiting = self._waiting.pop(name, [])
        for alarm in (task.alarm, *waiting):
            alarm.ring()
