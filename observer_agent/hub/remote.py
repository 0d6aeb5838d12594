"""Verdicts to a Prometheus that takes remote write 1.0 (Mimir, VictoriaMetrics, Thanos and others as well).

The queue is the table of pushes with a cursor in `counters`: what was not acknowledged is read again, and what lies too
far behind is skipped and counted. One hub process at a time sends, on the worker `export`. Needs the extra `export`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, NamedTuple

import requests
from sqlalchemy import Connection, Row, func, insert, select, update

from observer_agent import __version__
from observer_agent.clock import Clock
from observer_agent.hub import schema
from observer_agent.hub.database import Database
from observer_agent.hub.horizon import Horizon
from observer_agent.hub.lease import Lease

log = logging.getLogger(__name__)

CURSOR, LOST = "remote_write_cursor", "remote_write_lost"
ROWS = 500
PAUSE = 5.0
SETTLED = 2.0  # seconds; besides the horizon, for who has an id and no transaction number yet
TIMEOUT = (5.0, 20.0)
LEASE_SECONDS = 60.0
LONGEST = 300.0
STATUSES = ("healthy", "degraded", "unhealthy", "no_data")

Labels = tuple[tuple[str, str], ...]


class Point(NamedTuple):
    """One sample of a series: seconds since 1970, value."""

    at: float
    value: float


@dataclass(frozen=True, slots=True)
class Target:
    """Where to write to; `rows_max` bounds how far it may fall behind."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    rows_max: int = 1_000_000


class Exporter:
    """See the module; one thread calls `step`."""

    def __init__(self, database: Database, clock: Clock, target: Target) -> None:
        from observer_agent.hub import remote_format

        self._encode = remote_format.encode
        self._database = database
        self._clock = clock
        self._target = target
        self._lease = Lease(database, "remote_write", LEASE_SECONDS)
        self._horizon = Horizon(database)
        self._failures = 0

    def step(self) -> float:
        """Sends one batch; returns the seconds until the next."""
        if not self._lease.take(self._clock.now()):
            return PAUSE
        with self._database.write() as conn:
            cursor = _cursor(conn, self._target.rows_max)
        rows = self._read(cursor)
        if not rows:
            return PAUSE
        wait = self._send(rows)
        if wait is not None:
            return wait
        with self._database.write() as conn:
            _set(conn, CURSOR, rows[-1].id)
        return 0.0 if len(rows) == ROWS else PAUSE

    def stop(self) -> None:
        """Lets another process go on at once."""
        self._lease.release()

    def _read(self, cursor: int) -> Sequence[Row[Any]]:
        """The next rows, up to the first that is too young: hubs whose clocks differ stamp them."""
        pushes, metrics, agents = schema.pushes, schema.metrics, schema.agents
        now, complete = self._clock.now(), self._horizon.id()
        query = (
            select(pushes, metrics.c.key, metrics.c.title, metrics.c.source_type, agents.c.name.label("agent"))
            .outerjoin(metrics, metrics.c.id == pushes.c.metric_id)
            .outerjoin(agents, agents.c.id == pushes.c.agent_id)
            .where(pushes.c.id > cursor)
            .order_by(pushes.c.id)
            .limit(ROWS)
        )
        with self._database.read() as conn:
            rows = conn.execute(query).all()
        return list(takewhile(lambda row: row.id <= complete and abs(now - row.received_at) >= SETTLED, rows))

    def _send(self, rows: Sequence[Row[Any]]) -> float | None:
        """None when the rows are done with, else the seconds until they are sent again."""
        headers = {
            "Content-Type": "application/x-protobuf",
            "Content-Encoding": "snappy",
            "X-Prometheus-Remote-Write-Version": "0.1.0",
            "User-Agent": f"observer-hub/{__version__}",
            **self._target.headers,
        }
        try:
            answer = requests.post(
                self._target.url,
                data=self._encode(series(rows)),
                headers=headers,
                timeout=TIMEOUT,
                allow_redirects=False,
                stream=True,
            )
        except requests.RequestException as error:
            return self._later(type(error).__name__, None)
        with answer:
            status, wanted = answer.status_code, answer.headers.get("Retry-After")
        if status == 429 or status >= 500 or 300 <= status < 400:
            return self._later(f"status {status}", wanted)
        if status >= 400:
            self._drop(len(rows), status)
        self._failures = 0
        return None

    def _later(self, why: str, wanted: str | None) -> float:
        self._failures += 1
        wait = min(LONGEST, 2.0 ** min(self._failures, 10))
        if wanted and wanted.isdecimal():
            wait = min(LONGEST, max(wait, float(wanted)))
        log.warning("The remote write target does not take verdicts (%s); next try in %.0f s", why, wait)
        return wait

    def _drop(self, n: int, status: int) -> None:
        """A refusal is final, says the protocol: what is out of order or too old will never be taken."""
        with self._database.write() as conn:
            _count_lost(conn, n)
        log.warning("The remote write target refused %d verdicts (status %d); they are not sent again", n, status)


def series(rows: Iterable[Row[Any]]) -> dict[Labels, list[Point]]:
    """The samples of rows by series, each in the order of time: the value, and 1 for the status that held."""
    found: dict[Labels, dict[float, float]] = {}
    for row in rows:
        base = {
            "metric_id": row.metric_id,
            "key": row.key or "",
            "title": row.title or row.key or row.metric_id,
            "source_type": row.source_type or "",
            "agent": row.agent or row.agent_id,
        }
        if row.status != "no_data":
            found.setdefault(_labels("observer_metric_value", base), {})[row.timestamp] = row.value
        for status in STATUSES:
            labels = _labels("observer_metric_status", {**base, "status": status})
            found.setdefault(labels, {})[row.timestamp] = float(status == row.status)
    return {labels: [Point(*each) for each in sorted(points.items())] for labels, points in found.items()}


def _labels(name: str, labels: Mapping[str, str]) -> Labels:
    """Sorted by name, as the protocol wants them; a label without a value is none."""
    return tuple(sorted((k, v) for k, v in {"__name__": name, **labels}.items() if v))


def _cursor(conn: Connection, rows_max: int) -> int:
    """Where to go on: at the end where nothing was ever sent, and never further back than the bound."""
    newest = int(conn.scalar(select(func.max(schema.pushes.c.id))) or 0)
    cursor = conn.scalar(select(schema.counters.c.n).where(schema.counters.c.name == CURSOR))
    if cursor is None:
        conn.execute(insert(schema.counters).values(name=CURSOR, n=newest))
        return newest
    if newest - cursor > rows_max:
        skipped = newest - rows_max - cursor
        log.warning("Remote write is too far behind: %d verdicts are skipped", skipped)
        _count_lost(conn, skipped)
        _set(conn, CURSOR, newest - rows_max)
        return newest - rows_max
    return int(cursor)


def _set(conn: Connection, name: str, n: int) -> None:
    conn.execute(update(schema.counters).where(schema.counters.c.name == name).values(n=n))


def _count_lost(conn: Connection, n: int) -> None:
    counters = schema.counters
    done = conn.execute(update(counters).where(counters.c.name == LOST).values(n=counters.c.n + n))
    if done.rowcount == 0:
        conn.execute(insert(counters).values(name=LOST, n=n))
