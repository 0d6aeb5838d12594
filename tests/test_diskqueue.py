"""The queue on a real file: order, bounds, accounts, and what a crash or a damage leaves."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observer_agent import queuefile
from observer_agent.clock import Clock
from observer_agent.diskqueue import Bounds, open_queue
from observer_agent.errors import QueueError
from observer_agent.model import Answer, Fate, Loss, Reject, Sample, Status
from tests.fakes import FakeClock

OK = Answer(Fate.ACCEPTED, 200)


def sample(n=0, status=Status.HEALTHY):
    return Sample(f"metric-{n}", float(n), "2026-01-01T00:00:00.000Z", status)


def samples(count):
    return [sample(n) for n in range(count)]


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def make(tmp_path, clock):
    made = []

    def _make(rows=1000, **bounds):
        queue = open_queue(tmp_path / "buffer.db", Bounds(rows, **bounds), clock)
        made.append(queue)
        return queue

    yield _make
    for queue in made:
        queue.close()


def ledger(queue):
    (found,) = [each for each in queue.ledgers() if each.queue_id == queue.queue_id]
    return found


def drain(queue, limit=100):
    rows = []
    while batch := queue.peek(limit):
        rows += batch.rows
        queue.settle(batch, OK)
    return rows


def test_rows_leave_in_the_order_in_which_they_came_byte_for_byte(make):
    queue = make()
    queue.put(samples(3))
    queue.put([sample(3)])
    rows = drain(queue, 2)
    assert [row.id for row in rows] == [1, 2, 3, 4]
    assert [row.data for row in rows] == [sample(n).encode() for n in range(4)]


def test_the_row_is_the_wires_json_and_nothing_else():
    row = Sample("m", 0, "2026-01-01T00:00:00.000Z", Status.NO_DATA, "ETIMEDOUT").encode()
    assert row == (
        b'{"metric_id":"m","value":0,"timestamp":"2026-01-01T00:00:00.000Z","status":"no_data","reason":"ETIMEDOUT"}'
    )
    assert b"reason" not in sample().encode()


@given(st.text(max_size=40), st.floats(allow_nan=False, allow_infinity=False) | st.integers(), st.none() | st.text())
def test_the_json_is_what_the_standard_library_reads(metric_id, value, reason):
    made = json.loads(Sample(metric_id, value, "2026-01-01T00:00:00.000Z", Status.HEALTHY, reason).encode())
    wanted = {"metric_id": metric_id, "value": value, "timestamp": "2026-01-01T00:00:00.000Z", "status": "healthy"}
    assert made == (wanted if reason is None else {**wanted, "reason": reason})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_never_written(value):
    with pytest.raises(ValueError, match="finite"):
        Sample("m", value, "t", Status.HEALTHY).encode()


def test_what_is_not_settled_stays(make):
    queue = make()
    queue.put(samples(5))
    for fate in (Fate.LATER, Fate.TOO_LARGE, Fate.AGAIN):
        queue.settle(queue.peek(3), Answer(fate, 503))
    assert queue.depth == 5
    assert ledger(queue)[1:] == (5, 0, 5, {})


def test_ids_are_never_given_twice_and_every_opening_has_a_queue_id_of_its_own(make):
    first = make()
    first.put(samples(2))
    drain(first)
    one = first.queue_id
    first.close()
    second = make()
    second.put([sample()])
    batch = second.peek(10)
    assert batch.queue_id == second.queue_id != one
    assert [row.id for row in batch.rows] == [3]


def test_a_request_never_mixes_openings(make):
    first = make()
    first.put(samples(3))
    one = first.queue_id
    first.close()
    second = make()
    second.put(samples(3))
    batch = second.peek(100)
    assert (batch.queue_id, len(batch)) == (one, 3)
    second.settle(batch, OK)
    assert second.peek(100).queue_id == second.queue_id
    by_id = {each.queue_id: each for each in second.ledgers()}
    assert by_id[one][1:] == (3, 3, 0, {})


def test_the_oldest_rows_go_first_at_the_cap_and_are_counted(make):
    queue = make(rows=10)
    assert queue.put(samples(25)) == 15
    assert queue.depth == 10
    assert [row.id for row in drain(queue)] == list(range(16, 26))
    assert ledger(queue)[1:] == (25, 10, 0, {"cap": 15})
    assert queue.lost() == {"cap": 15}


def test_rows_in_flight_are_never_evicted(make):
    queue = make(rows=10)
    queue.put(samples(10))
    batch = queue.peek(5)
    assert queue.put([sample(n) for n in range(20, 27)]) == 7
    queue.settle(batch, OK)
    assert ledger(queue)[1:] == (17, 5, 5, {"cap": 7})
    assert [row.id for row in drain(queue)] == [13, 14, 15, 16, 17]


def test_a_full_queue_of_one_row_still_takes_the_newest(make):
    queue = make(rows=1)
    queue.put([sample(1)])
    queue.put([sample(2)])
    assert [row.id for row in drain(queue)] == [2]


def test_the_bound_in_bytes(make):
    size = len(sample().encode())
    queue = make(bytes=size * 4)
    queue.put([sample()] * 6)
    assert queue.depth == 4
    assert queue.size_bytes == size * 4
    assert queue.lost() == {"cap": 2}


def test_the_bound_in_age(make, clock):
    queue = make(age=60.0)
    queue.put(samples(2))
    clock.advance(61)
    queue.put([sample(9)])
    assert queue.depth == 1
    assert queue.lost() == {"age": 2}


def test_depth_and_age_answer_from_memory(make, clock):
    queue = make()
    assert (queue.depth, queue.oldest_age()) == (0, 0.0)
    queue.put([sample()])
    clock.advance(7)
    queue.put([sample()])
    assert (queue.depth, queue.oldest_age()) == (2, 7.0)
    queue.settle(queue.peek(1), OK)
    assert queue.oldest_age() == 0.0
    clock.step_wall(-3600)
    assert queue.oldest_age() == 0.0


def test_refused_rows_become_dead_letters(make, tmp_path):
    queue = make()
    queue.put(samples(3))
    batch = queue.peek(3)
    queue.settle(batch, Answer(Fate.ACCEPTED, 200, rejects=(Reject(1, "value", "invalid"), Reject(9, "x", "y"))))
    assert ledger(queue)[1:] == (3, 2, 0, {"refused": 1})
    with closing(sqlite3.connect(tmp_path / "buffer.db")) as conn:
        found = conn.execute("SELECT queue_id, row_id, data, reason FROM rejected").fetchall()
    assert found == [(queue.queue_id, 2, sample(1).encode(), "value: invalid")]


def test_dead_letters_are_the_newest_thousand_of_a_week(make, tmp_path, clock):
    queue = make(rows=5000)
    refused = Answer(Fate.REFUSED, 400)
    queue.put(samples(600))
    while batch := queue.peek(100):
        queue.settle(batch, refused)
    clock.advance(7 * 86400 + 1)
    queue.put(samples(1100))
    while batch := queue.peek(100):
        queue.settle(batch, refused)
    assert queue.lost() == {"refused": 1700}
    stats = queuefile.read_stats(tmp_path / "buffer.db", clock.now(), 5000)
    assert stats["rejected"] == 1000


def test_fenced_rows_are_dropped_and_counted_without_a_dead_letter(make, tmp_path, clock):
    queue = make()
    queue.put(samples(2))
    queue.settle(queue.peek(2), Answer(Fate.FENCED, 409))
    assert ledger(queue)[1:] == (2, 0, 0, {"fenced": 2})
    assert queuefile.read_stats(tmp_path / "buffer.db", clock.now(), 1)["rejected"] == 0


def test_a_row_that_does_not_match_its_checksum_is_lost_as_damaged_and_never_sent(make, tmp_path):
    queue = make()
    queue.put(samples(3))
    with closing(sqlite3.connect(tmp_path / "buffer.db")) as conn, conn:
        conn.execute(f"UPDATE {queuefile.TABLE} SET data = ? WHERE _id = 2", (b'{"forged":1}',))
    assert [row.id for row in drain(queue)] == [1, 3]
    assert ledger(queue)[1:] == (3, 2, 0, {"damaged": 1})
    assert queue.depth == 0


def test_when_every_row_of_a_look_is_damaged_the_next_ones_are_found(make, tmp_path):
    queue = make()
    queue.put(samples(4))
    with closing(sqlite3.connect(tmp_path / "buffer.db")) as conn, conn:
        conn.execute(f"UPDATE {queuefile.TABLE} SET crc = 0 WHERE _id <= 2")
    assert [row.id for row in queue.peek(2).rows] == [3, 4]


def test_the_account_holds_over_restarts(make):
    for _ in range(3):
        queue = make(rows=10)
        queue.put(samples(8))
        queue.settle(queue.peek(3), OK)
        queue.close()
    queue = make(rows=10)
    for each in queue.ledgers():
        assert each.given == each.accepted + each.pending + sum(each.lost.values())
    assert sum(each.given for each in queue.ledgers()) == 24
    assert sum(each.pending for each in queue.ledgers()) == queue.depth


def test_openings_without_rows_are_forgotten_but_their_sums_stay(make, tmp_path, clock):
    for _ in range(30):
        queue = make()
        queue.put([sample()])
        drain(queue)
        queue.close()
    stats = queuefile.read_stats(tmp_path / "buffer.db", clock.now(), 1000)
    assert stats["accepted"] == 30
    assert len(make().ledgers()) <= 22


def test_the_start_time_never_goes_back(make, clock):
    first = make()
    one = first.claim_start()
    first.close()
    clock.step_wall(-86400)
    second = make()
    assert second.claim_start() == pytest.approx(one + 0.001, abs=1e-6)


def test_two_processes_do_not_share_a_file(make, tmp_path, clock):
    make()
    with pytest.raises(QueueError, match="another observer-agent"):
        open_queue(tmp_path / "buffer.db", Bounds(10), clock)


@pytest.mark.parametrize("content", [b"not a database at all, but long enough to look like one" * 40, b"\x00" * 4096])
def test_a_file_that_is_no_queue_is_moved_aside_and_the_agent_starts(make, tmp_path, content):
    (tmp_path / "buffer.db").write_bytes(content)
    queue = make()
    queue.put(samples(2))
    assert queue.depth == 2
    (aside,) = [p for p in tmp_path.iterdir() if ".corrupt-" in p.name and not p.name.endswith(("-wal", "-shm"))]
    assert aside.read_bytes() == content


@pytest.mark.parametrize("sql", ["CREATE TABLE stranger (x)", "PRAGMA user_version = 99"])
def test_a_foreign_or_newer_file_is_moved_aside(make, tmp_path, sql):
    with closing(sqlite3.connect(tmp_path / "buffer.db")) as conn:
        conn.execute(sql)
    make().put([sample()])
    assert [p for p in tmp_path.iterdir() if ".corrupt-" in p.name]


def page_of_rows(file):
    """The offset of a page of the file that holds rows."""
    content = file.read_bytes()
    pages = range(len(content) - 1024, 0, -1024)
    return next(at for at in pages if content[at] == 0x0D and b'"metric_id"' in content[at : at + 1024])


def test_a_damaged_file_is_rebuilt_from_what_can_be_read(make, tmp_path):
    queue = make()
    for n in range(300):
        queue.put([sample(n)])
    queue.settle(queue.peek(100), OK)
    one = queue.queue_id
    queue.close()
    file = tmp_path / "buffer.db"
    damaged = bytearray(file.read_bytes())
    at = page_of_rows(file)
    damaged[at : at + 1024] = bytes(1024)
    damaged[:100] = bytes(100)
    file.write_bytes(damaged)
    queue = make()
    rows = drain(queue)
    gone = 200 - len(rows)
    assert 1 <= gone <= 4 and {row.id for row in rows} < set(range(101, 301))
    old = next(each for each in queue.ledgers() if each.queue_id == one)
    assert (old.given, old.accepted, old.lost) == (300, 300 - gone, {"damaged": gone})


def test_damage_that_shows_while_running_is_healed_and_put_and_peek_go_on(make, tmp_path):
    queue = make()
    for n in range(300):
        queue.put([sample(n)])
    queue.space.relieve()
    file = tmp_path / "buffer.db"
    with file.open("r+b") as handle:
        handle.seek(page_of_rows(file))
        handle.write(b"\xff" * 1024)
    queue._putter.execute("PRAGMA shrink_memory")
    seen, refused = set(), 0
    for _ in range(50):
        try:
            batch = queue.peek(100)
            if batch is None:
                break
            queue.settle(batch, OK)
            seen |= {row.id for row in batch.rows}
        except QueueError:
            refused += 1
    assert refused == 1
    assert 290 < len(seen) < 300
    assert queue.lost() == {"damaged": 300 - len(seen)}
    assert [p for p in tmp_path.iterdir() if ".corrupt-" in p.name]
    queue.put([sample()])
    assert queue.depth == 1


def test_an_account_that_lags_behind_the_rows_is_mended_at_the_opening(make, tmp_path):
    queue = make()
    queue.put(samples(5))
    queue._putter.execute("UPDATE meta SET next_id = 3")
    queue.close()
    queue = make()
    queue.put([sample(9)])
    assert [row.id for row in drain(queue)] == [1, 2, 3, 4, 5, 6]


def test_a_rebuilt_file_that_could_not_be_opened_is_opened_by_the_next_caller(make):
    queue = make()
    queue.put(samples(2))
    queue._putter.close()
    queue._getter.close()
    with pytest.raises(QueueError, match="closed"):
        queue.put(samples(1))
    queue.space.close()
    queue._shut = True
    queue.put([sample(9)])
    assert [row.id for row in drain(queue)] == [1, 2, 3]


def test_the_newest_three_files_that_were_moved_aside_are_kept(make, tmp_path, clock):
    for n in range(6):
        for part in tmp_path.glob("buffer.db-*"):
            part.unlink()
        (tmp_path / "buffer.db").write_bytes(bytes([65 + n]) * 5000)
        make().close()
        clock.advance(10)
    aside = [p for p in tmp_path.iterdir() if ".corrupt-" in p.name and not p.name.endswith(("-wal", "-shm"))]
    assert sorted(p.read_bytes()[:1] for p in aside) == [b"D", b"E", b"F"]


def test_an_idle_queue_gives_back_what_an_outage_took(make, tmp_path):
    queue = make(rows=50_000)
    for _ in range(200):
        queue.put([sample(n) for n in range(100)])
    high = (tmp_path / "buffer.db").stat().st_size
    assert not queue.tidy(), "not while rows wait"
    drain(queue)
    turns = 0
    while queue.tidy():
        turns += 1
    assert turns > 10
    assert (tmp_path / "buffer.db").stat().st_size < min(high / 2, 4_000_000)
    assert (tmp_path / "buffer.db-wal").stat().st_size < 4_000_000
    queue.put([sample()])
    assert queue.depth == 1


def test_the_file_format_is_the_one_that_is_written_down(make, tmp_path):
    queue = make()
    queue.put([sample(4)])
    with closing(sqlite3.connect(tmp_path / "buffer.db")) as conn:
        pragma = {name: conn.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "page_size")}
        assert pragma == {"user_version": 1, "page_size": 1024}
        row = conn.execute(f"SELECT _id, data, crc, metric_id, redundant FROM {queuefile.TABLE}").fetchone()
        assert row == (1, sample(4).encode(), queuefile.checksum(1, sample(4).encode()), "metric-4", 0)
        assert conn.execute("SELECT next_id, rows, bytes FROM meta").fetchall() == [(2, 1, len(row[1]))]
        assert conn.execute("SELECT * FROM openings").fetchall() == [(queue.queue_id, 1)]


@pytest.mark.parametrize("name", ["a#b.db", "a?b.db", "a%41 b.db"])
def test_a_path_may_hold_anything(tmp_path, clock, name):
    queue = open_queue(tmp_path / name, Bounds(10), clock)
    queue.put(samples(2))
    assert queuefile.is_held(tmp_path / name)
    assert queuefile.read_stats(tmp_path / name, clock.now(), 10)["depth"] == 2
    queue.close()
    assert not queuefile.is_held(tmp_path / name)
    assert queuefile.read_stats(tmp_path / name, clock.now(), 10)["depth"] == 2
    assert not (tmp_path / f"{name}-wal").exists()


def test_a_put_that_the_file_refuses_stores_nothing_and_says_so(make):
    queue = make()
    queue.put([sample()])
    queue._putter.execute(f"PRAGMA max_page_count = {queue._putter.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(QueueError, match="full"):
        queue.put(samples(500))
    assert queue.depth == 1
    assert ledger(queue)[1:] == (1, 0, 1, {})
    assert [row.id for row in drain(queue)] == [1]


def test_a_writer_held_in_the_middle_keeps_others_out_but_not_the_snapshot(make):
    queue = make()
    started, allow = threading.Event(), threading.Event()

    def hold():
        with queue.tran_lock:
            started.set()
            assert allow.wait(10)

    with ThreadPoolExecutor(2) as pool:
        holder = pool.submit(hold)
        assert started.wait(10)
        put = pool.submit(queue.put, samples(3))
        assert (queue.depth, queue.oldest_age(), ledger(queue).given) == (0, 0.0, 0)
        assert not put.done()
        allow.set()
        holder.result(10)
        assert put.result(10) == 0
    assert queue.depth == 3


def test_puts_that_come_while_the_file_is_busy_share_one_transaction(make):
    queue = make()
    commits = []
    queue._putter.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
    with ThreadPoolExecutor(8) as pool:
        with queue.tran_lock:
            puts = [pool.submit(queue.put, samples(3)) for _ in range(8)]
            while queue.rounds.open is None or len(queue.rounds.open.entries) < 24:
                assert not any(each.done() for each in puts)
        assert [each.result(10) for each in puts] == [0] * 8
    assert queue.depth == 24 and len(commits) == 1
    queue.put([sample()])
    assert len(commits) == 2, "a lone put commits at once"


def test_when_a_shared_transaction_fails_every_thread_hears_of_it(make):
    queue = make()
    queue._putter.execute("PRAGMA query_only = 1")
    with ThreadPoolExecutor(4) as pool:
        with queue.tran_lock:
            puts = [pool.submit(queue.put, samples(2)) for _ in range(4)]
            while queue.rounds.open is None or len(queue.rounds.open.entries) < 8:
                assert not any(each.done() for each in puts)
        for each in puts:
            with pytest.raises(QueueError, match="readonly"):
                each.result(10)
    queue._putter.execute("PRAGMA query_only = 0")
    assert queue.depth == 0 and queue.put(samples(2)) == 0 and queue.depth == 2


def test_many_threads_put_while_one_settles(tmp_path):
    queue = open_queue(tmp_path / "b.db", Bounds(1000), Clock())
    try:
        with ThreadPoolExecutor(17) as pool:
            puts = [pool.submit(lambda: [queue.put(samples(10)) for _ in range(20)]) for _ in range(16)]
            dropped = sum(sum(each.result(60)) for each in puts)
        found = ledger(queue)
        assert (found.given, found.pending, dropped) == (3200, 1000, 2200)
    finally:
        queue.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(1, 30)),
            st.tuples(st.sampled_from([f.value for f in Fate]), st.integers(1, 30)),
            st.tuples(st.just("reopen"), st.just(0)),
        ),
        max_size=30,
    )
)
def test_given_is_always_accepted_plus_pending_plus_lost(tmp_path_factory, steps):
    file = tmp_path_factory.mktemp("q") / "b.db"
    queue = open_queue(file, Bounds(20), FakeClock())
    try:
        for name, n in steps:
            if name == "put":
                queue.put(samples(n))
            elif name == "reopen":
                queue.close()
                queue = open_queue(file, Bounds(20), FakeClock())
            elif batch := queue.peek(n):
                queue.settle(batch, Answer(Fate(name), 200), Loss.REFUSED)
            stored = queue._putter.execute(f"SELECT count(*), total(length(data)) FROM {queuefile.TABLE}").fetchone()
            assert (queue.depth, queue.size_bytes) == stored
            assert queue.depth <= 20
            assert sum(each.pending for each in queue.ledgers()) == queue.depth
            for each in queue.ledgers():
                assert each.given == each.accepted + each.pending + sum(each.lost.values())
                assert min(each.given, each.accepted, each.pending) >= 0
    finally:
        queue.close()


CHILD = """
import sys
from pathlib import Path
from observer_agent.clock import Clock
from observer_agent.diskqueue import Bounds, open_queue
from observer_agent.model import Sample, Status
queue = open_queue(Path(sys.argv[1]), Bounds(100000), Clock())
n = 0
while True:
    queue.put([Sample(f"m{n}", n, "2026-01-01T00:00:00.000Z", Status.HEALTHY)])
    n += 1
    print(n, flush=True)
"""


def test_kill_9_loses_no_row_that_put_had_accepted(tmp_path, clock):
    told = 0
    for round_ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path / "b.db")], stdout=subprocess.PIPE, text=True
        )
        with child.stdout as out:
            for line in out:
                if int(line) >= 50 * (round_ + 1):
                    break
            child.kill()
            told += sum(1 for _ in out) + int(line)
        child.wait()
        queue = open_queue(tmp_path / "b.db", Bounds(100000), clock)
        assert queue.depth in (told, told + 1)
        told = queue.depth
        queue.close()
