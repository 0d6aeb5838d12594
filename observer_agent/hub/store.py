"""The writing side of the hub: keys, what agents send (`intake.py`), definitions, each in one transaction.

Rows, ranges of taken ids and totals change together or not at all, before the answer goes out. Runs on the threads of
the server; on SQLite `Database` lets one of them write at a time, for all who wait.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import Column, Connection, RowMapping, Select, bindparam, select, update

from observer_agent.clock import Clock
from observer_agent.hub import schema
from observer_agent.hub.alerts import Judge
from observer_agent.hub.database import Database
from observer_agent.hub.database import insert as upsert
from observer_agent.hub.fencing import Start
from observer_agent.hub.hot import Bulk
from observer_agent.hub.intake import UNMANAGED as UNMANAGED
from observer_agent.hub.intake import UNMANAGED_MAX as UNMANAGED_MAX
from observer_agent.hub.intake import Fenced as Fenced
from observer_agent.hub.intake import Intake, Push
from observer_agent.hub.intake import Taken as Taken
from observer_agent.hub.job_store import Jobs
from observer_agent.hub.keys import REVISION as REVISION
from observer_agent.hub.keys import Agent as Agent
from observer_agent.hub.keys import Keys
from observer_agent.hub.keys import digest as digest
from observer_agent.hub.partitions import Partitions
from observer_agent.hub.wire import Heartbeat, PushSequence, Row

CHUNK = 500


@dataclass(frozen=True, slots=True)
class Managed:
    """One metric as a document gives it; `definition` is the wire's object, `agents` names, none for every agent."""

    key: str
    title: str
    agents: tuple[str, ...]
    definition: dict[str, Any]


class Store:
    """The writing side of the hub."""

    def __init__(self, database: Database, clock: Clock, judge: Judge | None = None) -> None:
        self.database = database
        self._clock = clock
        self.judge = judge or Judge()
        self._intake = Intake(clock, self.judge)
        self.keys = Keys(database, clock)
        self.partitions = Partitions(database)
        self.jobs = Jobs(database, clock, self.partitions)

    def now(self) -> float:
        """The hub's wall clock, in seconds since 1970."""
        return self._clock.now()

    # -- keys

    def create_key(self, name: str, actor: str = "cli") -> str:
        """A new agent and its key, shown this once. Raises UsageError."""
        return self.keys.create(name, actor)

    def agent_of(self, key: str) -> Agent | None:
        """The agent whose key this is, None when nobody's."""
        return self.keys.agent_of(key)

    # -- what agents send

    def notice(self, agent: Agent, started: float | None) -> Start:
        """Keeps what a request's start time says, and says it; the common case writes nothing."""
        with self.database.glance() as conn:
            start = self._intake.glance(conn, agent.id, started)
        if start in (Start.SAME, Start.UNKNOWN):
            return start
        return self.database.share(lambda conn: self._intake.fence(conn, agent.id, started)[0])

    def take(
        self, agent: Agent, started: float | None, rows: Sequence[Row], sequence: PushSequence | None
    ) -> Taken | Fenced:
        """Stores the rows that were not taken before; nothing of a push from an older process."""
        self.partitions.ensure(self._clock.now())
        push = Push(started, rows, sequence)
        return self.database.share(lambda conn: self._intake.take(conn, agent.id, push))

    def beat(self, agent: Agent, started: float | None, heartbeat: Heartbeat) -> Start:
        """Keeps a heartbeat; that of an older process changes nothing but the duplicate flag."""
        return self.database.share(lambda conn: self._intake.beat(conn, agent.id, started, heartbeat))

    # -- definitions

    def apply(self, wanted: Iterable[Managed]) -> bool:
        """Inserts or updates metrics by key, leaves others alone; says whether anything changed."""
        with self.database.write() as conn:
            bump(conn, 0)  # two that apply at once do so one after the other
            changed = self.put(conn, list(wanted))
            if changed:
                bump(conn, 1)
        return changed > 0

    def put(self, conn: Connection, wanted: Sequence[Managed]) -> int:
        """Inserts or updates metrics inside a transaction that holds the revision; returns how many changed.

        No two of them have the same key. A few statements however many there are: nobody else writes meanwhile.
        """
        metrics = schema.metrics
        rows = {each.definition["id"]: _row(each) for each in wanted}
        stand = {row["id"]: dict(row) for row in _where(conn, select(metrics), metrics.c.id, rows)}
        changed = {key: row for key, row in rows.items() if not row.items() <= stand.get(key, {}).items()}
        keys = {row["key"]: row["id"] for row in changed.values()}
        named = _where(conn, select(metrics.c.id, metrics.c.key), metrics.c.key, keys)
        moved = [{"moved": row["id"]} for row in named if keys[row["key"]] != row["id"]]
        if moved:
            here = update(metrics).where(metrics.c.id == bindparam("moved"))
            conn.execute(here.values(key=None, managed=False, source_type=UNMANAGED), moved)
        _METRICS(conn, {"created_at": self._clock.now(), "managed": True, **_METRICS.columns(list(changed.values()))})
        return len(changed)


def _row(metric: Managed) -> dict[str, Any]:
    return {
        "id": metric.definition["id"],
        "key": metric.key,
        "title": metric.title,
        "source_type": metric.definition["source_type"],
        "agents": json.dumps(metric.agents),
        "definition": json.dumps(metric.definition, sort_keys=True, allow_nan=False),
        "managed": True,
    }


def _where(conn: Connection, query: Select[Any], column: Column[Any], values: Iterable[str]) -> Iterator[RowMapping]:
    """The rows that have one of the values, asked for a bounded number at a time."""
    rest = iter(values)
    while some := list(islice(rest, CHUNK)):
        yield from conn.execute(query.where(column.in_(some))).mappings()


def bump(conn: Connection, by: int) -> None:
    """Moves the revision of the definitions; its row is held until the transaction ends."""
    counters = schema.counters
    fresh = upsert(conn, counters).values(name=REVISION, n=by)
    conn.execute(fresh.on_conflict_do_update(index_elements=["name"], set_={"n": counters.c.n + by}))


_METRICS = Bulk(
    schema.metrics,
    ("id", "key", "title", "source_type", "agents", "definition"),
    shared=("managed", "created_at"),
    keys=("id",),
    once=("created_at",),
)
