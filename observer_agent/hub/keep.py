"""Retention: what has grown old is deleted in small bites, each a transaction of its own.

Called by the worker `roll`. Rows go through `drop_before`, which knows how the table is parted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, Table, and_, bindparam, delete, select

from observer_agent.hub import beats, schema
from observer_agent.hub.database import Database
from observer_agent.hub.partitions import drop_before

BITE = 5000
_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Keep:
    """For how long each is kept, in seconds."""

    rows: float = 30 * _DAY
    hours: float = 400 * _DAY
    days: float = 1826 * _DAY
    events: float = 400 * _DAY


def forget(database: Database, keep: Keep, now: float, rolled: int) -> int:
    """Deletes one bite of each; returns how much went, 0 when nothing is left to do.

    `rolled` is the id of the last row that was rolled up.
    """
    gone = drop_before(database, _cutoff(database, now - keep.rows, rolled))
    for table, age in ((schema.hours, keep.hours), (schema.days, keep.days)):
        with database.write() as conn:
            gone += _forget_sums(conn, table, now - age)
    gone += database.run(lambda conn: beats.forget(conn, now))
    return gone + database.run(lambda conn: _forget_events(conn, now - keep.events))


def _cutoff(database: Database, before: float, rolled: int) -> float:
    """Rows never go before they were rolled up."""
    pushes = schema.pushes
    with database.read() as conn:
        waiting = conn.scalar(select(pushes.c.received_at).where(pushes.c.id > rolled).order_by(pushes.c.id).limit(1))
    return before if waiting is None else min(before, waiting)


def _forget_events(conn: Connection, before: float) -> int:
    """Events go with what was to be told of them, sent or not, and the attempts of that."""
    events, outbox, attempts = schema.events, schema.outbox, schema.attempts
    oldest = conn.execute(select(events.c.id, events.c.occurred_at).order_by(events.c.id).limit(BITE))
    old = [row.id for row in oldest if row.occurred_at < before]
    if old:
        # Named by what holds of them, not one by one: the outbox has no index for that and is read once a bite.
        going = select(events.c.event_id).where(events.c.id <= max(old), events.c.occurred_at < before)
        told = list(conn.scalars(select(outbox.c.id).where(outbox.c.event_id.in_(going))))
        _drop(conn, attempts.c.outbox_id, told)
        _drop(conn, outbox.c.id, told)
        _drop(conn, events.c.id, old)
    return len(old)


def _drop(conn: Connection, column: Column[int], values: Sequence[int]) -> None:
    if values:
        conn.execute(delete(column.table).where(column == bindparam("gone")), [{"gone": each} for each in values])


def _forget_sums(conn: Connection, table: Table, before: float) -> int:
    keys = list(table.primary_key)
    old = conn.execute(select(*keys).where(table.c.start < before).order_by(table.c.start).limit(BITE)).all()
    here = and_(*(key == bindparam(f"old_{key.name}") for key in keys))
    gone: list[dict[str, Any]] = [{f"old_{key.name}": row[n] for n, key in enumerate(keys)} for row in old]
    if gone:
        conn.execute(delete(table).where(here), gone)
    return len(gone)
