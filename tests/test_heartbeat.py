"""The heartbeat on the fake clock, and what it carries."""

from __future__ import annotations

import pytest

from observer_agent.clouds.memory import Memory
from observer_agent.heartbeat import Heartbeat
from observer_agent.model import Health, Ledger, Orders
from tests.fakes import FakeClock


class Stage:
    def __init__(self, *ledgers):
        self.clock = FakeClock()
        self.cloud = Memory()
        self.ledgers = ledgers
        self.heard = []
        self.heartbeat = Heartbeat(self.cloud, self.health, self.clock, self.heard.append)

    def health(self):
        return Health("0.1.0", "2026-11-21T00:00:00.000Z", 5, 0, 0, 10, (), delivery=tuple(self.ledgers))


def test_the_first_at_once_then_every_thirty_seconds_without_drift():
    stage = Stage()
    assert stage.heartbeat.step() == 30.0
    stage.clock.advance(31.5)
    assert stage.heartbeat.step() == pytest.approx(28.5)
    stage.clock.advance(10)
    assert stage.heartbeat.step() == pytest.approx(18.5)
    assert len(stage.cloud.beats) == 2


def test_beats_that_were_missed_are_not_caught_up():
    stage = Stage()
    stage.heartbeat.step()
    stage.clock.advance(3600)
    stage.heartbeat.step()
    assert stage.heartbeat.step() > 0
    assert len(stage.cloud.beats) == 2


def test_after_a_failure_a_beat_comes_up_to_a_fifth_earlier_so_that_a_fleet_spreads():
    stage = Stage()
    stage.heartbeat._random = lambda: 0.5
    stage.cloud.orders.extend([Orders(False, 503)] * 2)
    assert [stage.heartbeat.step(), stage.clock.advance(27), stage.heartbeat.step()] == [27.0, None, 27.0]
    stage.clock.advance(27)
    assert stage.heartbeat.step() == 30.0


def test_every_outcome_is_handed_up_and_a_failure_is_said_every_five_minutes(caught):
    stage = Stage()
    stage.cloud.orders.extend([Orders(False, 503, text="down")] * 12 + [Orders(True, 200, "v7")])
    for _ in range(13):
        stage.clock.advance(stage.heartbeat.step())
    assert [orders.ok for orders in stage.heard] == [False] * 12 + [True]
    assert stage.heard[-1].definitions_version == "v7"
    assert caught.text.count("did not take the heartbeat") == 2
    assert stage.heartbeat.sent == 1


def test_delivery_carries_queue_ids_with_rows_or_changes_since_the_last_beat_that_arrived():
    idle, waiting = Ledger("a", 5, 5, 0, {}), Ledger("b", 3, 1, 2, {})
    stage = Stage(idle, waiting)
    stage.cloud.orders.append(Orders(False, 0))
    for _ in range(3):
        stage.heartbeat.beat()
    stage.ledgers = (idle, Ledger("b", 3, 3, 0, {}), Ledger("c", 0, 0, 0, {}))
    stage.heartbeat.beat()
    stage.heartbeat.beat()
    said = [[ledger.queue_id for ledger in health.delivery] for health in stage.cloud.beats]
    assert said == [["a", "b"], ["a", "b"], ["b"], ["b"], []]


def test_delivery_is_at_most_the_newest_twenty():
    stage = Stage(*(Ledger(str(n), 1, 0, 1, {}) for n in range(30)))
    stage.heartbeat.beat()
    assert [ledger.queue_id for ledger in stage.cloud.beats[0].delivery] == [str(n) for n in range(10, 30)]
