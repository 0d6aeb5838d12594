"""Pools where the system gives no more threads: nothing is lost, and they come as soon as there are some."""

from __future__ import annotations

import threading

import pytest

from observer_agent.clock import Clock
from observer_agent.collector import Collector
from observer_agent.model import Definition, Operation, Reading, Thresholds
from observer_agent.pools import Pools
from observer_agent.worker import Supervisor, Worker

WAIT = 20.0
RULES = Thresholds(Operation.UNDER, 500.0, Operation.OVER, 900.0)


class Poor(Supervisor):
    """Has so many threads and no more, as with a limit on processes."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self.threads = threads

    def add(self, worker: Worker) -> Worker:
        if len(self.workers) >= self.threads:
            self.workers[worker.name] = worker
            raise RuntimeError("can't start new thread")
        return super().add(worker)


class Scene:
    def __init__(self, threads: int) -> None:
        self.supervisor = Poor(threads)
        self.looked = threading.Semaphore(0)
        clock = Clock()
        self.pools = Pools(
            self.supervisor, clock, lambda grow: Collector(self.look, lambda rows: None, clock, grow=grow)
        )

    def look(self, definition: Definition) -> Reading:
        self.looked.release()
        return Reading(1.0)

    def apply(self) -> None:
        self.pools.apply([Definition(name, "tcp", 1.0, 60.0, name, thresholds=RULES) for name in ("a", "b")])

    def stop(self) -> None:
        for worker in self.pools.stop():
            worker.stop()
            assert worker.join(WAIT)


def test_a_pool_that_cannot_grow_goes_on_with_what_it_has() -> None:
    scene = Scene(1)
    scene.apply()
    for _ in range(4):  # the pool asks for another thread each time
        assert scene.looked.acquire(timeout=WAIT)
    assert [len(workers) for workers in scene.pools.workers().values()] == [1]
    assert len(scene.supervisor.workers) == 1
    scene.stop()


def test_a_pool_without_a_thread_says_so_and_gets_it_the_next_time() -> None:
    scene = Scene(0)
    with pytest.raises(RuntimeError):
        scene.apply()
    assert scene.pools.workers() == {"tcp": []} and not scene.supervisor.workers
    scene.supervisor.threads = 1
    scene.apply()
    assert scene.looked.acquire(timeout=WAIT)
    scene.stop()
