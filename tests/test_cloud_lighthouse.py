"""The second dialect's connection: every golden message, every status of the matrix, what the answers mean."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

import pytest
from click.testing import CliRunner

from observer_agent.cli import main
from observer_agent.clouds import DIALECTS
from observer_agent.clouds._lighthouse_wire import (
    Beat,
    CheckDef,
    Discovered,
    Event,
    ExpectedHeader,
    HeaderDef,
    HostMetricsOrder,
    State,
    decode_checks,
    decode_orders,
    encode_check,
)
from observer_agent.clouds.lighthouse import SUCCESS
from observer_agent.diskqueue import Bounds, open_queue
from observer_agent.logs import Redactor
from observer_agent.model import Batch, Fate, Row
from observer_agent.queuerows import read_any
from tests.fakes import FakeClock
from tests.lighthouse_golden import GOLDEN, OURS, answer_body, check_request, endpoint_of, names, split
from tests.servers import Server, answer, refused_port, scripted

NOW = 1778342420.0  # 2026-05-09T16:00:20Z
TOKEN = "lh_goldenTokenGoldenTokenGoldenTokenGolden01"
INSTANCE = "3d9c5b3a-6f1e-4a53-9a80-5d5f6c7b8a90"
T = "2026-05-09T16:00:14.123456789Z"


@dataclass(frozen=True)
class Asked:
    """The settings that the dialect needs."""

    url: str
    token: str = TOKEN
    wire: str = "current"
    instance_id: str = INSTANCE
    verify: bool = True


class Console:
    """A connection to a server that gives scripted answers."""

    def __init__(self, server, **asked):
        self.clock = FakeClock(NOW)
        self.server = server
        self.redact = Redactor()
        read = asked.pop("read_key", None)
        self.dialect = DIALECTS["lighthouse"](
            Asked(server.url, **asked),
            "2026-05-09T15:58:00.000Z",
            "1.10.0",
            clock=self.clock,
            redact=self.redact,
            read_key=read,
        )
        self.clock.advance(125.9)
        self.clock.step_wall(-125.9)
        self.cloud = self.dialect.connect()
        self.verdicts = []
        self.replies = []
        self.cloud.on_verdict = self.verdicts.append
        self.cloud.on_reply = lambda *said: self.replies.append(said)

    @property
    def request(self):
        return split(self.server.requests[-1])


@pytest.fixture
def meet(request):
    """Makes a console that gives these answers, and ends it."""
    made = []

    def start(*answers, **asked):
        server = Server(scripted(*answers))
        server.__enter__()
        made.append((server, Console(server, **asked)))
        return made[-1][1]

    yield start
    for server, console in made:
        console.cloud.leave()
        server.__exit__()


def play(meet, name):
    golden = GOLDEN[name]
    headers = golden["request"]["headers"]
    said = answer(answer_body(golden), golden["answer"]["status"], **golden["answer"]["headers"])
    return golden, meet(
        said,
        wire=golden["wire"],
        token=headers["Authorization"].removeprefix("Bearer "),
        instance_id=headers["X-Lighthouse-Instance-Id"],
    )


# -- golden messages


def check_orders(golden, orders):
    """What came back is what the answer says, as far as it can be used."""
    endpoint, said = endpoint_of(golden), golden["answer"].get("body")
    assert orders.status == golden["answer"]["status"]
    usable = orders.status in SUCCESS[endpoint] and isinstance(said, dict)
    assert (orders.ok, orders.verdict == "ok") == (usable, usable)
    if not usable:
        return
    good = not golden["about"].startswith("Fields of wrong types")
    assert bool(orders.complaints) is not good
    if good and endpoint != "discoveries":
        assert (orders.etag, orders.paused) == (said.get("config_etag"), said.get("paused"))
        assert (orders.lighthouse_id, orders.name) == (said.get("lighthouse_id"), said.get("name"))
        assert orders.heartbeat_interval == said.get("heartbeat_interval_seconds")
        assert orders.flap_threshold == said.get("flap_protection_threshold")
        assert (orders.checks, orders.resync) == (said.get("checks"), said.get("request_full_resync", False))
        assert (orders.host_metrics is None) is (said.get("host_metrics") is None)


@pytest.mark.parametrize("name", names("register"))
def test_a_registration_and_its_answer(meet, name):
    golden, console = play(meet, name)
    body = golden["request"]["body"]
    orders = console.cloud.register(body["agent_version"], body["agent_hostname"], body.get("runtime"))
    check_request(golden, console.server.requests[0])
    check_orders(golden, orders)


@pytest.mark.parametrize("name", names("heartbeat"))
def test_a_heartbeat_and_its_answer(meet, name):
    golden, console = play(meet, name)
    body = golden["request"]["body"]
    beat = Beat(
        body.get("config_etag", ""),
        {k: (v["last_observed_latency_ms"], v["last_observed_at"]) for k, v in body.get("check_latencies", {}).items()},
        {k: (v["days_to_expiry"], v["observed_at"]) for k, v in body.get("cert_expiry", {}).items()},
        body.get("node_name", ""),
        body.get("role", ""),
        body.get("pod_hostname", ""),
    )
    orders = console.cloud.beat(beat)
    check_request(golden, console.server.requests[0])
    check_orders(golden, orders)


def events_of(body, wire="current"):
    """The events of a request as words, from either form."""
    states = {"ok": "up"} if wire == "seed" else {}
    kind = None if body.get("sync_kind") == "ongoing" else body.get("sync_kind")
    for each in body["events"]:
        prev, new = each["prev_state"], each["new_state"]
        text = each.get("error_message")
        yield Event(
            each["check_id"],
            State(states.get(prev, prev)) if prev else None,
            State(states.get(new, new)),
            each["agent_observed_at"],
            each.get("response_time_ms"),
            each.get("status_code"),
            "status 503, want 200" if text == "expected status 200, got 503" else text,
            kind,
        )


def batch_of(events):
    return Batch("q", tuple(Row(i, event.encode()) for i, event in enumerate(events, 1)))


FATES = {202: Fate.ACCEPTED, 400: Fate.REFUSED, 422: Fate.REFUSED, 413: Fate.TOO_LARGE}


@pytest.mark.parametrize("name", names("events"))
def test_events_and_their_answer(meet, name):
    golden, console = play(meet, name)
    batch = batch_of(events_of(golden["request"]["body"], golden["wire"]))
    assert console.cloud.cut(batch) == batch
    found = console.cloud.deliver(batch)
    check_request(golden, console.server.requests[0])
    assert (found.fate, found.status) == (FATES.get(golden["answer"]["status"], Fate.LATER), golden["answer"]["status"])
    if "Retry-After" in golden["answer"]["headers"]:
        assert found.retry_after == (40.0 if name.endswith("date") else int(golden["answer"]["headers"]["Retry-After"]))


@pytest.mark.parametrize("name", names("discoveries"))
def test_discoveries_and_their_answer(meet, name):
    golden, console = play(meet, name)
    body = golden["request"]["body"]
    seed = golden["wire"] == "seed"
    rows = body["discoveries"] if seed else body["items"]
    if seed:  # an Ingress has no port of its own
        rows = [{k: v for k, v in row.items() if k != "port" or row["kind"] != "ingress"} for row in rows]
    orders = console.cloud.discoveries([Discovered(**row) for row in rows], snapshot=body.get("snapshot", True))
    check_request(golden, console.server.requests[0])
    check_orders(golden, orders)


@pytest.mark.parametrize("name", names("shutdown"))
def test_the_goodbye(meet, name):
    golden, console = play(meet, name)
    heard = console.cloud.shutdown(golden["request"].get("body", {"reason": "sigterm"})["reason"])
    check_request(golden, console.server.requests[0])
    assert heard is (golden["answer"]["status"] == 204)


@pytest.mark.parametrize("name", names("host-metrics"))
def test_host_metrics(meet, name):
    golden, console = play(meet, name)
    status = console.cloud.host_metrics(base64.b64decode(golden["request"]["base64"]))
    check_request(golden, console.server.requests[0])
    assert status == golden["answer"]["status"]


def test_every_golden_message_is_held_against_the_agent():
    assert {endpoint_of(golden) for golden in GOLDEN.values()} == set(SUCCESS)
    assert set(names(*SUCCESS)) == set(OURS) and set(GOLDEN) - set(OURS) == {"events-malformed"}
    assert {golden["wire"] for golden in GOLDEN.values()} == {"current", "seed"}
    assert all(golden["name"] == name for name, golden in GOLDEN.items())


# -- the status matrix of the reference, section 3: what the original does, and what we do

HTTP = [200, 201, 202, 204, 301, 307, 308, 400, 401, 403, 404, 405, 407, 408, 409, 410, 413, 418, 421, 422, 425, 429]
HTTP += [431, 500, 501, 502, 503, 504, 599]
MATRIX = {  # endpoint: (status, the original, ours)
    ("register", 401): ("exit 0", "unauthorised"),
    ("register", 410): ("exit 0", "gone"),
    ("register", None): ("exit 1", "later"),
    ("heartbeat", 401): ("stop, exit 0", "unauthorised"),
    ("heartbeat", 410): ("stop, exit 0", "gone"),
    ("heartbeat", None): ("warn, next tick", "later"),
    ("discoveries", 401): ("warn, wait for the next change", "unauthorised"),
    ("discoveries", 410): ("warn, wait for the next change", "gone"),
    ("discoveries", None): ("warn, wait for the next change", "later"),
}
"""The verdict that each endpoint but `events` gives; None is every other status, and no answer at all."""

EVENTS = {  # status: (the original, our fate, whether the rows may be to blame)
    202: ("done", Fate.ACCEPTED, False),
    400: ("posted again for an hour", Fate.REFUSED, False),
    422: ("posted again for an hour", Fate.REFUSED, False),
    401: ("dropped", Fate.LATER, False),
    410: ("dropped", Fate.LATER, False),
    413: ("posted again for an hour", Fate.TOO_LARGE, True),
    403: ("posted again", Fate.LATER, False),
    407: ("posted again", Fate.LATER, False),
    408: ("posted again", Fate.LATER, False),
    409: ("posted again", Fate.LATER, False),
    421: ("posted again", Fate.LATER, False),
    425: ("posted again", Fate.LATER, False),
    429: ("posted again at once", Fate.LATER, False),
    404: ("posted again", Fate.LATER, True),
    405: ("posted again", Fate.LATER, True),
    418: ("posted again", Fate.LATER, True),
    431: ("posted again", Fate.LATER, True),
    500: ("posted again", Fate.LATER, True),
    501: ("posted again", Fate.LATER, True),
    502: ("posted again", Fate.LATER, True),
    503: ("posted again at once", Fate.LATER, True),
    504: ("posted again", Fate.LATER, True),
    599: ("posted again", Fate.LATER, True),
    200: ("posted again", Fate.LATER, False),
    201: ("posted again", Fate.LATER, False),
    204: ("posted again", Fate.LATER, False),
    301: ("followed", Fate.LATER, False),
    307: ("followed, the body sent to another host", Fate.LATER, False),
    308: ("followed, the body sent to another host", Fate.LATER, False),
}
BATCH = batch_of([Event("c", State.UP, State.DOWN, T)])
CALLS = {
    "register": lambda cloud: cloud.register("1.10.0", "host"),
    "heartbeat": lambda cloud: cloud.beat(Beat()),
    "discoveries": lambda cloud: cloud.discoveries([]),
}


@pytest.mark.parametrize("status", HTTP)
@pytest.mark.parametrize("endpoint", CALLS)
def test_the_matrix_of_what_is_asked_for(meet, endpoint, status):
    console = meet(answer("{}", status, Location="http://127.0.0.1:1/", Retry_After="7"))
    orders = CALLS[endpoint](console.cloud)
    ok = status in SUCCESS[endpoint]
    _, ours = ("", "ok") if ok else MATRIX.get((endpoint, status), MATRIX[endpoint, None])
    assert (orders.verdict, orders.ok, orders.status) == (ours, ok, status)
    assert orders.retry_after == (None if ok else 7.0)
    assert len(console.server.requests) == 1, "a redirect was followed, or the call repeated"
    assert console.replies == [(endpoint, status)]


@pytest.mark.parametrize("status", EVENTS)
def test_the_matrix_of_events(meet, status):
    _, fate, blames = EVENTS[status]
    console = meet(answer("", status, Location="http://127.0.0.1:1/", Retry_After="7"))
    found = console.cloud.deliver(BATCH)
    assert (found.fate, found.status, found.blames) == (fate, status, blames)
    if fate in (Fate.LATER, Fate.TOO_LARGE):
        assert found.retry_after == 7.0
    assert console.verdicts == ({401: ["unauthorised"], 410: ["gone"]}.get(status, []))
    assert len(console.server.requests) == 1


@pytest.mark.parametrize("status", HTTP)
def test_the_matrix_of_host_metrics_and_of_the_goodbye(meet, status):
    console = meet(answer("", status, Location="http://127.0.0.1:1/"))
    assert console.cloud.host_metrics(b"x") == status
    assert console.cloud.shutdown("sigterm") is (status == 204)
    assert len(console.server.requests) == 2


def test_the_matrix_has_every_status():
    assert set(EVENTS) == set(HTTP)


def test_no_answer_at_all_is_later():
    with refused_port() as port:
        server = type("Nobody", (), {"url": f"http://127.0.0.1:{port}"})()
        cloud = Console(server).cloud
        for call in CALLS.values():
            orders = call(cloud)
            assert (orders.ok, orders.status, orders.verdict) == (False, 0, "later")
            assert orders.text == "connection refused"
        assert (cloud.deliver(BATCH).fate, cloud.host_metrics(b""), cloud.shutdown("sigint")) == (Fate.LATER, 0, False)


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        (b'{"error":"lighthouse deleted"}', "gone"),
        (b'{"error":"this Lighthouse no longer exists"}', "gone"),
        (b'{"error":"invalid token"}', "unauthorised"),
        (b"<html>deleted</html>", "unauthorised"),
        (b'{"error":{"deleted":true}}', "unauthorised"),
        (b"\xff\xfe", "unauthorised"),
        (b"[" * 100_000, "unauthorised"),
    ],
)
def test_w7_a_401_is_told_from_a_deleted_lighthouse(meet, body, verdict):
    console = meet(answer(body, 401))
    assert console.cloud.beat(Beat()).verdict == verdict
    assert console.cloud.deliver(BATCH).fate is Fate.LATER, "events are never dropped"
    assert console.verdicts == [verdict]


@pytest.mark.parametrize("status", [401, 410])
def test_w7_a_token_that_was_replaced_is_used_in_the_same_call(meet, status):
    console = meet(answer("", status), answer("{}", 202), read_key=lambda: "lh_the_new_one")
    assert console.cloud.deliver(BATCH).fate is Fate.ACCEPTED
    assert [split(r)[1]["Authorization"] for r in console.server.requests] == [
        f"Bearer {TOKEN}",
        "Bearer lh_the_new_one",
    ]
    assert console.verdicts == []
    assert console.redact("lh_the_new_one") == "[redacted]"


# -- headers


def test_what_changes_from_call_to_call_and_what_does_not(meet):
    console = meet(answer("{}"))
    console.cloud.beat(Beat())
    console.clock.advance(10)
    console.cloud.beat(Beat())
    uptimes = [split(request)[1]["X-Lighthouse-Process-Uptime"] for request in console.server.requests]
    assert uptimes == ["125", "135"]


def test_a_command_says_neither_instance_nor_uptime(meet):
    console = meet(answer("{}"))
    made = DIALECTS["lighthouse"](Asked(console.server.url), None, "1", clock=console.clock, redact=Redactor())
    cloud = made.connect()
    cloud.beat(Beat())
    cloud.leave()
    assert not [name for name in console.request[1] if name.startswith("X-Lighthouse")]


def test_other_settings_count_from_the_next_call_on(meet):
    console = meet(answer("{}"))
    console.dialect.renew(Asked(console.server.url, token="lh_renewed"))
    console.cloud.beat(Beat())
    assert console.request[1]["Authorization"] == "Bearer lh_renewed"


def test_hurry_and_the_goodbye_have_a_bound(meet):
    console = meet(answer("{}"))
    console.cloud.hurry(0.0)
    assert console.cloud.beat(Beat()).text == "timed out"
    console.cloud.hurry(99.0)
    assert console.cloud.beat(Beat()).ok


# -- events and their envelopes


def test_w4_a_batch_is_cut_where_the_envelope_changes():
    kinds = [None, None, "initial", "initial", "resync", None]
    rows = batch_of([Event(f"c{i}", None, State.UP, T, sync_kind=kind) for i, kind in enumerate(kinds)]).rows
    lengths, at = [], 0
    with refused_port() as port:
        cloud = Console(type("Nobody", (), {"url": f"http://127.0.0.1:{port}"})()).cloud
    while at < len(rows):
        batch = cloud.cut(Batch("q", rows[at:]))
        assert batch.rows == rows[at : at + len(batch)]
        lengths.append(len(batch))
        at += len(batch)
    assert lengths == [2, 2, 1, 1]
    with pytest.raises(ValueError, match="different envelopes"):
        cloud.deliver(Batch("q", rows))


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"event":{}}', b'{"event":[]}', b'{"metric_id":"m","value":1}'])
def test_a_row_that_is_no_event_is_refused_without_a_request(meet, data):
    console = meet(answer("{}", 202))
    rows = (Row(1, data), *BATCH.rows)
    assert len(console.cloud.cut(Batch("q", rows))) == 1
    assert console.cloud.deliver(Batch("q", rows[:1])).fate is Fate.REFUSED
    assert console.server.requests == []


def test_a_row_has_what_every_row_of_the_queue_has():
    event = Event("c1", State.UP, State.DOWN, T, error_message="x" * 500, sync_kind="resync", status_code=0)
    row = json.loads(event.encode())
    assert (row["metric_id"], row["status"], row["sync_kind"]) == ("c1", "down", "resync")
    assert (event.metric_id, event.status) == ("c1", "down")
    assert row["event"]["error_message"] == "x" * 200
    assert "status_code" not in row["event"] and "response_time_ms" not in row["event"]


def test_a_latency_of_nought_is_told_and_one_that_was_not_measured_is_not(meet):
    console = meet(answer("{}", 202), answer("{}"))
    console.cloud.deliver(batch_of([Event("c", None, State.UP, T, response_time_ms=0)]))
    assert json.loads(console.request[2])["events"][0]["response_time_ms"] == 0
    console.cloud.beat(Beat(check_latencies={"a": (0, T), "b": (None, T)}))
    assert set(json.loads(console.request[2])["check_latencies"]) == {"a"}


def test_the_seed_pages_form_sends_no_host_metrics(meet):
    console = meet(answer("", 204), wire="seed")
    assert console.cloud.host_metrics(b"x") == 0
    assert console.server.requests == []


def event(n, new=State.DOWN, **more):
    return Event(f"c{n}", State.UP, new, T, **more)


EVENTS_IN_A_QUEUE = [
    event(1, response_time_ms=0, status_code=503, error_message='status 503, "want" 200'),
    event(2, sync_kind="initial"),
    Event("c3", None, State.UP, T, sync_kind="resync"),
    event(1, State.UP),
]


@pytest.fixture
def queue(tmp_path):
    made = open_queue(tmp_path / "events.db", Bounds(100), FakeClock(NOW))
    made.put(EVENTS_IN_A_QUEUE)
    yield made
    made.close()


def test_the_commands_for_the_queue_know_events(queue, tmp_path, monkeypatch):
    queue.close()
    monkeypatch.setenv("BUFFER_PATH", str(tmp_path / "events.db"))
    ask = CliRunner().invoke
    done = ask(main, ["queue", "verify"])
    assert (done.exit_code, done.output.strip()[-20:]) == (0, "rows read, 0 findings"[-20:])
    assert ask(main, ["queue", "export", "--jsonl", "--output", str(tmp_path / "out")]).exit_code == 0
    rows = [json.loads(line)["row"] for line in (tmp_path / "out").read_text().splitlines()]
    assert rows == [json.loads(each.encode()) for each in EVENTS_IN_A_QUEUE]
    assert ask(main, ["queue", "purge", "--yes"]).exit_code == 0
    assert ask(main, ["queue", "import", str(tmp_path / "out")]).exit_code == 0
    again = open_queue(tmp_path / "events.db", Bounds(100), FakeClock(NOW))
    assert [row.data for row in again.peek(100).rows] == [each.encode() for each in EVENTS_IN_A_QUEUE]
    again.close()


@pytest.mark.parametrize(
    "spoilt",
    [
        {"metric_id": "other"},
        {"status": "up"},
        {"sync_kind": "ongoing"},
        {"extra": 1},
        {"event": {}},
        {"event": {"new_state": "ok"}},
        {"event": {"prev_state": "ok"}},
        {"event": {"agent_observed_at": "yesterday"}},
        {"event": {"response_time_ms": 1.5}},
        {"event": {"status_code": None}},
        {"event": {"error_message": ""}},
        {"event": {"body": "x"}},
    ],
)
def test_a_row_that_the_agent_would_not_write_is_none(spoilt):
    row = json.loads(EVENTS_IN_A_QUEUE[0].encode())
    assert read_any(row) == EVENTS_IN_A_QUEUE[0]
    inner = spoilt.get("event")
    row |= {**spoilt, "event": {**row["event"], **inner}} if inner else spoilt
    with pytest.raises(ValueError, match=r"must be|missing|not a field"):
        read_any(row)


def test_events_survive_a_damaged_file(queue, tmp_path):
    queue.close()
    file = tmp_path / "events.db"
    data = bytearray(file.read_bytes())
    data[0:16] = b"no SQLite at all"
    file.write_bytes(data)
    again = open_queue(file, Bounds(100), FakeClock(NOW))
    assert [row.data for row in again.peek(100).rows] == [each.encode() for each in EVENTS_IN_A_QUEUE]
    runs = dict(again._putter.execute("SELECT metric, status FROM runs"))
    assert runs == {"c1": "up", "c2": "down", "c3": "up"}
    again.close()


# -- answers, field by field


@pytest.mark.parametrize(
    ("field", "raw", "found"),
    [
        ("heartbeat_interval_seconds", 20, 20.0),
        ("heartbeat_interval_seconds", 1, 1.0),
        ("heartbeat_interval_seconds", 20.0, 20.0),
        ("heartbeat_interval_seconds", 0, None),
        ("heartbeat_interval_seconds", -5, None),
        ("heartbeat_interval_seconds", 1e308, None),
        ("heartbeat_interval_seconds", 20.5, None),
        ("heartbeat_interval_seconds", 10**1000, None),
        ("heartbeat_interval_seconds", float("nan"), None),
        ("heartbeat_interval_seconds", True, None),
        ("heartbeat_interval_seconds", "20", None),
        ("flap_protection_threshold", 3, 3),
        ("flap_protection_threshold", 0, 1),
        ("flap_protection_threshold", -2, 1),
        ("flap_protection_threshold", 10**9, None),
        ("paused", False, False),
        ("paused", "false", None),
        ("config_etag", "", ""),
        ("config_etag", "x" * 2000, None),
        ("config_etag", "\ud800", None),
        ("lighthouse_id", "\udfff", None),
        ("checks", [], []),
        ("checks", None, None),
        ("checks", {}, None),
        ("host_metrics", {"enabled": False}, HostMetricsOrder(False, 0.0)),
        ("host_metrics", {"enabled": False, "interval_seconds": 15}, HostMetricsOrder(False, 15.0)),
        ("host_metrics", {"enabled": True}, HostMetricsOrder(True, 30.0)),
        ("host_metrics", {"enabled": True, "interval_seconds": -1}, HostMetricsOrder(True, 30.0)),
        ("host_metrics", {"enabled": True, "interval_seconds": 15}, HostMetricsOrder(True, 15.0)),
        ("host_metrics", {"enabled": True, "interval_seconds": 10**7}, None),
        ("host_metrics", {"enabled": None}, None),
        ("host_metrics", {}, None),
        ("host_metrics", True, None),
    ],
)
def test_w9_every_field_of_an_answer_is_looked_at_alone(field, raw, found):
    orders = decode_orders(json.dumps({field: raw, "name": "kept"}).encode())
    name = {"heartbeat_interval_seconds": "heartbeat_interval", "flap_protection_threshold": "flap_threshold"}
    name |= {"config_etag": "etag"}
    assert getattr(orders, name.get(field, field)) == found
    assert (orders.ok, orders.name) == (True, "kept")
    assert [c.partition(":")[0] for c in orders.complaints] == ([] if found is not None or raw is None else [field])


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"7", b"{", b'{"a":NaN', b"\xff", b"[" * 100_000])
def test_w9_an_answer_that_is_no_object_is_a_failure(body):
    orders = decode_orders(body)
    assert (orders.ok, orders.verdict, orders.text) == (False, "later", "the answer is not a JSON object")


def test_w9_a_number_of_any_length_spoils_its_own_field_alone():
    body = b'{"name":"kept","flap_protection_threshold":' + b"9" * 6000 + b"}"
    orders = decode_orders(body)
    assert (orders.ok, orders.name, orders.flap_threshold) == (True, "kept", None)
    assert orders.complaints == ("flap_protection_threshold: inf: must be a whole number; the last good value stays",)


def test_w21_an_answer_of_a_million_empty_objects_is_not_read():
    orders = decode_orders(b'{"checks":[' + b"{}," * 1_000_000 + b"{}]}")
    assert (orders.ok, orders.verdict, orders.text) == (False, "later", "the answer holds too much to be read")


FULL = {
    "id": "c1",
    "type": "https",
    "name": "order",
    "url": "https://u:canary@x.test/?canary",
    "method": "POST",
    "expected_status_code": 201,
    "interval_seconds": 30,
    "timeout_seconds": 7,
    "keyword_check": "canary",
    "keyword_present": True,
    "request_headers": [{"key": "X-A", "value": "canary"}, {"key": "", "value": "dropped"}],
    "request_body": "canary",
    "expected_headers": [{"key": "K", "value": "v", "match": "exact"}, {"key": "L", "match": None}],
    "skip_tls_verify": True,
    "dns_record_type": "AAAA",
    "dns_expected_ips": ["::1"],
    "dns_resolver": "192.0.2.1:53",
}


def test_a_check_field_by_field():
    (check,), complaints = decode_checks([FULL])
    assert complaints == []
    assert check.request_headers == (HeaderDef("X-A", "canary"),)
    assert check.expected_headers == (ExpectedHeader("K", "v", "exact"), ExpectedHeader("L", "", ""))
    assert (check.interval_seconds, check.timeout_seconds, check.dns_expected_ips) == (30, 7, ("::1",))
    assert decode_checks([encode_check(check)]) == ([check], [])
    assert decode_checks([{"id": "c1"}]) == ([CheckDef(id="c1")], [])
    assert decode_checks([{name: None for name in FULL} | {"id": "c1"}]) == ([CheckDef(id="c1")], [])


@pytest.mark.parametrize("field", [name for name in FULL if name != "id"])
@pytest.mark.parametrize("bad", [[[]], {"canary": 1}, 10**12, "\ud800canary"])
def test_w9_a_bad_field_keeps_what_was_last_good_and_is_named(field, bad):
    (good,), _ = decode_checks([FULL])
    found, complaints = decode_checks([FULL | {field: bad}, {"id": "c2"}], {"c1": good})
    assert [check.id for check in found] == ["c1", "c2"]
    assert found[0] == good
    assert len(complaints) == 1 and complaints[0].startswith(f"check c1: {field}: ")
    assert complaints[0].endswith("the last good value stays")
    assert "canary" not in complaints[0]
    fresh, complaints = decode_checks([FULL | {field: bad}])
    assert getattr(fresh[0], field) == getattr(CheckDef(id=""), field)
    assert complaints[0].endswith("its default is used")


@pytest.mark.parametrize(
    ("raw", "interval", "complaint"),
    [(0, 60, ""), (-1, 60, ""), (1, 5, "5 is used"), (4, 5, "5 is used"), (5, 5, ""), (61.0, 61, "")],
)
def test_the_interval_has_a_floor_and_a_default(raw, interval, complaint):
    (check,), complaints = decode_checks([{"id": "c", "interval_seconds": raw, "timeout_seconds": 0}])
    assert (check.interval_seconds, check.timeout_seconds) == (interval, 5)
    assert len(complaints) == bool(complaint) and all(complaint in text for text in complaints)


@pytest.mark.parametrize("bad", [None, 7, "check", [], {}, {"id": ""}, {"id": 7}, {"id": "x" * 201}, {"id": "a\nb"}])
def test_w9_one_bad_check_never_loses_the_list(bad):
    found, complaints = decode_checks([{"id": "c1"}, bad, {"id": "c2"}])
    assert [check.id for check in found] == ["c1", "c2"]
    assert complaints == ["check number 2 is left out: it has no usable id"]


def test_a_check_that_comes_twice_counts_once():
    found, complaints = decode_checks([{"id": "c", "name": "first"}, {"id": "c", "name": "second"}])
    assert [check.name for check in found] == ["first"]
    assert complaints == ["check c: it comes twice; the first one counts"]


@pytest.mark.parametrize("bad", [None, {}, "x", 7])
def test_a_list_that_is_none_leaves_the_last_one(bad):
    before = {"c": CheckDef(id="c")}
    found, complaints = decode_checks(bad, before)
    assert found == [before["c"]] and len(complaints) == 1


# -- what is said of a failure


def test_the_text_of_a_failure_is_short_and_holds_no_secret(meet):
    said = json.dumps({"error": f"no such token {TOKEN} " + "x" * 900})
    console = meet(answer(said, 401))
    console.redact.add(TOKEN)
    text = console.cloud.beat(Beat()).text
    assert TOKEN not in text and text.startswith("no such token [redacted] x") and len(text) == 200


def test_w14_a_redirect_is_named(meet):
    console = meet(answer("", 307, Location="http://elsewhere.example/"))
    assert console.cloud.beat(Beat()).text == "a redirect, which is not followed"
