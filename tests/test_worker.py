"""Workers on real threads: crash, death, pause and stop."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from observer_agent.clock import Clock
from observer_agent.worker import Supervisor, Worker, attempt

LONG = 10.0


def test_a_step_that_crashes_is_logged_counted_and_tried_again(caught):
    done, told = threading.Event(), []
    turns = iter([ValueError("secret-free"), None])

    def step():
        error = next(turns)
        if error:
            raise error
        done.set()
        return LONG

    worker = Worker("send", step, Clock(), told.append)
    worker.start()
    assert done.wait(LONG)
    worker.stop()
    assert worker.join(LONG)
    assert (worker.restarts, told) == (1, ["send"])
    assert "Worker send crashed" in caught.text and "ValueError" in caught.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_altogether_is_replaced(caught):
    back, deaths = threading.Event(), [True]

    def step():
        if deaths:
            deaths.pop()
            raise KeyboardInterrupt
        back.set()
        return LONG

    supervisor, told = Supervisor(), []
    worker = supervisor.add(Worker("beat", step, Clock(), told.append))
    worker.join(LONG)
    assert not worker.alive
    supervisor.check()
    assert back.wait(LONG)
    assert worker.alive and told == ["beat"]
    worker.stop()
    assert worker.join(LONG)
    supervisor.check()
    assert not worker.alive, "one that was stopped stays stopped"


def test_wake_ends_the_pause_and_stop_ends_the_worker():
    turned = threading.Semaphore(0)

    def step():
        turned.release()
        return 3600.0

    worker = Worker("definitions", step, Clock())
    worker.start()
    assert turned.acquire(timeout=LONG)
    worker.wake()
    assert turned.acquire(timeout=LONG)
    worker.stop()
    assert worker.join(LONG)
    assert worker.turns == 2


def test_what_wakes_a_worker_within_its_breath_gathers_and_a_stop_ends_it():
    turned, moments, clock = threading.Semaphore(0), [], Clock()

    def step():
        moments.append(clock.monotonic())
        turned.release()
        return 3600.0

    worker = Worker("send", step, clock, breath=0.2)
    worker.start()
    for _ in range(2):
        assert turned.acquire(timeout=LONG)
        worker.wake()
    assert turned.acquire(timeout=LONG)
    assert all(b - a >= 0.2 for a, b in pairwise(moments))
    held = Worker("send", step, clock, breath=3600.0)
    held.start()
    assert turned.acquire(timeout=LONG)
    for each in (worker, held):
        each.stop()
        assert each.join(LONG)


def test_a_wake_before_the_pause_is_not_lost():
    turned, go = threading.Semaphore(0), threading.Event()

    def step():
        turned.release()
        assert go.wait(LONG)
        return 3600.0

    worker = Worker("send", step, Clock())
    worker.start()
    assert turned.acquire(timeout=LONG)
    worker.wake()
    go.set()
    assert turned.acquire(timeout=LONG)
    worker.stop()
    assert worker.join(LONG)


def test_a_wake_does_not_end_the_pause_after_a_crash():
    crashed = threading.Semaphore(0)

    def step():
        crashed.release()
        raise ValueError

    worker = Worker("send", step, Clock())
    worker.start()
    assert crashed.acquire(timeout=LONG)
    while worker.busy_since is not None:
        pass
    for _ in range(100):
        worker.wake()
    assert not crashed.acquire(timeout=0.3)
    worker.stop()
    assert worker.join(LONG)


def test_attempt_lets_what_follows_go_on(caught):
    attempt("Closing", lambda: 1 / 0)
    assert "Closing failed" in caught.text


def test_join_keeps_its_budget():
    go = threading.Event()
    worker = Worker("probe-http-0", lambda: float(not go.wait(LONG)), Clock())
    worker.start()
    worker.stop()
    assert not worker.join(0.01)
    go.set()
    assert worker.join(LONG)


def test_a_ring_is_used_up_once_however_often_it_was_rung():
    alarm = Clock().alarm()
    assert not alarm.wait(0)
    for _ in range(3):
        alarm.ring()
    assert alarm.wait(LONG)
    assert not alarm.wait(0.01)


def test_many_threads_may_ring_at_once():
    alarm, begin = Clock().alarm(), threading.Barrier(8)

    def ring():
        begin.wait()
        for _ in range(2000):
            alarm.ring()

    with ThreadPoolExecutor(8) as pool:
        rings = [pool.submit(ring) for _ in range(8)]
        while not all(each.done() for each in rings):
            alarm.wait(0.01)
    assert [each.result() for each in rings] == [None] * 8
    alarm.ring()
    assert alarm.wait(0)
