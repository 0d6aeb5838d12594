"""The pages about metrics: the list with its filter, and one metric in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flask import request
from werkzeug.exceptions import NotFound

from observer_agent.clock import parse_iso
from observer_agent.hub import objectives
from observer_agent.hub.console import draw, facts, words
from observer_agent.hub.console.facts import Entry, Metric, Wish
from observer_agent.hub.console.parts import Parts, cut, show
from observer_agent.hub.history import RAW, STEPS, Window
from observer_agent.hub.rollup import DAY, HOUR, Sums, floor, together

RANGES = {"24h": DAY, "7d": 7 * DAY, "30d": 30 * DAY, "90d": 90 * DAY}
_STEP = {"24h": RAW, "7d": "hour", "30d": "hour", "90d": "day"}
SELECTABLE = 200
MEANS = {"24h": "Values", "7d": "Hourly means", "30d": "Hourly means", "90d": "Daily means"}
ROWS_SHOWN = 50
EVENTS_SHOWN = 50
STRIP_DAYS = 30


class Metrics:
    """The views."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def index(self) -> str:
        """Every metric of every agent, what is wrong first."""
        given = request.args
        wish = Wish(given.get("status", ""), given.get("agent", ""), given.get("text", "").strip())
        names, now = self._names(), self._parts.clock.now()
        with self._parts.store.database.read() as conn:
            found = facts.entries(conn, now)
        shown = cut(facts.chosen(found, wish, names))
        points = self._parts.history.sparklines(list({each.metric.id for each in shown.rows}))
        sparks = {pair: draw.spark(each) for pair, each in points.items()}
        few = names if len(names) <= SELECTABLE else {each: names[each] for each in names.keys() & {wish.agent_id}}
        return show("metrics.html", metrics=shown, wish=wish, names=names, few=few, sparks=sparks, any=bool(found))

    def detail(self) -> str:
        """One metric: who says what, its history, how much of the time it was up, its last rows and events."""
        metric_id, now = request.args.get("id", ""), self._parts.clock.now()
        names, given = self._names(), request.args.get("range", "")
        length = given if given in RANGES else "24h"
        with self._parts.store.database.read() as conn:
            metric = facts.metric(conn, metric_id)
            if metric is None:
                raise NotFound("there is no such metric")
            found = facts.chosen(facts.entries(conn, now, [metric_id]), Wish(), names)
            rows = facts.readings(conn, metric_id, ROWS_SHOWN)
            events = facts.events(conn, EVENTS_SHOWN, metric_id=metric_id)
            about = facts.about(conn, metric)
            promised = [each for service in objectives.services(conn) for each in service.objectives]
        promised = [each for each in promised if each.metric_id == metric_id]
        agent_id, window = _agent(found), Window(now - RANGES[length], now)
        chart = _chart(metric, self._points(metric_id, agent_id, window, length), window, length)
        return show(
            "metric.html",
            metric=metric,
            about=about,
            entries=cut(found),
            objectives=list(objectives.outcomes(self._parts.history, promised).items()),
            agent_id=agent_id,
            chart_of=chart,
            range=length,
            ranges=list(RANGES),
            uptime=self._uptime(metric_id, agent_id),
            rows=rows,
            names=names,
            bars=bars(self._buckets(metric_id, agent_id, Window(now - STRIP_DAYS * DAY, now), "day"), now, STRIP_DAYS),
            events=events,
        )

    def _points(self, metric_id: str, agent_id: str, window: Window, length: str) -> list[draw.Point]:
        """Values or means of one agent, the oldest first."""
        step = _STEP[length]
        if not agent_id:
            return []
        if step == RAW:
            found = self._parts.history.series(metric_id, window, step, agent_id) or {"rows": []}
            rows = [row for row in found["rows"] if row["status"] != "no_data" and row["value"] is not None]
            return [(parse_iso(row["timestamp"]) or 0.0, row["value"]) for row in rows]
        sums = self._buckets(metric_id, agent_id, window, step)
        return [(float(start), each.total / each.n) for start, each in sorted(sums.items()) if each.n]

    def _buckets(self, metric_id: str, agent_id: str, window: Window, step: str) -> dict[int, Sums]:
        """Hours or days, as one agent saw them."""
        return self._parts.history.buckets(metric_id, window, step, agent_id).get(agent_id, {}) if agent_id else {}

    def _uptime(self, metric_id: str, agent_id: str) -> list[tuple[str, Sums]]:
        """The last 24 hours by the hour, longer times by the day."""
        now = self._parts.clock.now()
        hours = self._buckets(metric_id, agent_id, Window(now - DAY + HOUR, now), "hour")
        days = self._buckets(metric_id, agent_id, Window(now - 29 * DAY, now), "day")
        week = {start: each for start, each in days.items() if start >= floor(now, DAY) - 6 * DAY}
        known = (("24 hours", hours), ("7 days", week), ("30 days", days))
        return [(title, together(sums.values())) for title, sums in known]

    def _names(self) -> dict[str, str]:
        with self._parts.store.database.read() as conn:
            return facts.agent_names(conn)


def _chart(metric: Metric, points: list[draw.Point], window: Window, length: str) -> dict[str, Any] | None:
    """What the template draws; None where there are no values in that time."""
    if not points:
        return None
    values = [value for _, value in points]
    low, high = draw.bounds(values, zero=min(values) >= 0 and min(values) < max(values) / 2)
    frame, gap = draw.Frame(*window, low, high), metric.patience if length == "24h" else 2.5 * STEPS[_STEP[length]]
    limits = [(name, value) for name, value in _limits(metric) if min(values) <= value <= max(values)]
    said = f"{words.short(values[-1])} at last, {words.short(min(values))} to {words.short(max(values))}"
    return {
        "title": MEANS[length],
        "said": said + "".join(f"; {name} at {words.number(value)}" for name, value in limits),
        "curve": draw.curve(points, frame, gap),
        "low": words.short(low),
        "high": words.short(high),
        "limits": [(name, value, frame.y(value)) for name, value in limits],
        "when": window,
    }


def _limits(metric: Metric) -> list[tuple[str, float]]:
    found = []
    for name in ("healthy", "unhealthy"):
        try:
            found.append((name, float(metric.definition[f"{name}_value"])))
        except (KeyError, TypeError, ValueError):
            continue
    return found


def bars(known: Mapping[int, Sums], now: float, number: int) -> list[tuple[str, draw.Bar, Sums | None]]:
    """One bar for each of the last days, the oldest first, with its date."""
    today = floor(now, DAY)
    found = []
    for at in range(number):
        start = today - (number - 1 - at) * DAY
        sums = known.get(start)
        shares = (sums.up, sums.degraded, sums.down, sums.unknown) if sums else (0.0, 0.0, 0.0, 0.0)
        found.append((words.day(start), draw.bar(at * 10.0, shares), sums))
    return found


def _agent(found: Sequence[Entry]) -> str:
    """Whose history is shown: the agent that is asked for, else the one that has the worst to say."""
    asked = request.args.get("agent", "")
    ids = [each.agent_id for each in found if each.agent_id]
    return asked if asked in ids else ids[0] if ids else ""
