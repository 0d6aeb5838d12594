"""A step repeated on a named thread; the only file that starts threads.

A step does one turn of work and returns the seconds until it wants the next. The worker waits that long, or until
somebody calls `wake`. A step that raises is logged with its traceback, counted and tried again; a thread that dies
altogether is replaced by the `Supervisor`, which the main thread asks once a second.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from observer_agent.clock import Clock

log = logging.getLogger(__name__)

Step = Callable[[], float]
LONGEST_PAUSE = 30.0


def spawn(name: str, target: Callable[[], object]) -> threading.Thread:
    """Starts a daemon thread for a job that ends by itself (a resolver thread, a server's loop)."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


def attempt(what: str, job: Callable[[], object]) -> None:
    """Does one thing of several that must all be tried: an error is logged with its traceback, and life goes on."""
    try:
        job()
    except Exception:
        log.exception("%s failed; what comes after it goes on", what)


class Worker:
    """Repeats `step` on a daemon thread called `name` until `stop`."""

    def __init__(self, name: str, step: Step, clock: Clock, on_restart: Callable[[str], object] | None = None) -> None:
        self.name = name
        self.restarts = 0
        self.turns = 0
        self.busy_since: float | None = None
        self._step = step
        self._clock = clock
        self._alarm = clock.alarm()
        self._on_restart = on_restart
        self._thread: threading.Thread | None = None
        self._stopping = False

    def start(self) -> None:
        """Starts the thread; a worker that was started runs until `stop`."""
        self._thread = spawn(self.name, self._run)

    def wake(self) -> None:
        """Ends the pause between two turns."""
        self._alarm.ring()

    def stop(self) -> None:
        """Asks the thread to end after the turn it is in; does not wait."""
        self._stopping = True
        self._alarm.ring()

    def join(self, budget: float) -> bool:
        """Waits at most `budget` seconds for the thread to end; says whether it has."""
        if self._thread is None:
            return True
        self._thread.join(max(budget, 0.0))
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def revive(self) -> bool:
        """Starts a new thread if the old one died without being asked to; says whether it did."""
        if self._thread is None or self._stopping or self._thread.is_alive():
            return False
        self._count_restart()
        self.start()
        return True

    def _run(self) -> None:
        failures = 0
        while not self._stopping:
            self.busy_since = self._clock.monotonic()
            try:
                pause = self._step()
                failures = 0
            except Exception:
                failures += 1
                pause = min(2.0 ** (failures - 1), LONGEST_PAUSE)
                self._count_restart()
                log.exception("Worker %s crashed; it starts again in %.0f s", self.name, pause)
            self.busy_since = None
            self.turns += 1
            self._rest(pause, deaf=failures > 0)

    def _rest(self, seconds: float, deaf: bool) -> None:
        """The pause between two turns. After a crash nothing but a stop ends it, or each wake would crash again."""
        until = self._clock.monotonic() + seconds
        while not self._stopping and (left := until - self._clock.monotonic()) > 0:
            if self._alarm.wait(left) and not deaf:
                return

    def _count_restart(self) -> None:
        self.restarts += 1
        if self._on_restart:
            self._on_restart(self.name)


class Supervisor:
    """Replaces threads that died; the main thread calls `check`."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {}
        self._lock = threading.Lock()

    def add(self, worker: Worker) -> Worker:
        """Takes a worker into care and starts it."""
        with self._lock:
            self.workers[worker.name] = worker
        worker.start()
        return worker

    def remove(self, workers: Iterable[Worker]) -> None:
        """Lets workers go that are no longer wanted; they have been stopped."""
        with self._lock:
            for worker in workers:
                self.workers.pop(worker.name, None)

    def check(self) -> None:
        """Revives every dead worker, once logged and counted each."""
        with self._lock:
            workers = list(self.workers.values())
        for worker in workers:
            if worker.revive():
                log.error("Worker %s had died; a new thread has taken its place", worker.name)
