"""While the queue file takes nothing the newest verdict of each metric waits in memory; every loss is declared."""

from __future__ import annotations

import pytest

from observer_agent.diskqueue import Bounds, open_queue
from observer_agent.errors import DiskFull
from observer_agent.keeper import AGAIN, IDLE, Keeper
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
