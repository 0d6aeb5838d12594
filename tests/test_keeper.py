"""While the queue file takes nothing the newest verdict of each metric waits in memory; every loss is declared."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from observer_agent.diskqueue import Bounds, open_queue
from observer_agent.errors import DiskFull
from observer_agent.keeper import AGAIN, GATHER_MAX, IDLE, Keeper
from observer_agent.model import Answer, Fate, Sample, Status
from tests.fakes import FakeClock


def sample(metric, value=0.0):
    return Sample(metric, value, "2026-01-01T00:00:00.000Z", Status.HEALTHY)


class Door:
    """The real queue behind a door that can be shut."""

    def __init__(self, queue):
        self.queue = queue
        self.shut = False

    def put(self, samples, missed=0):
        if self.shut:
            raise DiskFull("no room")
        return self.queue.put(samples, missed)


@pytest.fixture
def queue(tmp_path):
    queue = open_queue(tmp_path / "b.db", Bounds(100), FakeClock())
    yield queue
    queue.close()


def drain(queue):
    rows = []
    while batch := queue.peek(100):
        rows += [row.data for row in batch.rows]
        queue.settle(batch, Answer(Fate.ACCEPTED, 200))
    return rows


def test_the_newest_verdict_of_each_metric_is_queued_when_there_is_room_and_the_rest_is_declared(queue, caught):
    door = Door(queue)
    clock = FakeClock()
    keeper = Keeper(door, clock)
    keeper.put([sample("a", 1)])
    door.shut = True
    for value in (2, 3, 4):
        keeper.put([sample("a", value), sample("b", value)])
    assert keeper.waiting() == (2, 4)
    assert keeper.step() == AGAIN
    assert "kept in memory" in caught.text
    door.shut = False
    assert keeper.step() == AGAIN, "a put does not make it try more often"
    clock.advance(AGAIN)
    assert keeper.step() == IDLE
    keeper.put([sample("a", 5)])
    wanted = [("a", 1), ("a", 4), ("b", 4), ("a", 5)]
    assert drain(queue) == [sample(m, v).encode() for m, v in wanted]
    (ledger,) = queue.ledgers()
    assert (ledger.given, ledger.accepted, ledger.pending, ledger.lost) == (8, 4, 0, {"disk_full": 4})
    assert keeper.waiting() == (0, 0)


def test_what_comes_while_something_waits_does_not_overtake_it(queue):
    door = Door(queue)
    keeper = Keeper(door, FakeClock())
    door.shut = True
    keeper.put([sample("a", 1)])
    door.shut = False
    keeper.put([sample("a", 2)])
    assert queue.depth == 0
    keeper.step()
    assert drain(queue) == [sample("a", 2).encode()]


def test_the_account_survives_a_restart(queue, tmp_path):
    queue.put([sample("a")], missed=3)
    queue.close()
    again = open_queue(tmp_path / "b.db", Bounds(100), FakeClock())
    old = again.ledgers()[0]
    assert (old.given, old.pending, old.lost) == (4, 1, {"disk_full": 3})
    again.close()


def gathering(queue):
    """A keeper whose thread is woken by counting."""
    wakes = []
    keeper = Keeper(queue, FakeClock())
    keeper.wake = lambda: wakes.append(1)
    return keeper, wakes


def test_what_repeats_gathers_and_what_changes_goes_at_once_with_all_before_it(queue):
    keeper, wakes = gathering(queue)
    keeper.put([sample("a", 1)])
    keeper.put([sample("b", 1)])
    assert queue.depth == 2, "the first verdict of a metric is news"
    for value in (2, 3):
        keeper.put([sample("a", value)])
        keeper.put([sample("b", value)])
    assert (queue.depth, len(wakes)) == (2, 1)
    keeper.put([replace(sample("a", 4), status=Status.UNHEALTHY)])
    assert queue.depth == 7
    keeper.put([sample("b", 4)])
    assert (queue.depth, len(wakes)) == (7, 2)
    assert keeper.step() == IDLE and queue.depth == 8
    values = [json.loads(data) for data in drain(queue)]
    came = [(row["metric_id"], row["value"]) for row in values]
    assert came == [("a", 1), ("b", 1), ("a", 2), ("b", 2), ("a", 3), ("b", 3), ("a", 4), ("b", 4)]


def test_nothing_gathers_without_end(queue):
    keeper, _ = gathering(Door(queue))
    keeper.put([sample("a", 0)])
    for value in range(1, GATHER_MAX):
        keeper.put([sample("a", value)])
    assert queue.depth == 1
    keeper.put([sample("a", GATHER_MAX)])
    assert len(drain(queue)) + sum(queue.lost().values()) == GATHER_MAX + 1


def test_a_close_takes_everything_to_the_file_and_later_puts_go_there_by_themselves(queue):
    keeper, wakes = gathering(queue)
    for value in range(3):
        keeper.put([sample("a", value)])
    assert queue.depth == 1
    keeper.close()
    assert queue.depth == 3
    keeper.put([sample("a", 3)])
    assert (queue.depth, len(wakes)) == (4, 1)


def test_what_has_gathered_is_kept_when_the_file_takes_nothing_and_does_not_overtake(queue):
    door = Door(queue)
    keeper, _ = gathering(door)
    keeper.put([sample("a", 0), sample("b", 0)])
    keeper.put([sample("a", 1), sample("b", 1)])
    door.shut = True
    assert keeper.step() == AGAIN
    keeper.put([sample("a", 2)])
    assert keeper.waiting() == (2, 1)
    door.shut = False
    keeper.close()
    assert keeper.waiting() == (2, 1), "it is tried again when the time has come"
    keeper._clock.advance(AGAIN)
    keeper.close()
    wanted = [("a", 0), ("b", 0), ("b", 1), ("a", 2)]
    assert drain(queue) == [sample(m, v).encode() for m, v in wanted]
    (ledger,) = queue.ledgers()
    assert (ledger.given, ledger.accepted, ledger.lost) == (5, 4, {"disk_full": 1})


def test_many_threads_lose_nothing_and_keep_the_order_of_each_metric(tmp_path):
    queue = open_queue(tmp_path / "q.db", Bounds(100_000), FakeClock())
    keeper, _ = gathering(queue)
    statuses = [Status.HEALTHY, Status.HEALTHY, Status.HEALTHY, Status.UNHEALTHY]
    ended = threading.Event()

    def bring(metric):
        for value in range(400):
            keeper.put([replace(sample(metric, value), status=statuses[value % 4])])

    def come_by():
        while not ended.is_set():
            keeper.step()

    with ThreadPoolExecutor(9) as pool:
        thread = pool.submit(come_by)
        done = [pool.submit(bring, f"m{n}") for n in range(8)]
        assert [each.result(60) for each in done] == [None] * 8
        ended.set()
        assert thread.result(20) is None
    keeper.close()
    came = {}
    for row in map(json.loads, drain(queue)):
        came.setdefault(row["metric_id"], []).append(row["value"])
    queue.close()
    assert came == {f"m{n}": list(range(400)) for n in range(8)}


def test_what_comes_while_the_file_refuses_does_not_overtake_what_it_has_refused(queue):
    class Refusing(Door):
        def put(self, samples, missed=0):
            if self.shut:
                keeper.put([sample("a", 2)])
            return super().put(samples, missed)

    door = Refusing(queue)
    keeper, _ = gathering(door)
    keeper.put([sample("a", 0)])
    keeper.put([sample("a", 1)])
    door.shut = True
    keeper._flush()
    door.shut = False
    keeper.step()
    assert drain(queue) == [sample("a", 0).encode(), sample("a", 2).encode()]
    assert queue.lost() == {"disk_full": 1}


def test_a_change_waits_for_what_is_on_its_way_into_the_file(queue):
    entered, go, second = threading.Event(), threading.Event(), threading.Event()

    class Slow(Door):
        def put(self, samples, missed=0):
            if entered.is_set():
                second.set()
            elif samples[0].value == 1:
                entered.set()
                go.wait(20)
            return super().put(samples, missed)

    keeper, _ = gathering(Slow(queue))
    keeper.put([sample("a", 0)])
    keeper.put([sample("a", 1)])
    with ThreadPoolExecutor(2) as pool:
        step = pool.submit(keeper.step)
        assert entered.wait(20)
        change = pool.submit(keeper.put, [replace(sample("a", 2), status=Status.UNHEALTHY)])
        assert not second.wait(0.2)
        go.set()
        assert (step.result(20), change.result(20)) == (IDLE, 0)
    assert [json.loads(data)["value"] for data in drain(queue)] == [0, 1, 2]
