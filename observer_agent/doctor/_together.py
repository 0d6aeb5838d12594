"""Steps side by side, each on a thread of its own, waited for until a deadline. A step that hangs is left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from observer_agent.clock import Clock
from observer_agent.worker import attempt, spawn


class Together:
    """`start` from one thread, which also is the one that waits."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._alarm = clock.alarm()
        self._results: dict[str, Any] = {}
        self._ended: dict[str, float] = {}
        self._started: dict[str, float] = {}

    def start(self, name: str, job: Callable[[], Any]) -> None:
        """Begins a step."""
        self._started[name] = self._clock.monotonic()
        spawn(f"doctor-{name}", lambda: self._run(name, job))

    def _run(self, name: str, job: Callable[[], Any]) -> None:
        def keep() -> None:
            self._results[name] = job()

        try:
            attempt(f"The doctor's step {name}", keep)
        finally:
            self._ended[name] = self._clock.monotonic()
            self._alarm.ring()

    def wait(self, names: Iterable[str], until: float) -> bool:
        """Waits for steps until a moment of the monotonic clock; says whether all have ended."""
        wanted = set(names)
        while not wanted <= self._ended.keys():
            left = until - self._clock.monotonic()
            if left <= 0:
                return False
            self._alarm.wait(left)
        return True

    def result(self, name: str) -> Any:
        """What a step has returned; None while it runs, when it broke, and when it was never started."""
        return self._results.get(name)

    def hangs(self, name: str) -> bool:
        """Whether a step was started and has not ended."""
        return name in self._started and name not in self._ended

    def crashed(self, name: str) -> bool:
        """Whether a step ended without a result."""
        return name in self._ended and name not in self._results

    def ms(self, name: str) -> float:
        """How long a step has taken so far."""
        if name not in self._started:
            return 0.0
        return (self._ended.get(name, self._clock.monotonic()) - self._started[name]) * 1000
