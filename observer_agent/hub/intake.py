"""What agents send, inside the transaction that keeps it: the fencing of a start time, a push, a heartbeat.

Whatever is done here begins with the agent's row, which it holds to the end: pushes and heartbeats of one agent that
arrive at several hub processes go one after the other. Everything that writes is said in one statement on PostgreSQL
(`hot.Chain`), because there a round trip costs more than the rows do. Called by `Store`, on the threads of the server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, bindparam, delete, func, select, update

from observer_agent.clock import Clock
from observer_agent.hub import beats, ranges, schema, statuses
from observer_agent.hub.alerts import ALERTS, Judge, Known, by_agent, hold
from observer_agent.hub.database import insert as upsert
from observer_agent.hub.fencing import Start, classify
from observer_agent.hub.hot import Bulk, Chain, Hot
from observer_agent.hub.machines import unpack
from observer_agent.hub.wire import ROW_ID_MAX, Code, Heartbeat, PushSequence, Reject, Row

UNMANAGED = "unmanaged"
UNMANAGED_MAX = 10_000


class Taken(NamedTuple):
    """What became of a push: rows stored now, rows that had been taken before, rows refused."""

    stored: int
    duplicates: int
    rejects: Sequence[Reject]


class Fenced(NamedTuple):
    """The push came from an older process; `newer` is the owner's start, in seconds since 1970."""

    newer: float


class Push(NamedTuple):
    """One push: the start time of who sent it, its good rows, their row ids."""

    started: float | None
    rows: Sequence[Row]
    sequence: PushSequence | None


class Intake:
    """See the module."""

    def __init__(self, clock: Clock, judge: Judge) -> None:
        self._clock = clock
        self._judge = judge

    def glance(self, conn: Connection, agent_id: str, started: float | None) -> Start:
        """The class of a start time as it is known; nothing is kept."""
        return classify(_KNOWN(conn, {"agent": agent_id}).scalar(), started, self._clock.now())

    def fence(self, conn: Connection, agent_id: str, started: float | None) -> tuple[Start, float | None]:
        """The class of a start time, with its traces kept, and the newest one known before."""
        known = _HELD(conn, {"agent": agent_id}).scalar()
        return self._mark(conn, agent_id, started, known), known

    def beat(self, conn: Connection, agent_id: str, started: float | None, heartbeat: Heartbeat) -> Start:
        """Keeps the facts of a heartbeat and moves the alert machines; one of an older process only leaves its mark."""
        held = hold(conn, agent_id)
        start = self._mark(conn, agent_id, started, held.started_at if held else None)
        if held is None or start is Start.STALE:
            return start
        now, queue = self._clock.now(), (heartbeat.queue_depth, heartbeat.queue_oldest_age_seconds)
        before = unpack(held.minute_newest, bytes(held.minute_bits or b""), held.minute_first)
        minutes = before.beat(now)
        facts = _facts(heartbeat, now)
        facts |= {"minute_newest": minutes.newest, "minute_bits": minutes.pack(), "minute_first": minutes.first}
        told: list[Mapping[str, Any]] = [{"agent": agent_id, **facts}, _ledgers(agent_id, heartbeat, now)]
        if minutes == before:
            found = _BEAT(conn, *told)
        else:
            found = _MINUTE(conn, *told, beats.point(agent_id, now, queue))
            beats.tidy(conn, agent_id, now)
        same = {name: facts[name] for name in Known._fields if name in facts}
        held = held._replace(**same, started_at=started if start in _NEW else held.started_at)
        self._judge.heard(conn, held, by_agent(found).get(agent_id, {}), now)
        return start

    def take(self, conn: Connection, agent_id: str, push: Push) -> Taken | Fenced:
        """Stores the rows of a push that were not taken before; nothing of one from an older process."""
        start, known = self.fence(conn, agent_id, push.started)
        if start is Start.STALE and known is not None:
            return Fenced(known)
        around = _ranges_around(conn, agent_id, push.sequence)
        fresh = _not_taken(push.rows, push.sequence, around)
        duplicates = len(push.rows) - len(fresh)
        found = statuses.standing(conn, agent_id, {row.metric_id for row in fresh}) if fresh else {}
        fresh, rejects = self._admit(conn, fresh, {name for name, each in found.items() if each.listed})
        totals = {"agent": agent_id, "stored": len(fresh), "doubled": duplicates}
        if fresh:
            now = self._clock.now()
            longer = _keep_ranges(conn, agent_id, push.sequence, around, fresh)
            newest = _newest(conn, agent_id, fresh, found, now)
            _TAKE(conn, _columns(agent_id, fresh, push.sequence, now), newest, longer, totals)
        elif push.rows:
            _TOTALS(conn, totals)
        return Taken(len(fresh), duplicates, rejects)

    def _mark(self, conn: Connection, agent_id: str, started: float | None, known: float | None) -> Start:
        """Keeps the traces of a start time; the agent's row is held."""
        start = classify(known, started, self._clock.now())
        agents = schema.agents
        traces: dict[str, Any] = {}
        if start is Start.FIRST:
            traces = {"started_at": started}
        elif start is Start.RESTART:
            traces = {"started_at": started, "restarts": agents.c.restarts + 1}
        elif start is Start.STALE:
            traces = {"duplicate_seen_at": self._clock.now()}
        if traces:
            conn.execute(update(agents).where(agents.c.id == agent_id).values(**traces))
        if start is Start.STALE:
            self._judge.seen_double(conn, agent_id, self._clock.now())
        return start

    def _admit(self, conn: Connection, rows: list[Row], known: set[str]) -> tuple[list[Row], list[Reject]]:
        """Lists metrics nobody has defined as unmanaged, up to a bound; rows beyond it are refused."""
        metrics = schema.metrics
        fresh = [name for name in dict.fromkeys(row.metric_id for row in rows) if name not in known]
        if not fresh:
            return rows, []
        count = conn.scalar(select(func.count()).select_from(metrics).where(metrics.c.managed.is_(False))) or 0
        fresh = fresh[: max(0, UNMANAGED_MAX - count)]
        if fresh:
            now = self._clock.now()
            # In the order of their ids: two agents that bring the same new ones must not wait for one another.
            listed = [{"id": n, "source_type": UNMANAGED, "managed": False, "created_at": now} for n in sorted(fresh)]
            conn.execute(upsert(conn, metrics).on_conflict_do_nothing(), listed)
        known.update(fresh)
        refused = [Reject(r.at, "metric_id", Code.TOO_MANY_METRICS) for r in rows if r.metric_id not in known]
        return [row for row in rows if row.metric_id in known], refused


# -- a push


def _ranges_around(conn: Connection, agent_id: str, sequence: PushSequence | None) -> list[ranges.Range]:
    """The taken ranges that touch the ids of this push."""
    if sequence is None:
        return []
    ids = sequence.ids
    span = {"from": ids[0] - 1, "to": min(ids[-1] + 1, ROW_ID_MAX)}
    rows = _AROUND(conn, {"agent": agent_id, "queue": sequence.queue_id, **span})
    return [(row.first_id, row.last_id) for row in rows]


def _not_taken(rows: Sequence[Row], sequence: PushSequence | None, around: Sequence[ranges.Range]) -> list[Row]:
    """The rows whose ids lie in none of the ranges; most pushes only touch the end of one."""
    if sequence is None or all(last < sequence.ids[0] for _, last in around):
        return list(rows)
    return [row for row in rows if not ranges.covers(around, sequence.ids[row.at])]


def _keep_ranges(
    conn: Connection, agent_id: str, sequence: PushSequence | None, around: Sequence[ranges.Range], rows: Sequence[Row]
) -> dict[str, Any]:
    """Keeps which ids were taken. Nearly always a range gets longer: that is left to do, as what is returned says."""
    here = {"agent": agent_id, "queue": sequence.queue_id if sequence else ""}
    nothing = {**here, "first": -1, "last": -1}
    if sequence is None:
        return nothing
    merged = ranges.merge(around, (sequence.ids[row.at] for row in rows))
    if len(around) == len(merged) == 1 and around[0][0] == merged[0][0]:
        return {**here, "first": merged[0][0], "last": merged[0][1]}
    for first, _ in around:
        _FORGET(conn, {**here, "first": first})
    first_ids, last_ids = zip(*merged, strict=True)
    ours = {"agent_id": agent_id, "queue_id": sequence.queue_id}
    _RANGES(conn, {**ours, "first_id": first_ids, "last_id": last_ids})
    return nothing


def _newest(
    conn: Connection, agent_id: str, rows: Sequence[Row], found: Mapping[str, statuses.Standing], now: float
) -> dict[str, Any]:
    """The last row of each metric, where it is not older than what was known; what it says of the status is kept."""
    newest = {row.metric_id: row for row in rows}
    # In the order of their keys, as everybody writes them.
    last = [(newest[name]._asdict(), found[name]) for name in sorted(newest)]
    current = statuses.heard(conn, agent_id, last, now)
    return {"agent_id": agent_id, "received_at": now, **_LATEST.columns(current)}


def _columns(agent_id: str, rows: Sequence[Row], sequence: PushSequence | None, now: float) -> dict[str, Any]:
    """The rows as the table of pushes has them."""
    _, names, values, stamps, states, reasons = zip(*rows, strict=True)
    return {
        "agent_id": agent_id,
        "queue_id": sequence.queue_id if sequence else None,
        "received_at": now,
        "metric_id": names,
        "value": values,
        "timestamp": stamps,
        "status": states,
        "reason": reasons,
        "row_id": [sequence.ids[row.at] for row in rows] if sequence else [None] * len(rows),
    }


# -- a heartbeat


def _facts(heartbeat: Heartbeat, now: float) -> dict[str, Any]:
    facts = {
        "source_types_active": heartbeat.source_types_active,
        "custom_probes": heartbeat.custom_probes,
        "build": heartbeat.build,
    }
    return {
        "last_heartbeat_at": now,
        "version": heartbeat.version,
        "hostname": heartbeat.hostname,
        "uptime_seconds": heartbeat.uptime_seconds,
        "queue_depth": heartbeat.queue_depth,
        "queue_oldest_age_seconds": heartbeat.queue_oldest_age_seconds,
        "queue_capacity": heartbeat.queue_capacity,
        "facts": json.dumps(facts),
    }


def _ledgers(agent_id: str, heartbeat: Heartbeat, now: float) -> dict[str, Any]:
    """The last report of each queue id, as later comparisons need it."""
    last = {each.queue_id: each for each in heartbeat.delivery}.values()
    rows = [{**each._asdict(), "lost": json.dumps(dict(each.lost))} for each in last]
    return {"agent_id": agent_id, "reported_at": now, **_LEDGERS.columns(rows)}


# -- statements

_NEW = (Start.FIRST, Start.RESTART)
_AGENT, _TAKEN = schema.agents.c, schema.taken.c
_ONE = _AGENT.id == bindparam("agent")
_KNOWN = Hot(select(_AGENT.started_at).where(_ONE))
_HELD = Hot(select(_AGENT.started_at).where(_ONE).with_for_update())
_HERE = and_(_TAKEN.agent_id == bindparam("agent"), _TAKEN.queue_id == bindparam("queue"))
_AROUND = Hot(
    select(_TAKEN.first_id, _TAKEN.last_id).where(
        _HERE, _TAKEN.last_id >= bindparam("from"), _TAKEN.first_id <= bindparam("to")
    )
)
_LONGER = Hot(
    update(schema.taken).where(_HERE, _TAKEN.first_id == bindparam("first")).values(last_id=bindparam("last"))
)
_FORGET = Hot(delete(schema.taken).where(_HERE, _TAKEN.first_id == bindparam("first")))
_RANGES = Bulk(schema.taken, ("first_id", "last_id"), shared=("agent_id", "queue_id"))
_PUSHES = Bulk(
    schema.pushes,
    ("metric_id", "value", "timestamp", "status", "reason", "row_id"),
    shared=("agent_id", "queue_id", "received_at"),
)
_LATEST = Bulk(
    schema.latest,
    ("metric_id", "value", "timestamp", "status", "reason"),
    shared=("agent_id", "received_at"),
    keys=("metric_id", "agent_id"),
)
_TOTALS = Hot(
    update(schema.agents)
    .where(_ONE)
    .values(taken=_AGENT.taken + bindparam("stored"), duplicates=_AGENT.duplicates + bindparam("doubled"))
)
_TAKE = Chain(_PUSHES, _LATEST, _LONGER, _TOTALS)
_FACTS = (
    "last_heartbeat_at version hostname uptime_seconds queue_depth queue_oldest_age_seconds queue_capacity facts "
    "minute_newest minute_bits minute_first"
).split()
_UPDATE = Hot(update(schema.agents).where(_ONE).values({name: bindparam(name) for name in _FACTS}))
_LEDGERS = Bulk(
    schema.deliveries,
    ("queue_id", "given", "accepted", "pending", "lost"),
    shared=("agent_id", "reported_at"),
    keys=("agent_id", "queue_id"),
)
_BEAT = Chain(_UPDATE, _LEDGERS, look=ALERTS)
_MINUTE = Chain(_UPDATE, _LEDGERS, beats.POINT, look=ALERTS)
