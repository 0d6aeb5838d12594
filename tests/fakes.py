"""Time that tests move by hand."""

from __future__ import annotations

from observer_agent.clock import Alarm, Clock


class FakeClock(Clock):
    """Stands still until `advance`; both clocks move together, `wall` may be stepped apart."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._now = now
        self._monotonic = 1000.0
        self._slept = 0.0

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def slept(self) -> float:
        return self._slept

    def sleep(self, seconds: float) -> None:
        """The machine is suspended: the wall clock alone goes on."""
        self._now += seconds
        self._slept += seconds

    def alarm(self) -> Alarm:
        return _FakeAlarm(self)

    def advance(self, seconds: float) -> None:
        """Lets time pass on both clocks."""
        self._now += seconds
        self._monotonic += seconds

    def step_wall(self, seconds: float) -> None:
        """Sets the wall clock forward or back; the monotonic one does not notice."""
        self._now += seconds


class _FakeAlarm(Alarm):
    """A wait that moves the fake clock instead of waiting, unless it was rung."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, seconds: float) -> bool:
        rung = super().wait(0)
        if not rung:
            self._clock.advance(seconds)
        return rung
