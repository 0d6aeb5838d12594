"""The queue commands on real files: what they find, what they change, what they leave alone, and who is in the way."""

from __future__ import annotations

import json
import os
import pty
import random
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observer_agent.cli import main
from observer_agent.clock import Clock
from observer_agent.demo.stage import clean_env, free_port
from observer_agent.diskqueue import Bounds, open_queue
from observer_agent.model import Answer, Fate, Sample, Status
from observer_agent.queuefile import TABLE, checksum
from observer_agent.queuerows import read_row

OK = Answer(Fate.ACCEPTED, 200)
MOMENT = "2026-01-01T00:00:00.000Z"


def sample(n=0):
    return Sample(f"metric-{n}", n / 3, MOMENT, Status.HEALTHY)


def samples(count):
    return [sample(n) for n in range(count)]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "b # ü.db"


def opened(file, rows=100_000):
    return open_queue(file, Bounds(rows), Clock())


def fill(file, what, rows=100_000):
    with closing(opened(file, rows)) as queue:
        queue.put(what)


def command(file, *words, stdin=None, code=0, **env):
    """Runs a queue command in this process; returns what it printed."""
    given = {name: None for name in os.environ if name.startswith("BUFFER_")}
    done = CliRunner().invoke(main, ["queue", *words], input=stdin, env={**given, "BUFFER_PATH": str(file), **env})
    assert done.exit_code == code, (done.output, done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done


def told(file, *words, **more):
    """The JSON that a command prints."""
    return json.loads(command(file, *words, "--json", **more).stdout)


def stored(file, columns="data"):
    with closing(sqlite3.connect(file)) as conn:
        return conn.execute(f"SELECT {columns} FROM {TABLE} ORDER BY _id").fetchall()


def sql(file, text, *values):
    with closing(sqlite3.connect(file)) as conn, conn:
        return conn.execute(text, values).fetchall()


def reject(file, count, also=0):
    """Makes dead letters of the first `count` rows, the others are accepted; then `also` rows wait."""
    with closing(opened(file)) as queue:
        queue.put(samples(count))
        queue.settle(queue.peek(count), Answer(Fate.REFUSED, 400, "bad value"))
        queue.put(samples(also))


def balanced(file):
    """The sum of all ledgers, after a look that each of them holds."""
    assert told(file, "verify")["ok"]
    with closing(opened(file)) as queue:
        found = queue.ledgers()
        for each in found:
            assert each.given == each.accepted + each.pending + sum(each.lost.values())
        assert sum(each.pending for each in found) == queue.depth == len(stored(file))
        return queue.depth, queue.lost()


# -- verify


def test_a_sound_file_has_no_findings(file):
    for n in range(3):
        with closing(opened(file, 40)) as queue:
            queue.put(samples(30))
            queue.settle(queue.peek(5 + n), OK)
    report = told(file, "verify")
    assert (report["ok"], report["findings"], report["rows"]) == (True, [], 33)
    assert "33 rows read, 0 findings" in command(file, "verify").stdout


@pytest.mark.parametrize(
    ("damage", "check", "row_id"),
    [
        (f"UPDATE {TABLE} SET data = x'7b7d' WHERE _id = 3", "crc", 3),
        (f"UPDATE {TABLE} SET data = 'text' WHERE _id = 3", "crc", 3),
        (f"UPDATE {TABLE} SET metric_id = 'other' WHERE _id = 3", "fields", 3),
        (f"UPDATE {TABLE} SET timestamp = 'noon' WHERE _id = 3", "columns", 3),
        (f"UPDATE {TABLE} SET timestamp = 1e300 WHERE _id = 3", "columns", 3),
        ("UPDATE meta SET rows = 9", "meta", None),
        ("UPDATE meta SET bytes = 'x'", "meta", None),
        ("UPDATE meta SET redundant = redundant + 1", "meta", None),
        ("DELETE FROM meta", "meta", None),
        (f"DELETE FROM {TABLE} WHERE _id = 2", "ledger", None),
        ("UPDATE openings SET first_row_id = 2", "ledger", None),
        ("DELETE FROM openings", "ledger", None),
        ("PRAGMA user_version = 99", "file", None),
        ("DROP TABLE runs", "file", None),
    ],
)
def test_verify_names_what_is_wrong(file, damage, check, row_id):
    fill(file, samples(5))
    sql(file, damage)
    found = told(file, "verify", code=1)["findings"]
    assert (check, row_id) in {(each["check"], each["row_id"]) for each in found}
    assert command(file, "verify", code=1).stdout.count("\n") == len(found) + 1


@pytest.mark.parametrize(
    ("data", "check", "part"),
    [
        (b"{", "json", "not JSON"),
        (b"\xff", "json", "UTF-8"),
        (b'{"a":1,"a":1}', "fields", "twice"),
        (b"[]", "fields", "not an object"),
        (b'{"metric_id":"m"}', "fields", "value"),
        (b'{"metric_id":"m","value":NaN,"timestamp":"2026-01-01T00:00:00Z","status":"healthy"}', "fields", "NaN"),
    ],
)
def test_a_row_with_a_good_checksum_has_to_be_a_row_as_well(file, data, check, part):
    fill(file, samples(2))
    sql(file, f"UPDATE {TABLE} SET data = ?, crc = ? WHERE _id = 2", data, checksum(2, data))
    (found,) = [each for each in told(file, "verify", code=1)["findings"] if each["row_id"] == 2]
    assert found["check"] == check and part in found["text"]


def test_findings_are_counted_all_and_listed_up_to_a_hundred(file):
    fill(file, samples(250))
    sql(file, f"UPDATE {TABLE} SET crc = 0")
    report = told(file, "verify", code=1)
    assert (report["findings_total"], len(report["findings"]), report["rows"]) == (250, 100, 250)


def test_a_damaged_file_is_a_finding_and_never_a_traceback(file):
    fill(file, samples(300))
    whole, chance = file.read_bytes(), random.Random(7)
    for _ in range(40):
        broken = bytearray(whole)
        for _ in range(chance.choice((1, 20, 400))):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        file.write_bytes(broken[: chance.choice((len(broken), len(broken) // 2, 100))])
        for words in (("verify",), ("export", "--jsonl"), ("rejected", "list"), ("purge", "--dry-run")):
            done = CliRunner().invoke(main, ["queue", *words], env={"BUFFER_PATH": str(file)})
            assert done.exit_code in (0, 1, 2) and isinstance(done.exception, SystemExit | None), (
                words,
                done.exception,
            )


@pytest.mark.parametrize(
    "words",
    [
        ["verify"],
        ["export"],
        ["import", "-"],
        ["rejected", "list"],
        ["rejected", "retry", "--all"],
        ["rejected", "purge"],
        ["purge", "--yes"],
    ],
)
def test_a_file_that_is_not_there_is_exit_2_and_is_not_made(file, words):
    done = command(file, *words, stdin="", code=2)
    assert "does not exist" in done.stderr and not list(file.parent.iterdir())


def test_a_file_of_another_program_is_left_as_it_is(file):
    file.write_bytes(b"a diary, not a database, and long enough to be taken for one " * 40)
    before = file.read_bytes()
    assert "not a database" in told(file, "verify", code=1)["findings"][0]["text"]
    for words in (["export"], ["purge", "--yes"], ["rejected", "retry", "--all"]):
        command(file, *words, code=2)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_look_leaves_the_bytes_alone_after_a_clean_stop_and_after_a_kill(file, tmp_path):
    fill(file, samples(9))
    queue = opened(file)
    queue.put(samples(2))
    copy = tmp_path / "killed.db"
    for suffix in ("", "-wal"):
        copy.with_name(copy.name + suffix).write_bytes(file.with_name(file.name + suffix).read_bytes())
    queue.close()
    names = {path.name for path in tmp_path.iterdir()}
    for each, rows in ((file, 11), (copy, 11)):
        before = each.read_bytes()
        assert told(each, "verify")["rows"] == rows
        command(each, "purge", code=2)
        command(each, "rejected", "retry", "--all", "--dry-run")
        assert each.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} - names <= {"killed.db-shm"}
    with closing(opened(copy)) as queue:
        assert queue.depth == 11


# -- export and import


def test_an_export_is_one_object_a_row_oldest_first(file):
    with closing(opened(file)) as queue:
        queue.put(samples(3))
        first = queue.queue_id
        queue.settle(queue.peek(1), OK)
    with closing(opened(file)) as queue:
        queue.put([sample(9)])
        second = queue.queue_id
    found = json.loads(command(file, "export").stdout)
    assert [(each["queue_id"], each["row_id"]) for each in found] == [(first, 2), (first, 3), (second, 4)]
    assert [set(each) for each in found] == [{"queue_id", "row_id", "queued_at", "row"}] * 3
    assert found[0]["row"] == {"metric_id": "metric-1", "value": 1 / 3, "timestamp": MOMENT, "status": "healthy"}
    assert [json.loads(line) for line in command(file, "export", "--jsonl").stdout.splitlines()] == found
    assert "3 rows" in command(file, "export").stderr
    assert json.loads(command(file, "export", "--json").stderr)["rows"] == 3
    assert len(stored(file)) == 3


def test_an_empty_queue_exports_to_nothing_and_imports_from_it(file):
    fill(file, [])
    assert json.loads(command(file, "export").stdout) == []
    assert command(file, "export", "--jsonl").stdout == ""
    for text in ("", "[]", " [ ] \n", "\n\n"):
        assert told(file, "import", "-", stdin=text)["imported"] == 0


def test_an_export_to_a_file_is_private_and_whole_or_not_at_all(file, tmp_path):
    fill(file, samples(3))
    out = tmp_path / "out.jsonl"
    out.write_text("before")
    assert told(file, "export", "--jsonl", "--output", str(out)) == {
        "path": str(file), "output": str(out), "rows": 3, "left_out": 0,
    }  # fmt: skip
    assert stat.S_IMODE(out.stat().st_mode) == 0o600 and len(out.read_text().splitlines()) == 3
    out.write_text("before")
    sql(file, "DROP TABLE openings")
    command(file, "export", "--output", str(out), code=2)
    assert out.read_text() == "before"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_output_that_cannot_be_written_is_exit_2(file, tmp_path):
    fill(file, samples(1))
    assert "cannot be written" in command(file, "export", "--output", str(tmp_path / "no" / "o"), code=2).stderr


def test_damaged_rows_are_left_out_of_an_export_and_named(file):
    fill(file, samples(4))
    sql(file, f"UPDATE {TABLE} SET crc = 0 WHERE _id = 2")
    sql(file, f"UPDATE {TABLE} SET data = x'7b7d', crc = ? WHERE _id = 3", checksum(3, b"{}"))
    done = command(file, "export", code=1)
    assert [each["row_id"] for each in json.loads(done.stdout)] == [1, 4]
    assert "2 rows left out" in done.stderr


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
FINITE = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**300), 10**300))
SAMPLES = st.one_of(
    st.builds(Sample, TEXT, FINITE, st.just(MOMENT), st.sampled_from([Status.HEALTHY, Status.UNHEALTHY])),
    st.builds(Sample, TEXT, st.just(0), st.just("2026-01-01T05:00:00+05:00"), st.just(Status.NO_DATA), TEXT),
)


@given(SAMPLES)
def test_a_row_that_is_read_is_written_the_same(one):
    assert read_row(one.encode()) == one
    assert read_row(one.encode()).encode() == one.encode()


@settings(max_examples=15, deadline=None)
@given(st.lists(SAMPLES, max_size=8), st.booleans())
def test_what_is_exported_is_imported_byte_for_byte(tmp_path_factory, rows, jsonl):
    folder = tmp_path_factory.mktemp("q")
    one, other = folder / "one.db", folder / "other.db"
    fill(one, rows)
    fill(other, [])
    text = command(one, "export", *(["--jsonl"] if jsonl else [])).stdout
    report = told(other, "import", "-", stdin=text)
    assert (report["imported"], report["skipped"], report["dropped"]) == (len(rows), 0, 0)
    assert stored(other) == stored(one) == [(each.encode(),) for each in rows]


def test_an_import_gives_new_ids_and_a_new_queue_id_and_the_account_holds(file, tmp_path):
    fill(file, samples(5))
    other = tmp_path / "other.db"
    fill(other, samples(2))
    (tmp_path / "e.json").write_text(command(file, "export").stdout)
    before = sql(other, "SELECT queue_id FROM openings")
    assert told(other, "import", str(tmp_path / "e.json"))["imported"] == 5
    assert [row[0] for row in stored(other, "_id")] == [1, 2, 3, 4, 5, 6, 7]
    openings = sql(other, "SELECT queue_id, first_row_id FROM openings ORDER BY first_row_id")
    assert [first for _, first in openings] == [1, 3] and openings[0][0] == before[0][0]
    assert balanced(other) == (7, {})


def test_importing_an_export_into_its_own_file_changes_nothing(file):
    fill(file, samples(5))
    text = command(file, "export", "--jsonl").stdout
    for _ in range(2):
        report = told(file, "import", "-", stdin=text)
        assert (report["imported"], report["skipped"]) == (0, 5)
    with closing(opened(file)) as queue:
        queue.settle(queue.peek(2), OK)
    report = told(file, "import", "-", stdin=text + text)
    assert (report["imported"], report["skipped"]) == (2, 8)
    assert balanced(file) == (5, {})


def test_an_import_respects_the_cap_and_says_what_was_dropped(file, tmp_path):
    fill(file, samples(30))
    other = tmp_path / "other.db"
    fill(other, samples(8))
    text = command(file, "export").stdout
    cap = {"BUFFER_MAX_ROWS": "20"}
    dry = told(other, "import", "-", "--dry-run", stdin=text, **cap)
    assert (dry["imported"], dry["dropped"], len(stored(other))) == (30, 18, 8)
    done = told(other, "import", "-", stdin=text, **cap)
    assert (done["imported"], done["dropped"]) == (30, 18)
    assert balanced(other) == (20, {"cap": 18})


GOOD = '{"queue_id":"q","row_id":1,"queued_at":null,"row":%s}' % sample(1).encode().decode()  # noqa: UP031


@pytest.mark.parametrize(
    ("bad", "part"),
    [
        ("{", "not JSON"),
        ("[]", "the line is not an object"),
        ("null", "the line is not an object"),
        (GOOD.replace('"row_id":1,', ""), "row_id: is missing"),
        (GOOD.replace('"row_id":1', '"row_id":true'), "row_id: must be"),
        (GOOD.replace('"row_id":1', '"row_id":99999999999999999999'), "row_id: must be"),
        (GOOD.replace('"queue_id"', '"extra":1,"queue_id"'), "'extra': is not a field"),
        (GOOD.replace('"q"', '""'), "queue_id: must be"),
        (GOOD.replace("null", '"yesterday"'), "queued_at: must be"),
        (GOOD.replace("healthy", "sick"), "status: must be"),
        (GOOD.replace('"healthy"', "[]"), "status: must be"),
        (GOOD.replace("0.3333333333333333", "1e999"), "value: must be"),
        (GOOD.replace("0.3333333333333333", "Infinity"), "Infinity is not JSON"),
        (GOOD.replace("0.3333333333333333", '"1"'), "value: must be"),
        (GOOD.replace("0.3333333333333333", "1" * 400), "value: must be"),
        (GOOD.replace("metric-1", "\\ud800"), "metric_id: must be"),
        (GOOD.replace('"healthy"', '"healthy","reason":"why"'), "reason: is there with no_data alone"),
        (GOOD.replace('"row_id":1', '"row_id":1,"row_id":2'), "twice"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_one_line_that_is_not_valid_and_nothing_is_imported(file, bad, part):
    fill(file, [])
    text = f"{GOOD}\n\n{bad}\n{GOOD.replace(':1,', ':2,')}\n"
    done = command(file, "import", "-", stdin=text, code=1)
    (complaint, last) = done.stdout.splitlines()
    assert complaint.startswith("line 3: ") and part in complaint and "Nothing was imported" in last
    assert stored(file) == []
    report = told(file, "import", "-", "--skip-invalid", stdin=text, code=1)
    assert (report["imported"], report["invalid"], len(stored(file))) == (2, 1, 2)


@pytest.mark.parametrize(
    ("text", "line", "imported"),
    [
        (f"[\n{GOOD},\n", 3, 1),
        (f"\n[\n{GOOD}\n{GOOD}]", 3, 1),
        (f"[{GOOD},]", 1, 1),
        (f"[{GOOD}]\nmore", 2, 1),
        (f"[\n{GOOD},\n{{}}\n,{GOOD.replace(':1,', ':2,')}]", 3, 2),
        ("[" * 100_000, 1, 0),
    ],
)
def test_an_array_is_read_up_to_where_it_breaks_off(file, text, line, imported):
    fill(file, [])
    assert f"line {line}: " in command(file, "import", "-", stdin=text, code=1).stdout
    assert told(file, "import", "-", "--skip-invalid", stdin=text, code=1)["imported"] == imported


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["queue_id", "row_id", "queued_at", "row", "metric_id", "value"]), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.lists(JSONISH, max_size=3).map(lambda rows: json.dumps(rows).encode()),
        st.lists(JSONISH, max_size=3).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
        st.tuples(st.integers(0, len(GOOD) - 1), st.binary(max_size=2), st.sampled_from(["[{}]", "{}", "{0},{0}"])).map(
            lambda cut: cut[2].replace("{}", "{0}").format(GOOD).encode()[: cut[0]] + cut[1] + GOOD[cut[0] :].encode()
        ),
    )
)
@pytest.mark.slow
def test_no_text_at_all_makes_an_import_fall_over(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "import.db"
    if not file.exists():
        fill(file, [])
    done = CliRunner().invoke(
        main, ["queue", "import", "-", "--dry-run", "--json"], input=text, env={"BUFFER_PATH": str(file)}
    )
    assert done.exit_code in (0, 1), done.exception
    report = json.loads(done.stdout)
    assert (done.exit_code == 0) == (report["invalid"] == 0)


def test_an_import_that_the_disk_ends_says_how_far_it_came(file, tmp_path):
    fill(file, samples(3))
    text = command(file, "export").stdout
    other = tmp_path / "other.db"
    fill(other, [])
    sql(other, f"CREATE TRIGGER full BEFORE INSERT ON {TABLE} BEGIN SELECT RAISE(ABORT, 'no room'); END")
    report = told(other, "import", "-", stdin=text, code=1)
    assert (report["imported"], "no room" in report["error"]) == (0, True)
    assert "took no more" in command(other, "import", "-", stdin=text, code=1).stdout


# -- dead letters


def test_dead_letters_are_listed_newest_first(file):
    reject(file, 5)
    report = told(file, "rejected", "list", "--limit", "2")
    assert (report["total"], [each["row_id"] for each in report["shown"]]) == (5, [5, 4])
    newest = report["shown"][0]
    assert (newest["reason"], newest["status"], newest["answer"]) == ("status 400", 400, "bad value")
    assert newest["row"]["metric_id"] == "metric-4" and newest["rejected_at"].endswith("Z")
    text = command(file, "rejected", "list").stdout
    assert text.startswith("5 dead letters") and "metric-0" in text
    told(file, "rejected", "purge")
    assert "No dead letters" in command(file, "rejected", "list").stdout


def test_a_retried_dead_letter_is_a_new_row_and_its_loss_stays_counted(file):
    reject(file, 4, also=1)
    letters = [row[0] for row in sql(file, "SELECT data FROM rejected ORDER BY id")]
    dry = told(file, "rejected", "retry", "--id", "2", "--id", "4", "--dry-run")
    assert (dry["retried"], len(stored(file))) == (2, 1)
    assert told(file, "rejected", "retry", "--id", "4", "--id", "2")["retried"] == 2
    assert stored(file, "_id, data")[1:] == [(6, letters[1]), (7, letters[3])]
    assert [row[0] for row in sql(file, "SELECT id FROM rejected")] == [1, 3]
    assert balanced(file) == (3, {"refused": 4})
    assert "2 dead letters went back" in command(file, "rejected", "retry", "--all").stdout
    assert balanced(file) == (5, {"refused": 4})
    with closing(opened(file)) as queue:
        while batch := queue.peek(100):
            queue.settle(batch, OK)
    assert balanced(file) == (0, {"refused": 4})


def test_what_cannot_go_back_stays_and_is_named(file):
    reject(file, 6, also=2)
    sql(file, "UPDATE rejected SET data = x'7b' WHERE id = 1")
    report = told(file, "rejected", "retry", "--id", "1", "--id", "3", "--id", "77", code=1)
    assert report["retried"] == 1 and [text.split(":")[0] for text in report["failed"]] == [
        "there is no dead letter 77", "dead letter 1 stays",
    ]  # fmt: skip
    report = told(file, "rejected", "retry", "--all", code=1, BUFFER_MAX_ROWS="5")
    assert report["retried"] == 2 and "dead letter 5 stays: the queue is full" in report["failed"]
    assert [row[0] for row in sql(file, "SELECT id FROM rejected")] == [1, 5, 6]
    assert balanced(file) == (5, {"refused": 6})
    room = sum(len(row[0]) for row in stored(file)) + len(sample(4).encode())
    report = told(file, "rejected", "retry", "--all", code=1, BUFFER_MAX_BYTES=str(room))
    assert (report["retried"], len(stored(file))) == (1, 6)


def test_a_retry_that_fails_has_moved_nothing(file):
    reject(file, 3)
    sql(file, "CREATE TRIGGER stop BEFORE DELETE ON rejected WHEN OLD.id = 3 BEGIN SELECT RAISE(ABORT, 'no'); END")
    command(file, "rejected", "retry", "--all", code=2)
    assert (len(stored(file)), sql(file, "SELECT count(*) FROM rejected")) == (0, [(3,)])
    assert balanced(file) == (0, {"refused": 3})


@pytest.mark.parametrize("words", [["retry"], ["retry", "--all", "--id", "1"], ["purge", "--older-than", "soon"]])
def test_wrong_usage_of_the_dead_letters_is_exit_2(file, words):
    reject(file, 1)
    assert "observer-agent: " in command(file, "rejected", *words, code=2).stderr
    assert sql(file, "SELECT count(*) FROM rejected") == [(1,)]


def test_old_dead_letters_are_purged_and_stay_counted(file):
    reject(file, 4)
    sql(file, "UPDATE rejected SET rejected_at = rejected_at - 4 * 86400 WHERE id < 3")
    for words, purged, left in [
        (["--older-than", "5d"], 0, 4),
        (["--older-than", "3d", "--dry-run"], 2, 4),
        (["--older-than", "3d"], 2, 2),
        (["--dry-run"], 2, 2),
        ([], 2, 0),
    ]:
        assert told(file, "rejected", "purge", *words)["purged"] == purged
        assert sql(file, "SELECT count(*) FROM rejected") == [(left,)]
    assert balanced(file) == (0, {"refused": 4})


# -- purge


def test_purge_without_yes_says_what_it_would_delete_and_is_exit_2(file):
    fill(file, samples(7))
    done = command(file, "purge", code=2)
    assert "7 rows" in done.stdout and "would be deleted" in done.stdout and "--yes" in done.stdout
    for words in (["--dry-run"], ["--dry-run", "--yes"]):
        assert told(file, "purge", *words)["rows"] == 7
    assert len(stored(file)) == 7


def test_a_purge_is_a_loss_that_is_declared(file):
    for n in range(3):
        with closing(opened(file)) as queue:
            queue.put([sample(m % 2) for m in range(1500 + n)])
            queue.settle(queue.peek(100), OK)
            queue.put([sample(2)])
    size = sum(len(row[0]) for row in stored(file))
    report = told(file, "purge", "--yes")
    assert report == {
        "path": str(file), "dry_run": False, "done": True, "rows": 4206, "bytes": size, "counted_as": "age",
    }  # fmt: skip
    assert balanced(file) == (0, {"age": 4206})
    assert sql(file, "SELECT rows, bytes, redundant FROM meta") == [(0, 0, 0)]
    assert "counted as lost: age" in command(file, "purge", "--yes").stdout
    with closing(opened(file)) as queue:
        queue.put([sample(0), sample(2), sample(2)])
        heads = stored(file, "redundant")
    assert heads == [(1,), (0,), (1,)]  # the head of metric 0 was accepted, that of metric 2 was purged
    assert balanced(file) == (3, {"age": 4206})


# -- an agent in the way


CHANGING = [["import", "-"], ["rejected", "retry", "--all"], ["rejected", "purge"], ["purge", "--yes"]]


def test_while_the_file_is_held_looking_works_and_changing_is_refused(file):
    reject(file, 2, also=3)
    with closing(opened(file)) as queue:
        text = command(file, "export").stdout
        assert len(json.loads(text)) == 3 and told(file, "verify")["ok"]
        assert told(file, "rejected", "list")["total"] == 2
        assert told(file, "import", "-", "--dry-run", stdin=text)["skipped"] == 3
        assert told(file, "rejected", "retry", "--all", "--dry-run")["retried"] == 2
        for words in CHANGING:
            done = command(file, *words, stdin="", code=2)
            assert "stop the agent first" in done.stderr and done.stderr.count("\n") == 1
        queue.put([sample(9)])
        assert queue.depth == 4
    for words in CHANGING:
        command(file, *words, stdin="")


def test_a_look_in_the_middle_of_a_transaction_sees_what_was_committed_and_blocks_nobody(file):
    with closing(opened(file)) as queue:
        queue.put(samples(5))
        with queue.tran_lock:
            queue._putter.execute("BEGIN IMMEDIATE")
            queue._putter.execute(f"DELETE FROM {TABLE}")
            assert told(file, "verify")["rows"] == 5
            assert len(json.loads(command(file, "export").stdout)) == 5
            queue._putter.execute("ROLLBACK")


def process(file, *words, **more):
    return subprocess.run(
        [sys.executable, "-m", "observer_agent", "queue", *words],
        env=clean_env({"BUFFER_PATH": str(file)}), capture_output=True, text=True, timeout=60, **more,
    )  # fmt: skip


@pytest.mark.slow
def test_beside_a_running_agent(file):
    fill(file, samples(12))
    env = {
        "AGENT_KEY": "obs_live_" + "k" * 43,
        "CLOUD_SERVER_URL": f"http://127.0.0.1:{free_port()}",
        "BUFFER_PATH": str(file),
        "ENABLE_DEBUG_DASHBOARD": "false",
        "LOG_FORMAT": "text",
    }
    words = [sys.executable, "-m", "observer_agent", "run"]
    with subprocess.Popen(words, env=clean_env(env), stderr=subprocess.PIPE, text=True) as agent:
        try:
            assert any("started at" in line for line in agent.stderr)
            assert json.loads(process(file, "verify", "--json").stdout)["rows"] == 12
            exported = process(file, "export", "--jsonl")
            assert (exported.returncode, len(exported.stdout.splitlines())) == (0, 12)
            refused = process(file, "purge", "--yes")
            assert refused.returncode == 2 and "stop the agent first" in refused.stderr
        finally:
            agent.send_signal(signal.SIGTERM)
            agent.stderr.read()
    assert process(file, "purge", "--yes").returncode == 0
    assert process(file, "import", "-", input=exported.stdout).stdout.startswith("12 rows imported")
    assert balanced(file) == (12, {"age": 12})


@pytest.mark.slow
def test_above_ten_thousand_rows_a_terminal_sees_a_bar(file):
    fill(file, [sample(n % 7) for n in range(10_001)])
    assert process(file, "verify").stderr == ""
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "observer_agent", "queue", "export", "--jsonl"]
    with subprocess.Popen(
        words, env=clean_env({"BUFFER_PATH": str(file), "TERM": "xterm"}), stdout=subprocess.PIPE, stderr=theirs
    ) as child:
        os.close(theirs)
        lines = child.stdout.read().count(b"\n")
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:
        pass  # the other side of a terminal is gone
    os.close(ours)
    assert (child.returncode, lines) == (0, 10_001)
    assert b"Exporting" in shown and b"100%" in shown


def test_a_reader_that_goes_away_is_no_traceback(file):
    fill(file, [sample(n % 7) for n in range(10_001)])
    with subprocess.Popen(
        [sys.executable, "-m", "observer_agent", "queue", "export"],
        env=clean_env({"BUFFER_PATH": str(file)}), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        child.stdout.readline()
        child.stdout.close()
        assert b"Traceback" not in child.stderr.read()
