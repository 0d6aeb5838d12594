"""A step repeated on a named thread; the only file that starts threads.

A step does one turn of work and returns the seconds until it wants the next. The worker waits that long, or until
somebody calls `wake`. A step that raises is logged with its traceback, counted and tried again; a thread that dies
altogether is replaced by the `Supervisor`, which the main thread asks once a second. A thread that hangs cannot be
ended: where the worker's `Care` knows how, its work goes on with a fresh step on a new thread, and the old one ends
when it wakes. What is left hanging is for the watchdog.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

from observer_agent.clock import Clock

log = logging.getLogger(__name__)

Step = Callable[[], float]
Thread = threading.Thread  # the word, for those who are told of one
LONGEST_PAUSE = 30.0
LONGEST_TURN = 120.0
IN_VAIN = 2  # replacements in a row, with no turn ended between them, after which a worker is left to the watchdog
GIVEN_UP_MAX = 8  # hung threads that may be left behind


def spawn(name: str, target: Callable[[], object]) -> Thread:
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


class Outcome(NamedTuple):
    """What a job returned, or what it raised."""

    value: Any = None
    error: BaseException | None = None


def outcome_of(job: Callable[[], Any]) -> Outcome:
    """Runs a job of strangers: whatever it raises, SystemExit too, is an outcome and nothing more."""
    try:
        return Outcome(job())
    except BaseException as error:
        return Outcome(None, error)


@dataclass(frozen=True)
class Care:
    """When a worker counts as hung, and how it is helped.

    `longest` is what a turn may take, in seconds. `renew` is told the hung thread, lets its step go and returns one for
    the thread that takes its place; without it a hung worker stays as it is.
    """

    longest: float = LONGEST_TURN
    renew: Callable[[Thread], Step] | None = None


class Life:
    """One thread of a worker, from its start until it ends or is given up; as a context, rest within a turn."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.thread: Thread | None = None
        self.busy_since: float | None = None

    def begin(self) -> None:
        """A turn begins."""
        self.busy_since = self._clock.monotonic()

    def end(self) -> None:
        """A turn has ended."""
        self.busy_since = None

    def __enter__(self) -> None:
        self.end()

    def __exit__(self, *exc: object) -> None:
        self.begin()


class Worker:
    """Repeats `step` on a daemon thread called `name` until `stop`."""

    def __init__(
        self,
        name: str,
        step: Step,
        clock: Clock,
        on_restart: Callable[[str], object] | None = None,
        *,
        care: Care | None = None,
        breath: float = 0.0,
    ) -> None:
        """A pause between two turns lasts `breath` seconds at least: what would wake it meanwhile gathers."""
        self.name = name
        self.restarts = 0
        self.turns = 0
        self.care = care or Care()
        self._step = step
        self._clock = clock
        self._alarm = clock.alarm()
        self._breath = breath
        self._end_of_breath = clock.alarm()
        self._on_restart = on_restart
        self._life = Life(clock)
        self._in_vain = 0
        self._stopping = False

    def start(self) -> None:
        """Starts the thread; a worker that was started runs until `stop`."""
        life = self._life = Life(self._clock)
        life.thread = spawn(self.name, lambda: self._run(life))

    def wake(self) -> None:
        """Ends the pause between two turns."""
        self._alarm.ring()

    def stop(self) -> None:
        """Asks the thread to end after the turn it is in; does not wait."""
        self._stopping = True
        self._end_of_breath.ring()
        self._alarm.ring()

    def join(self, budget: float) -> bool:
        """Waits at most `budget` seconds for the thread to end; says whether it has."""
        thread = self._life.thread
        if thread is None:
            return True
        thread.join(max(budget, 0.0))
        return not thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        thread = self._life.thread
        return thread is not None and thread.is_alive()

    @property
    def busy_since(self) -> float | None:
        """The monotonic moment at which the turn in progress began; None between two turns."""
        return self._life.busy_since

    @property
    def hung(self) -> bool:
        """Whether the turn in progress takes longer than any may."""
        since = self.busy_since
        return since is not None and self._clock.monotonic() - since > self.care.longest

    def idle(self) -> AbstractContextManager[None]:
        """For a step that waits for its work: what happens inside is rest, however long it takes."""
        return self._life

    def revive(self) -> bool:
        """Starts a new thread if the old one died without being asked to; says whether it did."""
        if self._life.thread is None or self._stopping or self.alive:
            return False
        self._count_restart()
        self.start()
        return True

    def replace(self) -> Thread | None:
        """Gives up a hung thread and goes on with a new one; returns the old one, None where nothing was done."""
        renew, thread = self.care.renew, self._life.thread
        if renew is None or thread is None or self._stopping or not self.hung or self._in_vain >= IN_VAIN:
            return None
        self._in_vain += 1
        self._step = renew(thread)
        self._count_restart()
        self.start()
        return thread

    def _run(self, life: Life) -> None:
        failures = 0
        while not self._stopping and self._life is life:
            life.begin()
            try:
                pause = self._step()
                failures = 0
            except Exception:
                failures += 1
                pause = min(2.0 ** (failures - 1), LONGEST_PAUSE)
                self._count_restart()
                log.exception("Worker %s crashed; it starts again in %.0f s", self.name, pause)
            life.end()
            if self._life is not life:
                return  # given up while it hung; another thread does the work
            self.turns += 1
            self._in_vain = 0
            if pause > 0:
                self._rest(pause, deaf=failures > 0)

    def _rest(self, seconds: float, deaf: bool) -> None:
        """The pause between two turns. After a crash nothing but a stop ends it, or each wake would crash again."""
        until = self._clock.monotonic() + seconds
        if self._breath and seconds > 0 and not self._stopping:
            self._end_of_breath.wait(min(self._breath, seconds))
        while not self._stopping and (left := until - self._clock.monotonic()) > 0:
            if self._alarm.wait(left) and not deaf:
                return

    def _count_restart(self) -> None:
        self.restarts += 1
        if self._on_restart:
            self._on_restart(self.name)


class Supervisor:
    """Replaces threads that died or hang; the main thread calls `check`."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {}
        self._given_up: list[Thread] = []
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

    def check(self) -> bool:
        """Replaces every dead and every hung worker, once logged and counted each; whether all make progress now."""
        with self._lock:
            workers = list(self.workers.values())
        for worker in workers:
            if worker.revive():
                log.error("Worker %s had died; a new thread has taken its place", worker.name)
            elif worker.hung:
                self._replace(worker)
        return not any(worker.hung for worker in workers)

    def _replace(self, worker: Worker) -> None:
        self._given_up = [thread for thread in self._given_up if thread.is_alive()]
        old = worker.replace() if len(self._given_up) < GIVEN_UP_MAX else None
        if old:
            self._given_up.append(old)
            log.error("Worker %s hung for %.0f s; a new thread has taken its place", worker.name, worker.care.longest)
