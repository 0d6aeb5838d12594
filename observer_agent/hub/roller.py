"""Rolls verdicts up into hours and days and forgets what is old, on the worker `roll` of one hub process at a time.

The table of pushes is walked by id. Each step is one transaction that also moves the cursor, so that a step counts once
however often a process dies. A row that is older than what was rolled takes its metric and agent back to the beginning
of that day, and the rows since are rolled anew. A verdict is of the moment on its stamp, at the latest of the moment it
came.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice, takewhile
from typing import Any

from sqlalchemy import Connection, Row, Table, delete, insert, select, update

from observer_agent.clock import Clock
from observer_agent.hub import schema
from observer_agent.hub.database import Database
from observer_agent.hub.database import insert as upsert
from observer_agent.hub.horizon import Horizon
from observer_agent.hub.keep import Keep, forget
from observer_agent.hub.lease import Lease
from observer_agent.hub.pushed import first_id, moment
from observer_agent.hub.rollup import DAY, HOUR, Held, Seen, Sums, floor, fold, patience, roll
from observer_agent.model import Status

CURSOR = "rolled_up"
ROWS = 2000
CHUNK = 500
PAUSE = 10.0
SETTLED = 10.0  # seconds; besides the horizon, for who has an id and no transaction number yet
LEASE_SECONDS = 60.0
FORGET_EVERY = 300.0
BREATH = 0.05  # between two bites, for those who wait to write

_FIELDS = tuple(each.name for each in fields(Sums))

Pair = tuple[str, str]
Buckets = dict[int, Sums]


@dataclass(slots=True)
class Change:
    """What one step makes of one metric and agent: hours and days as they shall stand, and what holds at the end.

    `anew` is the day from which on everything that stood there goes first.
    """

    pair: Pair
    hours: Buckets
    held: Held
    anew: int | None = None
    days: Buckets = field(init=False)

    def __post_init__(self) -> None:
        self.days = fold(self.hours)


class Roller:
    """See the module; one thread calls `step`."""

    def __init__(self, database: Database, clock: Clock, keep: Keep | None = None) -> None:
        self._database = database
        self._clock = clock
        self._keep = keep or Keep()
        self._lease = Lease(database, "roll", LEASE_SECONDS)
        self._horizon = Horizon(database)
        self._forgotten_at: float | None = None

    def step(self) -> float:
        """One bite; returns the seconds until the next."""
        if not self._lease.take(self._clock.now()):
            return PAUSE
        if self.roll() == ROWS:
            return BREATH
        return self._forget()

    def stop(self) -> None:
        """Lets another process go on at once."""
        self._lease.release()

    def roll(self) -> int:
        """Rolls up to `ROWS` rows up; returns how many there were."""
        now, complete = self._clock.now(), self._horizon.id()
        with self._database.read() as conn:
            cursor = _cursor(conn)
            rows = [row for row in _settled(conn, cursor or 0, now) if row.id <= complete]
            changes = list(_Step(conn, rows, now - self._keep.rows).changes()) if rows else []
        if rows:
            with self._database.write() as conn:
                if _move(conn, cursor, rows[-1].id):
                    _write(conn, changes)
        return len(rows)

    def _forget(self) -> float:
        now = self._clock.monotonic()
        if self._forgotten_at is not None and now - self._forgotten_at < FORGET_EVERY:
            return PAUSE
        with self._database.read() as conn:
            cursor = _cursor(conn)
        if forget(self._database, self._keep, self._clock.now(), cursor or 0):
            return BREATH
        self._forgotten_at = now
        return PAUSE


class _Step:
    """One batch of rows against what was rolled before; reads only."""

    def __init__(self, conn: Connection, rows: Sequence[Row[Any]], oldest: float) -> None:
        self._conn = conn
        self._oldest = oldest
        self._last_id = rows[-1].id
        self._rows: dict[Pair, list[Seen]] = {}
        for row in rows:
            self._rows.setdefault((row.metric_id, row.agent_id), []).append(_seen(row))
        self._waits = _waits(conn, {metric_id for metric_id, _ in self._rows})

    def changes(self) -> Iterator[Change]:
        """What becomes of every metric and agent of the batch."""
        rolled = {
            _pair(r): Held(r.timestamp, r.status, r.timestamp) for r in _of(self._conn, schema.rolled, self._rows)
        }
        further: list[Change] = []
        for pair, rows in self._rows.items():
            rows.sort(key=lambda row: row.at)
            held = rolled.get(pair)
            if held is not None:
                rows = [row for row in rows if row.at >= held.at or self._can_return(pair, row.at)]
            if rows and (held is None or rows[0].at >= held.at):
                further.append(self._further(pair, held, rows))
            elif rows:
                yield self._anew(pair, floor(rows[0].at, DAY))
        self._add_what_stood(further, rolled)
        yield from further

    def _further(self, pair: Pair, held: Held | None, rows: Sequence[Seen]) -> Change:
        wait = self._waits[pair[0]]
        before = held and Held(held.at, held.status, held.at + wait)
        hours, after = roll(before, rows, wait)
        assert after is not None
        return Change(pair, hours, after)

    def _can_return(self, pair: Pair, at: float) -> bool:
        """Whether the rows of that day are all here still."""
        return floor(at, DAY) - self._waits[pair[0]] >= self._oldest

    def _anew(self, pair: Pair, begin: int) -> Change:
        wait = self._waits[pair[0]]
        rows = _rows_since(self._conn, pair, begin - wait, self._last_id)
        earlier = [row for row in rows if row.at < begin]
        held = self._held_at(pair, begin, earlier[-1] if earlier else None)
        hours, after = roll(held, [row for row in rows if row.at >= begin], wait)
        assert after is not None
        return Change(pair, hours, after, begin)

    def _held_at(self, pair: Pair, begin: int, last: Seen | None) -> Held | None:
        """What held as a day began: unknown where something was heard long before, None where nothing was."""
        if last is not None:
            return Held(begin, last.status, last.at + self._waits[pair[0]])
        hours = schema.hours
        here = (hours.c.metric_id == pair[0], hours.c.agent_id == pair[1], hours.c.start < begin)
        before = self._conn.scalar(select(hours.c.start).where(*here).limit(1))
        return None if before is None else Held(begin, Status.NO_DATA, begin)

    def _add_what_stood(self, changes: Sequence[Change], rolled: Mapping[Pair, Held]) -> None:
        """The hour and the day of the last row before have begun already."""
        by_pair = {each.pair: each for each in changes if each.pair in rolled}
        for table, size in ((schema.hours, HOUR), (schema.days, DAY)):
            starts = {pair: floor(rolled[pair].at, size) for pair in by_pair}
            for row in _of(self._conn, table, by_pair, set(starts.values())):
                if starts[_pair(row)] == row.start:
                    change = by_pair[_pair(row)]
                    target = change.hours if size == HOUR else change.days
                    target.setdefault(row.start, Sums()).merge(sums_of(row))


def sums_of(row: Row[Any]) -> Sums:
    """A whole row of `hours` or `days`: after its key come the fields of `Sums`, in their order."""
    return Sums(*row[3:])


def _pair(row: Row[Any]) -> Pair:
    return row.metric_id, row.agent_id


def _seen(row: Row[Any]) -> Seen:
    return Seen(moment(row), row.status, None if row.status == Status.NO_DATA else row.value)


def _settled(conn: Connection, cursor: int, now: float) -> Sequence[Row[Any]]:
    pushes = schema.pushes
    rows = conn.execute(select(pushes).where(pushes.c.id > cursor).order_by(pushes.c.id).limit(ROWS))
    return list(takewhile(lambda row: abs(now - row.received_at) >= SETTLED, rows))


def _rows_since(conn: Connection, pair: Pair, since: float, last_id: int) -> list[Seen]:
    """The rows of a metric and agent from an instant on, in the order of time."""
    pushes = schema.pushes
    query = select(pushes).where(
        pushes.c.metric_id == pair[0],
        pushes.c.agent_id == pair[1],
        pushes.c.id.between(first_id(conn, since), last_id),
    )
    found = [_seen(row) for row in conn.execute(query.order_by(pushes.c.id))]
    return sorted((row for row in found if row.at >= since), key=lambda row: row.at)


def _waits(conn: Connection, metric_ids: Iterable[str]) -> dict[str, float]:
    found = dict.fromkeys(metric_ids, patience(0))
    metrics = schema.metrics
    for some in _chunks(found):
        for row in conn.execute(select(metrics.c.id, metrics.c.definition).where(metrics.c.id.in_(some))):
            found[row.id] = patience(json.loads(row.definition).get("interval_agent_push", 0))
    return found


def _of(conn: Connection, table: Table, pairs: Iterable[Pair], starts: Iterable[int] | None = None) -> list[Row[Any]]:
    """The rows of some metrics and agents, at some hours or days where they are named."""
    wanted = set(pairs)
    agents = sorted({agent_id for _, agent_id in wanted})
    query = select(table).where(table.c.agent_id.in_(agents))
    if starts is not None:
        query = query.where(table.c.start.in_(sorted(starts)))
    found: list[Row[Any]] = []
    for some in _chunks({metric_id for metric_id, _ in wanted}):
        found += (row for row in conn.execute(query.where(table.c.metric_id.in_(some))) if _pair(row) in wanted)
    return found


def _chunks(names: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(names)
    while some := list(islice(rest, CHUNK)):
        yield some


def _cursor(conn: Connection, hold: bool = False) -> int | None:
    query = select(schema.counters.c.n).where(schema.counters.c.name == CURSOR)
    found = conn.scalar(query.with_for_update() if hold else query)
    return None if found is None else int(found)


def _move(conn: Connection, cursor: int | None, to: int) -> bool:
    """Moves the cursor; False where another process has moved it meanwhile."""
    counters = schema.counters
    if _cursor(conn, hold=True) != cursor:
        return False
    if cursor is None:
        conn.execute(insert(counters).values(name=CURSOR, n=to))
    else:
        conn.execute(update(counters).where(counters.c.name == CURSOR).values(n=to))
    return True


def _write(conn: Connection, changes: Sequence[Change]) -> None:
    for change in changes:
        if change.anew is not None:
            _clear(conn, change.pair, change.anew)
    for table, of in ((schema.hours, "hours"), (schema.days, "days")):
        rows = [
            {**_names(change.pair), "start": start, **{name: getattr(sums, name) for name in _FIELDS}}
            for change in changes
            for start, sums in getattr(change, of).items()
        ]
        _put(conn, table, rows)
    held = [{**_names(c.pair), "timestamp": c.held.at, "status": c.held.status} for c in changes]
    _put(conn, schema.rolled, held)


def _names(pair: Pair) -> dict[str, str]:
    return {"metric_id": pair[0], "agent_id": pair[1]}


def _clear(conn: Connection, pair: Pair, begin: int) -> None:
    for table in (schema.hours, schema.days):
        here = (table.c.metric_id == pair[0], table.c.agent_id == pair[1], table.c.start >= begin)
        conn.execute(delete(table).where(*here))


def _put(conn: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Inserts rows, or replaces what stands under the same key."""
    if not rows:
        return
    fresh = upsert(conn, table)
    keys = [column.name for column in table.primary_key]
    others = {column.name: fresh.excluded[column.name] for column in table.c if column.name not in keys}
    conn.execute(fresh.on_conflict_do_update(index_elements=keys, set_=others), list(rows))
