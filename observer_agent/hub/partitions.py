"""The history of verdicts in parts: on PostgreSQL `pushes` has a partition for each week, by `received_at`.

`ensure` makes the parts of this week and of those to come, before they are needed; `drop_before` lets old ones go,
which costs nothing however many rows they hold. On SQLite, and where an operator has made another kind of table of it,
rows are deleted in slices. Any thread may call, several hub processes at once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Connection, delete, select, text

from observer_agent.hub import schema
from observer_agent.hub.database import POSTGRESQL, Database

log = logging.getLogger(__name__)

WEEK = 7 * 86_400.0
MONDAY = 4 * 86_400.0  # the first one of 1970
AHEAD = 4
SLICE = 5_000
MAKING = 0x0B5E_5EED  # the advisory lock of those who make or drop parts


class Part(NamedTuple):
    """One partition: its name, and the instants from which and up to which it holds rows."""

    name: str
    first: float
    end: float


def part_of(moment: float) -> Part:
    """The part that holds an instant: a week that begins on a Monday, UTC."""
    first = (moment - MONDAY) // WEEK * WEEK + MONDAY
    return Part(f"pushes_{datetime.fromtimestamp(first, UTC):%Y%m%d}", first, first + WEEK)


class Partitions:
    """What one process knows of the parts that are there."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sure: frozenset[str] = frozenset()

    def ensure(self, now: float) -> None:
        """Makes the part for `now` and the next ones where they are missing; mostly there is nothing to do."""
        if self._database.dialect == POSTGRESQL and part_of(now).name not in self._sure:
            with self._database.write() as conn:
                make(conn, now)
            self._sure = self._sure | {part_of(now).name}


def make(conn: Connection, now: float) -> None:
    """Makes the parts for `now` and the next weeks on PostgreSQL, where they are missing and the table has parts."""
    if not _is_partitioned(conn):
        return
    conn.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MAKING})")
    there = {part.name for part in _parts(conn)}
    for part in (part_of(now + n * WEEK) for n in range(AHEAD + 1)):
        if part.name not in there:
            # Attached rather than made in place: that does not wait for those who are writing.
            conn.exec_driver_sql(f"CREATE TABLE {part.name} (LIKE pushes INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
            bounds = f"FOR VALUES FROM ({part.first!r}) TO ({part.end!r})"
            conn.exec_driver_sql(f"ALTER TABLE pushes ATTACH PARTITION {part.name} {bounds}")


def drop_before(database: Database, cutoff: float) -> int:
    """Lets go what was received before `cutoff`, and says how many rows or parts that were; 0 when there is no more.

    Whole parts on PostgreSQL, so rows of the week of `cutoff` stay; elsewhere the oldest rows, a slice in each call.
    """
    with database.read() as conn:
        parted = conn.dialect.name == POSTGRESQL and _is_partitioned(conn)
        old = [part for part in _parts(conn) if part.end <= cutoff] if parted else []
    if not parted:
        return _drop_slice(database, cutoff)
    for part in old:
        with database.write() as conn:
            conn.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MAKING})")
            conn.exec_driver_sql(f"DROP TABLE IF EXISTS {part.name}")
        log.info("The verdicts received in the week before %s are gone", datetime.fromtimestamp(part.end, UTC).date())
    return len(old)


def _drop_slice(database: Database, cutoff: float) -> int:
    """Looks at the oldest rows alone, so that a call is short whatever the table holds."""
    pushes = schema.pushes
    with database.write() as conn:
        oldest = conn.execute(select(pushes.c.id, pushes.c.received_at).order_by(pushes.c.id).limit(SLICE)).all()
        old = [row.id for row in oldest if row.received_at < cutoff]
        if old:
            gone = delete(pushes).where(pushes.c.id <= max(old), pushes.c.received_at < cutoff)
            conn.execute(gone)
    return len(old)


def _is_partitioned(conn: Connection) -> bool:
    if conn.dialect.name != POSTGRESQL:
        return False
    return conn.scalar(text("SELECT relkind = 'p' FROM pg_class WHERE oid = 'pushes'::regclass")) is True


def _parts(conn: Connection) -> Iterator[Part]:
    """The parts that are there and that are ours, by their names."""
    query = "SELECT c.relname FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = 'pushes'::regclass"
    for name in conn.scalars(text(query)).all():
        day = str(name).removeprefix("pushes_")
        if len(day) == 8 and day.isdecimal():
            found = part_of(datetime.strptime(day, "%Y%m%d").replace(tzinfo=UTC).timestamp())
            if found.name == name:
                yield found
