"""The cap by meaning: what repeats goes first, transitions last, whatever is settled, lost or reopened between."""

from __future__ import annotations

import json
import random
import sqlite3
from collections import deque
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observer_agent import queuefile
from observer_agent.diskqueue import Bounds, open_queue
from observer_agent.model import Answer, Fate, Loss, Reject, Sample, Status
from tests.fakes import FakeClock

OK = Answer(Fate.ACCEPTED, 200)
LETTERS = {"h": Status.HEALTHY, "d": Status.DEGRADED, "u": Status.UNHEALTHY, "n": Status.NO_DATA}


def row(text):
    """`a:h` is metric a, healthy."""
    metric, _, letter = text.partition(":")
    return Sample(metric, 1.0, "2026-01-01T00:00:00.000Z", LETTERS[letter])


@pytest.fixture
def make(tmp_path):
    made = []

    def _make(rows=100, **bounds):
        made.append(open_queue(tmp_path / "b.db", Bounds(rows, **bounds), FakeClock()))
        return made[-1]

    yield _make
    for queue in made:
        queue.close()


def put(queue, *texts):
    for text in texts:
        queue.put([row(text)])


def held(queue):
    """(id, metric:letter, redundant) of every waiting row."""
    sql = f"SELECT _id, data, redundant FROM {queuefile.TABLE} ORDER BY _id"
    out = []
    for row_id, data, redundant in queue._putter.execute(sql):
        found = json.loads(data)
        out.append((row_id, f"{found['metric_id']}:{found['status'][0]}", redundant))
    return out


def texts(queue):
    return [text for _, text, _ in held(queue)]


def flags(queue):
    return [flag for _, _, flag in held(queue)]


def runs(queue):
    return dict((m, (s[0], h)) for m, s, h in queue._putter.execute("SELECT metric, status, head FROM runs"))


def test_a_row_is_redundant_when_it_repeats_the_status_of_its_run(make):
    queue = make()
    put(queue, "a:h", "a:h", "b:h", "a:u", "a:u", "a:h")
    assert flags(queue) == [0, 1, 0, 0, 1, 0]
    assert runs(queue) == {"a": ("h", 6), "b": ("h", 3)}


def test_it_is_still_redundant_once_the_head_has_been_accepted(make):
    queue = make()
    put(queue, "a:h")
    queue.settle(queue.peek(1), OK)
    put(queue, "a:h")
    assert flags(queue) == [1]


def test_the_oldest_redundant_row_goes_first_then_the_oldest_of_all(make):
    queue = make(rows=4)
    put(queue, "a:h", "b:h", "a:h", "b:h")
    put(queue, "c:h")
    assert texts(queue) == ["a:h", "b:h", "b:h", "c:h"]
    put(queue, "c:u")
    assert texts(queue) == ["a:h", "b:h", "c:h", "c:u"]
    put(queue, "a:u")
    assert texts(queue) == ["b:h", "c:h", "c:u", "a:u"]
    assert queue.lost() == {"cap": 3}


def test_a_forced_push_makes_no_room_for_itself_among_transitions(make):
    queue = make(rows=3)
    put(queue, "a:h", "b:h", "c:h", "a:h")
    assert texts(queue) == ["a:h", "b:h", "c:h"]


def test_when_a_head_is_evicted_the_next_row_of_its_metric_is_a_head_again(make):
    queue = make(rows=2)
    put(queue, "a:h", "b:h", "c:h")
    assert "a" not in runs(queue)
    put(queue, "a:h")
    assert flags(queue) == [0, 0] and texts(queue) == ["c:h", "a:h"]


@pytest.mark.parametrize("fate", [Fate.FENCED, Fate.REFUSED])
def test_a_head_that_is_lost_hands_its_role_to_the_next_row(make, fate):
    queue = make()
    put(queue, "a:h", "a:h", "a:h")
    queue.settle(queue.peek(1), Answer(fate, 409))
    assert flags(queue) == [0, 1]
    assert runs(queue) == {"a": ("h", 2)}
    assert queue.accounts.held.redundant == 1


def test_a_lost_head_of_an_older_run_leaves_the_newer_run_alone(make):
    queue = make()
    put(queue, "a:h", "a:h", "a:u")
    queue.settle(queue.peek(1), Answer(Fate.FENCED, 409))
    assert flags(queue) == [0, 0] and runs(queue) == {"a": ("u", 3)}


def test_a_rejected_row_of_an_accepted_batch_hands_over_too(make):
    queue = make()
    put(queue, "a:h", "b:h", "a:h", "b:h")
    queue.settle(queue.peek(2), Answer(Fate.ACCEPTED, 200, rejects=(Reject(0, "value", "bad"),)))
    assert held(queue) == [(3, "a:h", 0), (4, "b:h", 1)]


def test_a_metric_without_another_row_is_forgotten(make):
    queue = make()
    put(queue, "a:h")
    queue.settle(queue.peek(1), Answer(Fate.REFUSED, 400))
    assert runs(queue) == {}
    put(queue, "a:h")
    assert flags(queue) == [0]


def test_what_is_known_survives_a_restart(make):
    queue = make()
    put(queue, "a:h", "b:h")
    queue.settle(queue.peek(1), OK)
    queue.close()
    queue = make()
    put(queue, "a:h", "b:h", "b:u")
    assert flags(queue) == [0, 1, 1, 0]


def test_redundant_rows_in_flight_are_passed_over_and_found_again_afterwards(make):
    queue = make(rows=6)
    put(queue, "a:h", "a:h", "a:h", "b:h", "b:h", "b:h")
    batch = queue.peek(3)
    put(queue, "c:h")
    assert texts(queue) == ["a:h", "a:h", "a:h", "b:h", "b:h", "c:h"]
    put(queue, "d:h")
    assert texts(queue) == ["a:h", "a:h", "a:h", "b:h", "c:h", "d:h"]
    put(queue, "e:h")  # no redundant row but those in flight: the oldest that may go
    assert texts(queue) == ["a:h", "a:h", "a:h", "c:h", "d:h", "e:h"]
    queue.settle(batch, Answer(Fate.LATER, 503))
    put(queue, "f:h")
    assert texts(queue) == ["a:h", "a:h", "c:h", "d:h", "e:h", "f:h"]
    assert [i for i, _, _ in held(queue)][:2] == [1, 3]


def test_a_transaction_that_fails_changes_nothing_that_is_known(make):
    queue = make()
    put(queue, "a:h")
    queue._putter.execute("PRAGMA query_only = 1")
    with pytest.raises(Exception, match="readonly"):
        put(queue, "a:u")
    queue._putter.execute("PRAGMA query_only = 0")
    put(queue, "a:h")
    assert flags(queue) == [0, 1] and runs(queue) == {"a": ("h", 1)}


OPS = st.one_of(
    st.tuples(
        st.just("put"), st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("hu")), min_size=1, max_size=6)
    ),
    st.tuples(st.sampled_from(["accepted", "refused", "fenced", "later"]), st.integers(1, 5)),
    st.tuples(st.just("peek"), st.integers(1, 5)),
    st.tuples(st.just("reopen"), st.just(0)),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(OPS, max_size=40))
@pytest.mark.slow
def test_the_rule_holds_after_anything(tmp_path_factory, steps):
    """Against a plain model: a row's flag says that the same status was accepted or waits before it, unbroken."""
    file = tmp_path_factory.mktemp("q") / "b.db"
    queue = open_queue(file, Bounds(8), FakeClock())
    last_known: dict[str, str] = {}  # what the cloud has of each metric, by what was accepted
    try:
        for name, arg in steps:
            if name == "put":
                queue.put([row(f"{m}:{s}") for m, s in arg])
            elif name == "reopen":
                queue.close()
                queue = open_queue(file, Bounds(8), FakeClock())
            elif name == "peek":
                queue.peek(arg)
            elif batch := queue.peek(arg):
                queue.settle(batch, Answer(Fate(name), 200), Loss.REFUSED)
                if name == "accepted":
                    for each in batch.rows:
                        found = json.loads(each.data)
                        last_known[found["metric_id"]] = found["status"][0]
            before = dict(last_known)
            redundant = 0
            for _, text, flag in held(queue):
                metric, _, letter = text.partition(":")
                if flag:
                    assert before.get(metric) == letter, "a redundant row repeats what is known or waits before it"
                before[metric] = letter
                redundant += flag
            assert queue.accounts.held.redundant == redundant
            assert queue.depth == len(held(queue)) <= 8
    finally:
        queue.close()


def simulate(queue, clock, minutes, metrics=500, push_every=10, flap=0.0016, seed=7):
    """`metrics` probed each minute, pushed at each change and every ten minutes; returns the transitions, in order."""
    chance = random.Random(seed)
    status = dict.fromkeys(range(metrics), "h")
    transitions, fifo, fifo_lost = [], deque(), 0
    for minute in range(minutes):
        rows = []
        for metric in range(metrics):
            changed = minute == 0 or chance.random() < flap
            if changed and minute:
                status[metric] = chance.choice([s for s in "hdu" if s != status[metric]])
            if changed or (minute + metric) % push_every == 0:
                rows.append(Sample(f"m{metric}", minute, str(minute), LETTERS[status[metric]]))
                fifo.append(changed)
                if changed:
                    transitions.append((f"m{metric}", minute, LETTERS[status[metric]].value))
        queue.put(rows)
        clock.advance(60)
        while len(fifo) > queue.capacity:
            fifo_lost += fifo.popleft()
    return transitions, fifo_lost


def waiting_transitions(queue):
    found = []
    for (data,) in queue._putter.execute(f"SELECT data FROM {queuefile.TABLE} WHERE redundant = 0 ORDER BY _id"):
        each = json.loads(data)
        found.append((each["metric_id"], each["value"], each["status"]))
    return found


@pytest.mark.slow
def test_seven_days_offline_lose_no_transition_while_transitions_fit(tmp_path):
    clock = FakeClock()
    queue = open_queue(tmp_path / "b.db", Bounds(10_000), clock)
    try:
        transitions, fifo_lost = simulate(queue, clock, 7 * 1440)
        assert 5_000 < len(transitions) <= 10_000
        assert waiting_transitions(queue) == transitions
        assert fifo_lost > len(transitions) * 0.8, "a plain FIFO of the same size loses most of them"
        (ledger,) = queue.ledgers()
        assert ledger.given == ledger.pending + ledger.lost["cap"] and ledger.pending == 10_000
    finally:
        queue.close()


def test_when_transitions_no_longer_fit_the_oldest_go_first_all_declared(tmp_path):
    clock = FakeClock()
    queue = open_queue(tmp_path / "b.db", Bounds(1_000), clock)
    try:
        transitions, _ = simulate(queue, clock, 600, metrics=300, flap=0.01)
        assert len(transitions) > 1_500
        real = set(transitions)
        left = [each for each in waiting_transitions(queue) if each in real]
        assert left == transitions[-len(left) :], "the oldest went first"
        assert len(left) > 900, "the rest are first words about metrics of which nothing was known any more"
        (ledger,) = queue.ledgers()
        assert ledger.given == ledger.pending + ledger.lost["cap"]
    finally:
        queue.close()


def test_the_runs_in_the_file_are_those_in_memory(make, tmp_path):
    queue = make(rows=5)
    put(queue, "a:h", "b:u", "a:u", "c:n", "c:n", "d:h", "a:h")
    with closing(sqlite3.connect(tmp_path / "b.db")) as conn:
        stored = {m: (s, h) for m, s, h in conn.execute("SELECT metric, status, head FROM runs")}
    assert stored == queue.rows._runs
