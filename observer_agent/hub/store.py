"""Everything that is written, each in one transaction, and the few looks that a request needs before it writes.

Rows, ranges of taken ids and totals change together or not at all, before the answer goes out. Runs on the threads of
the server; `Database` lets one of them write at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, bindparam, delete, func, insert, select, text, update

from observer_agent.clock import Clock
from observer_agent.hub import beats, ranges, schema, statuses
from observer_agent.hub.alerts import Judge
from observer_agent.hub.database import DIALECTS, POSTGRESQL, Database
from observer_agent.hub.database import insert as upsert
from observer_agent.hub.fencing import Start, classify
from observer_agent.hub.keys import Agent as Agent
from observer_agent.hub.keys import Keys
from observer_agent.hub.keys import digest as digest
from observer_agent.hub.partitions import Partitions
from observer_agent.hub.wire import Code, Heartbeat, Ledger, PushSequence, Reject, Row

UNMANAGED = "unmanaged"
UNMANAGED_MAX = 10_000
NO_PROBE = "manual"
REVISION = "definitions_revision"


class Taken(NamedTuple):
    """What became of a push: rows stored now, rows that had been taken before, rows refused."""

    stored: int
    duplicates: int
    rejects: Sequence[Reject]


class Fenced(NamedTuple):
    """The push came from an older process; `newer` is the owner's start, in seconds since 1970."""

    newer: float


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
        self.keys = Keys(database, clock)
        self.partitions = Partitions(database)

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
        with self.database.read() as conn:
            start, _ = self._classify(conn.scalar(_KNOWN, {"agent": agent.id}), started)
        if start in (Start.SAME, Start.UNKNOWN):
            return start
        return self.database.run(lambda conn: self._fence(conn, agent.id, started)[0])

    def take(
        self, agent: Agent, started: float | None, rows: Sequence[Row], sequence: PushSequence | None
    ) -> Taken | Fenced:
        """Stores the rows that were not taken before; nothing of a push from an older process."""
        self.partitions.ensure(self._clock.now())
        return self.database.run(lambda conn: self._take(conn, agent.id, (started, sequence), rows))

    def beat(self, agent: Agent, started: float | None, heartbeat: Heartbeat) -> Start:
        """Keeps a heartbeat; that of an older process changes nothing but the duplicate flag."""

        def job(conn: Connection) -> Start:
            start, _ = self._fence(conn, agent.id, started)
            if start is not Start.STALE:
                now = self._clock.now()
                agents = schema.agents
                conn.execute(update(agents).where(agents.c.id == agent.id).values(**_facts(heartbeat, now)))
                _keep_ledgers(conn, agent.id, heartbeat.delivery, now)
                beats.note(conn, agent.id, now, (heartbeat.queue_depth, heartbeat.queue_oldest_age_seconds))
                self.judge.heard(conn, agent.id, now)
            return start

        return self.database.run(job)

    # -- definitions

    def apply(self, wanted: Iterable[Managed]) -> bool:
        """Inserts or updates metrics by key, leaves others alone; says whether anything changed."""
        with self.database.write() as conn:
            bump(conn, 0)  # two that apply at once do so one after the other
            changed = sum(self.put(conn, metric) for metric in wanted)
            if changed:
                bump(conn, 1)
        return changed > 0

    def put(self, conn: Connection, metric: Managed) -> bool:
        """Inserts or updates one metric inside a transaction that holds the revision; says whether it changed."""
        metrics = schema.metrics
        values = {
            "key": metric.key,
            "title": metric.title,
            "source_type": metric.definition["source_type"],
            "agents": json.dumps(metric.agents),
            "definition": json.dumps(metric.definition, sort_keys=True, allow_nan=False),
            "managed": True,
        }
        found = conn.execute(select(metrics).where(metrics.c.id == metric.definition["id"])).mappings().first()
        if found is not None and values.items() <= dict(found).items():
            return False
        moved = (metrics.c.key == metric.key) & (metrics.c.id != metric.definition["id"])
        conn.execute(update(metrics).where(moved).values(key=None, managed=False, source_type=UNMANAGED))
        fresh = {"id": metric.definition["id"], "created_at": self._clock.now(), **values}
        conn.execute(upsert(conn, metrics).values(fresh).on_conflict_do_update(index_elements=["id"], set_=values))
        return True

    # -- inside a transaction

    def _take(
        self,
        conn: Connection,
        agent_id: str,
        origin: tuple[float | None, PushSequence | None],
        rows: Sequence[Row],
    ) -> Taken | Fenced:
        started, sequence = origin
        start, known = self._fence(conn, agent_id, started)
        if start is Start.STALE and known is not None:
            return Fenced(known)
        around = _ranges_around(conn, agent_id, sequence)
        fresh = [r for r in rows if not (sequence and ranges.covers(around, sequence.ids[r.at]))]
        duplicates = len(rows) - len(fresh)
        fresh, rejects = self._admit(conn, fresh)
        if fresh:
            self._insert(conn, agent_id, fresh, sequence)
        if fresh and sequence:
            _keep_ranges(conn, agent_id, sequence, around, fresh)
        if rows:
            _count(conn, agent_id, len(fresh), duplicates)
        return Taken(len(fresh), duplicates, rejects)

    def _classify(self, known: float | None, started: float | None) -> tuple[Start, float | None]:
        return classify(known, started, self._clock.now()), known

    def _fence(self, conn: Connection, agent_id: str, started: float | None) -> tuple[Start, float | None]:
        """The class of a start time, with its traces kept, and the newest one known before.

        Comes first in its transaction, because it holds the agent's row: pushes and heartbeats of one agent that
        arrive at several hub processes go one after the other.
        """
        start, known = self._classify(conn.scalar(_HELD, {"agent": agent_id}), started)
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
            self.judge.seen_double(conn, agent_id, self._clock.now())
        return start, known

    def _admit(self, conn: Connection, rows: list[Row]) -> tuple[list[Row], list[Reject]]:
        """Lists metrics nobody has defined as unmanaged, up to a bound; rows beyond it are refused."""
        metrics = schema.metrics
        known = set(conn.scalars(_LISTED, {"ids": list({row.metric_id for row in rows})}))
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

    def _insert(self, conn: Connection, agent_id: str, rows: Sequence[Row], sequence: PushSequence | None) -> None:
        now = self._clock.now()
        queue_id = sequence.queue_id if sequence else None
        values = [
            {
                "metric_id": row.metric_id,
                "agent_id": agent_id,
                "value": row.value,
                "timestamp": row.timestamp,
                "status": row.status,
                "reason": row.reason,
                "received_at": now,
            }
            for row in rows
        ]
        ids = [sequence.ids[row.at] if sequence else None for row in rows]
        history = [{**each, "queue_id": queue_id, "row_id": row_id} for each, row_id in zip(values, ids, strict=True)]
        if conn.dialect.name == POSTGRESQL:
            names = list(history[0])
            conn.execute(_UNNEST, {name: [each[name] for each in history] for name in names})
        else:
            conn.execute(insert(schema.pushes), history)
        newest = {each["metric_id"]: each for each in values}
        current = statuses.heard(conn, agent_id, list(newest.values()), now)
        if current:
            conn.execute(_NEWEST[conn.dialect.name], current)


def _replacing(table: Table, keys: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """For each dialect: insert, or replace `names` where a row with the same `keys` stands."""
    fresh = {name: dialect.insert(table) for name, dialect in DIALECTS.items()}
    return {
        name: each.on_conflict_do_update(index_elements=list(keys), set_={n: each.excluded[n] for n in names})
        for name, each in fresh.items()
    }


def bump(conn: Connection, by: int) -> None:
    """Moves the revision of the definitions; its row is held until the transaction ends."""
    counters = schema.counters
    fresh = upsert(conn, counters).values(name=REVISION, n=by)
    conn.execute(fresh.on_conflict_do_update(index_elements=["name"], set_={"n": counters.c.n + by}))


_NEWEST = _replacing(
    schema.latest, ("metric_id", "agent_id"), ("value", "timestamp", "status", "reason", "received_at")
)
_LEDGER = _replacing(
    schema.deliveries, ("agent_id", "queue_id"), ("given", "accepted", "pending", "lost", "reported_at")
)
_KNOWN = select(schema.agents.c.started_at).where(schema.agents.c.id == bindparam("agent"))
_HELD = _KNOWN.with_for_update()
# One statement with an array for each column: several times as fast as a row each.
_UNNEST = text(
    "INSERT INTO pushes (metric_id, agent_id, value, timestamp, status, reason, received_at, queue_id, row_id) "
    "SELECT * FROM unnest(CAST(:metric_id AS text[]), CAST(:agent_id AS text[]), CAST(:value AS float8[]), "
    "CAST(:timestamp AS float8[]), CAST(:status AS text[]), CAST(:reason AS text[]), CAST(:received_at AS float8[]), "
    "CAST(:queue_id AS text[]), CAST(:row_id AS int8[]))"
)
_FORGET = delete(schema.taken).where(
    schema.taken.c.agent_id == bindparam("agent"),
    schema.taken.c.queue_id == bindparam("queue"),
    schema.taken.c.first_id == bindparam("first"),
)
_TOTALS = (
    update(schema.agents)
    .where(schema.agents.c.id == bindparam("agent"))
    .values(
        taken=schema.agents.c.taken + bindparam("stored"),
        duplicates=schema.agents.c.duplicates + bindparam("doubled"),
    )
)
_LISTED = select(schema.metrics.c.id).where(schema.metrics.c.id.in_(bindparam("ids", expanding=True)))


def _ranges_around(conn: Connection, agent_id: str, sequence: PushSequence | None) -> list[ranges.Range]:
    """The taken ranges that touch the ids of this push."""
    if sequence is None:
        return []
    taken = schema.taken
    query = select(taken.c.first_id, taken.c.last_id).where(
        taken.c.agent_id == agent_id,
        taken.c.queue_id == sequence.queue_id,
        taken.c.last_id >= sequence.ids[0] - 1,
        taken.c.first_id <= min(sequence.ids[-1] + 1, 2**63 - 1),
    )
    return [(first, last) for first, last in conn.execute(query)]


def _keep_ranges(
    conn: Connection, agent_id: str, sequence: PushSequence, around: Sequence[ranges.Range], rows: Sequence[Row]
) -> None:
    merged = ranges.merge(around, (sequence.ids[row.at] for row in rows))
    here = {"agent_id": agent_id, "queue_id": sequence.queue_id}
    if around:
        conn.execute(_FORGET, [{"agent": agent_id, "queue": sequence.queue_id, "first": first} for first, _ in around])
    conn.execute(insert(schema.taken), [{**here, "first_id": first, "last_id": last} for first, last in merged])


def _count(conn: Connection, agent_id: str, stored: int, duplicates: int) -> None:
    conn.execute(_TOTALS, {"agent": agent_id, "stored": stored, "doubled": duplicates})


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


def _keep_ledgers(conn: Connection, agent_id: str, ledgers: Sequence[Ledger], now: float) -> None:
    """The last report of each queue id, as later comparisons need it."""
    rows = [
        {**each._asdict(), "lost": json.dumps(dict(each.lost)), "agent_id": agent_id, "reported_at": now}
        for each in {each.queue_id: each for each in ledgers}.values()
    ]
    if rows:
        conn.execute(_LEDGER[conn.dialect.name], rows)
