"""Everything that is read: definitions for agents, the read API's objects, judged at the time of looking.

Returns plain JSON-able objects, instants as the wire's text. Runs on the threads of the server.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

from sqlalchemy import Connection, RowMapping, Table, func, select

from observer_agent.clock import Clock, iso
from observer_agent.document import UNRULED
from observer_agent.hub import schema
from observer_agent.hub.alerts import Alerts
from observer_agent.hub.alerts import read as read_alerts
from observer_agent.hub.database import Database
from observer_agent.hub.fencing import is_duplicate
from observer_agent.hub.machines import unpack
from observer_agent.hub.rollup import patience
from observer_agent.hub.store import REVISION, UNMANAGED, Agent

ONLINE_SECONDS = 90.0
LISTED_QUEUES = 20


class Definitions(NamedTuple):
    """What one agent is to watch: the array as JSON, and its version, a hash of it."""

    body: bytes
    version: str


class _Offer:
    """All definitions of one revision, and what has been asked of them; agents that no metric names share one answer.

    Read once for all agents: after a change every one of them comes within a heartbeat.
    """

    def __init__(self, revision: int, rows: list[tuple[str, list[str]]]) -> None:
        self.revision = revision
        self._rows = rows
        self._named = {name for _, names in rows for name in names}
        self._made: dict[str | None, Definitions] = {}

    def to(self, name: str) -> Definitions:
        """The definitions for the agent of that name."""
        who = name if name in self._named else None
        made = self._made.get(who)
        if made is None:
            body = f"[{','.join(text for text, names in self._rows if not names or name in names)}]".encode()
            made = self._made[who] = Definitions(body, hashlib.sha256(body).hexdigest()[:32])
        return made


class Look:
    """The reading side of the hub."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._offer: _Offer | None = None

    def definitions(self, agent: Agent) -> Definitions:
        """The definitions for one agent; kept until any definition changes."""
        offer = self._offer
        if offer is None or offer.revision != agent.revision:
            with self._database.read() as conn:
                offer = self._offer = _Offer(_revision(conn), _offered(conn))
        return offer.to(agent.name)

    def agents(self, agent_id: str | None = None) -> list[dict[str, Any]]:
        """Every agent, by name; only the one where one is named."""
        agents = schema.agents
        query = select(agents).order_by(agents.c.name)
        if agent_id is not None:
            query = query.where(agents.c.id == agent_id)
        with self._database.read() as conn:
            ledgers, alerts = _by_agent(conn, agent_id), read_alerts(conn, None if agent_id is None else [agent_id])
            rows = conn.execute(query).mappings()
            return [self._agent(row, ledgers.get(row["id"], []), alerts.get(row["id"], {})) for row in rows]

    def events(self, limit: int, agent_id: str | None = None, metric_id: str | None = None) -> list[dict[str, Any]]:
        """The last events, newest first, of one agent or metric where one is named."""
        events = schema.events
        query = select(events).order_by(events.c.id.desc()).limit(limit)
        if agent_id is not None:
            query = query.where(events.c.agent_id == agent_id)
        if metric_id is not None:
            query = query.where(events.c.metric_id == metric_id)
        with self._database.read() as conn:
            return [_event(row) for row in conn.execute(query).mappings()]

    def metrics(self) -> list[dict[str, Any]]:
        """Every metric, one entry for each agent that has pushed it, one without an agent if none has."""
        metrics, latest = schema.metrics, schema.latest
        query = (
            select(metrics, *_named(latest, "agent_id", "value", "timestamp", "status", "reason", "received_at"))
            .outerjoin(latest, latest.c.metric_id == metrics.c.id)
            .order_by(metrics.c.managed.desc(), metrics.c.key, metrics.c.id, latest.c.agent_id)
        )
        with self._database.read() as conn:
            return [self._metric(row) for row in conn.execute(query).mappings()]

    def pushes(self, metric_id: str, limit: int) -> list[dict[str, Any]] | None:
        """The last rows of a metric, newest first; None when there is no such metric."""
        metrics, pushes = schema.metrics, schema.pushes
        with self._database.read() as conn:
            if conn.scalar(select(metrics.c.id).where(metrics.c.id == metric_id)) is None:
                return None
            query = select(pushes).where(pushes.c.metric_id == metric_id).order_by(pushes.c.id.desc()).limit(limit)
            return [_push(row) for row in conn.execute(query).mappings()]

    def _agent(self, row: RowMapping, delivery: list[dict[str, Any]], alerts: Alerts) -> dict[str, Any]:
        now, seen = self._clock.now(), row["last_heartbeat_at"]
        share = unpack(row["minute_newest"], bytes(row["minute_bits"] or b""), row["minute_first"]).share(now)
        same = ("version", "uptime_seconds", "restarts", "queue_depth", "queue_oldest_age_seconds", "queue_capacity")
        return {
            "id": row["id"],
            "name": row["name"],
            "state": "online" if seen is not None and now - seen < ONLINE_SECONDS else "offline",
            "agent_started_at": _iso(row["started_at"]),
            "last_heartbeat_at": _iso(seen),
            **{name: row[name] for name in same},
            "source_types_active": json.loads(row["facts"]).get("source_types_active", []),
            "hostname": row["hostname"],
            "duplicate_key": is_duplicate(row["duplicate_seen_at"], now),
            "taken": row["taken"],
            "duplicates": row["duplicates"],
            "delivery": delivery,
            "uptime_pct": None if share is None else round(share * 100, 3),
            "alerts": [{"type": s.value, "opened_at": _iso(a.opened_at)} for s, a in sorted(alerts.items())],
        }

    def _metric(self, row: RowMapping) -> dict[str, Any]:
        return {
            "id": row["id"],
            "key": row["key"],
            "title": row["title"] or row["key"] or row["id"],
            "source_type": row["source_type"],
            "unmanaged": not row["managed"],
            "agent_id": row["latest_agent_id"],
            "status": self._status(row),
            "value": row["latest_value"],
            "reason": row["latest_reason"],
            "timestamp": _iso(row["latest_timestamp"]),
            "last_push_at": _iso(row["latest_received_at"]),
        }

    def _status(self, row: RowMapping) -> str | None:
        """The last status, `unknown` when its push is older than three push intervals (docs/wire.md)."""
        if row["latest_received_at"] is None:
            return None
        wait = patience(json.loads(row["definition"]).get("interval_agent_push", 0))
        stale = self._clock.now() - row["latest_received_at"] > wait
        return "unknown" if stale else str(row["latest_status"])


def _revision(conn: Connection) -> int:
    return int(conn.scalar(select(schema.counters.c.n).where(schema.counters.c.name == REVISION)) or 0)


def _offered(conn: Connection) -> list[tuple[str, list[str]]]:
    metrics = schema.metrics
    query = (
        select(metrics.c.definition, metrics.c.agents)
        .where(metrics.c.managed.is_(True), metrics.c.source_type.not_in((*UNRULED, UNMANAGED)))
        .order_by(metrics.c.key)
    )
    return [(each.definition, json.loads(each.agents)) for each in conn.execute(query)]


def _named(table: Table, *names: str) -> list[Any]:
    return [table.c[name].label(f"{table.name}_{name}") for name in names]


def _by_agent(conn: Connection, agent_id: str | None) -> dict[str, list[dict[str, Any]]]:
    """What each agent last reported of each of its queues, the latest reports first, held against what was taken."""
    deliveries, taken = schema.deliveries, schema.taken
    sums = select(taken.c.agent_id, taken.c.queue_id, func.sum(taken.c.last_id - taken.c.first_id + 1).label("n"))
    if agent_id is not None:
        sums = sums.where(taken.c.agent_id == agent_id)
    known = sums.group_by(taken.c.agent_id, taken.c.queue_id).subquery()
    same = (known.c.agent_id == deliveries.c.agent_id) & (known.c.queue_id == deliveries.c.queue_id)
    query = select(deliveries, known.c.n).outerjoin(known, same).order_by(deliveries.c.reported_at.desc())
    if agent_id is not None:
        query = query.where(deliveries.c.agent_id == agent_id)
    found: dict[str, list[dict[str, Any]]] = {}
    for row in conn.execute(query).mappings():
        listed = found.setdefault(row["agent_id"], [])
        if len(listed) < LISTED_QUEUES:
            listed.append(_ledger(row))
    return found


def _ledger(row: RowMapping) -> dict[str, Any]:
    """An agent's report of a queue id; `unexplained` rows were accepted, says the agent, and are not here."""
    counts = {name: row[name] for name in ("queue_id", "given", "accepted", "pending")}
    return {**counts, "lost": json.loads(row["lost"]), "unexplained": max(0, row["accepted"] - int(row["n"] or 0))}


def _event(row: RowMapping) -> dict[str, Any]:
    """An event as a webhook tells it."""
    return {
        "event_type": row["event_type"],
        "event_id": row["event_id"],
        "occurred_at": iso(row["occurred_at"]),
        "data": json.loads(row["data"]),
    }


def _push(row: RowMapping) -> dict[str, Any]:
    same = ("agent_id", "queue_id", "row_id", "value", "status", "reason")
    return {
        **{name: row[name] for name in same},
        "timestamp": iso(row["timestamp"]),
        "received_at": iso(row["received_at"]),
    }


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else iso(seconds)
