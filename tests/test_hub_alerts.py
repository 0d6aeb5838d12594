"""Alerts of agents in a real hub on a fake clock: requests and ticks move the machines, each change is one event."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select

from observer_agent.hub import schema
from tests.fakes import FakeClock
from tests.wire_hub import STARTED, TestHub, memory_hub, row

OLDER = "2026-05-09T11:00:00.000Z"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    with memory_hub(tmp_path) as made:
        yield made


def beat(hub: TestHub, depth: int = 0, age: int = 0) -> None:
    assert hub.beat({"queue_depth": depth, "queue_oldest_age_seconds": age}, STARTED).status_code == 200


def told(hub: TestHub) -> list[tuple[str, str]]:
    """Type and state of every event, oldest first."""
    found: list[dict[str, Any]] = hub.get("events")["events"]
    return [(each["event_type"].removeprefix("agent."), each["data"]["state"]) for each in reversed(found)]


def tick(hub: TestHub, seconds: float) -> int:
    hub.clock.advance(seconds)
    return hub.store.judge.tick(hub.database, hub.clock)


def test_lag_opens_and_clears_with_its_facts(hub: TestHub) -> None:
    beat(hub, 1001)
    beat(hub, 1500)
    assert told(hub) == [("lag_high", "open")]
    event = hub.get("events")["events"][0]
    assert event["data"]["queue_depth"] == 1001 and event["data"]["agent_name"] == hub.agent()["name"]
    assert [alert["type"] for alert in hub.agent()["alerts"]] == ["agent.lag_high"]
    for _ in range(2):
        hub.clock.advance(30)
        beat(hub)
    assert told(hub) == [("lag_high", "open")]
    hub.clock.advance(30)
    beat(hub)
    assert told(hub) == [("lag_high", "open"), ("lag_high", "cleared")]
    assert hub.agent()["alerts"] == []


def test_silence_is_found_by_the_tick_once_and_ended_by_the_next_heartbeat(hub: TestHub) -> None:
    assert tick(hub, 1000) == 0, "never heard is not offline"
    beat(hub)
    assert tick(hub, 89) == 0
    assert tick(hub, 1) == 1
    assert tick(hub, 500) == 0
    assert told(hub) == [("offline", "open")]
    beat(hub)
    assert told(hub) == [("offline", "open"), ("offline", "cleared")]


def test_an_older_process_does_not_end_the_silence(hub: TestHub) -> None:
    beat(hub)
    tick(hub, 90)
    hub.beat({}, OLDER)
    assert told(hub) == [("offline", "open"), ("duplicate_key", "open")]
    tick(hub, 599)
    hub.push([row()], "1", OLDER)
    tick(hub, 599)
    assert told(hub)[1:] == [("duplicate_key", "open")]
    tick(hub, 1)
    assert told(hub)[1:] == [("duplicate_key", "open"), ("duplicate_key", "cleared")]


def test_uptime_is_judged_after_an_hour_and_clears_at_95_percent(hub: TestHub) -> None:
    for minute in range(62):
        if minute not in range(10, 20):
            beat(hub)
        tick(hub, 60)
    assert ("uptime_degraded", "open") in told(hub)
    assert hub.agent()["uptime_pct"] < 95
    for _ in range(200):
        beat(hub)
        tick(hub, 60)
    assert told(hub)[-1] == ("uptime_degraded", "cleared")
    kinds = [state for kind, state in told(hub) if kind == "uptime_degraded"]
    assert kinds == ["open", "cleared"]


@pytest.mark.parametrize("behind", [0.5, 20.0])
def test_a_hub_whose_clock_is_behind_takes_nothing_back(hub: TestHub, behind: float) -> None:
    """Two hubs tick in turn; each silence and each double is one episode all the same."""
    other = FakeClock(hub.clock.now() - behind)

    def both(seconds: float) -> None:
        for _ in range(3):
            hub.store.judge.tick(hub.database, hub.clock)
            hub.store.judge.tick(hub.database, other)
        hub.clock.advance(seconds)
        other.advance(seconds)

    beat(hub)
    hub.push([row()], "1", OLDER)
    for _ in range(20):
        both(5)
    for _ in range(18):
        beat(hub)
        both(30)
    assert told(hub) == [
        ("duplicate_key", "open"),
        ("offline", "open"),
        ("offline", "cleared"),
        ("duplicate_key", "cleared"),
    ]


def test_what_is_open_survives_a_new_process(hub: TestHub, tmp_path: Path) -> None:
    beat(hub, 5000)
    tick(hub, 90)
    with hub.database.read() as conn:
        open_now = {each.signal for each in conn.execute(select(schema.alerts))}
    assert open_now == {"agent.lag_high", "agent.offline"}


def test_events_go_to_the_webhooks_that_asked_for_them(hub: TestHub) -> None:
    common = {"url": "https://hook.example/", "secret": None, "created_at": 0.0}
    with hub.database.write() as conn:
        conn.execute(
            insert(schema.webhooks),
            [
                {**common, "id": "all", "name": "all", "event_types": "[]", "active": True},
                {**common, "id": "lag", "name": "lag", "event_types": '["agent.lag_high"]', "active": True},
                {**common, "id": "off", "name": "off", "event_types": "[]", "active": False},
            ],
        )
    beat(hub, 1001)
    tick(hub, 90)
    with hub.database.read() as conn:
        found = conn.execute(select(schema.outbox.c.webhook_id).order_by(schema.outbox.c.id)).scalars().all()
    assert found == ["all", "lag", "all"]
