"""Evidence of transitions: what probes keep, what is hidden of it, the ring, and that nothing waits for it."""

from __future__ import annotations

import base64
import html
import json
import os
import random
import sqlite3
import threading
import time
from contextlib import closing
from urllib.parse import quote

import pytest

from observer_agent import evidencefile, probes
from observer_agent.clock import Clock
from observer_agent.errors import DiskFull, QueueError, UsageError
from observer_agent.evidence import BATCH, LARGEST, WAITING_MAX, Evidence
from observer_agent.evidencefile import GONE_FOR, RING, Record, Ring
from observer_agent.logs import Redactor
from observer_agent.model import Definition, Fault, Operation, Reading, Status, Thresholds, Transition
from observer_agent.probes import _evidence
from observer_agent.probes._http import Request
from observer_agent.probes._url import parse_url
from observer_agent.resolver import parse_literal
from observer_agent.verdict import judge
from observer_agent.worker import Care, Supervisor, Worker
from tests import servers
from tests.conftest import eat
from tests.fakes import FakeClock
from tests.servers import Authority, Server, answer, make_prober, redirect, refused_port, scripted
from tests.test_collector import Stage, definition

RULES = Thresholds(Operation.UNDER, 10, Operation.OVER, 20)


def transition(name="m", status=Status.UNHEALTHY, before=Status.HEALTHY, title="", **reading):
    made = Definition(name, "tcp", 60, 300, "1", config=object(), thresholds=RULES, title=title)
    value = {Status.HEALTHY: 1.0, Status.UNHEALTHY: 30.0, Status.DEGRADED: 15.0}.get(status)
    made_reading = Reading(value, None if value else "ECONNREFUSED", None if value else Fault.TARGET, **reading)
    return Transition(made, before, judge(made_reading, RULES), made_reading, 1_800_000_000.0)


def record(name="m", status="unhealthy", data="{}", title=""):
    return Record(name, title, "tcp", status, data)


class Desk:
    """An Evidence with what it has dropped and one turn at a time."""

    def __init__(self, file, clock=None, **options):
        self.dropped = []
        self.redact = Redactor()
        self.evidence = Evidence(
            file, clock or Clock(), self.redact, lambda *what: self.dropped.append(what), **options
        )
        self.evidence.open()
        self.offer, self.step, self.close = self.evidence.offer, self.evidence.step, self.evidence.close

    def rows(self, name="m", most=1000):
        return evidencefile.newest(self.evidence.file, name, most)[0]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "b.db.evidence"


@pytest.fixture
def desk(file):
    made = Desk(file)
    yield made
    made.close()


# -- when the collector tells


class Told(Stage):
    """The collector of test_collector, and the transitions that it tells of."""

    def __init__(self, **options):
        super().__init__(**options)
        self.told = []
        self.collector._on_transition = self.told.append


def test_the_collector_tells_of_each_change_with_the_five_readings_before_it():
    stage = Told(value=lambda at: 1.0 if at < 130 else 30.0)
    stage.collector.apply([definition(interval=10, push=20)])
    stage.until(250)
    first, second = stage.told
    assert (first.before, first.verdict.status, first.past) == (None, "healthy", ())
    assert (second.before, second.verdict.status, second.reading.value) == ("healthy", "unhealthy", 30.0)
    assert [past.value for past in second.past] == [1.0] * 5
    assert [round(second.at - past.at) for past in second.past] == [50, 40, 30, 20, 10]


def test_fewer_readings_before_it_are_as_many_as_there_were():
    stage = Told(value=lambda at: 1.0 if at < 28 else Reading(None, "ETIMEDOUT", Fault.TARGET, duration_ms=7.0))
    stage.collector.apply([definition(interval=10, push=1000)])
    stage.until(60)
    told = stage.told[-1]
    assert (told.before, told.verdict.status, told.verdict.reason) == ("healthy", "no_data", "ETIMEDOUT")
    assert 2 <= len(told.past) <= 3 and len(stage.told) == 2
    (job,) = stage.collector.jobs()
    assert [(each.status, each.reason, each.duration_ms) for each in job.past[-2:]] == [
        ("no_data", "ETIMEDOUT", 7.0)
    ] * 2


# -- what is news


def test_the_first_verdict_is_news_only_where_it_is_not_healthy(desk):
    desk.offer(transition("good", Status.HEALTHY, before=None))
    desk.offer(transition("bad", Status.NO_DATA, before=None))
    desk.step()
    assert desk.rows("good") == []
    assert [(row["before"], row["status"], row["reason"]) for row in desk.rows("bad")] == [
        (None, "no_data", "ECONNREFUSED")
    ]


def test_a_restart_is_no_news_but_what_has_changed_meanwhile_is(file):
    desk = Desk(file)
    for name in ("same", "back"):
        desk.offer(transition(name, Status.NO_DATA))
    desk.close()
    again = Desk(file)
    again.offer(transition("same", Status.NO_DATA, before=None))
    again.offer(transition("back", Status.HEALTHY, before=None))
    again.close()
    assert len(again.rows("same")) == 1
    assert [(row["before"], row["status"]) for row in again.rows("back")] == [
        ("no_data", "healthy"),
        ("healthy", "no_data"),
    ]


def test_a_row_holds_what_was_known(desk):
    reading = {
        "duration_ms": 12.5, "phases": {"connect": 1.5}, "address": "192.0.2.1:80",
        "detail": {"error": "what it said", "n": 3, "odd": float("nan"), "deep": [{"a": [{"b": 1}]}]},
    }  # fmt: skip
    desk.offer(transition(status=Status.NO_DATA, title="A title", **reading))
    desk.step()
    (row,) = desk.rows()
    assert row.pop("detail") == {"error": "what it said", "n": 3, "odd": None, "deep": [{"a": [{"b": 1}]}]}
    assert row == {
        "at": "2027-01-15T08:00:00.000Z", "before": "healthy", "status": "no_data", "value": None,
        "reason": "ECONNREFUSED", "fault": "target", "duration_ms": 12.5, "interval_seconds": 60,
        "thresholds": {"healthy": "under 10", "unhealthy": "over 20"}, "phases": {"connect": 1.5},
        "address": "192.0.2.1:80", "readings_before": [],
    }  # fmt: skip
    assert evidencefile.find(desk.evidence.file, "a TITLE") == ("m", "A title", "tcp")


def test_a_row_stays_small_whatever_a_probe_says(desk):
    many = {f"name {n}": {f"{m}": "x" * 5000 for m in range(100)} for n in range(100)}
    desk.offer(transition(detail={"error": "y" * 100_000}))
    desk.offer(transition(detail=many))
    desk.step()
    large, long = desk.rows()
    assert large["detail"] == {"cut": True}
    assert long["detail"]["error"] == "y" * _evidence.SHOWN
    with closing(sqlite3.connect(desk.evidence.file)) as conn:
        assert conn.execute("SELECT max(length(data)) FROM transitions").fetchone()[0] < LARGEST


# -- the ring


def test_the_newest_twenty_of_each_metric_are_kept(file):
    ring = Ring(file)
    for n in range(RING + 7):
        ring.add([record("a", data=json.dumps({"n": n})), record("b", data=json.dumps({"n": -n}))])
    ring.add([record("c", data='{"n": 0}')])
    ring.close()
    found = {name: evidencefile.newest(file, name, 100) for name in "abc"}
    assert [row["n"] for row in found["a"][0]] == list(range(RING + 6, 6, -1))
    assert found["b"][1] == RING and found["c"] == ([{"n": 0}], 1)


def test_the_file_is_bounded_and_the_oldest_go_first(file):
    most = 512 * 1024
    ring = Ring(file, most=most)
    for n in range(2_000):
        ring.add([record(f"m{n}", data=json.dumps({"n": n, "x": "x" * 1000}))])
    ring.close()
    assert most / 2 < file.stat().st_size <= most + 64 * 1024
    with closing(sqlite3.connect(file)) as conn:
        ids = [row[0] for row in conn.execute("SELECT id FROM transitions ORDER BY id")]
        assert conn.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert len(ids) > 100 and ids == list(range(2_001 - len(ids), 2_001))


def test_what_a_definition_has_left_goes_a_week_after_it(file):
    clock = FakeClock()
    desk = Desk(file, clock)
    here, gone = transition("here", title="Old"), transition("gone")
    desk.evidence.keep([here.definition, gone.definition])
    desk.offer(here)
    desk.offer(gone)
    desk.step()
    desk.evidence.keep([transition("here", title="New").definition])
    desk.step()
    clock.advance(GONE_FOR - 60)
    desk.step()
    assert desk.rows("gone") and evidencefile.find(file, "new").id == "here"
    clock.advance(7200)
    desk.step()
    assert desk.rows("gone") == [] and evidencefile.find(file, "gone") is None
    assert desk.rows("here")
    desk.close()


def test_a_definition_that_comes_back_within_the_week_keeps_its_own(file):
    clock = FakeClock()
    desk = Desk(file, clock)
    desk.offer(transition("m"))
    desk.evidence.keep([])
    desk.step()
    clock.advance(GONE_FOR / 2)
    desk.evidence.keep([transition("m").definition])
    desk.step()
    clock.advance(GONE_FOR)
    desk.step()
    assert desk.rows()
    desk.close()


def test_nobody_else_can_read_the_files(file):
    before = os.umask(0)
    try:
        file.touch(0o666)
        ring = Ring(file)
        ring.add([record()])
    finally:
        os.umask(before)
    parts = list(file.parent.iterdir())
    assert len(parts) == 3  # with WAL and shared memory
    assert {part.stat().st_mode & 0o777 for part in parts} == {0o600}
    ring.close()


# -- nothing waits for it, nothing breaks of it


def damaged_ways():
    def garbage(file):
        file.write_bytes(random.Random(1).randbytes(20_000))

    def cut(file):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    def schema(file):
        data = bytearray(file.read_bytes())
        data[100:4096] = os.urandom(3996)
        file.write_bytes(data)

    def pages(file):
        data = bytearray(file.read_bytes())
        data[4096:] = b"\xff" * (len(data) - 4096)
        file.write_bytes(data)

    def newer(file):
        with closing(sqlite3.connect(file)) as conn:
            conn.execute("PRAGMA user_version = 9")

    def stranger(file):
        file.unlink()
        with closing(sqlite3.connect(file)) as conn:
            conn.execute("CREATE TABLE theirs (a)")

    return [garbage, cut, schema, pages, newer, stranger]


@pytest.mark.parametrize("damage", damaged_ways(), ids=lambda way: way.__name__)
def test_a_file_of_no_use_is_moved_aside_and_a_new_one_begun(file, caught, damage):
    desk = Desk(file)
    for n in range(50):
        desk.offer(transition(f"m{n}", detail={"x": "x" * 400}))
    desk.close()
    damage(file)
    desk = Desk(file)
    desk.offer(transition("fresh"))
    desk.offer(transition("m1", Status.HEALTHY, Status.UNHEALTHY))
    desk.step()
    desk.close()
    assert desk.rows("fresh") and desk.dropped == []
    assert list(file.parent.glob("*.evidence.corrupt-*"))
    said = [line.getMessage() for line in caught.records if line.levelname == "WARNING"]
    assert len(said) == 1 and "was moved to" in said[0]


def test_a_file_that_is_damaged_while_it_is_open(file, caught):
    desk = Desk(file)
    desk.offer(transition())
    desk.close()
    desk = Desk(file)
    with closing(sqlite3.connect(file)) as conn:
        conn.execute("PRAGMA writable_schema = ON")
        conn.execute("UPDATE sqlite_master SET rootpage = 9999 WHERE name = 'transitions'")
        conn.commit()
        conn.execute("PRAGMA schema_version = 99")  # so that the other connection reads it again
    desk.offer(transition(before=Status.NO_DATA))
    desk.step()
    desk.close()
    assert len(desk.rows()) == 1 and desk.dropped == []
    assert "was moved to" in caught.text


def test_a_disk_that_is_nearly_full_is_left_to_the_queue(disk, caught):
    """2 MB: less than what is left alone."""
    desk = Desk(disk / "b.db.evidence")
    for _ in range(3):
        desk.offer(transition())
        desk.step()
    desk.close()
    assert list(disk.iterdir()) == []
    assert desk.dropped == [("disk", 1)] * 3
    assert caught.text.count("is not kept (less than 32 MiB are free") == 1


def test_a_full_disk_costs_evidence_alone_and_it_begins_again_when_there_is_room(disk, caught):
    desk = Desk(disk / "b.db.evidence", open_ring=lambda file: Ring(file, least_free=0))
    desk.offer(transition("before"))
    desk.step()
    eat(disk)
    while not desk.dropped:
        desk.offer(transition("full", detail={"x": "x" * 500}))
        desk.step()
    assert caught.text.count("Evidence of changes is not kept") == 1
    (disk / "stranger").unlink()
    desk.offer(transition("after"))
    desk.step()
    desk.close()
    assert len(desk.dropped) == 1
    assert desk.rows("before") and desk.rows("after")


def test_a_full_disk_is_one_word(disk):
    ring = Ring(disk / "e", least_free=0)
    eat(disk)
    with pytest.raises(DiskFull):
        for _ in range(1000):
            ring.add([record(data=json.dumps("x" * 3000))])
    ring.close()


def test_a_directory_that_takes_no_file(tmp_path, caught):
    desk = Desk(tmp_path / "missing" / "b.db.evidence")
    desk.offer(transition())
    assert desk.step() > 0
    desk.close()
    assert desk.dropped == [("disk", 1)]
    assert caught.text.count("Evidence of changes is not kept") == 1


def test_more_than_may_wait_is_dropped_and_counted(desk, caught):
    for n in range(WAITING_MAX + 5):
        desk.offer(transition(f"m{n}"))
    assert desk.dropped == [("overload", 1)] * 5
    desk.step()
    assert desk.rows(f"m{WAITING_MAX - 1}") and not desk.rows(f"m{WAITING_MAX}")
    assert caught.text.count("More statuses change than can be written down") == 1


class Hanging(Ring):
    """A disk that hangs inside a write until it is let go."""

    inside, go = None, None

    def add(self, records):
        self.inside.set()
        assert self.go.wait(30)
        super().add(records)


def test_a_disk_that_hangs_holds_up_no_probe_and_not_the_watchdog(file, caught):
    Hanging.inside, Hanging.go = threading.Event(), threading.Event()
    clock = FakeClock()
    desk = Desk(file, clock, open_ring=Hanging)
    supervisor = Supervisor()
    worker = Worker("evidence", desk.step, Clock(), care=Care(0.01, desk.evidence.give_up))
    desk.evidence.wake = worker.wake
    try:
        supervisor.add(worker)
        desk.offer(transition("stuck"))
        assert Hanging.inside.wait(10)
        desk.offer(transition("next"))
        while not worker.restarts:
            supervisor.check()
        assert "hangs" in caught.text
        desk.offer(transition("later"))
        assert ("overload", 1) in desk.dropped
        desk.close()  # does not wait
    finally:
        Hanging.go.set()
        worker.stop()
        assert worker.join(10)
    assert supervisor.check() is True


# -- what may not be shown

SENT = 'kä"y\\ö/<&%1 9x'
DISGUISES = {
    "as it is": SENT,
    "mojibake": SENT.encode().decode("latin-1"),
    "json": json.dumps(SENT),
    "json of unicode": json.dumps(SENT, ensure_ascii=False),
    "json of mojibake": json.dumps(SENT.encode().decode("latin-1")),
    "php": json.dumps(SENT).replace("/", "\\/"),
    "html": html.escape(SENT),
    "percent": quote(SENT, safe=""),
    "percent in small letters": quote(SENT, safe="").lower(),
    "path": quote(SENT),
    "base64": base64.b64encode(SENT.encode()).decode(),
    "url-safe base64": base64.urlsafe_b64encode(SENT.encode()).decode(),
    "python": repr(SENT),
    "hex": SENT.encode().hex(),
}


def shown(body, headers=(), url="http://good.test/", redact=None):
    request = Request("GET", parse_url(url), tuple(headers))
    body = body if isinstance(body, bytes) else body.encode("utf-8", "surrogateescape")
    return _evidence.facts({"body": _evidence.Body(body, request)}, redact or Redactor())["body"]


@pytest.mark.parametrize("form", DISGUISES.values(), ids=DISGUISES)
def test_what_was_sent_is_hidden_however_it_is_written(form):
    found = shown(f"before >{form}< after", [("X-Key", SENT)])
    assert "before" in found and "after" in found and "[redacted]" in found
    assert len(found) < 60, found


@pytest.mark.parametrize(
    ("headers", "url", "body", "gone"),
    [
        ([("Authorization", "Bearer abc.def-0123")], "", "got abc.def-0123", "abc.def"),
        ([("Authorization", "Basic " + base64.b64encode(b"ann:pass word").decode())], "", "ann / pass word", "pass"),
        ([("Cookie", "sid=verysecret; b=other-one")], "", "sid is verysecret and other-one", "other-one"),
        ([], "http://h.test/hook/T012AB34/x", "no such hook: T012AB34", "T012AB34"),
        ([], "http://h.test/health?key=p%40ssword", "Cannot GET /health?key=p%40ssword or p@ssword", "ssword"),
        ([], "http://h.test/a?justthis", "you said justthis", "justthis"),
        ([], "", '{"password": "a \\"quoted\\" one", "n": 1}', "quoted"),
        ([], "", "api_key=01234; next", "01234"),
        ([], "", "Authorization: Custom one two\nnext", "two"),
        ([], "", "<secret>in a tag</secret>", "in a"),
        ([], "", "jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln end", "eyJ"),
        ([], "", "-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----\nafter", "MII"),
        ([], "", "id AKIAABCDEFGHIJKLMNOP end", "AKIA"),
        ([], "", "see http://user:pw123@h.test/ now", "pw123"),
        ([], "", "see https://h.test/a?sig=abcd now", "abcd"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(headers, url, body, gone):
    found = shown(body, headers, url or "http://good.test/")
    assert gone in body and gone not in found and "[redacted]" in found


def test_what_is_no_secret_stays():
    text = '{"status": "unhealthy", "checks": {"health": 0}, "sessions": 4711}'
    assert shown(text, url="http://good.test/health/live") == text.replace("4711", "[redacted]")
    assert shown("a\x1b[31mb\r\n\x00é\udcff") == "a\\x1b[31mb\\r\\n\\x00é\\xff"


@pytest.mark.parametrize("before", [0, 100, 490, 505, 511, 512, 600])
@pytest.mark.parametrize("size", [12, 1000, 3000])
def test_a_secret_at_the_edge_leaves_no_part_of_it(before, size):
    secret = "".join(random.Random(size).choices("ghijklmnop", k=size))
    body = ("x" * before + secret) * 3 + "x" * 5000
    for redact, headers in ((Redactor(), [("X-Key", secret)]), (Redactor(), [])):
        redact.add(secret)
        found = shown(body, headers, redact=redact)
        assert set(found) <= set("x[redacted]"), found


@pytest.mark.parametrize("form", DISGUISES.values(), ids=DISGUISES)
def test_a_piece_of_a_secret_is_hidden_however_it_is_written(form):
    redact, secret = Redactor(), SENT + "-and-a-long-end-of-it"
    redact.add(secret)
    for cut in (1, 5):
        found = shown(f"before >{form[cut:-1]}...", [("X-Key", secret)], redact=redact)
        assert found.startswith("before >") and "[redacted]" in found
        assert len(found) < 40, found


def test_base64_of_a_whole_request_shows_no_header():
    redact = Redactor()
    redact.add("a-secret-of-24-letters-x")
    for n in range(3):
        text = base64.b64encode(b"y" * n + b"GET / X-Key: a-secret-of-24-letters-x\r\nMore: of it").decode()
        decoded = shown(text, [("X-Key", "a-secret-of-24-letters-x")], redact=redact).replace("[redacted]", "")
        assert len(decoded) < len(text) - 24


def test_a_secret_that_the_window_cuts_leaves_no_part_of_it():
    secret = "k" * 3000
    found = shown((secret + "y") * 10, [("X-Key", secret)])
    assert "k" not in found


@pytest.mark.parametrize(
    "body",
    ["a" * 5000, "token" * 1000, "eyJ-" * 1200, "eyJaaaaaaaa." * 500, "password=\"" + "\\" * 5000, "basic " * 900,
     "-----BEGIN " + "A" * 5000, "-----BEGIN PRIVATE KEY-----" * 200, "token:" * 900, "cookie:\"'" * 500, "a=" * 2500,
     "\udcff" * 5000, "session   " * 500, "http://" * 700, "<" * 5000],
)  # fmt: skip
def test_no_body_makes_hiding_slow(body):
    begin = time.thread_time()
    shown(body, [("X", "secret-of-ours")])
    assert time.thread_time() - begin < 0.25


def test_a_certificate_that_cannot_be_read_is_said_so():
    chance = random.Random(3)
    with Server(scripted(answer()), tls=Authority().server("good.test")) as server:
        reading = look(server.url_of("good.test"), verify_tls=False)
    good = bytearray(reading.evidence["certificate"])
    for n in range(300):
        der = bytearray(good)
        for _ in range(1 + n % 8):
            der[chance.randrange(len(der))] = chance.randrange(256)
        found = probes.facts({"certificate": bytes(der[: chance.randrange(1, len(der) + 1)])}, Redactor())
        assert set(found["tls"]["certificate"]) & {"error", "subject"}


# -- what the probes keep


def look(url, find=servers.lookup, **config):
    raw = {"url": url, "timeout_ms": 2000, **config}
    return make_prober({"PROBE_T": "t0p-secret"}, find=find).look("http", probes.parse("http", raw))


def facts_of(reading):
    return probes.facts(reading.evidence, Redactor())


@pytest.mark.parametrize(
    ("reply", "config", "reason"),
    [
        (answer("broken", 503), {}, "unexpected_status:503"),
        (answer("other"), {"body_match": "wanted"}, "body_mismatch"),
        (answer("other"), {"body_match": "wanted", "json_path": "$.a"}, "body_mismatch"),
        (answer("{"), {"json_path": "$.a"}, "json_parse_failed"),
        (answer('{"b": 1}'), {"json_path": "$.a"}, "json_path_no_match"),
        (answer('{"a": "x"}'), {"json_path": "$.a"}, "json_path_non_numeric"),
    ],
)
def test_the_body_of_an_answer_that_was_not_as_expected_is_kept(reply, config, reason):
    with Server(scripted(reply)) as server:
        reading = look(server.url, **config)
    assert reading.reason == reason
    assert facts_of(reading) == {"body": reply.partition(b"\r\n\r\n")[2].decode()}


def test_a_body_that_was_sent_is_hidden_in_what_comes_back():
    sent = '{"user": "somebody", "password": "tell+nobody/7"}'
    back = f"you sent {sent}, and tell%2Bnobody%2F7, and somebody"
    with Server(scripted(answer(back, 500))) as server:
        found = str(facts_of(look(server.url, method="POST", body=sent)))
    assert "you sent" in found
    for secret in ("tell", "somebody"):
        assert secret not in found


def test_nothing_is_kept_of_a_body_that_was_as_expected_or_is_compressed_or_of_a_head():
    with Server(scripted(answer("fine"))) as server:
        assert look(server.url).evidence == {}
    with Server(scripted(answer("zip", 500, Content_Encoding="gzip"))) as server:
        assert look(server.url).evidence == {}
    with Server(scripted(answer("", 500))) as server:
        assert look(server.url, method="HEAD").evidence == {}


@pytest.mark.parametrize("head", ["Content-Length: 9000", "Transfer-Encoding: chunked", "X: y"])
def test_a_body_that_drips_costs_a_moment_and_what_has_come_is_kept(head):
    def handler(conn, server):
        servers.read_request(conn)
        part = b"5\r\nbegun\r\n" if "chunked" in head else b"begun"
        conn.sendall(f"HTTP/1.1 500 X\r\n{head}\r\n\r\n".encode() + part)
        server.stopping.wait()

    with Server(handler) as server:
        reading = look(server.url)
    assert (reading.reason, reading.silent, facts_of(reading)) == ("unexpected_status:500", False, {"body": "begun"})
    assert reading.duration_ms < 1000


def test_every_hop_is_kept_without_path_and_query():
    with Server(scripted(answer("end", 404))) as last:
        hops = scripted(redirect("/two?token=canary-1"), redirect(last.url + "/canary-2?x=canary-3", 307))
        with Server(hops) as first:
            reading = look(first.url_of("good.test"), header_refs={"X-T": "PROBE_T"})
    found = facts_of(reading)
    origins = [first.url_of("good.test")] * 2 + [last.url]
    assert found["hops"] == [
        {"status": status, "origin": origin, "address": f"127.0.0.1:{server.port}"}
        for status, origin, server in zip((302, 307, 404), origins, (first, first, last), strict=True)
    ]
    assert found["body"] == "end"
    assert "canary" not in json.dumps(found)


def test_a_redirect_into_nothing_keeps_the_hops_so_far():
    with refused_port() as port, Server(scripted(redirect(f"http://127.0.0.1:{port}/"))) as server:
        found = facts_of(look(server.url))
    assert [hop["status"] for hop in found["hops"]] == [302]
    assert found["tried"] == [{"address": f"127.0.0.1:{port}", "reason": "ECONNREFUSED"}]


def test_every_address_that_was_tried_is_kept():
    def two(name):
        return tuple(parse_literal(each) for each in ("127.0.0.2", "127.0.0.1"))

    with Server(scripted(answer())) as server:
        reading = look(server.url_of("good.test"), find=two)
        tcp = make_prober(find=two).look("tcp", probes.parse("tcp", {"host": "good.test", "port": server.port}))
    tried = [{"address": f"127.0.0.2:{server.port}", "reason": "ECONNREFUSED"}]
    assert facts_of(reading)["tried"] == facts_of(tcp)["tried"] == tried
    assert reading.address == f"127.0.0.1:{server.port}"


def test_the_facts_of_a_handshake_are_kept():
    with Server(scripted(answer()), tls=Authority().server("good.test")) as server:
        tls = facts_of(look(server.url_of("good.test"), verify_tls=False))["tls"]
    assert tls["version"] == "TLSv1.3" and tls["cipher"].startswith("TLS_")
    assert tls["certificate"]["names"] == ["good.test"]
    assert tls["certificate"]["not_before"] < tls["certificate"]["not_after"]


def test_the_certificate_that_was_not_trusted_is_kept():
    with Server(scripted(answer()), tls=Authority().expired()) as server:
        reading = look(server.url_of("localhost"))
    assert reading.reason == "tls_verify_failed"
    found = facts_of(reading)["tls"]
    assert found.keys() == {"certificate"}
    assert found["certificate"]["names"] == ["localhost", "127.0.0.1"]
    assert found["certificate"]["not_after"] < servers.days(0).isoformat()


# -- reading it


def test_a_metric_is_found_by_id_or_by_its_title_where_that_is_its_alone(file):
    ring = Ring(file)
    ring.add([record("a", title="One"), record("b", title="Two"), record("c", title="two"), record("One", title="x")])
    ring.close()
    assert evidencefile.find(file, "a").title == "One"
    assert evidencefile.find(file, "one").id == "a"
    assert evidencefile.find(file, "One").id == "One"  # an id comes before a title
    with pytest.raises(UsageError, match="2 metrics are called 'TWO'; give the id: b, c"):
        evidencefile.find(file, "TWO")
    assert evidencefile.find(file, "nothing") is None


def test_rows_that_are_no_json_are_left_out(file):
    ring = Ring(file)
    ring.add([record(data='{"n": 1}'), record(data="{broken"), record(data="[]"), record(data='{"n": 2}')])
    ring.close()
    assert evidencefile.newest(file, "m", 10) == ([{"n": 2}, {"n": 1}], 4)


def test_a_file_that_cannot_be_read_is_said_so(file):
    with pytest.raises(UsageError, match="does not exist"):
        evidencefile.find(file, "m")
    file.write_bytes(b"nonsense" * 1000)
    with pytest.raises(QueueError, match="cannot be read"):
        evidencefile.find(file, "m")


def test_batches_are_whole_and_in_order(desk):
    for n in range(BATCH * 2 + 10):
        desk.offer(transition("m", detail={"n": n}))
    desk.step()
    assert [row["detail"]["n"] for row in desk.rows()] == list(range(BATCH * 2 + 9, BATCH * 2 + 9 - RING, -1))
