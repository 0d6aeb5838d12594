"""History and uptime as the read API gives them: whole hours, what is unknown so called, silence judged when asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from observer_agent.clock import iso
from observer_agent.errors import ConfigError
from observer_agent.hub.history import History
from observer_agent.hub.roller import Roller
from observer_agent.hub.rollup import DAY, HOUR, SECONDS
from observer_agent.hub.settings import load
from observer_agent.hub.store import Managed
from tests.test_hub_rollup import AGENT, MIDNIGHT, counted, put
from tests.wire_hub import TestHub, memory_hub

DEFINITION = {"id": "m", "title": "M", "source_type": "tcp", "source_config": {}, "interval_agent_push": 5}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    with memory_hub(tmp_path) as made:
        made.store.apply([Managed("m", "M", (), DEFINITION)])
        yield made


def rolled(hub: TestHub, rows: list[tuple[int, str, float]]) -> None:
    put(hub, rows)
    made = Roller(hub.database, hub.clock)
    while made.roll():
        pass


def every(seconds: int, begin: int, end: int, status: str = "healthy") -> list[tuple[int, str, float]]:
    return [(at, status, 1.0) for at in range(begin, end, seconds)]


def points(answer: Any) -> dict[str, dict[str, float]]:
    (series,) = answer["series"]
    return {each["start"]: {word: each[word] for word in SECONDS} for each in series["points"]}


def refused(hub: TestHub, path: str) -> tuple[int, str]:
    answer = hub.client().get(f"/api/v1/{path}")
    return answer.status_code, answer.json["message"]


def test_the_hours_of_a_metric_go_on_to_now(hub: TestHub) -> None:
    now = int(hub.clock.now())
    rolled(hub, every(300, now - 3 * HOUR, now))
    found = points(hub.get("metrics/m/history?step=hour"))
    assert sum(sums["up"] for sums in found.values()) == 3 * HOUR
    assert all(sum(sums[w] for w in SECONDS) == HOUR for sums in list(found.values())[1:-1])
    day = points(hub.get(f"metrics/m/history?step=day&from={MIDNIGHT}"))
    assert day == {iso(MIDNIGHT): {"up": 3.0 * HOUR, "degraded": 0.0, "down": 0.0, "unknown": 0.0}}


def test_values_are_told_as_mean_and_bounds(hub: TestHub) -> None:
    rolled(hub, [(MIDNIGHT, "healthy", 1.0), (MIDNIGHT + 60, "degraded", 4.0), (MIDNIGHT + 120, "no_data", 0.0)])
    first = hub.get(f"metrics/m/history?from={MIDNIGHT}&to={MIDNIGHT + HOUR}")["series"][0]["points"][0]
    assert {name: first[name] for name in ("n", "mean", "low", "high")} == {
        "n": 2,
        "mean": 2.5,
        "low": 1.0,
        "high": 4.0,
    }
    assert History(hub.database, hub.clock).sparklines(["m"]) == {("m", AGENT): [(MIDNIGHT, 2.5)]}


def test_a_status_is_carried_on_as_long_as_its_patience_and_then_unknown(hub: TestHub) -> None:
    now = hub.clock.now()
    rolled(hub, [(int(now) - 3000, "unhealthy", 1.0)])
    found = hub.get("metrics/m/uptime?days=1")
    begun = now - (int(now) - 3000)
    assert (found["down"], round(found["unknown"])) == (900.0, round(begun - 900))
    assert found["uptime_pct"] == 0.0
    hub.clock.advance(600)
    assert hub.get("metrics/m/uptime?days=1")["down"] == 900.0


def test_days_of_silence_are_filled_in_as_unknown(hub: TestHub) -> None:
    rows = every(300, MIDNIGHT - 20 * DAY, MIDNIGHT - 19 * DAY + HOUR) + every(300, MIDNIGHT, MIDNIGHT + 10 * HOUR)
    rolled(hub, rows)
    now = hub.clock.now()
    found = hub.get("metrics/m/uptime?days=30")
    known = DAY + HOUR - 300 + 900 + (10 * HOUR - 300 + 900)
    assert found["up"] == known
    assert round(sum(found[word] for word in SECONDS)) == round(now - (MIDNIGHT - 20 * DAY)), "since it was first heard"
    later = hub.get("metrics/m/uptime?days=10")
    assert round(sum(later[word] for word in SECONDS)) == round(now - (MIDNIGHT - 9 * DAY)), "the whole window"
    assert later["agents"][0]["agent_id"] == AGENT
    for step, size in (("day", DAY), ("hour", HOUR)):
        series = points(hub.get(f"metrics/m/history?step={step}&from={MIDNIGHT - 30 * DAY}"))
        starts = list(series)
        assert starts[0] == iso(MIDNIGHT - 20 * DAY) and len(starts) == len(set(starts))
        assert round(sum(s[w] for s in series.values() for w in SECONDS)) == round(now - (MIDNIGHT - 20 * DAY))
        assert all(sum(s.values()) == size for s in list(series.values())[:-1])
        middle = series[iso(MIDNIGHT - 10 * DAY)]
        assert middle == {"up": 0.0, "degraded": 0.0, "down": 0.0, "unknown": size}


def test_a_window_in_the_middle_of_silence_is_unknown(hub: TestHub) -> None:
    rolled(hub, [(MIDNIGHT - 9 * DAY, "healthy", 1.0)])
    found = points(hub.get(f"metrics/m/history?step=day&from={MIDNIGHT - 5 * DAY}&to={MIDNIGHT - 3 * DAY}"))
    silent = {"up": 0.0, "degraded": 0.0, "down": 0.0, "unknown": float(DAY)}
    assert found == {iso(MIDNIGHT - 5 * DAY): silent, iso(MIDNIGHT - 4 * DAY): silent}


def test_hours_told_are_those_that_were_counted(hub: TestHub) -> None:
    begin = MIDNIGHT - 6 * HOUR
    rows = [(begin + n * 397, ("healthy", "degraded", "unhealthy", "no_data")[n % 4], 1.0) for n in range(60)]
    rows += [(MIDNIGHT + 9 * HOUR, "healthy", 1.0)]
    rolled(hub, rows[::2])
    rolled(hub, rows[1::2])
    end = MIDNIGHT + 9 * HOUR
    wanted = {iso(start): sums for start, sums in counted(rows).items()}
    assert points(hub.get(f"metrics/m/history?from={begin - HOUR}&to={end}")) == wanted


def test_every_metric_has_its_uptime_in_one_answer(hub: TestHub) -> None:
    now = int(hub.clock.now())
    rolled(hub, every(300, now - HOUR, now))
    hub.store.apply([Managed("quiet", "Q", (), {**DEFINITION, "id": "quiet"})])
    found = hub.get("uptime")
    assert (found["days"], found["to"]) == (30, iso(hub.clock.now()))
    by_id = {each.pop("metric_id"): each for each in found["metrics"]}
    assert by_id["m"] == {"up": float(HOUR), "degraded": 0.0, "down": 0.0, "unknown": 0.0, "uptime_pct": 100.0}
    assert by_id["quiet"] == {"up": 0.0, "degraded": 0.0, "down": 0.0, "unknown": 0.0, "uptime_pct": None}


def test_rows_themselves_come_in_the_order_of_their_stamps(hub: TestHub) -> None:
    put(hub, [(MIDNIGHT + 60, "healthy", 2.0), (MIDNIGHT, "unhealthy", 1.0), (MIDNIGHT + 120, "healthy", 3.0)])
    found = hub.get(f"metrics/m/history?step=raw&from={MIDNIGHT}&to={MIDNIGHT + 100}")
    assert [(row["value"], row["status"]) for row in found["rows"]] == [(1.0, "unhealthy"), (2.0, "healthy")]
    assert found["truncated"] is False
    assert hub.get("metrics/m/history?step=raw&agent_id=nobody")["rows"] == []
    assert len(hub.get("metrics/m/history?step=raw&from=2026-05-09T00:00:00Z")["rows"]) == 3


def test_what_is_asked_wrongly_is_named(hub: TestHub) -> None:
    for path in ("metrics/none/history", "metrics/none/uptime", "metrics/none/history?step=raw"):
        assert refused(hub, path) == (404, "there is no such metric")
    rolled(hub, [(MIDNIGHT, "healthy", 1.0)])
    for path, word in (
        ("metrics/m/history?step=week", "step must be"),
        ("metrics/m/history?from=yesterday", "from must be an ISO 8601"),
        ("metrics/m/history?from=2026-05-09T00:00:00Z&to=2026-05-08T00:00:00Z", "before to"),
        ("metrics/m/history?from=0", "too many points"),
        ("metrics/m/uptime?days=0", "days must be"),
        ("uptime?days=x", "days must be"),
    ):
        status, text = refused(hub, path)
        assert status == 400 and word in text, path


def test_the_token_is_asked_for(tmp_path: Path) -> None:
    with memory_hub(tmp_path, token="t" * 20) as hub:
        for path in ("uptime", "metrics/m/uptime", "metrics/m/history"):
            assert hub.client().get(f"/api/v1/{path}").status_code == 401
        assert hub.client().get("/api/v1/uptime", headers={"Authorization": "Bearer " + "t" * 20}).status_code == 200


def test_how_long_things_are_kept_is_a_setting() -> None:
    keep = load({"OBSERVER_HUB_KEEP_ROWS": "2w", "OBSERVER_HUB_KEEP_DAYS": "1y"}).keep
    assert (keep.rows, keep.hours, keep.days) == (14 * DAY, 400 * DAY, 365.25 * DAY)
    for wrong in ("0d", "10", "5m", "-1d", "forever"):
        with pytest.raises(ConfigError, match="OBSERVER_HUB_KEEP_EVENTS"):
            load({"OBSERVER_HUB_KEEP_EVENTS": wrong})
    assert json.dumps(load({}).keep.rows) == str(30.0 * DAY)
