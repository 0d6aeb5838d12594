"""Moves the alert machines of agents, inside the transaction of what moved them, and emits what comes of it.

`heard` after a heartbeat, `seen_double` after a request of an older process, `tick` from time to time for what silence
alone decides. Several hub processes may do so at once: each locks the agent's row first, and only then reads what was
committed, and the clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, bindparam, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from observer_agent.clock import Clock, iso
from observer_agent.hub import machines, schema
from observer_agent.hub.database import Database
from observer_agent.hub.events import Event, emit
from observer_agent.hub.hot import Hot
from observer_agent.hub.machines import QUIET, Alert, Minutes, Signal, unpack

Alerts = Mapping[Signal, Alert]
SILENT = (Signal.UPTIME_DEGRADED, Signal.OFFLINE, Signal.DUPLICATE_KEY)  # what time alone may change


class Known(NamedTuple):
    """What the machines read of an agent's row."""

    id: str
    name: str
    started_at: float | None
    last_heartbeat_at: float | None
    duplicate_seen_at: float | None
    queue_depth: int | None
    queue_oldest_age_seconds: int | None
    minute_newest: int
    minute_bits: bytes
    minute_first: int | None


class Judge:
    """See the module. `offline_after` is the silence, in seconds, after which an agent is offline."""

    def __init__(self, offline_after: float = machines.OFFLINE_SECONDS) -> None:
        self._offline_after = offline_after

    def heard(self, conn: Connection, row: Known, before: Alerts, now: float) -> None:
        """After a heartbeat of the owning process: what is known of the agent with it, its row held, and its alerts."""
        lag = machines.lag(
            before.get(Signal.LAG_HIGH, QUIET), row.queue_depth or 0, row.queue_oldest_age_seconds or 0, now
        )
        after = {**self._silent(row, before, _minutes(row), now), Signal.LAG_HIGH: lag, Signal.OFFLINE: QUIET}
        self._keep(conn, row, before, after, now)

    def seen_double(self, conn: Connection, agent_id: str, now: float) -> None:
        """After a request of an older process, whose moment stands in the agent's row already."""
        row = lock(conn, agent_id)
        if row is not None:
            before = read(conn, [agent_id]).get(agent_id, {})
            double = machines.opened(before.get(Signal.DUPLICATE_KEY, QUIET), now)
            after = {**self._silent(row, before, _minutes(row), now), Signal.DUPLICATE_KEY: double}
            self._keep(conn, row, before, after, now)

    def tick(self, database: Database, clock: Clock) -> int:
        """What silence alone decides, for every agent; returns how many changed."""
        with database.read() as conn:
            rows = conn.execute(_ROWS).all()
            known = read(conn, None)
        now = clock.now()
        moved = [row.id for row in rows if self._moves(row, known.get(row.id, {}), now)]
        return sum(self._tick_one(database, agent_id, clock) for agent_id in moved)

    def _tick_one(self, database: Database, agent_id: str, clock: Clock) -> bool:
        """Judges anew what stands in the row once it is held: a heartbeat may have come since the look."""
        with database.write() as conn:
            row = lock(conn, agent_id, skip=True)
            if row is None:
                return False  # another process has it in hand
            now = clock.now()
            before = read(conn, [agent_id]).get(agent_id, {})
            return self._keep(conn, row, before, self._silent(row, before, _minutes(row), now), now)

    def _moves(self, row: Known | Row[Any], before: Alerts, now: float) -> bool:
        after = self._silent(row, before, _minutes(row), now)
        return any(before.get(signal, QUIET) != alert for signal, alert in after.items())

    def _silent(self, row: Known | Row[Any], before: Alerts, minutes: Minutes, now: float) -> dict[Signal, Alert]:
        uptime, offline, double = (before.get(signal, QUIET) for signal in SILENT)
        return {
            Signal.UPTIME_DEGRADED: machines.uptime(uptime, minutes, now),
            Signal.OFFLINE: machines.offline(offline, row.last_heartbeat_at, now, self._offline_after),
            Signal.DUPLICATE_KEY: machines.duplicate_key(double, row.duplicate_seen_at, now),
        }

    def _keep(self, conn: Connection, row: Known | Row[Any], before: Alerts, after: Alerts, now: float) -> bool:
        """Writes the states that changed, and an event for each that was opened or cleared."""
        moved = {signal: alert for signal, alert in after.items() if before.get(signal, QUIET) != alert}
        for signal, alert in moved.items():
            _write(conn, row.id, signal, alert)
            change = machines.change(before.get(signal, QUIET), alert)
            if change:
                data = {"state": change.value, "agent_id": row.id, "agent_name": row.name, **_facts(signal, row, now)}
                emit(conn, Event(signal.value, now, data, agent_id=row.id))
        return bool(moved)


def hold(conn: Connection, agent_id: str) -> Known | None:
    """What a heartbeat needs of the agent's row, held until the transaction ends."""
    row = _HELD(conn, {"agent": agent_id}).first()
    return None if row is None else Known._make(row)


def lock(conn: Connection, agent_id: str, skip: bool = False) -> Row[Any] | None:
    """The agent's row, held until the transaction ends; with `skip` None where another process holds it."""
    query = select(schema.agents).where(schema.agents.c.id == agent_id)
    return conn.execute(query.with_for_update(skip_locked=skip)).first()


def read(conn: Connection, agent_ids: Iterable[str] | None) -> dict[str, dict[Signal, Alert]]:
    """The alerts that are not quiet, by agent and signal; of all agents where none are named."""
    alerts = schema.alerts
    query = select(alerts) if agent_ids is None else select(alerts).where(alerts.c.agent_id.in_(list(agent_ids)))
    return by_agent(conn.execute(query))


def by_agent(rows: Iterable[Row[Any]]) -> dict[str, dict[Signal, Alert]]:
    """Rows of the table of alerts, by agent and signal."""
    found: dict[str, dict[Signal, Alert]] = {}
    for row in rows:
        found.setdefault(row.agent_id, {})[Signal(row.signal)] = Alert(row.opened_at, row.calm_since)
    return found


def _write(conn: Connection, agent_id: str, signal: Signal, alert: Alert) -> None:
    alerts = schema.alerts
    if alert == QUIET:
        conn.execute(delete(alerts).where(alerts.c.agent_id == agent_id, alerts.c.signal == signal.value))
        return
    dialect = postgresql if conn.dialect.name == "postgresql" else sqlite
    values = {"opened_at": alert.opened_at, "calm_since": alert.calm_since}
    fresh = dialect.insert(alerts).values(agent_id=agent_id, signal=signal.value, **values)
    conn.execute(fresh.on_conflict_do_update(index_elements=["agent_id", "signal"], set_=values))


def _minutes(row: Known | Row[Any]) -> Minutes:
    return unpack(row.minute_newest, bytes(row.minute_bits or b""), row.minute_first)


def _facts(signal: Signal, row: Known | Row[Any], now: float) -> dict[str, Any]:
    """What the event says besides its state."""
    if signal is Signal.LAG_HIGH:
        return {"queue_depth": row.queue_depth, "queue_oldest_age_seconds": row.queue_oldest_age_seconds}
    if signal is Signal.UPTIME_DEGRADED:
        share = _minutes(row).share(now)
        return {"uptime_pct": None if share is None else round(share * 100, 3)}
    seen = row.last_heartbeat_at if signal is Signal.OFFLINE else row.started_at
    name = "last_heartbeat_at" if signal is Signal.OFFLINE else "agent_started_at"
    return {name: None if seen is None else iso(seen)}


_COLUMNS = ("id", "last_heartbeat_at", "duplicate_seen_at", "minute_newest", "minute_bits", "minute_first")
_ROWS = select(*(schema.agents.c[name] for name in _COLUMNS))
ALERTS = Hot(select(schema.alerts).where(schema.alerts.c.agent_id == bindparam("agent")))
_HELD = Hot(
    select(*(schema.agents.c[name] for name in Known._fields))
    .where(schema.agents.c.id == bindparam("agent"))
    .with_for_update()
)
