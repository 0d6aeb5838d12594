"""Dwell: a status comes into force once it has held; each change is one event, what comes late makes none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observer_agent.clock import iso
from observer_agent.hub import statuses
from observer_agent.hub.statuses import LAPSE_SECONDS, State, dwell, judge
from tests.wire_hub import TestHub, memory_hub

STATUSES = ("healthy", "degraded", "unhealthy", "no_data")
BETTER = {("degraded", "healthy"), ("unhealthy", "healthy"), ("unhealthy", "degraded"), ("no_data", "healthy")}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    with memory_hub(tmp_path) as made:
        yield made


def push(hub: TestHub, *given: str, ago: float = 0.0, metric: str = "m") -> None:
    """A batch of verdicts, the last one `ago` seconds old, those before it a second apart."""
    last = hub.clock.now() - ago
    rows = [
        {"metric_id": metric, "value": n, "timestamp": iso(last - len(given) + 1 + n), "status": status}
        | ({"reason": "timeout"} if status == "no_data" else {})
        for n, status in enumerate(given)
    ]
    assert hub.push(rows).json["accepted"] == len(rows)


def tick(hub: TestHub, seconds: float) -> int:
    hub.clock.advance(seconds)
    return statuses.tick(hub.database, hub.clock.now())


def told(hub: TestHub) -> list[tuple[str, ...]]:
    """What every event says, oldest first."""
    found: list[dict[str, Any]] = hub.get("events")["events"]
    return [
        (each["data"]["old_status"], each["data"]["new_status"])
        if each["event_type"] == "metric.status_changed"
        else (each["event_type"], each["data"]["reason"])
        for each in reversed(found)
    ]


@pytest.mark.parametrize("old", STATUSES)
@pytest.mark.parametrize("new", STATUSES)
def test_the_dwell_of_every_change(old: str, new: str) -> None:
    if old == new:
        return
    seconds = 300.0 if (old, new) in BETTER else 60.0
    assert dwell(old, new) == seconds
    state = judge(State(old, 0.0), new, 1000.0)
    assert state == State(old, 0.0, new, 1000.0)
    assert judge(state, new, 1000.0 + seconds - 0.001) == state
    assert judge(state, new, 1000.0 + seconds) == State(new, 1000.0 + seconds)


def test_a_candidate_that_falls_back_is_forgotten_and_another_begins_anew() -> None:
    waiting = judge(State("healthy", 0.0), "degraded", 100.0)
    assert judge(waiting, "healthy", 159.0) == State("healthy", 0.0)
    assert judge(waiting, "unhealthy", 159.0) == State("healthy", 0.0, "unhealthy", 159.0)


def test_a_candidate_that_nobody_looked_at_for_long_and_one_of_the_future_begin_anew() -> None:
    waiting = State("healthy", 0.0, "unhealthy", 1000.0)
    late = 1000.0 + LAPSE_SECONDS + 1
    assert judge(waiting, "unhealthy", late) == State("healthy", 0.0, "unhealthy", late)
    assert judge(waiting, "unhealthy", 10.0) == State("healthy", 0.0, "unhealthy", 10.0)


@given(st.lists(st.tuples(st.sampled_from(STATUSES), st.integers(0, 400)), max_size=60))
def test_the_status_in_force_changes_only_to_one_that_has_held(steps: list[tuple[str, int]]) -> None:
    """Against the whole history: at each change every verdict of the dwell before it was the new status."""
    state, now = None, 0.0
    seen: list[tuple[float, str]] = []
    for status, pause in steps:
        now += pause
        before, state = state, judge(state, status, now)
        seen.append((now, status))
        assert (state.candidate is None) == (state.candidate_since is None)
        assert state.candidate != state.status
        if before is None or before.status == state.status:
            assert before is None or before.since == state.since
            continue
        assert state == State(status, now)
        wanted = dwell(before.status, status)
        run = [at for n, (at, _) in enumerate(seen) if all(each == status for _, each in seen[n:])]
        assert now - run[0] >= wanted


def test_the_first_verdict_makes_no_event_and_a_change_makes_one_after_its_dwell(hub: TestHub) -> None:
    push(hub, "unhealthy")
    assert tick(hub, 600) == 0 and told(hub) == []
    push(hub, "healthy")
    assert tick(hub, 299) == 0 and told(hub) == []
    assert tick(hub, 1) == 1
    assert tick(hub, 600) == 0
    assert told(hub) == [("unhealthy", "healthy")]


def test_a_change_is_seen_by_the_push_as_well_as_by_the_tick(hub: TestHub) -> None:
    push(hub, "healthy")
    for _ in range(3):
        hub.clock.advance(30)
        push(hub, "unhealthy")
    assert told(hub) == [("healthy", "unhealthy")]
    event = hub.get("events")["events"][0]
    data = event["data"]
    assert event["event_type"] == "metric.status_changed"
    assert data == {
        "metric_id": "m",
        "metric_title": "m",
        "agent_id": "a" * 36,
        "agent_name": "agent",
        "old_status": "healthy",
        "new_status": "unhealthy",
        "value": 0.0,
        "timestamp": iso(hub.clock.now()),
    }


def test_no_data_is_told_with_its_reason_once(hub: TestHub) -> None:
    push(hub, "healthy")
    push(hub, "no_data")
    tick(hub, 60)
    push(hub, "no_data")
    tick(hub, 60)
    assert told(hub) == [("healthy", "no_data"), ("metric.no_data", "timeout")]


def test_a_metric_that_flaps_makes_no_event(hub: TestHub) -> None:
    push(hub, "healthy")
    for _ in range(20):
        push(hub, "unhealthy")
        tick(hub, 30)
        push(hub, "healthy")
        tick(hub, 30)
    assert told(hub) == []


def test_a_backlog_that_comes_late_makes_no_event(hub: TestHub) -> None:
    push(hub, "healthy")
    hub.clock.advance(7200)
    for part in range(20):
        push(hub, *(STATUSES * 10), "unhealthy" if part % 2 else "healthy", ago=7000 - part * 300)
    push(hub, "healthy")
    assert tick(hub, 1) == 0
    assert tick(hub, 600) == 0
    assert told(hub) == []


def test_after_an_outage_of_the_hub_an_old_candidate_waits_for_the_backlog(hub: TestHub) -> None:
    push(hub, "healthy")
    hub.clock.advance(10)
    push(hub, "unhealthy")
    assert tick(hub, 7200) == 0, "nobody knows whether it held"
    push(hub, "unhealthy", ago=3600)
    push(hub, "healthy")
    assert tick(hub, 600) == 0
    assert told(hub) == []


def test_a_row_older_than_the_newest_moves_nothing(hub: TestHub) -> None:
    push(hub, "healthy")
    push(hub, "unhealthy", ago=100)
    assert tick(hub, 300) == 0
    metric = hub.get("metrics")["metrics"][0]
    assert (metric["status"], told(hub)) == ("healthy", [])
    assert len(hub.pushes("m")) == 2, "it is history all the same"


def test_an_agent_whose_clock_was_ahead_is_judged_once_it_is_right_again(hub: TestHub) -> None:
    push(hub, "healthy", ago=-36_000)
    hub.clock.advance(60)
    push(hub, "unhealthy")
    assert tick(hub, 60) == 1
    assert told(hub) == [("healthy", "unhealthy")]


def test_each_agent_has_a_status_of_its_own(hub: TestHub) -> None:
    push(hub, "healthy")
    first, hub.key = hub.key, hub.store.create_key("second")
    push(hub, "unhealthy")
    hub.key = first
    push(hub, "healthy")
    assert tick(hub, 600) == 0 and told(hub) == []


def test_several_metrics_of_a_batch_come_into_force_together(hub: TestHub) -> None:
    for metric in ("a", "b", "c"):
        push(hub, "healthy", metric=metric)
        push(hub, "unhealthy", metric=metric)
    assert tick(hub, 60) == 3
    assert told(hub) == [("healthy", "unhealthy")] * 3
