"""Two processes with one key: who owns it, what the other one hears, and what it may not change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from observer_agent.clock import iso, parse_iso
from observer_agent.hub.fencing import AHEAD_MAX, Start, classify, is_duplicate
from tests.wire_hub import GOLDEN_NOW, STARTED, TestHub, memory_hub, row

NOW = GOLDEN_NOW
OLDER = "2026-05-09T11:00:00.000Z"
NEWER = "2026-05-09T12:00:05.000Z"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    with memory_hub(tmp_path) as found:
        yield found


@pytest.mark.parametrize(
    ("known", "started", "expected"),
    [
        (None, NOW - 10, Start.FIRST),
        (NOW - 10, NOW - 10, Start.SAME),
        (NOW - 10, NOW - 9.999, Start.RESTART),
        (NOW - 10, NOW - 10.001, Start.STALE),
        (NOW - 10, None, Start.UNKNOWN),
        (None, None, Start.UNKNOWN),
        (NOW - 10, NOW + AHEAD_MAX, Start.RESTART),
        (NOW - 10, NOW + AHEAD_MAX + 0.001, Start.UNKNOWN),
        (None, NOW + AHEAD_MAX + 0.001, Start.UNKNOWN),
        (NOW + AHEAD_MAX, NOW, Start.STALE),
    ],
)
def test_the_classes_of_a_start_time(known: float | None, started: float | None, expected: Start) -> None:
    assert classify(known, started, NOW) is expected


@pytest.mark.parametrize(
    "same",
    ["2026-05-09T12:00:00Z", "2026-05-09T12:00:00.000000+00:00", "2026-05-09T14:00:00+02:00", "20260509T120000Z"],
)
def test_start_times_are_instants_not_texts(hub: TestHub, same: str) -> None:
    hub.beat({}, STARTED)
    hub.beat({}, same)
    assert hub.push([row()], started=same).status_code == 200
    assert hub.agent()["restarts"] == 0
    assert hub.agent()["duplicate_key"] is False


@pytest.mark.parametrize("unknown", [None, "", "yesterday", "2026-05-09T12:00:00", "2026-05-09T12:05:11Z", "x" * 500])
def test_an_unknown_start_time_fences_nobody(hub: TestHub, unknown: str | None) -> None:
    hub.beat({}, STARTED)
    assert hub.push([row()], started=unknown).status_code == 200
    assert hub.beat({"queue_depth": 7}, unknown).status_code == 200
    agent = hub.agent()
    assert (agent["agent_started_at"], agent["restarts"], agent["duplicate_key"]) == (STARTED, 0, False)
    assert agent["queue_depth"] == 7


def test_only_a_strictly_newer_start_is_a_restart(hub: TestHub) -> None:
    for started in (STARTED, STARTED, NEWER, STARTED, NEWER, OLDER):
        hub.beat({}, started)
    assert hub.agent()["restarts"] == 1
    assert hub.agent()["agent_started_at"] == NEWER


def test_a_push_alone_announces_a_restart(hub: TestHub) -> None:
    hub.push([row()], started=STARTED)
    hub.push([row()], started=NEWER)
    assert hub.agent()["restarts"] == 1
    assert hub.push([row()], started=STARTED).json == {"error": "stale_process", "newer_started_at": NEWER}


def test_so_does_fetching_definitions(hub: TestHub) -> None:
    headers = {"Agent-Key": hub.key, "Agent-Started-At": NEWER}
    assert hub.client().get("/api/agent/metrics-definitions", headers=headers).status_code == 200
    assert hub.push([row()], started=STARTED).status_code == 409


def test_an_older_process_stores_nothing(hub: TestHub) -> None:
    hub.beat({}, STARTED)
    answer = hub.push([row()], "1", OLDER)
    assert (answer.status_code, answer.json["newer_started_at"]) == (409, STARTED)
    assert hub.get("metrics") == {"metrics": []}
    assert hub.agent()["taken"] == 0
    assert hub.push([row()], "1").json == {"accepted": 1, "rejected": [], "duplicates": 0}


def test_a_heartbeat_of_an_older_process_changes_the_flag_alone(hub: TestHub) -> None:
    hub.beat({"queue_depth": 1, "version": "2.0.0"}, STARTED)
    before = hub.agent()
    hub.clock.advance(20)
    ledger = {"queue_id": "0b9f5a52-7f0e-4c3b-9a50-3f6f6f1f5d01", "given": 9, "accepted": 9, "pending": 0, "lost": {}}
    assert hub.beat({"queue_depth": 9, "version": "1.0.0", "delivery": [ledger]}, OLDER).status_code == 200
    alert = {"type": "agent.duplicate_key", "opened_at": "2026-05-09T12:00:30.000Z"}
    assert hub.agent() == {**before, "duplicate_key": True, "alerts": [alert]}


def test_the_flag_goes_ten_minutes_after_the_last_sign(hub: TestHub) -> None:
    hub.beat({}, STARTED)
    hub.beat({}, OLDER)
    hub.clock.advance(599)
    hub.push([row()], started=OLDER)
    hub.clock.advance(599)
    assert hub.agent()["duplicate_key"] is True
    hub.clock.advance(1)
    assert hub.agent()["duplicate_key"] is False
    assert is_duplicate(None, NOW) is False


def test_the_header_wins_over_the_body(hub: TestHub) -> None:
    hub.beat({"agent_started_at": NEWER}, STARTED)
    assert hub.agent()["agent_started_at"] == STARTED
    hub.beat({"agent_started_at": NEWER}, None)
    assert hub.agent()["agent_started_at"] == NEWER
    assert parse_iso(iso(NOW)) == NOW
