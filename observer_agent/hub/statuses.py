"""The effective status of a metric as one agent sees it: a new status counts once it has held for a while.

`judge` is pure: state, status and time in, state out. `heard` runs in the transaction of a push, on the threads of the
server; `tick` on the worker `statuses`, because a status may hold without another push. All instants of a dwell are of
the hub's clock. Whoever changes a state holds the agent's row, so that several hub processes may do so at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, TextClause, select, text

from observer_agent.clock import iso
from observer_agent.hub import schema
from observer_agent.hub.alerts import lock
from observer_agent.hub.database import Database
from observer_agent.hub.events import NO_DATA, STATUS_CHANGED, Event, emit
from observer_agent.hub.hot import Bulk, Hot
from observer_agent.model import Status

WORSE_SECONDS = 60.0
BETTER_SECONDS = 300.0
LAPSE_SECONDS = 900.0  # a candidate that nobody has judged for so long (the hub was down) begins again
_ORDER = (Status.HEALTHY, Status.DEGRADED, Status.UNHEALTHY)


class State(NamedTuple):
    """The status in force and since when; the one that would take its place, and since when it has held."""

    status: str
    since: float
    candidate: str | None = None
    candidate_since: float | None = None


def dwell(old: str, new: str) -> float:
    """How long `new` must hold. To no data is for the worse; from no data only healthy is for the better."""
    if new == Status.HEALTHY:
        return BETTER_SECONDS
    if Status.NO_DATA in (old, new):
        return WORSE_SECONDS
    return WORSE_SECONDS if _ORDER.index(Status(new)) > _ORDER.index(Status(old)) else BETTER_SECONDS


def judge(state: State | None, status: str, now: float) -> State:
    """The state after a verdict at `now`; the first one ever is in force at once."""
    if state is None:
        return State(status, now)
    if status == state.status:
        return State(state.status, state.since)
    began = state.candidate_since if state.candidate == status else None
    if began is None or began > now or now - began > LAPSE_SECONDS:
        began = now
    if now - began >= dwell(state.status, status):
        return State(status, now)
    return State(state.status, state.since, status, began)


class Standing(NamedTuple):
    """What is known of a metric: whether it is listed, its last row of one agent, the status in force there."""

    listed: bool
    timestamp: float | None
    received_at: float | None
    status: str | None
    since: float | None
    candidate: str | None
    candidate_since: float | None


def standing(conn: Connection, agent_id: str, metric_ids: Iterable[str]) -> dict[str, Standing]:
    """What is known of some metrics as one agent sees them."""
    ids = json.dumps(list(metric_ids), ensure_ascii=False)
    rows = _STANDING(conn, {"agent": agent_id, "ids": ids}).all()
    return {row[0]: Standing._make(row[1:]) for row in rows}


def heard(
    conn: Connection, agent_id: str, newest: Sequence[tuple[Mapping[str, Any], Standing]], now: float
) -> list[Mapping[str, Any]]:
    """Judges the last row of each metric of a push, and returns those that are not older than what was known.

    A row that comes late says nothing about now. What is stamped in the future counts as of the moment it came.
    """
    current, moves = [], []
    for row, here in newest:
        if here.timestamp is not None and min(row["timestamp"], now) < min(here.timestamp, here.received_at or now):
            continue
        current.append(row)
        if here.status == row["status"] and here.candidate is None:
            continue  # as it was, which is nearly always so
        before = None if here.status is None else State(*here[3:])  # type: ignore[arg-type]
        after = judge(before, row["status"], now)
        if after != before:
            moves.append((row, before, after))
    _keep(conn, agent_id, moves, now)
    return current


def tick(database: Database, now: float) -> int:
    """Lets candidates that have held long enough come into force; returns how many did."""
    with database.read() as conn:
        waiting = conn.execute(_WAITING).all()
    due = {row.agent_id for row in waiting if _matured(row, now) != _state(row)}
    return sum(_tick_agent(database, agent_id, now) for agent_id in sorted(due))


def _tick_agent(database: Database, agent_id: str, now: float) -> int:
    with database.write() as conn:
        if lock(conn, agent_id, skip=True) is None:
            return 0  # another process has it in hand
        waiting = conn.execute(_WAITING.where(schema.states.c.agent_id == agent_id)).all()
        found = [(row._mapping, _state(row), _matured(row, now)) for row in waiting]
        moves = [move for move in found if move[1] != move[2]]
        _keep(conn, agent_id, moves, now)
        return sum(before.status != after.status for _, before, after in moves)


def _state(row: Row[Any]) -> State:
    return State(row.status, row.since, row.candidate, row.candidate_since)


def _matured(row: Row[Any], now: float) -> State:
    return judge(_state(row), row.candidate, now)


Move = tuple[Any, State | None, State]  # the row that moved it, before, after


def _keep(conn: Connection, agent_id: str, moves: Sequence[Move], now: float) -> None:
    """Writes states, and the events of those whose status in force has changed."""
    if moves:
        rows = [{"metric_id": row["metric_id"], "agent_id": agent_id, **after._asdict()} for row, _, after in moves]
        _STATES.rows(conn, rows)
    for row, before, after in moves:
        if before is not None and before.status != after.status:
            _tell(conn, agent_id, row, (before.status, after.status), now)


def _tell(conn: Connection, agent_id: str, row: Mapping[str, Any], change: tuple[str, str], now: float) -> None:
    metrics, agents = schema.metrics, schema.agents
    metric_id = row["metric_id"]
    named = conn.execute(select(metrics.c.title, metrics.c.key).where(metrics.c.id == metric_id)).first()
    common = {
        "metric_id": metric_id,
        "metric_title": (named and (named.title or named.key)) or metric_id,
        "agent_id": agent_id,
        "agent_name": conn.scalar(select(agents.c.name).where(agents.c.id == agent_id)),
    }
    moment = {"timestamp": iso(row["timestamp"])}
    changed = {**common, "old_status": change[0], "new_status": change[1], "value": row["value"], **moment}
    emit(conn, Event(STATUS_CHANGED, now, changed, agent_id, metric_id))
    if change[1] == Status.NO_DATA:
        emit(conn, Event(NO_DATA, now, {**common, "reason": row["reason"], **moment}, agent_id, metric_id))


_states, _latest = schema.states, schema.latest
_HELD = tuple(_states.c[name] for name in State._fields)
_SAME = (_states.c.metric_id == _latest.c.metric_id) & (_states.c.agent_id == _latest.c.agent_id)
_STATES = Bulk(schema.states, ("metric_id", "agent_id", *State._fields), keys=("metric_id", "agent_id"))


def _standing(wanted: str) -> TextClause:
    """For each of the ids: one look at three tables by their keys."""
    return text(f"""
        SELECT wanted.value, m.id IS NOT NULL, l.timestamp, l.received_at,
            s.status, s.since, s.candidate, s.candidate_since
        FROM {wanted}
        LEFT JOIN metrics m ON m.id = wanted.value
        LEFT JOIN latest l ON l.metric_id = wanted.value AND l.agent_id = :agent
        LEFT JOIN states s ON s.metric_id = wanted.value AND s.agent_id = :agent
    """)


_STANDING = Hot(
    _standing("json_each(:ids) AS wanted"),
    postgresql=_standing("json_array_elements_text(CAST(:ids AS json)) AS wanted(value)"),
)
_WAITING: Select[Any] = (
    select(_states.c.metric_id, _states.c.agent_id, *_HELD, _latest.c.value, _latest.c.timestamp, _latest.c.reason)
    .join(_latest, _SAME)
    .where(_states.c.candidate.is_not(None))
)
