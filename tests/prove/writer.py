"""The process that is killed: a real queue file, a real sender and heartbeat, verdicts from several threads.

Run as `python -m tests.prove.writer FOLDER URL KEY`. It imports everything once and then forks a child for each line
of JSON on stdin, so that a life costs milliseconds; each child is a process of its own that alone holds the file. It
answers `begun <pid>` and, when the child is gone, `ended <wait status>`. A child writes into the file `acked` what was
stored: 32 bits that count its puts, then for each metric 32 bits that count the rows `put` has returned for.
"""

from __future__ import annotations

import gc
import itertools
import json
import mmap
import os
import random
import struct
import sys
from pathlib import Path
from typing import Any

from observer_agent import __version__
from observer_agent.clock import Clock, iso
from observer_agent.clouds.observer import Notice, Observer, headers
from observer_agent.diskqueue import Bounds, DiskQueue, open_queue
from observer_agent.heartbeat import Heartbeat
from observer_agent.model import Health, Sample, Status
from observer_agent.resolver import Resolver
from observer_agent.sender import Sender
from observer_agent.transport import Transport
from observer_agent.worker import Worker

METRICS = 20
ACKED_BYTES = 4 * (METRICS + 1)
LIFE = 1_000_000  # a life's first value; each metric counts up from there
FLAP = 0.25  # how often a verdict differs from the last
BEAT = 0.02


class Acked:
    """What `put` has returned for, in memory that outlives the process."""

    def __init__(self, file: Path) -> None:
        with file.open("r+b") as handle:
            self._memory = mmap.mmap(handle.fileno(), ACKED_BYTES)

    def add(self, numbers: list[int]) -> None:
        """One row more for each of these metrics."""
        for place in (*(n + 1 for n in numbers), 0):
            (count,) = struct.unpack_from("=I", self._memory, 4 * place)
            struct.pack_into("=I", self._memory, 4 * place, count + 1)


class Putter:
    """One thread's metrics: no other thread puts them, so that their values ascend."""

    def __init__(self, queue: DiskQueue, acked: Acked, numbers: list[int], seed: str, life: int) -> None:
        self._queue = queue
        self._acked = acked
        self._numbers = numbers
        self._chance = random.Random(seed)
        self._values = dict.fromkeys(numbers, life * LIFE)
        self._status = dict.fromkeys(numbers, Status.HEALTHY)

    def step(self) -> float:
        chance = self._chance
        numbers = chance.choices(self._numbers, k=chance.randint(1, 4))
        self._queue.put([self._sample(n) for n in numbers])
        self._acked.add(numbers)
        return chance.choice((0.0, 0.0, 0.001, 0.004))

    def _sample(self, number: int) -> Sample:
        self._values[number] += 1
        if self._chance.random() < FLAP:
            self._status[number] = self._chance.choice(list(Status))
        status = self._status[number]
        reason = "ETIMEDOUT" if status is Status.NO_DATA else None
        return Sample(f"m{number:02}", self._values[number], "2026-01-01T00:00:00.000Z", status, reason)


def live(folder: Path, url: str, key: str, orders: dict[str, Any]) -> None:
    """One life; with `drain` it ends by itself, once nothing waits and the hub has heard so."""
    clock = Clock()
    queue = open_queue(folder / "buffer.db", Bounds(orders["cap"]), clock)
    started_at = iso(queue.claim_start())
    notice = Notice(clock)

    def link() -> Observer:
        sent = headers(key, started_at, __version__)
        return Observer(Transport(url, sent, clock=clock, resolver=Resolver(clock)), clock, notice)

    def health() -> Health:
        return Health(__version__, started_at, 1, queue.depth, 0, queue.capacity, ("tcp",), "", queue.ledgers())

    sender = Sender(queue, link(), clock, random.Random(orders["seed"]).random)
    heartbeat = Heartbeat(link(), health, clock, lambda told: sender.heartbeat(told.ok))

    def beat() -> float:
        heartbeat.beat()
        return BEAT

    workers = [Worker("send", sender.step, clock), Worker("beat", beat, clock)]
    sender.wake = queue.on_put = workers[0].wake
    acked = Acked(folder / "acked")
    threads = 0 if orders.get("drain") else orders["threads"]
    for n in range(threads):
        mine = list(range(n, METRICS, threads))
        workers.append(
            Worker(f"put-{n}", Putter(queue, acked, mine, f"{orders['seed']} {n}", orders["life"]).step, clock)
        )
    for worker in workers:
        worker.start()
    alarm = clock.alarm()
    while not (orders.get("drain") and queue.depth == 0):
        alarm.wait(0.02)
    for worker in workers:
        worker.stop()
    assert all(worker.join(30.0) for worker in workers)
    for _ in itertools.takewhile(lambda _: not heartbeat.beat().ok, range(1000)):
        pass
    queue.close()


def main(folder: Path, url: str, key: str) -> None:
    """Forks a child for each line; this process has one thread only and never opens the queue."""
    gc.freeze()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            live(folder, url, key, json.loads(line))
            os._exit(0)
        print(f"begun {pid}", flush=True)
        print(f"ended {os.waitpid(pid, 0)[1]}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
