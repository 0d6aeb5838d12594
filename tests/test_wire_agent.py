"""The agent's side of the golden messages: it sends exactly these requests, and understands exactly these answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import responses

from observer_agent.clouds.observer import Notice, Observer, headers, push_sequence
from observer_agent.definitions import understand_all
from observer_agent.model import Batch, Fate, Health, Ledger, Row, Sample, Status
from observer_agent.probes import SOURCES, parse
from observer_agent.resolver import Resolver
from observer_agent.transport import Transport
from tests.fakes import FakeClock

WIRE = Path(__file__).parent / "wire" / "observer"
GOLDEN = {file.stem: json.loads(file.read_text()) for file in sorted(WIRE.glob("*.json"))}
URL = "https://cloud.test"
NOW = 1778328010.0  # 2026-05-09T12:00:10Z

# Requests that this agent never makes: they show what a hub does with those of others.
NOT_OURS = {
    "batch-malformed-sequence",
    "batch-no-key",
    "batch-not-an-array",
    "batch-rejects",
    "batch-rejects-resent",
    "batch-too-many-rows",
    "batch-without-sequence",
    "heartbeat-header-wins",
    "heartbeat-not-an-object",
    "heartbeat-older-build",
    "receiver-invalid",
    "relay-invalid",
    "relay-not-an-object",
    "relay-too-many",
}
LATER = {301, 302, 307, 401, 403, 404, 405, 408, 425, 429, 500, 502, 503, 504}


def fate_of(name, status):
    if 200 <= status < 300:
        return Fate.ACCEPTED
    if name in ("batch-missing", "batch-method-not-allowed"):
        return Fate.AGAIN
    special = {409: Fate.FENCED, 400: Fate.REFUSED, 422: Fate.REFUSED, 413: Fate.TOO_LARGE}
    return special.get(status) or (Fate.LATER if status in LATER else pytest.fail(f"{name}: {status}?"))


@pytest.fixture
def play():
    clock = FakeClock(NOW)
    with responses.RequestsMock() as mock:

        def start(golden):
            asked, answer = golden["request"], golden["answer"]
            key = asked["headers"].get("Agent-Key", "obs_live_x")
            version = asked["headers"].get("User-Agent", "observer-agent/1.2.3").partition("/")[2]
            lines = headers(key, asked["headers"].get("Agent-Started-At", ""), version)
            transport = Transport(URL, lines, clock=clock, resolver=Resolver(clock), env={})
            said = answer["text"] if "text" in answer else json.dumps(answer.get("body"))
            kind = answer["headers"].get("Content-Type")
            more = {k: v for k, v in answer["headers"].items() if k != "Content-Type"}
            mock.add(
                asked["method"],
                URL + asked["path"],
                body=said if answer["status"] != 204 else "",
                status=answer["status"],
                headers=more,
                content_type=kind or "text/plain",
            )
            return Observer(transport, clock, Notice(clock)), mock

        yield start


def check_request(golden, mock):
    sent, wanted = mock.calls[-1].request, golden["request"]
    assert (sent.method, sent.url) == (wanted["method"], URL + wanted["path"])
    for name, value in wanted["headers"].items():
        assert sent.headers[name] == value, name
    assert set(sent.headers) - set(wanted["headers"]) <= {"Accept", "Content-Length"}
    if "body" in wanted:
        assert json.loads(sent.body) == wanted["body"]


def rows_of(body, ids):
    """The rows as the agent's own words, encoded by the agent."""
    listed = body if isinstance(body, list) else [body]
    made = [Sample(r["metric_id"], r["value"], r["timestamp"], Status(r["status"]), r.get("reason")) for r in listed]
    return tuple(Row(i, sample.encode()) for i, sample in zip(ids, made, strict=True))


def ids_of(sequence):
    found = []
    for part in sequence.partition(";")[2].split(","):
        low, _, high = part.partition("-")
        found += range(int(low), int(high or low) + 1)
    return found


def names(prefix, *, ours=True):
    return [name for name in GOLDEN if name.startswith(prefix) and not (ours and name in NOT_OURS)]


@pytest.mark.parametrize("name", names("batch-") + names("receiver-"))
def test_a_push_and_its_answer(play, name):
    golden = GOLDEN[name]
    asked, answer = golden["request"], golden["answer"]
    cloud, mock = play(golden)
    if asked["path"].endswith("/receiver"):
        cloud._single_until = float("inf")
    sequence = asked["headers"]["Push-Sequence"]
    ids = ids_of(sequence)
    queue_id = sequence.partition(";")[0]
    assert push_sequence(queue_id, ids) == sequence
    found = cloud.deliver(Batch(queue_id, rows_of(asked["body"], ids)))
    check_request(golden, mock)
    assert found.fate is fate_of(name, answer["status"])
    if found.fate is Fate.ACCEPTED:
        listed = answer.get("body", {}).get("rejected", []) if isinstance(answer.get("body"), dict) else []
        assert [r.index for r in found.rejects] == [r["index"] for r in listed]
    if found.fate is Fate.FENCED:
        assert found.newer_started_at == answer["body"]["newer_started_at"]
    if "Retry-After" in answer["headers"]:
        assert 0 < found.retry_after <= 300


@pytest.mark.parametrize("name", sorted(n for n in NOT_OURS if n.startswith(("batch-", "receiver-"))))
def test_the_answers_to_what_others_push_are_understood_as_well(play, name):
    golden = GOLDEN[name]
    cloud, _ = play({**golden, "request": {**golden["request"], "headers": {}}})
    if golden["request"]["path"].endswith("/receiver"):
        cloud._single_until = float("inf")
    body = golden["request"].get("body")
    count = len(body) if isinstance(body, list) else 1
    answer = cloud.deliver(Batch("q", tuple(Row(i, b"{}") for i in range(1, count + 1))))
    assert answer.fate is fate_of(name, golden["answer"]["status"])
    if name == "batch-rejects":
        assert [(r.index, r.field, r.code) for r in answer.rejects] == [
            (r["index"], r["field"], r["code"]) for r in golden["answer"]["body"]["rejected"]
        ]


@pytest.mark.parametrize("name", names("heartbeat-"))
def test_a_heartbeat_and_its_answer(play, name):
    golden = GOLDEN[name]
    body = golden["request"]["body"]
    for later in ("build",):  # this version has none to report
        body = {k: v for k, v in body.items() if k != later}
    golden = {**golden, "request": {**golden["request"], "body": body}}
    cloud, mock = play(golden)
    health = Health(
        body["version"],
        body["agent_started_at"],
        body["uptime_seconds"],
        body["queue_depth"],
        body["queue_oldest_age_seconds"],
        body["queue_capacity"],
        tuple(body["source_types_active"]),
        body.get("hostname", ""),
        tuple(Ledger(**each) for each in body.get("delivery", ())),
        tuple(body.get("custom_probes", ())),
        body.get("otlp_stats"),
    )
    orders = cloud.beat(health)
    check_request(golden, mock)
    said, status = golden["answer"].get("body"), golden["answer"]["status"]
    assert (orders.ok, orders.status) == (200 <= status < 300, status)
    version = said.get("definitions_version") if orders.ok and isinstance(said, dict) else None
    assert orders.definitions_version == version


@pytest.mark.parametrize("name", names("definitions"))
def test_definitions(play, name):
    golden = GOLDEN[name]
    cloud, mock = play(golden)
    found = cloud.definitions()
    check_request(golden, mock)
    if golden["answer"]["status"] != 200:
        assert found.rows is None and found.status == golden["answer"]["status"]
        return
    assert list(found.rows) == golden["answer"]["body"]
    assert found.version == golden["answer"]["headers"].get("x-observer-definitions-version")
    for definition in understand_all(found.rows, parse, SOURCES):
        assert definition.problem is None, definition.problem


@pytest.mark.parametrize("name", names("log-"))
def test_a_log_line(play, name):
    golden = GOLDEN[name]
    cloud, mock = play(golden)
    assert cloud.log(golden["request"]["body"]) is (200 <= golden["answer"]["status"] < 300)
    check_request(golden, mock)


@pytest.mark.parametrize("name", names("relay-"))
def test_pings_and_their_answer(play, name):
    golden = GOLDEN[name]
    cloud, mock = play(golden)
    body, said = golden["request"]["body"], golden["answer"].get("body", {})
    found = cloud.relay([json.dumps(ping).encode() for ping in body["pings"]])
    check_request(golden, mock)
    assert (found.fate, found.status) == (fate_of(name, found.status), golden["answer"]["status"])
    assert [(r.index, r.code) for r in found.rejects] == [(r["index"], r["code"]) for r in said.get("rejected", [])]


def test_every_golden_message_is_held_against_the_agent():
    kinds = {"batch", "receiver", "heartbeat", "relay", "definitions", "log"}
    assert {name.partition("-")[0] for name in GOLDEN} == kinds
    assert set(GOLDEN) >= NOT_OURS
