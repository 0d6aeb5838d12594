"""One burst at a time, in order; a burst that does not get on loses its turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from observer_agent.bursts import LONGEST, PATIENCE, Bursts
from observer_agent.clock import Alarm
from tests.fakes import FakeClock

WAIT = 20.0


class Still(FakeClock):
    """Its time passes when a test says so; its alarms are real."""

    def alarm(self) -> Alarm:
        return Alarm()


class Crowd:
    """Threads that begin a burst each; `order` is who has begun."""

    def __init__(self) -> None:
        self.clock = Still()
        self.bursts = Bursts(self.clock)
        self.order: list[str] = []
        self.me = threading.current_thread()
        self.bursts.begin(self.me)

    def come(self, name: str) -> threading.Thread:
        """Another one wants its burst; returns once it waits."""
        before = len(self.bursts._waiting)

        def run() -> None:
            self.bursts.begin(threading.current_thread())
            self.order.append(name)

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        until(lambda: len(self.bursts._waiting) > before)
        return thread


def until(done: Callable[[], bool]) -> None:
    pause, end = threading.Event(), time.monotonic() + WAIT
    while not done():
        assert time.monotonic() < end
        pause.wait(0.001)


def test_a_burst_waits_for_the_one_before_while_that_gets_on() -> None:
    crowd = Crowd()
    second = crowd.come("second")
    for _ in range(5):
        crowd.clock.advance(PATIENCE * 0.9)
        crowd.bursts.goes_on(crowd.me, crowd.clock.monotonic())
        second.join(2 * PATIENCE)  # it looks at the clock meanwhile
        assert crowd.order == []
    crowd.bursts.end(crowd.me)
    second.join(WAIT)
    assert crowd.order == ["second"] and crowd.bursts._going is second


def test_those_who_wait_have_their_turn_in_order() -> None:
    crowd = Crowd()
    names = ["a", "b", "c"]
    threads = [crowd.come(name) for name in names]
    for n, before in enumerate([crowd.me, *threads[:-1]]):
        crowd.bursts.end(before)
        threads[n].join(WAIT)
        assert crowd.order == names[: n + 1]
        assert crowd.bursts._going is threads[n]


def test_one_that_does_not_get_on_loses_its_turn() -> None:
    crowd = Crowd()
    second = crowd.come("second")
    crowd.clock.advance(2 * PATIENCE)
    second.join(WAIT)
    assert crowd.order == ["second"] and crowd.bursts._going is second
    crowd.bursts.goes_on(crowd.me, crowd.clock.monotonic())
    crowd.bursts.end(crowd.me)
    assert crowd.bursts._going is second, "and has nothing to end"
    crowd.clock.advance(2 * PATIENCE)
    crowd.bursts.begin(crowd.me)  # without a wait: nobody else is there, and the second hangs as well
    assert crowd.bursts._going is crowd.me
    crowd.bursts.end(crowd.me)
    crowd.bursts.end(crowd.me)
    assert crowd.bursts._going is None


def test_nobody_waits_for_ever_though_others_get_on() -> None:
    crowd = Crowd()
    second, third = crowd.come("second"), crowd.come("third")
    for _ in range(round(LONGEST / PATIENCE) + 1):
        crowd.clock.advance(PATIENCE * 0.9)
        crowd.bursts.goes_on(crowd.me, crowd.clock.monotonic())
    assert crowd.order == []
    crowd.clock.advance(PATIENCE * 0.9)
    crowd.bursts.goes_on(crowd.me, crowd.clock.monotonic())
    for thread in (second, third):
        thread.join(WAIT)
    assert crowd.bursts._going is crowd.me, "they go without"
    crowd.bursts.end(second)
    assert crowd.bursts._going is crowd.me, "and have nothing to end"
