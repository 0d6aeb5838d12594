"""The collectors of all source types, and the threads of each: `probe-<type>-N`.

A collector's pool grows by one thread when all of it are busy, up to its own bound and that of all pools together;
one thread is kept for each source type that has none yet. A thread that hangs in a probe is replaced, and its
definition goes on without a look until the old thread has ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from observer_agent.clock import Clock
from observer_agent.collector import POOL_MAX, Collector
from observer_agent.model import Definition, Fault, Reading
from observer_agent.probes import SOURCES, Reason
from observer_agent.worker import Care, Step, Supervisor, Thread, Worker

THREADS_MAX = 96  # of all source types together; tests/test_threads.py adds up all threads of the agent
LONGEST_TURN = 75.0  # the longest timeout of a definition is 60 s
BROKEN = "broken"  # the collector of definitions that cannot run
KINDS = len(SOURCES) + 1

_GIVEN_UP = {"error": "the probe hangs and was given up"}

Make = Callable[[Callable[[], bool]], Collector]


class Pools:
    """See the module. `make` is handed what asks for one more thread, and returns a collector.

    `threads`, at most THREADS_MAX, bounds all pools together; each has one in any case.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        clock: Clock,
        make: Make,
        on_restart: Callable[[str], object] | None = None,
        *,
        threads: int = THREADS_MAX,
    ) -> None:
        self._threads = threads
        self._supervisor = supervisor
        self._clock = clock
        self._make = make
        self._on_restart = on_restart
        self._collectors: dict[str, Collector] = {}
        self._workers: dict[str, list[Worker]] = {}
        self._lock = threading.Lock()
        self._stopping = False

    def apply(self, found: Iterable[Definition]) -> tuple[int, int, int]:
        """All definitions as they are now, each to its collector; how many were added, changed, removed."""
        groups: dict[str, list[Definition]] = {name: [] for name in self.collectors()}
        for definition in found:
            groups.setdefault(BROKEN if definition.problem else definition.source_type, []).append(definition)
        sums = [self._collector(name).apply(group) for name, group in groups.items()]
        added, changed, removed = (sum(column) for column in zip(*sums, strict=True)) if sums else (0, 0, 0)
        return added, changed, removed

    def collectors(self) -> dict[str, Collector]:
        """The collectors by source type."""
        with self._lock:
            return dict(self._collectors)

    def workers(self) -> dict[str, list[Worker]]:
        """The threads by source type."""
        with self._lock:
            return {name: list(workers) for name, workers in self._workers.items()}

    def stop(self) -> list[Worker]:
        """Ends the sleep of every collector for good, and lets no pool grow; returns the workers, not stopped yet."""
        self._stopping = True
        for collector in self.collectors().values():
            collector.stop()
        return [worker for workers in self.workers().values() for worker in workers]

    def _collector(self, name: str) -> Collector:
        with self._lock:
            collector = self._collectors.get(name)
            if collector is None:
                collector = self._collectors[name] = self._make(lambda: self._grow(name))
                self._workers[name] = []
            threads = len(self._workers[name])
        if not threads:
            self._grow(name)
        return collector

    def _grow(self, name: str) -> bool:
        """One more thread for a pool, up to the bounds; the first one always."""
        with self._lock:
            pool = self._workers[name]
            if self._stopping or (pool and self._is_full(pool)):
                return False
            worker = self._worker(f"probe-{name}-{len(pool)}", self._collectors[name])
            pool.append(worker)
        try:
            self._supervisor.add(worker)
        except RuntimeError:  # the system gives no thread
            with self._lock:
                pool.remove(worker)
            self._supervisor.remove([worker])
            if not pool:
                raise
            return False
        return True

    def _is_full(self, pool: list[Worker]) -> bool:
        """Whether it may not grow: what the pools to come need stays free."""
        there, to_come = sum(map(len, self._workers.values())), KINDS - len(self._workers)
        return len(pool) >= POOL_MAX or there >= self._threads or there + to_come >= THREADS_MAX

    def _worker(self, name: str, collector: Collector) -> Worker:
        def step() -> float:
            return collector.step(worker.idle)

        def renew(hung: Thread) -> Step:
            reading = Reading(None, Reason.SOURCE_THREW.value, Fault.AGENT, detail=_GIVEN_UP)
            collector.give_up(hung, reading)
            return step

        worker = Worker(name, step, self._clock, self._on_restart, care=Care(LONGEST_TURN, renew))
        return worker
