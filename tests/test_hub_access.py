"""Who may come in, and how large and how odd a request may be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observer_agent.errors import ConfigError
from observer_agent.hub import schema
from observer_agent.hub import settings as hub_settings
from observer_agent.hub.access import is_loopback
from tests.wire_hub import STARTED, TestHub, memory_hub, row

TOKEN = "token-of-the-operator"
READ = ["/api/v1/agents", "/api/v1/metrics", "/api/v1/metrics/m/pushes", "/"]
ENDPOINTS = ["receiver", "receiver/batch", "heartbeat", "heartbeat-relay", "log"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestHub]:
    with memory_hub(tmp_path_factory.mktemp("hub")) as found:
        found.push([row()])
        yield found


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[TestHub]:
    with memory_hub(tmp_path, token=TOKEN) as found:
        found.push([row()])
        yield found


@pytest.mark.parametrize("key", ["", "obs_live_" + "x" * 43, "x" * 257, "é", "obs_live_" + "k" * 42])
@pytest.mark.parametrize("path", ENDPOINTS)
def test_no_agent_comes_in_without_a_known_key(hub: TestHub, path: str, key: str) -> None:
    answer = hub.client().post(f"/api/agent/{path}", data="[]", headers={"Agent-Key": key})
    assert (answer.status_code, answer.json["error"]) == (401, "unauthorized")
    assert answer.json.keys() == {"error", "message"}


def test_a_key_opens_its_own_door_alone(locked: TestHub) -> None:
    answer = locked.client().get("/api/v1/agents", headers={"Authorization": f"Bearer {locked.key}"})
    assert answer.status_code == 401
    answer = locked.client().post("/api/agent/heartbeat", data="{}", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 401


@pytest.mark.parametrize("path", READ)
@pytest.mark.parametrize("given_", [None, "", "Bearer", "Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é"])
def test_readers_need_the_token(locked: TestHub, path: str, given_: str | None) -> None:
    headers = {} if given_ is None else {"Authorization": given_}
    answer = locked.client().get(path, headers=headers)
    assert (answer.status_code, answer.json["error"]) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("path", READ)
def test_the_token_opens(locked: TestHub, path: str) -> None:
    with locked.client().get(path, headers={"Authorization": f"bearer {TOKEN}", "Host": "hub.example"}) as answer:
        assert answer.status_code == 200


@pytest.mark.parametrize("path", READ)
def test_without_a_token_only_this_machine_is_served(hub: TestHub, path: str) -> None:
    for host, status in (("127.0.0.1:8080", 200), ("localhost", 200), ("[::1]:80", 200), ("rebound.example", 403)):
        with hub.client().get(path, headers={"Host": host}) as answer:
            assert answer.status_code == status, host


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.9.1"])
def test_loopback_needs_no_token(host: str) -> None:
    assert is_loopback(host)
    hub_settings.check_bind(host, hub_settings.load({}))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "hub.example", "localhost.example", ""])
def test_other_addresses_do(host: str) -> None:
    hub_settings.check_bind(host, hub_settings.load({"OBSERVER_HUB_TOKEN": TOKEN}))
    with pytest.raises(ConfigError, match="OBSERVER_HUB_TOKEN"):
        hub_settings.check_bind(host, hub_settings.load({"OBSERVER_HUB_TOKEN": " "}))


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/x", 404), ("DELETE", "/api/v1/agents", 405)])
def test_what_is_not_there_is_json(hub: TestHub, method: str, path: str, status: int) -> None:
    answer = hub.client().open(path, method=method)
    assert answer.status_code == status
    assert answer.json.keys() == {"error", "message"}


def test_get_on_a_receiver_is_405_with_a_key(hub: TestHub) -> None:
    answer = hub.client().get("/api/agent/receiver/batch", headers={"Agent-Key": hub.key})
    assert (answer.status_code, answer.json["error"]) == (405, "method_not_allowed")
    assert "POST" in answer.headers["Allow"]


@pytest.mark.parametrize("path", ENDPOINTS)
def test_a_large_body_is_413(hub: TestHub, path: str) -> None:
    answer = hub.client().post(f"/api/agent/{path}", data=b" " * (2**20 + 1), headers={"Agent-Key": hub.key})
    assert (answer.status_code, answer.json["error"]) == (413, "too_large")


def test_a_hundred_rows_are_taken_one_more_is_not(hub: TestHub) -> None:
    assert hub.push([row(i) for i in range(100)]).json["accepted"] == 100
    assert hub.push([row(i) for i in range(101)]).status_code == 413
    assert hub.push([]).json == {"accepted": 0, "rejected": [], "duplicates": 0}


def test_an_internal_fault_is_json_and_tells_nothing(hub: TestHub, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object) -> object:
        raise KeyError("secret of the house")

    client = hub.client()
    hub.app.view_functions["read.agents"], kept = fail, hub.app.view_functions["read.agents"]
    try:
        answer = client.get("/api/v1/agents")
    finally:
        hub.app.view_functions["read.agents"] = kept
    assert (answer.status_code, answer.json["error"]) == (500, "internal")
    assert "secret" not in answer.text


def test_a_database_that_refuses_is_503_and_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with memory_hub(tmp_path) as hub:
        with hub.database.write() as conn:
            schema.latest.drop(conn)
        answer = hub.push([row(metric_id="secret-of-the-house")], "1")
        assert (answer.status_code, answer.json["error"]) == (503, "storage_unavailable")
        assert int(answer.headers["Retry-After"]) > 0
        with hub.database.write() as conn:
            schema.latest.create(conn)
        assert hub.push([row()], "1").json == {"accepted": 1, "rejected": [], "duplicates": 0}
    assert "secret" not in caplog.text


BAD = [
    ({"metric_id": 5}, "metric_id", "wrong_type"),
    ({"metric_id": None}, "metric_id", "missing"),
    ({"metric_id": ""}, "metric_id", "out_of_range"),
    ({"metric_id": "x" * 129}, "metric_id", "out_of_range"),
    ({"metric_id": "a\0b"}, "metric_id", "out_of_range"),
    ({"metric_id": "\ud800"}, "metric_id", "out_of_range"),
    ({"value": True}, "value", "wrong_type"),
    ({"value": "1"}, "value", "wrong_type"),
    ({"value": None}, "value", "missing"),
    ({"value": float("nan")}, "value", "not_finite"),
    ({"value": float("-inf")}, "value", "not_finite"),
    ({"value": 10**400}, "value", "not_finite"),
    ({"status": "up"}, "status", "unknown_value"),
    ({"status": None}, "status", "missing"),
    ({"status": ["healthy"]}, "status", "wrong_type"),
    ({"timestamp": "yesterday"}, "timestamp", "unparsable"),
    ({"timestamp": "2026-05-09T12:00:00"}, "timestamp", "unparsable"),
    ({"timestamp": "0001-01-01T00:00:00+23:00"}, "timestamp", "unparsable"),
    ({"timestamp": 1_800_000_000}, "timestamp", "wrong_type"),
    ({"status": "no_data", "reason": 5}, "reason", "wrong_type"),
]


@pytest.mark.parametrize(("change", "field", "code"), BAD)
def test_a_bad_row_is_named_and_the_others_are_taken(hub: TestHub, change: Any, field: str, code: str) -> None:
    answer = hub.push([row(1), row(**change), row(3)])
    assert answer.json == {
        "accepted": 2,
        "rejected": [{"index": 1, "field": field, "code": code}],
        "duplicates": 0,
    }
    single = hub.post("receiver", row(**change))
    assert (single.status_code, single.json["field"], single.json["code"]) == (400, field, code)


GOOD: list[dict[str, Any]] = [
    {"metric_id": "x" * 128},
    {"metric_id": "with/slash and ü"},
    {"value": -1e308},
    {"value": 2**70},
    {"status": "no_data", "value": 0, "reason": "timeout"},
    {"status": "no_data", "value": None, "reason": None},
    {"status": "no_data", "reason": "r" * 500},
    {"timestamp": "2026-05-09T14:00:00.123456+02:00"},
    {"colour": {"deep": [1, 2, 3]}},
    {"reason": "a reason beside a healthy status is let go"},
]


@pytest.mark.parametrize("change", GOOD)
def test_what_is_allowed_is_taken(hub: TestHub, change: dict[str, Any]) -> None:
    assert hub.push([row(**change)]).json == {"accepted": 1, "rejected": [], "duplicates": 0}


Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["m", "healthy", STARTED]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ["metric_id", "value", "timestamp", "status", "reason", "queue_depth", "uptime_seconds", "delivery", "build"]
FIELDS += ["version", "hostname", "custom_probes", "source_types_active", "agent_started_at", "queue_id", "given"]
Rows = st.dictionaries(st.sampled_from(FIELDS), Json)
Ledgers = st.fixed_dictionaries(
    {"queue_id": st.just("0b9f5a52-7f0e-4c3b-9a50-3f6f6f1f5d01") | Json, "given": Json, "accepted": Json},
    optional={"pending": st.integers(), "lost": st.dictionaries(st.text(), st.integers())},
)
Bodies = (
    st.binary(max_size=200)
    | Json.map(json.dumps)
    | Rows.map(json.dumps)
    | st.lists(Rows, max_size=5).map(json.dumps)
    | st.fixed_dictionaries({"delivery": st.lists(Ledgers, max_size=3)}).map(json.dumps)
    | st.sampled_from(["[" * 100_000, '{"a":' * 100_000, "9" * 5000, '"\\ud800"', '{"version": "\\ud800\\u0000"}'])
)
Headers = st.dictionaries(
    st.sampled_from(["Agent-Started-At", "Push-Sequence", "Content-Type", "User-Agent"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=60),
)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(ENDPOINTS), Bodies, Headers)
def test_nothing_that_an_agent_sends_is_a_500(hub: TestHub, path: str, body: Any, headers: dict[str, str]) -> None:
    answer = hub.client().post(f"/api/agent/{path}", data=body, headers={**headers, "Agent-Key": hub.key})
    assert answer.status_code in (200, 400, 409, 413)
    assert isinstance(answer.json, dict)


def test_the_read_api_stands_what_the_fuzz_has_left(hub: TestHub) -> None:
    for path in READ:
        with hub.client().get(path) as answer:
            assert answer.status_code == 200
