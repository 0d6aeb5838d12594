"""Moves the alert machines of agents, inside the transaction of what moved them, and emits what comes of it.

`heard` after a heartbeat, `seen_double` after a request of an older process, `tick` from time to time for what silence
alone decides. Several hub processes may do so at once: each locks the agent's row first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, Row, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from observer_agent.clock import iso
from observer_agent.hub import machines, schema
from observer_agent.hub.database import Database
from observer_agent.hub.events import Event, emit
from observer_agent.hub.machines import QUIET, Alert, Minutes, Signal, unpack

Alerts = Mapping[Signal, Alert]
SILENT = (Signal.UPTIME_DEGRADED, Signal.OFFLINE, Signal.DUPLICATE_KEY)  # what time alone may change


class Judge:
    """See the module. `offline_after` is the silence, in seconds, after which an agent is offline."""

    def __init__(self, offline_after: float = machines.OFFLINE_SECONDS) -> None:
        self._offline_after = offline_after

    def heard(self, conn: Connection, agent_id: str, now: float) -> None:
        """After a heartbeat of the owning process, whose facts stand in the agent's row already."""
        row = lock(conn, agent_id)
        if row is None:
            return
        minutes = _minutes(row).beat(now)
        marks = {"minute_newest": minutes.newest, "minute_bits": minutes.pack(), "minute_first": minutes.first}
        conn.execute(update(schema.agents).where(schema.agents.c.id == agent_id).values(**marks))
        before = read(conn, [agent_id]).get(agent_id, {})
        lag = machines.lag(
            before.get(Signal.LAG_HIGH, QUIET), row.queue_depth or 0, row.queue_oldest_age_seconds or 0, now
        )
        after = {**self._silent(row, before, minutes, now), Signal.LAG_HIGH: lag}
        self._keep(conn, row, before, after, now)

    def seen_double(self, conn: Connection, agent_id: str, now: float) -> None:
        """After a request of an older process, whose moment stands in the agent's row already."""
        row = lock(conn, agent_id)
        if row is not None:
            before = read(conn, [agent_id]).get(agent_id, {})
            self._keep(conn, row, before, self._silent(row, before, _minutes(row), now), now)

    def tick(self, database: Database, now: float) -> int:
        """What silence alone decides, for every agent; returns how many changed."""
        with database.read() as conn:
            rows = conn.execute(_ROWS).all()
            known = read(conn, None)
        moved = [row.id for row in rows if self._moves(row, known.get(row.id, {}), now)]
        return sum(self._tick_one(database, agent_id, now) for agent_id in moved)

    def _tick_one(self, database: Database, agent_id: str, now: float) -> bool:
        with database.write() as conn:
            row = lock(conn, agent_id, skip=True)
            if row is None:
                return False  # another process has it in hand
            before = read(conn, [agent_id]).get(agent_id, {})
            return self._keep(conn, row, before, self._silent(row, before, _minutes(row), now), now)

    def _moves(self, row: Row[Any], before: Alerts, now: float) -> bool:
        after = self._silent(row, before, _minutes(row), now)
        return any(before.get(signal, QUIET) != alert for signal, alert in after.items())

    def _silent(self, row: Row[Any], before: Alerts, minutes: Minutes, now: float) -> dict[Signal, Alert]:
        uptime, offline, double = (before.get(signal, QUIET) for signal in SILENT)
        return {
            Signal.UPTIME_DEGRADED: machines.uptime(uptime, minutes, now),
            Signal.OFFLINE: machines.offline(offline, row.last_heartbeat_at, now, self._offline_after),
            Signal.DUPLICATE_KEY: machines.duplicate_key(double, row.duplicate_seen_at, now),
        }

    def _keep(self, conn: Connection, row: Row[Any], before: Alerts, after: Alerts, now: float) -> bool:
        """Writes the states that changed, and an event for each that was opened or cleared."""
        moved = {signal: alert for signal, alert in after.items() if before.get(signal, QUIET) != alert}
        for signal, alert in moved.items():
            _write(conn, row.id, signal, alert)
            change = machines.change(before.get(signal, QUIET), alert)
            if change:
                data = {"state": change.value, "agent_id": row.id, "agent_name": row.name, **_facts(signal, row, now)}
                emit(conn, Event(signal.value, now, data, agent_id=row.id))
        return bool(moved)


def lock(conn: Connection, agent_id: str, skip: bool = False) -> Row[Any] | None:
    """The agent's row, held until the transaction ends; with `skip` None where another process holds it."""
    query = select(schema.agents).where(schema.agents.c.id == agent_id)
    return conn.execute(query.with_for_update(skip_locked=skip)).first()


def read(conn: Connection, agent_ids: Iterable[str] | None) -> dict[str, dict[Signal, Alert]]:
    """The alerts that are not quiet, by agent and signal; of all agents where none are named."""
    alerts = schema.alerts
    query = select(alerts) if agent_ids is None else select(alerts).where(alerts.c.agent_id.in_(list(agent_ids)))
    found: dict[str, dict[Signal, Alert]] = {}
    for row in conn.execute(query):
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


def _minutes(row: Row[Any]) -> Minutes:
    return unpack(row.minute_newest, bytes(row.minute_bits or b""), row.minute_first)


def _facts(signal: Signal, row: Row[Any], now: float) -> dict[str, Any]:
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
