"""What is read of the past: hours, days and rows of a metric, seconds by status, the points of a sparkline.

Roll-ups end with the last row that was rolled up; from there to now its status is carried on at the time of looking, as
long as the metric's patience. Returns plain JSON-able objects; runs on the threads of the server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, func, select

from observer_agent.clock import Clock, iso
from observer_agent.hub import schema
from observer_agent.hub.database import Database
from observer_agent.hub.pushed import first_id, moment
from observer_agent.hub.roller import sums_of
from observer_agent.hub.rollup import (
    DAY,
    HOUR,
    SECONDS,
    Held,
    Sums,
    filled,
    floor,
    patience,
    rest,
    split,
    stretch,
    together,
)

STEPS = {"hour": HOUR, "day": DAY}
RAW = "raw"
POINTS_MAX = 100_000
RAW_MAX = 10_000


class Window(NamedTuple):
    """From when to when, in seconds since 1970."""

    begin: float
    end: float


class TooMuch(Exception):
    """More points than one answer holds."""


class History:
    """The past of metrics."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._wait = lru_cache(maxsize=8192)(_wait)  # with thousands of metrics reading it is a sixth of an answer

    def _waits(self, conn: Connection, *metric_ids: str) -> dict[str, float]:
        """The patience of some metrics, or of all where none are named."""
        metrics = schema.metrics
        query = select(metrics.c.id, metrics.c.definition)
        rows = conn.execute(query.where(metrics.c.id.in_(metric_ids)) if metric_ids else query)
        return {name: self._wait(text) for name, text in rows.all()}

    def series(self, metric_id: str, window: Window, step: str, agent_id: str | None) -> dict[str, Any] | None:
        """Hours, days or rows of a metric, oldest first, by agent; None where there is no such metric."""
        with self._database.read() as conn:
            waits = self._waits(conn, metric_id)
            if not waits:
                return None
            if step == RAW:
                return {"metric_id": metric_id, "step": step, **_raw(conn, metric_id, window, agent_id)}
        found = self.buckets(metric_id, window, step, agent_id)
        series = [{"agent_id": each, "points": _points(buckets)} for each, buckets in sorted(found.items())]
        return {"metric_id": metric_id, "step": step, "series": series}

    def buckets(self, metric_id: str, window: Window, step: str, agent_id: str | None) -> dict[str, dict[int, Sums]]:
        """Hours or days of a metric that begin in the window, by agent; may raise TooMuch."""
        with self._database.read() as conn:
            sums = _Sums(conn, self._clock.now(), self._waits(conn, metric_id))
            return sums.buckets(metric_id, window, STEPS[step], agent_id)

    def daily(self, metric_ids: Sequence[str], days: int) -> dict[str, dict[int, Sums]]:
        """Each of the last `days` UTC days of some metrics of which something is known, all agents together."""
        now = self._clock.now()
        with self._database.read() as conn:
            return _Sums(conn, now, self._waits(conn, *metric_ids)).daily(metric_ids, _since(now, days))

    def seen(self, metric_ids: Sequence[str], days: int) -> dict[str, list[Sums]]:
        """The seconds of some metrics by status, of the last `days` UTC days with today; one for each agent."""
        now = self._clock.now()
        with self._database.read() as conn:
            found = _Sums(conn, now, self._waits(conn, *metric_ids)).totals(_since(now, days), metric_ids)
        by_metric: dict[str, list[Sums]] = {}
        for (metric_id, _), sums in sorted(found.items()):
            by_metric.setdefault(metric_id, []).append(sums)
        return by_metric

    def uptime(self, metric_id: str, days: int) -> dict[str, Any] | None:
        """The seconds of a metric by status, in all and by agent, of the last `days` UTC days with today."""
        now = self._clock.now()
        with self._database.read() as conn:
            waits = self._waits(conn, metric_id)
            if not waits:
                return None
            found = _Sums(conn, now, waits).totals(_since(now, days), [metric_id])
        agents = [{"agent_id": pair[1], **_seconds(sums)} for pair, sums in sorted(found.items())]
        return {"metric_id": metric_id, **_frame(now, days), **_seconds(together(found.values())), "agents": agents}

    def uptimes(self, days: int) -> dict[str, Any]:
        """The seconds of every metric by status, all agents together."""
        now = self._clock.now()
        with self._database.read() as conn:
            waits = self._waits(conn)
            found = _Sums(conn, now, waits).totals(_since(now, days))
        by_metric: dict[str, Sums] = {}
        for (metric_id, _), sums in found.items():
            if metric_id in by_metric:
                by_metric[metric_id].merge(sums)
            else:
                by_metric[metric_id] = sums
        metrics = [{"metric_id": each, **_seconds(by_metric.get(each) or Sums())} for each in sorted(waits)]
        return {**_frame(now, days), "metrics": metrics}

    def sparklines(self, metric_ids: Sequence[str], hours: int = 24) -> dict[tuple[str, str], list[tuple[int, float]]]:
        """Start and mean value of each of the last hours that has one, oldest first, by metric and agent."""
        table = schema.hours
        query = select(table.c.metric_id, table.c.agent_id, table.c.start, table.c.total, table.c.n).where(
            table.c.metric_id.in_(metric_ids),
            table.c.start > self._clock.now() - (hours + 1) * HOUR,
            table.c.n > 0,
        )
        found: dict[tuple[str, str], list[tuple[int, float]]] = {}
        with self._database.read() as conn:
            for metric_id, agent_id, start, total, n in conn.execute(query.order_by(table.c.start)):
                found.setdefault((metric_id, agent_id), []).append((start, total / n))
        return found


class _Sums:
    """Roll-ups made complete: days without a word filled in, the last status carried on to now."""

    def __init__(self, conn: Connection, now: float, waits: Mapping[str, float]) -> None:
        self._conn = conn
        self._now = now
        self._waits = waits

    def buckets(self, metric_id: str, window: Window, size: int, agent_id: str | None) -> dict[str, dict[int, Sums]]:
        """Hours or days that begin in the window, by agent."""
        first, end = floor(window.begin, size), min(window.end, self._now)
        ended = self._conn.execute(select(schema.rolled).where(schema.rolled.c.metric_id == metric_id))
        ends = [row for row in ended if agent_id in (None, row.agent_id)]
        if len(ends) * (end - first) / size > POINTS_MAX:
            raise TooMuch
        stored: dict[str, dict[int, Sums]] = {row.agent_id: {} for row in ends}
        table = schema.hours if size == HOUR else schema.days
        query = select(table).where(table.c.metric_id == metric_id, table.c.start >= first, table.c.start < end)
        if agent_id is not None:
            query = query.where(table.c.agent_id == agent_id)
        for row in self._conn.execute(query).all():
            stored.setdefault(row[1], {})[row[2]] = sums_of(row)
        return {row.agent_id: self._complete(row, stored[row.agent_id], Window(first, end), size) for row in ends}

    def _complete(self, last: Row[Any], stored: dict[int, Sums], window: Window, size: int) -> dict[int, Sums]:
        begun = self._begun(last, int(window.begin), size)
        start = int(window.begin) if begun else min(stored, default=None)
        found: dict[int, Sums] = {}
        if start is not None:
            found = filled(stored, size, start, min(floor(last.timestamp, size), floor(window.end, size)))
        for span in stretch(self._held(last.metric_id, last.timestamp, last.status), self._now):
            cut = span._replace(start=max(span.start, window.begin), end=min(span.end, self._now))
            for at, seconds in split(cut, size):
                if at < window.end:
                    found.setdefault(at, Sums()).spend(cut.word, seconds)
        return {at: sums for at, sums in found.items() if at < window.end}

    def daily(self, metric_ids: Sequence[str], since: int) -> dict[str, dict[int, Sums]]:
        """Days since a midnight, all agents together; a day in which nothing at all was heard is left out."""
        days, rolled = schema.days, schema.rolled
        seconds = [func.sum(days.c[word]) for word in SECONDS]
        here = days.c.metric_id.in_(metric_ids), days.c.start >= since
        query = select(days.c.metric_id, days.c.start, *seconds).where(*here)
        found: dict[str, dict[int, Sums]] = {}
        for metric_id, start, *sums in self._conn.execute(query.group_by(days.c.metric_id, days.c.start)):
            found.setdefault(metric_id, {})[int(start)] = Sums(*sums)
        for last in self._conn.execute(select(rolled).where(rolled.c.metric_id.in_(metric_ids))):
            for span in stretch(self._held(last.metric_id, last.timestamp, last.status), self._now):
                for at, seconds_of in split(span._replace(start=max(span.start, since)), DAY):
                    found.setdefault(last.metric_id, {}).setdefault(at, Sums()).spend(span.word, seconds_of)
        return found

    def totals(self, since: int, metric_ids: Sequence[str] | None = None) -> dict[tuple[str, str], Sums]:
        """Seconds since a midnight, by metric and agent."""
        rolled, days = schema.rolled, schema.days
        same = (days.c.metric_id == rolled.c.metric_id) & (days.c.agent_id == rolled.c.agent_id)
        before = select(func.min(days.c.start)).where(same, days.c.start < since).correlate(rolled).scalar_subquery()
        sums = [func.coalesce(func.sum(days.c[word]), 0.0) for word in SECONDS]
        query = (
            select(rolled, before, func.count(days.c.start), func.min(days.c.start), *sums)
            .outerjoin(days, same & (days.c.start >= since))
            .group_by(rolled.c.metric_id, rolled.c.agent_id)
        )
        if metric_ids is not None:
            query = query.where(rolled.c.metric_id.in_(metric_ids))
        return {(row[0], row[1]): self._total(row, since) for row in self._conn.execute(query).all()}

    def _total(self, row: Any, since: int) -> Sums:
        metric_id, _, timestamp, status, before, n, first, up, degraded, down, unknown = row
        found = Sums(up, degraded, down, unknown)
        begin = first if before is None else since
        if begin is not None and timestamp >= begin:
            found.unknown += DAY * ((floor(timestamp, DAY) - begin) // DAY + 1 - n)
        word, known, silent = rest(self._held(metric_id, timestamp, status), since, self._now)
        found.spend(word, known)
        found.unknown += silent
        return found

    def _held(self, metric_id: str, timestamp: float, status: str) -> Held:
        return Held(timestamp, status, timestamp + self._waits.get(metric_id, patience(0)))

    def _begun(self, last: Row[Any], before: int, size: int) -> bool:
        table = schema.hours if size == HOUR else schema.days
        here = (table.c.metric_id == last.metric_id, table.c.agent_id == last.agent_id, table.c.start < before)
        return self._conn.scalar(select(table.c.start).where(*here).limit(1)) is not None


def _wait(definition: str) -> float:
    return patience(json.loads(definition).get("interval_agent_push", 0))


def _raw(conn: Connection, metric_id: str, window: Window, agent_id: str | None) -> dict[str, Any]:
    """The newest rows of the window, at most `RAW_MAX`, oldest first."""
    pushes = schema.pushes
    query = select(pushes).where(
        pushes.c.metric_id == metric_id,
        pushes.c.id >= first_id(conn, window.begin),
        pushes.c.timestamp >= window.begin,
        pushes.c.received_at >= window.begin,
    )
    if agent_id is not None:
        query = query.where(pushes.c.agent_id == agent_id)
    rows = sorted(conn.execute(query.order_by(pushes.c.id)), key=moment)
    found = [row for row in rows if moment(row) < window.end]
    return {"rows": [_row(row) for row in found[-RAW_MAX:]], "truncated": len(found) > RAW_MAX}


def _row(row: Row[Any]) -> dict[str, Any]:
    same = {name: getattr(row, name) for name in ("agent_id", "value", "status", "reason")}
    return {**same, "timestamp": iso(row.timestamp), "received_at": iso(row.received_at)}


def _points(buckets: Mapping[int, Sums]) -> list[dict[str, Any]]:
    """Hours or days in their order; the text of a day is made once, for there may be a year of hours."""
    points: list[dict[str, Any]] = []
    end, date = 0, ""
    for start in sorted(buckets):
        if start >= end:
            end, date = floor(start, DAY) + DAY, iso(start)[:11]
        points.append(_point(f"{date}{start % DAY // HOUR:02}:00:00.000Z", buckets[start]))
    return points


def _point(start: str, sums: Sums) -> dict[str, Any]:
    mean = sums.total / sums.n if sums.n else None
    return {
        "start": start,
        "up": _short(sums.up),
        "degraded": _short(sums.degraded),
        "down": _short(sums.down),
        "unknown": _short(sums.unknown),
        "n": sums.n,
        "mean": mean,
        "low": sums.low,
        "high": sums.high,
    }


def _seconds(sums: Sums) -> dict[str, Any]:
    percent = sums.percent
    found: dict[str, Any] = _told(sums)
    found["uptime_pct"] = None if percent is None else round(percent, 3)
    return found


def _told(sums: Sums) -> dict[str, float]:
    return {
        "up": _short(sums.up),
        "degraded": _short(sums.degraded),
        "down": _short(sums.down),
        "unknown": _short(sums.unknown),
    }


def _short(seconds: float) -> float:
    """Milliseconds are enough; most are whole seconds, and rounding costs more than asking that."""
    return round(seconds, 3) if seconds % 1 else seconds


def _since(now: float, days: int) -> int:
    return floor(now, DAY) - (days - 1) * DAY


def _frame(now: float, days: int) -> dict[str, Any]:
    return {"days": days, "from": iso(_since(now, days)), "to": iso(now)}
