"""A file system of 2 MB that fills up, by the queue and by a stranger: what was accepted still arrives."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from observer_agent import space
from observer_agent.clock import Clock
from observer_agent.diskqueue import Bounds, open_queue
from observer_agent.errors import DiskFull, NoPlace, QueueError
from observer_agent.model import Answer, Fate, Sample, Status
from tests.conftest import eat

OK = Answer(Fate.ACCEPTED, 200)


def samples(first, count):
    return [Sample(f"metric-{n}", n, "2026-01-01T00:00:00.000Z", Status.HEALTHY) for n in range(first, first + count)]


def fill(queue, most=100_000, at_once=10):
    """Puts until the disk is full; returns how many rows were accepted."""
    accepted = 0
    while accepted < most:
        try:
            queue.put(samples(accepted, at_once))
        except DiskFull:
            return accepted
        accepted += at_once
    raise AssertionError("the disk did not get full")


def drain(queue):
    ids = []
    while batch := queue.peek(100):
        queue.settle(batch, OK)
        ids += [row.id for row in batch.rows]
    return ids


@pytest.mark.parametrize("at_once", [1, 10, 100])
def test_everything_that_put_accepted_leaves_a_disk_that_the_queue_filled(disk, at_once):
    queue = open_queue(disk / "b.db", Bounds(100_000), Clock())
    try:
        accepted = fill(queue, at_once=at_once)
        assert accepted > 2_000
        eat(disk)
        assert drain(queue) == list(range(1, accepted + 1))
        assert queue.put(samples(0, 1)) == 0
    finally:
        queue.close()


@pytest.mark.parametrize("rows", [0, 1, 50, 777])
def test_a_stranger_fills_the_disk_and_what_waits_still_leaves(disk, rows):
    queue = open_queue(disk / "b.db", Bounds(100_000), Clock())
    try:
        for n in range(rows):
            queue.put(samples(n, 1))
        eat(disk)
        more = fill(queue, at_once=1)
        ids = drain(queue)
        assert ids == list(range(1, rows + more + 1))
        queue.put(samples(0, 5))
        assert len(drain(queue)) == 5
        (ledger,) = queue.ledgers()
        assert ledger.given == ledger.accepted == rows + more + 5
    finally:
        queue.close()


def test_a_restart_on_a_full_disk(disk):
    queue = open_queue(disk / "b.db", Bounds(100_000), Clock())
    accepted = fill(queue)
    queue.close()
    assert space.donor_of(disk / "b.db").exists()
    eat(disk)
    queue = open_queue(disk / "b.db", Bounds(100_000), Clock())
    try:
        assert drain(queue) == list(range(1, accepted + 1))
        queue.put(samples(0, 3))
        assert len(drain(queue)) == 3
    finally:
        queue.close()


def test_a_first_start_on_a_full_disk_has_no_place_there_and_is_no_wrong_setting(disk):
    eat(disk)
    with pytest.raises(NoPlace, match="the disk is full"):
        open_queue(disk / "b.db", Bounds(100), Clock())


def test_a_kill_on_a_full_disk(disk):
    child = f"""
from pathlib import Path
import os, signal
from tests.conftest import eat
from tests.test_full_disk import fill
from observer_agent.clock import Clock
from observer_agent.diskqueue import Bounds, open_queue
queue = open_queue(Path({str(disk / "b.db")!r}), Bounds(100_000), Clock())
print(fill(queue), flush=True)
eat(Path({str(disk)!r}))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", child], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."}
    )
    accepted = int(done.stdout)
    queue = open_queue(disk / "b.db", Bounds(100_000), Clock())
    try:
        assert drain(queue) == list(range(1, accepted + 1))
    finally:
        queue.close()


def test_transitions_and_dead_letters_leave_a_full_disk_too(disk):
    queue = open_queue(disk / "b.db", Bounds(100_000), Clock())
    try:
        accepted = fill(queue)
        eat(disk)
        batch = queue.peek(100)
        queue.settle(batch, Answer(Fate.FENCED, 409))
        batch = queue.peek(1)
        queue.settle(batch, Answer(Fate.REFUSED, 400, "no"))
        assert len(drain(queue)) == accepted - 101
        assert queue.lost() == {"fenced": 100, "refused": 1}
    finally:
        queue.close()


def test_a_refused_put_says_so_and_leaves_the_account_alone(disk):
    queue = open_queue(disk / "b.db", Bounds(100_000), Clock())
    try:
        accepted = fill(queue)
        with pytest.raises(QueueError, match="no room on the disk"):
            queue.put(samples(0, 100))
        (ledger,) = queue.ledgers()
        assert (ledger.given, ledger.pending, ledger.lost) == (accepted, accepted, {})
    finally:
        queue.close()
