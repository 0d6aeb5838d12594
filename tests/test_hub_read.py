"""What the read API and the page show, and when a state is judged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from sqlalchemy import insert

from observer_agent.hub import schema, store
from tests.wire_hub import QUEUE, STARTED, TestHub, define, golden, memory_hub, row, served

AGENT_FIELDS = set(
    "id name state version agent_started_at last_heartbeat_at uptime_seconds restarts queue_depth "
    "queue_oldest_age_seconds queue_capacity source_types_active taken duplicates delivery".split()
)
METRIC_FIELDS = set("id key title source_type agent_id status value reason timestamp last_push_at".split())
PUSH_FIELDS = set("agent_id queue_id row_id value timestamp status reason received_at".split())


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    with memory_hub(tmp_path) as found:
        yield found


def metrics(hub: TestHub) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = hub.get("metrics")["metrics"]
    return found


def test_an_agent_that_was_never_heard(hub: TestHub) -> None:
    agent = hub.agent()
    assert agent.keys() >= AGENT_FIELDS
    assert (agent["name"], agent["state"], agent["last_heartbeat_at"], agent["delivery"]) == (
        "agent",
        "offline",
        None,
        [],
    )


def test_a_heartbeat_is_shown_field_by_field(hub: TestHub) -> None:
    body = golden("heartbeat-full")["request"]["body"]
    hub.beat(body)
    agent = hub.agent()
    for name in ("version", "uptime_seconds", "queue_depth", "queue_oldest_age_seconds", "queue_capacity", "hostname"):
        assert agent[name] == body[name]
    assert agent["agent_started_at"] == STARTED
    assert agent["last_heartbeat_at"] == "2026-05-09T12:00:10.000Z"
    assert agent["source_types_active"] == ["prometheus", "http", "tcp"]
    assert agent["delivery"] == [{**each, "unexplained": each["accepted"]} for each in body["delivery"]]


def test_older_builds_are_read_through_their_names(hub: TestHub) -> None:
    hub.beat({"buffer_size": 5, "buffer_oldest_age_seconds": 61})
    assert (hub.agent()["queue_depth"], hub.agent()["queue_oldest_age_seconds"]) == (5, 61)
    hub.beat({"buffer_size": 5, "queue_depth": 6, "queue_oldest_age_seconds": None, "buffer_oldest_age_seconds": 7})
    assert (hub.agent()["queue_depth"], hub.agent()["queue_oldest_age_seconds"]) == (6, 7)


def test_the_last_report_of_each_queue_is_kept(hub: TestHub) -> None:
    other = QUEUE[:-1] + "2"
    first = {"queue_id": QUEUE, "given": 3, "accepted": 1, "pending": 2, "lost": {}}
    second = {"queue_id": other, "given": 1, "accepted": 0, "pending": 0, "lost": {"cap": 1}}
    hub.beat({"delivery": [first]})
    hub.clock.advance(30)
    hub.beat({"delivery": [second, {"queue_id": "x"}, {**first, "queue_id": other[:-1] + "3", "given": -1}, 5]})
    assert told(hub) == [second, first]
    hub.clock.advance(30)
    hub.beat({"delivery": [{**first, "accepted": 3, "pending": 0}]})
    assert told(hub) == [{**first, "accepted": 3, "pending": 0}, second]


def told(hub: TestHub) -> list[dict[str, Any]]:
    """What the agent said of its queues, without the hub's own judgement."""
    return [{name: each[name] for name in each if name != "unexplained"} for each in hub.agent()["delivery"]]


def test_rows_that_an_agent_calls_accepted_and_that_are_not_here_are_unexplained(hub: TestHub) -> None:
    count = 3
    assert hub.push([row(n) for n in range(count)], f"1-{count}").status_code == 200
    report = {"queue_id": QUEUE, "given": count + 2, "accepted": count, "pending": 2, "lost": {}}
    hub.beat({"delivery": [report]})
    assert hub.agent()["delivery"] == [{**report, "unexplained": 0}]
    hub.beat({"delivery": [{**report, "accepted": count + 2, "pending": 0}]})
    (shown,) = hub.agent()["delivery"]
    assert shown["unexplained"] == 2


def test_offline_is_judged_at_the_time_of_looking(hub: TestHub) -> None:
    hub.beat({})
    hub.clock.advance(89.9)
    assert hub.agent()["state"] == "online"
    hub.clock.advance(0.1)
    assert hub.agent()["state"] == "offline"
    hub.beat({})
    assert hub.agent()["state"] == "online"


def test_metrics_are_listed_by_agent_once_they_push(hub: TestHub) -> None:
    define(hub.store, golden("definitions")["answer"]["body"])
    assert [(m["title"], m["agent_id"], m["status"]) for m in metrics(hub)] == [
        ("Shop page", None, None),
        ("Shop port", None, None),
        ("Targets up", None, None),
    ]
    hub.push(golden("batch-accepted")["request"]["body"], "1-4")
    page, port, up = metrics(hub)
    assert page.keys() >= METRIC_FIELDS
    assert (page["status"], page["value"], page["reason"]) == ("no_data", 0, "timeout")
    assert (page["timestamp"], page["last_push_at"]) == ("2026-05-09T12:00:04.000Z", "2026-05-09T12:00:10.000Z")
    assert (port["status"], port["value"], port["source_type"]) == ("healthy", 12.031, "tcp")
    assert up["agent_id"] == hub.agent()["id"]
    other = hub.store.create_key("other")
    hub.client().post("/api/agent/receiver", json=row(metric_id=up["id"]), headers={"Agent-Key": other})
    assert len({m["agent_id"] for m in metrics(hub) if m["id"] == up["id"]}) == 2


def test_a_metric_falls_silent(hub: TestHub) -> None:
    define(hub.store, [{**golden("definitions")["answer"]["body"][0], "interval_agent_push": 10}])
    hub.push([row(metric_id=golden("definitions")["answer"]["body"][0]["id"])])
    hub.clock.advance(30 * 60)
    assert metrics(hub)[0]["status"] == "healthy"
    hub.clock.advance(1)
    assert metrics(hub)[0]["status"] == "unknown"


def test_pushes_newest_first_and_limited(hub: TestHub) -> None:
    hub.push([row(i) for i in range(5)], "1-5")
    hub.push([row(9)])
    found = hub.get("metrics/m/pushes?limit=3")["pushes"]
    assert [push["value"] for push in found] == [9, 4, 3]
    assert all(push.keys() == PUSH_FIELDS for push in found)
    assert [(push["queue_id"], push["row_id"]) for push in found] == [(None, None), (QUEUE, 5), (QUEUE, 4)]
    assert len(hub.get("metrics/m/pushes")["pushes"]) == 6


@pytest.mark.parametrize("limit", ["0", "-1", "10001", "x", "", "1.5", "99999999999999999999", "٣"])
def test_a_bad_limit_is_400(hub: TestHub, limit: str) -> None:
    answer = hub.client().get(f"/api/v1/metrics/m/pushes?limit={limit}")
    assert (answer.status_code, answer.json["error"]) == (400, "bad_request")


def test_a_metric_that_is_not_there_is_404(hub: TestHub) -> None:
    answer = hub.client().get("/api/v1/metrics/nothing/pushes")
    assert (answer.status_code, answer.json["error"]) == (404, "not_found")


@pytest.mark.parametrize("metric_id", ["/", "/abc", "a//b", "//", "m/pushes", "ä /?#%2F;x"])
def test_any_metric_has_its_address(metric_id: str, hub: TestHub) -> None:
    """Ids are opaque: with slashes in any place the percent-encoded address leads to them, and to no other."""
    assert hub.push([row(1, metric_id=metric_id), row(2, metric_id=f"x{metric_id}")]).status_code == 200
    with served(hub.app) as url:
        for what, key in (("pushes", "pushes"), ("history?step=raw&from=0", "rows"), ("uptime", "up")):
            there = f"{url}/api/v1/metrics/{quote(metric_id, safe='')}/{what}"
            answer = requests.get(there, timeout=5, allow_redirects=False)
            assert answer.status_code == 200, answer.text
            assert key in answer.json()
            if what == "pushes":
                assert [each["value"] for each in answer.json()[key]] == [1]


def test_an_agents_name_may_begin_with_a_slash(hub: TestHub) -> None:
    hub.store.create_key("/srv/one")
    answer = hub.client().post("/api/v1/keys/%2Fsrv%2Fone/rotate", json={})
    assert answer.status_code == 201, answer.text


def test_two_slashes_are_nothing_else_in_disguise(hub: TestHub) -> None:
    answer = hub.client().get("/api/v1//agents")
    assert (answer.status_code, answer.mimetype) == (404, "application/json")


def test_unknown_metrics_are_listed_as_unmanaged_until_defined(hub: TestHub) -> None:
    definition = golden("definitions")["answer"]["body"][0]
    hub.push([row(metric_id=definition["id"]), row(metric_id="a/b c")])
    assert {(m["id"], m["source_type"], m["unmanaged"], m["key"]) for m in metrics(hub)} == {
        (definition["id"], "unmanaged", True, None),
        ("a/b c", "unmanaged", True, None),
    }
    define(hub.store, [definition])
    assert [(m["source_type"], m["unmanaged"]) for m in metrics(hub)] == [("http", False), ("unmanaged", True)]
    assert len(hub.pushes(definition["id"])) == 1
    assert len(hub.pushes("a/b%20c")) == 1


def test_unknown_metrics_are_bounded(hub: TestHub) -> None:
    listed = [
        {"id": str(n), "source_type": "unmanaged", "managed": False, "created_at": 0.0}
        for n in range(store.UNMANAGED_MAX - 1)
    ]
    with hub.database.write() as conn:
        conn.execute(insert(schema.metrics), listed)
    answer = hub.push([row(metric_id=each) for each in ("new", "newer", "new", "7")], "1-4").json
    assert answer["accepted"] == 3
    assert answer["rejected"] == [{"index": 1, "field": "metric_id", "code": "too_many_metrics"}]
