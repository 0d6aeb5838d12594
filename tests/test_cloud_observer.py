"""The Observer dialect: every answer of the table, the headers, the bodies, the fallback for older clouds."""

from __future__ import annotations

import json

import pytest
import responses
from hypothesis import given
from hypothesis import strategies as st

from observer_agent.clouds.observer import Notice, Observer, encode_health, headers, push_sequence
from observer_agent.logs import Redactor
from observer_agent.model import Batch, Fate, Health, Ledger, Reject, Row
from observer_agent.resolver import Resolver
from observer_agent.transport import Transport
from tests.fakes import FakeClock

URL = "https://cloud.test"
BATCH_URL = f"{URL}/api/agent/receiver/batch"
SINGLE_URL = f"{URL}/api/agent/receiver"
KEY = "obs_live_" + "k" * 43
STARTED = "2026-11-21T08:00:00.000Z"
QUEUE = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def cloud(clock):
    transport = Transport(URL, headers(KEY, STARTED, "1.2.3"), clock=clock, resolver=Resolver(clock), env={})
    made = Observer(transport, clock, Notice(clock), Redactor())
    with responses.RequestsMock() as mock:
        made.mock = mock
        yield made
    transport.close()


def batch(*ids):
    return Batch(QUEUE, tuple(Row(i, b'{"metric_id":"m%d"}' % i) for i in ids or (1, 2, 3)))


@pytest.mark.parametrize(
    ("status", "fate", "blames"),
    [
        (200, Fate.ACCEPTED, False),
        (202, Fate.ACCEPTED, False),
        (204, Fate.ACCEPTED, False),
        (301, Fate.LATER, False),
        (308, Fate.LATER, False),
        (400, Fate.REFUSED, False),
        (401, Fate.LATER, False),
        (403, Fate.LATER, False),
        (408, Fate.LATER, False),
        (409, Fate.FENCED, False),
        (410, Fate.LATER, False),
        (413, Fate.TOO_LARGE, True),
        (418, Fate.LATER, False),
        (422, Fate.REFUSED, False),
        (425, Fate.LATER, False),
        (429, Fate.LATER, False),
        (500, Fate.LATER, True),
        (502, Fate.LATER, True),
        (503, Fate.LATER, True),
        (599, Fate.LATER, True),
    ],
)
def test_the_answer_table(cloud, status, fate, blames):
    cloud.mock.post(BATCH_URL, status=status, body="" if status == 204 else "text")
    answer = cloud.deliver(batch())
    assert (answer.fate, answer.status, answer.blames) == (fate, status, blames)


def test_no_answer_is_later(cloud):
    cloud.mock.post(BATCH_URL, body=ConnectionResetError(104, "reset"))
    answer = cloud.deliver(batch())
    assert (answer.fate, answer.status, answer.blames) == (Fate.LATER, 0, False)


@pytest.mark.parametrize(("header", "seconds"), [("7", 7), ("86400", 300), ("soon", None)])
@pytest.mark.parametrize("status", [401, 413, 429, 503])
def test_retry_after(cloud, status, header, seconds):
    cloud.mock.post(BATCH_URL, status=status, headers={"Retry-After": header})
    assert cloud.deliver(batch()).retry_after == seconds


def test_a_batch_is_an_array_of_the_stored_bytes_with_its_sequence(cloud):
    cloud.mock.post(BATCH_URL, json={"accepted": 3, "rejected": []})
    cloud.deliver(batch(1, 2, 5))
    sent = cloud.mock.calls[0].request
    assert sent.body == b'[{"metric_id":"m1"},{"metric_id":"m2"},{"metric_id":"m5"}]'
    assert sent.headers["Push-Sequence"] == f"{QUEUE};1-2,5"
    assert sent.headers["Agent-Key"] == KEY
    assert sent.headers["Agent-Started-At"] == STARTED
    assert sent.headers["User-Agent"] == "observer-agent/1.2.3"
    assert sent.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("body", "rejects"),
    [
        ({"accepted": 2, "rejected": [{"index": 1, "field": "value", "code": "bad"}]}, (Reject(1, "value", "bad"),)),
        ({"accepted": 3, "rejected": []}, ()),
        ({"ok": True}, ()),
        ([], ()),
        ("text", ()),
        ({"rejected": "all"}, ()),
        ({"rejected": [None, 5, {"index": "1"}, {"index": True}, {}]}, ()),
        ({"rejected": [{"index": 9}, {"index": -1}, {"index": 0}, {"index": 0}]}, (Reject(0, "None", "None"),)),
    ],
)
def test_rejected_rows_and_the_bodies_of_older_clouds(cloud, body, rejects):
    cloud.mock.post(BATCH_URL, json=body)
    assert cloud.deliver(batch()).rejects == rejects


def test_a_2xx_that_is_no_json_is_accepted(cloud):
    cloud.mock.post(BATCH_URL, body=b"\xffOK")
    assert cloud.deliver(batch()).fate is Fate.ACCEPTED


def test_409_says_who_is_newer(cloud):
    cloud.mock.post(BATCH_URL, status=409, json={"error": "stale_process", "newer_started_at": STARTED})
    assert cloud.deliver(batch()).newer_started_at == STARTED


@pytest.mark.parametrize("status", [404, 405])
def test_an_older_cloud_gets_single_rows_for_an_hour(cloud, clock, status):
    cloud.mock.post(BATCH_URL, status=status)
    cloud.mock.post(SINGLE_URL, json={})
    assert cloud.deliver(batch()).fate is Fate.AGAIN
    assert cloud.batch_limit == 1
    assert cloud.deliver(batch(7)).fate is Fate.ACCEPTED
    assert cloud.mock.calls[-1].request.body == b'{"metric_id":"m7"}'
    clock.advance(3599)
    assert cloud.batch_limit == 1
    clock.advance(1)
    assert cloud.batch_limit == 100


def test_404_on_both_is_later_and_the_next_attempt_asks_for_the_batch_again(cloud):
    cloud.mock.post(BATCH_URL, status=404)
    cloud.mock.post(SINGLE_URL, status=404)
    cloud.deliver(batch())
    answer = cloud.deliver(batch(1))
    assert (answer.fate, answer.status, answer.blames) == (Fate.LATER, 404, True)
    assert cloud.batch_limit == 100


def test_what_the_cloud_says_is_short_and_redacted(cloud):
    cloud.mock.post(BATCH_URL, status=400, body=f"bad key {KEY}\n" + "x" * 900)
    text = cloud.deliver(batch()).text
    assert KEY not in text and len(text) <= 200 and "\n" not in text


@pytest.mark.parametrize("body", [{"code": "agent_suspended_plan"}, {"error": "agent_suspended_plan"}])
def test_a_suspended_plan_is_later_and_said_every_fifteen_minutes(cloud, clock, caught, body):
    cloud.mock.post(BATCH_URL, status=403, json=body)
    for _ in range(31):
        assert cloud.deliver(batch()).fate is Fate.LATER
        clock.advance(30)
    assert caught.text.count("suspended") == 2
    cloud.mock.replace("POST", BATCH_URL, json={})
    cloud.deliver(batch())
    cloud.mock.replace("POST", BATCH_URL, status=403, json=body)
    cloud.deliver(batch())
    assert caught.text.count("suspended") == 3


def test_another_403_is_no_suspension(cloud, caught):
    cloud.mock.post(BATCH_URL, status=403, json={"error": "forbidden"})
    cloud.deliver(batch())
    assert "suspended" not in caught.text


# -- heartbeat, definitions, log


def test_the_heartbeat_of_the_seeds_field_by_field():
    health = Health("1.2.3", "2026-05-09T12:00:00.000Z", 12345, 3, 9, 10000, ("http", "tcp"))
    assert json.loads(encode_health(health)) == {
        "version": "1.2.3",
        "uptime_seconds": 12345,
        "buffer_size": 3,
        "buffer_oldest_age_seconds": 9,
        "queue_depth": 3,
        "queue_oldest_age_seconds": 9,
        "queue_capacity": 10000,
        "agent_started_at": "2026-05-09T12:00:00.000Z",
        "source_types_active": ["http", "tcp"],
    }
    more = Health("1", STARTED, 0, 0, 0, 1, (), "web-1", (Ledger(QUEUE, 3, 1, 1, {"cap": 1}),))
    assert json.loads(encode_health(more))["delivery"] == [
        {"queue_id": QUEUE, "given": 3, "accepted": 1, "pending": 1, "lost": {"cap": 1}}
    ]


HEALTH = Health("1", STARTED, 0, 0, 0, 1, ())


@pytest.mark.parametrize(
    ("body", "version"),
    [
        ({"definitions_version": "v7"}, "v7"),
        ({}, None),
        ({"definitions_version": 7}, None),
        ({"definitions_version": ""}, None),
        ([], None),
        ("ok", None),
    ],
)
def test_the_answer_to_a_heartbeat(cloud, body, version):
    cloud.mock.post(f"{URL}/api/agent/heartbeat", json=body)
    orders = cloud.beat(HEALTH)
    assert (orders.ok, orders.definitions_version) == (True, version)


def test_a_heartbeat_that_fails(cloud):
    cloud.mock.post(f"{URL}/api/agent/heartbeat", status=401, body="who are you")
    orders = cloud.beat(HEALTH)
    assert (orders.ok, orders.status, orders.text) == (False, 401, "who are you")


@pytest.mark.parametrize(
    ("status", "body", "rows"),
    [(200, '[{"id":"a"}]', ({"id": "a"},)), (200, "[]", ()), (200, "{}", None), (200, "x", None), (500, "[]", None)],
)
def test_definitions(cloud, status, body, rows):
    cloud.mock.get(
        f"{URL}/api/agent/metrics-definitions",
        status=status,
        body=body,
        headers={"x-observer-definitions-version": "v" * 200},
    )
    found = cloud.definitions()
    assert found.rows == rows
    assert found.version == ("v" * 128 if rows is not None else None)


def test_a_log_line(cloud):
    cloud.mock.post(f"{URL}/api/agent/log", status=204)
    line = {"level": "WARN", "message": "m", "timestamp": STARTED}
    assert cloud.log(line)
    assert json.loads(cloud.mock.calls[0].request.body) == line


@given(st.sets(st.integers(1, 300), min_size=1))
def test_a_push_sequence_names_exactly_its_ids(ids):
    text = push_sequence(QUEUE, sorted(ids))
    queue_id, _, ranges = text.partition(";")
    found = []
    for part in ranges.split(","):
        low, _, high = part.partition("-")
        found += range(int(low), int(high or low) + 1)
    assert queue_id == QUEUE and found == sorted(ids)
