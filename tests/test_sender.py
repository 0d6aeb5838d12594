"""The sender against a scripted cloud and a real queue, on the fake clock: every row of the answer table."""

from __future__ import annotations

import pytest

from observer_agent.clouds.memory import Memory
from observer_agent.diskqueue import Bounds, open_queue
from observer_agent.model import Answer, Fate, Reject, Sample, Status
from observer_agent.sender import IDLE, Sender
from tests.fakes import FakeClock

OK = Answer(Fate.ACCEPTED, 200)
DOWN = Answer(Fate.LATER, 0, "connection refused")
BROKEN = Answer(Fate.LATER, 500, "oops", blames=True)
REFUSED = Answer(Fate.REFUSED, 400, "bad row")
FENCED = Answer(Fate.FENCED, 409, newer_started_at="2026-11-21T00:00:00.000Z")


class Cloud(Memory):
    """Answers by a rule, where there is one."""

    def __init__(self, *answers, rule=None):
        super().__init__(answers)
        self.rule = rule

    def deliver(self, batch):
        if not self.rule or self.answers:
            return super().deliver(batch)
        answer = self.rule(batch)
        self.tried.append(batch)
        if answer.fate is Fate.ACCEPTED:
            self.batches.append(batch)
        return answer

    @property
    def ids(self):
        return [row.id for batch in self.batches for row in batch.rows]


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def queue(tmp_path, clock):
    queue = open_queue(tmp_path / "b.db", Bounds(10000), clock)
    yield queue
    queue.close()


def fill(queue, count):
    queue.put([Sample(f"m{n}", n, "2026-01-01T00:00:00.000Z", Status.HEALTHY) for n in range(count)])


def sender_for(queue, cloud, clock):
    return Sender(queue, cloud, clock, lambda: 1.0)


def turn(sender, clock, times=1):
    """Takes turns, letting the time pass that each asks for; returns the waits."""
    waits = []
    for _ in range(times):
        waits.append(sender.step())
        clock.advance(waits[-1])
    return waits


def run_until_idle(sender, clock, limit=2000):
    for _ in range(limit):
        wait = sender.step()
        if wait == IDLE and sender.failing_since is None:
            return
        clock.advance(wait)
    raise AssertionError("the sender does not come to rest")


def lost(queue):
    return queue.lost()


def test_accepted_rows_leave_in_order_a_hundred_at_a_time(queue, clock):
    cloud = Cloud()
    fill(queue, 250)
    sender = sender_for(queue, cloud, clock)
    assert turn(sender, clock, 4) == [0.0, 0.0, 0.0, IDLE]
    assert [len(batch) for batch in cloud.batches] == [100, 100, 50]
    assert cloud.ids == list(range(1, 251))
    assert queue.depth == 0


def test_rows_gather_after_a_batch_that_was_not_full(queue, clock):
    cloud = Cloud()
    sender = Sender(queue, cloud, clock, lambda: 1.0, gather=0.05)
    fill(queue, 150)
    assert turn(sender, clock, 3) == [0.0, 0.05, IDLE]
    fill(queue, 1)
    assert turn(sender, clock) == [0.05]
    assert [len(batch) for batch in cloud.batches] == [100, 50, 1]


def test_rejected_rows_become_dead_letters_and_the_first_three_are_logged(queue, clock, caught):
    rejects = tuple(Reject(n, "value", "not_finite") for n in range(5))
    fill(queue, 10)
    sender = sender_for(queue, Cloud(Answer(Fate.ACCEPTED, 200, rejects=rejects)), clock)
    turn(sender, clock)
    assert lost(queue) == {"refused": 5}
    assert queue.depth == 0
    assert "rejected 5 of 10" in caught.text and caught.text.count("not_finite") == 3


def test_later_waits_1_2_4_5_5_then_30_once_the_failure_is_two_minutes_old(queue, clock):
    fill(queue, 1)
    cloud = Cloud(rule=lambda batch: DOWN)
    sender = sender_for(queue, cloud, clock)
    waits = turn(sender, clock, 32)
    assert waits[:5] == [1, 2, 4, 5, 5]
    young = 3 + (120 - 7 + 4) // 5
    assert waits[3:young] == [5.0] * (young - 3)
    assert waits[young:] == [30.0] * (32 - young)
    assert sum(waits[:young]) >= 120 > sum(waits[: young - 1])
    assert queue.depth == 1 and lost(queue) == {}


@pytest.mark.parametrize("status", [0, 301, 401, 403, 408, 425, 429, 500, 503])
def test_whatever_is_later_keeps_every_row_in_order(queue, clock, status):
    fill(queue, 3)
    later = Answer(Fate.LATER, status, blames=status >= 500)
    cloud = Cloud(later, later)
    run_until_idle(sender_for(queue, cloud, clock), clock)
    assert cloud.ids == [1, 2, 3]
    assert lost(queue) == {}


def test_a_put_does_not_end_a_wait_but_a_heartbeat_does(queue, clock):
    fill(queue, 1)
    sender = sender_for(queue, Cloud(DOWN, DOWN, DOWN, DOWN), clock)
    turn(sender, clock, 3)
    assert sender.step() == 5.0
    clock.advance(1)
    fill(queue, 1)
    assert sender.step() == 4.0
    rung = []
    sender.wake = lambda: rung.append(True)
    sender.heartbeat(False)
    assert sender.step() == 4.0 and not rung
    sender.heartbeat(True)
    assert rung and sender.step() == 0.0
    assert queue.depth == 0


def test_only_its_end_ends_a_retry_after(queue, clock):
    fill(queue, 1)
    cloud = Cloud(Answer(Fate.LATER, 429, retry_after=200.0))
    sender = sender_for(queue, cloud, clock)
    assert sender.step() == 200.0
    clock.advance(10)
    sender.heartbeat(True)
    assert sender.step() == 190.0
    clock.advance(190)
    assert sender.step() == 0.0
    assert len(cloud.tried) == 2


def test_the_backoff_starts_afresh_after_a_success(queue, clock):
    fill(queue, 1)
    sender = sender_for(queue, Cloud(DOWN, DOWN, DOWN, OK, DOWN), clock)
    turn(sender, clock, 4)
    fill(queue, 1)
    assert turn(sender, clock) == [1.0]


def test_409_drops_the_rows_of_that_request_and_waits_five_seconds(queue, clock):
    fill(queue, 150)
    cloud = Cloud(FENCED)
    sender = sender_for(queue, cloud, clock)
    assert turn(sender, clock) == [5.0]
    assert lost(queue) == {"fenced": 100}
    assert sender.fenced_by == "2026-11-21T00:00:00.000Z"
    assert turn(sender, clock) == [0.0]
    assert cloud.ids == list(range(101, 151))
    assert sender.fenced_by is None


def test_a_heartbeat_does_not_shorten_the_five_seconds(queue, clock):
    fill(queue, 150)
    sender = sender_for(queue, Cloud(FENCED), clock)
    sender.step()
    sender.heartbeat(True)
    assert sender.step() == 5.0


def test_409_warns_at_most_once_every_five_minutes(queue, clock, caught):
    sender = sender_for(queue, Cloud(rule=lambda batch: FENCED), clock)
    for _ in range(100):  # 500 s
        fill(queue, 1)
        turn(sender, clock)
    assert caught.text.count("Another process") == 2
    assert lost(queue) == {"fenced": 100}


@pytest.mark.parametrize("bad", [{1}, {100}, {37}, {1, 2, 3}, {50, 51, 100}, set(range(1, 101, 9))])
def test_a_refused_batch_is_bisected_and_only_the_refused_rows_go(queue, clock, bad):
    fill(queue, 130)
    cloud = Cloud(rule=lambda batch: REFUSED if bad & {row.id for row in batch.rows} else OK)
    sender = sender_for(queue, cloud, clock)
    run_until_idle(sender, clock)
    assert cloud.ids == [n for n in range(1, 131) if n not in bad]
    assert lost(queue) == {"refused": len(bad)}
    assert len(cloud.tried) <= 2 + len(bad) * 16


def test_one_refused_row_alone_goes_at_once(queue, clock):
    fill(queue, 1)
    sender = sender_for(queue, Cloud(REFUSED), clock)
    assert turn(sender, clock, 2) == [0.0, IDLE]
    assert lost(queue) == {"refused": 1}


def test_413_halves_the_batch_and_ten_accepted_batches_double_it_again(queue, clock):
    fill(queue, 1000)
    too_large = Answer(Fate.TOO_LARGE, 413, blames=True)
    cloud = Cloud(rule=lambda batch: too_large if len(batch) > 30 else OK)
    sender = sender_for(queue, cloud, clock)
    assert turn(sender, clock, 2) == [1.0, 2.0]
    turn(sender, clock, 10)
    assert [len(batch) for batch in cloud.tried] == [100, 50] + [25] * 10
    cloud.rule = None
    turn(sender, clock, 11)
    assert [len(batch) for batch in cloud.tried[12:]] == [50] * 10 + [100]
    assert lost(queue) == {}


def test_an_older_cloud_gets_one_row_a_request_without_a_wait(queue, clock):
    fill(queue, 3)
    cloud = Cloud(Answer(Fate.AGAIN, 404))
    sender = sender_for(queue, cloud, clock)
    assert sender.step() == 0.0
    cloud.batch_limit = 1
    run_until_idle(sender, clock)
    assert [len(batch) for batch in cloud.tried] == [3, 1, 1, 1]


# -- poison


@pytest.mark.parametrize("status", [500, 404, 413])
def test_a_poison_row_goes_after_another_row_has_passed(queue, clock, status):
    fate = Fate.TOO_LARGE if status == 413 else Fate.LATER
    fails = Answer(fate, status, blames=True)
    fill(queue, 200)
    cloud = Cloud(rule=lambda batch: fails if 42 in {row.id for row in batch.rows} else OK)
    sender = sender_for(queue, cloud, clock)
    sender.heartbeat(True)
    run_until_idle(sender, clock)
    assert sorted(cloud.ids) == [n for n in range(1, 201) if n != 42]
    assert lost(queue) == ({"poison": 1})
    last_failure = max(at for at, batch in enumerate(cloud.tried) if 42 in {row.id for row in batch.rows})
    assert any(batch in cloud.batches for batch in cloud.tried[last_failure + 1 :])


def test_several_poison_rows_in_a_row(queue, clock):
    bad = {1, 2, 3}
    fill(queue, 50)
    cloud = Cloud(rule=lambda batch: BROKEN if bad & {row.id for row in batch.rows} else OK)
    sender = sender_for(queue, cloud, clock)
    sender.heartbeat(True)
    run_until_idle(sender, clock)
    assert sorted(cloud.ids) == list(range(4, 51))
    assert lost(queue) == {"poison": 3}


def test_while_nothing_is_accepted_it_is_an_outage_and_every_row_stays(queue, clock):
    fill(queue, 250)
    cloud = Cloud(rule=lambda batch: BROKEN)
    sender = sender_for(queue, cloud, clock)
    sender.heartbeat(True)
    turn(sender, clock, 500)
    assert queue.depth == 250
    assert lost(queue) == {}
    cloud.rule = None
    run_until_idle(sender, clock)
    assert sorted(cloud.ids) == list(range(1, 251))


def test_without_heartbeats_nothing_is_suspected(queue, clock):
    fill(queue, 100)
    cloud = Cloud(rule=lambda batch: BROKEN if 1 in {row.id for row in batch.rows} else OK)
    sender = sender_for(queue, cloud, clock)
    turn(sender, clock, 100)
    assert {len(batch) for batch in cloud.tried} == {100}
    assert queue.depth == 100


def test_ten_failures_and_not_nine_start_the_hunt(queue, clock):
    fill(queue, 100)
    cloud = Cloud(rule=lambda batch: BROKEN)
    sender = sender_for(queue, cloud, clock)
    sender.heartbeat(True)
    turn(sender, clock, 12)
    assert [len(batch) for batch in cloud.tried] == [100] * 11 + [50]


def test_a_lone_poison_row_stays_as_long_as_no_other_passes(queue, clock):
    fill(queue, 1)
    cloud = Cloud(rule=lambda batch: BROKEN if 1 in {row.id for row in batch.rows} else OK)
    sender = sender_for(queue, cloud, clock)
    sender.heartbeat(True)
    for _ in range(60):
        clock.advance(sender.step())
    assert queue.depth == 1 and lost(queue) == {}
    for _ in range(2):
        fill(queue, 1)
        for _ in range(30):
            clock.advance(sender.step())
    assert lost(queue) == {"poison": 1} and cloud.ids == [2, 3]


def test_rows_that_only_met_an_outage_of_the_receiver_are_tried_again_and_arrive(queue, clock):
    fill(queue, 120)
    cloud = Cloud(rule=lambda batch: BROKEN)
    sender = sender_for(queue, cloud, clock)
    sender.heartbeat(True)
    while len(sender._hunt.suspects) < 7:
        turn(sender, clock)
    cloud.rule = None
    run_until_idle(sender, clock)
    assert sorted(cloud.ids) == list(range(1, 121)) and lost(queue) == {}


def test_a_hunt_that_ended_well_leaves_no_suspicion_behind(queue, clock):
    fill(queue, 1)
    cloud = Cloud(*[BROKEN] * 10, OK, BROKEN, OK)
    sender = sender_for(queue, cloud, clock)
    sender.heartbeat(True)
    run_until_idle(sender, clock)
    clock.advance(86400)
    fill(queue, 1)
    run_until_idle(sender, clock)
    fill(queue, 1)
    run_until_idle(sender, clock)
    assert lost(queue) == {} and cloud.ids == [1, 2, 3]


def test_many_poison_rows_in_a_row_hold_up_nobody_for_ever(queue, clock):
    bad = set(range(1, 26))
    fill(queue, 100)
    cloud = Cloud(rule=lambda batch: BROKEN if bad & {row.id for row in batch.rows} else OK)
    sender = sender_for(queue, cloud, clock)
    sender.heartbeat(True)
    run_until_idle(sender, clock)
    assert cloud.ids == list(range(26, 101)), "the order is kept"
    assert lost(queue) == {"poison": 25}


def test_a_retry_after_of_nought_is_no_licence_to_spin(queue, clock):
    fill(queue, 1)
    sender = sender_for(queue, Cloud(*[Answer(Fate.LATER, 429, retry_after=0.0)] * 3), clock)
    assert turn(sender, clock, 3) == [1.0, 2.0, 4.0]


# -- the file refuses


def test_a_queue_that_refuses_is_tried_again_and_nothing_is_counted(queue, clock, caught):
    fill(queue, 2)
    cloud = Cloud()
    sender = sender_for(queue, cloud, clock)
    queue._putter.execute("PRAGMA query_only = 1")
    assert sender.step() == 5.0
    assert "refuses" in caught.text
    queue._putter.execute("PRAGMA query_only = 0")
    run_until_idle(sender, clock)
    assert cloud.ids == [1, 2, 1, 2]  # the same ids again: the cloud knows them
    assert queue.depth == 0


# -- the stop


def test_flush_sends_what_it_can_until_the_deadline(queue, clock):
    fill(queue, 250)
    cloud = Cloud()
    sender_for(queue, cloud, clock).flush(clock.monotonic() + 5)
    assert queue.depth == 0


def test_flush_waits_for_no_rows_to_gather(queue, clock):
    fill(queue, 1)
    late = iter([50, 1])

    def rule(batch):
        fill(queue, next(late, 0))
        return OK

    cloud = Cloud(rule=rule)
    Sender(queue, cloud, clock, lambda: 1.0, gather=0.05).flush(clock.monotonic() + 5)
    assert [len(batch) for batch in cloud.batches] == [1, 50, 1]
    assert queue.depth == 0


def test_flush_stops_at_the_first_failure_and_at_the_deadline(queue, clock):
    fill(queue, 250)
    cloud = Cloud(OK, DOWN)
    sender = sender_for(queue, cloud, clock)
    sender.flush(clock.monotonic() + 5)
    assert queue.depth == 150 and len(cloud.tried) == 2
    sender_for(queue, cloud, clock).flush(clock.monotonic())
    assert len(cloud.tried) == 2
