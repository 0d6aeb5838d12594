"""What agents of this dialect send, inside the transaction that keeps it.

Each method is one request: it enters by `door.enter`, which holds the lighthouse's row, and returns the answer's body,
or Refused. Called through `Database.share` on the threads of the server; nothing here raises to undo.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import Connection, bindparam, insert, or_, select, update

from observer_agent.clock import Clock
from observer_agent.hub import database
from observer_agent.hub.database import Database
from observer_agent.hub.hot import Bulk
from observer_agent.hub.lighthouse import door, judge, schema
from observer_agent.hub.lighthouse.checks import wired
from observer_agent.hub.lighthouse.door import Caller, Refused
from observer_agent.hub.lighthouse.samples import Sample
from observer_agent.hub.lighthouse.wire import ROLES, Batch, Beat, Event, Registration, Snapshot

Answer = dict[str, Any]
T = TypeVar("T")
CHUNK = 500
SERIES_MAX = 10_000


class Intake:
    """See the module."""

    def __init__(self, found: Database, clock: Clock) -> None:
        self._database = found
        self._clock = clock

    def whose(self, token: str) -> str | Refused:
        """The id of the lighthouse of a token."""
        return door.whose(self._database, token, self._clock.now())

    def started(self, uptime: int | None) -> float | None:
        """When a process began that runs for so many seconds."""
        return None if uptime is None else self._clock.now() - uptime

    def register(self, caller: Caller, said: Registration) -> Answer | Refused:
        """A process begins: everything it needs to know. It will send how every check is without being asked."""

        def job(conn: Connection, row: Any, now: float) -> Answer:
            several = row.allow_multi_instance or said.runtime == "kubernetes"
            changed = {} if several else judge.heard(conn, row, now)
            if row.resync or changed.get("resync"):
                changed["resync_asked_at"] = now
            about = {"agent_hostname": said.hostname, "agent_version": said.version, "runtime": said.runtime}
            _change(conn, row, {**changed, **about})
            door.describe(conn, caller, agent_version=said.version)
            return {
                "lighthouse_id": row.id,
                "name": row.name,
                "host": row.host or said.hostname or "",
                "paused": row.paused,
                "heartbeat_interval_seconds": row.heartbeat_interval_seconds,
                "flap_protection_threshold": row.flap_protection_threshold,
                "config_etag": row.etag,
                "checks": list(_checks(conn, row.id)),
                **_host_metrics(row),
            }

        return self._do(caller, job, said.runtime)

    def beat(self, caller: Caller, said: Beat) -> Answer | Refused:
        """A process lives; the list of checks goes out where it has another one."""

        def job(conn: Connection, row: Any, now: float) -> Answer:
            facts = {"node_name": said.node_name, "role": said.role, "pod_hostname": said.pod_hostname}
            door.describe(conn, caller, **facts, agent_version=said.version)
            central = said.role != ROLES[1]
            changed: dict[str, Any] = {"agent_version": said.version or row.agent_version} if central else {}
            resync = False
            if central:
                changed |= judge.heard(conn, row, now)
                resync = judge.asks(row, changed, now) and _any_check(conn, row.id)
                _observe(conn, row.id, said)
            if resync:
                changed["resync_asked_at"] = now
            _change(conn, row, changed)
            fresh = {} if said.etag == row.etag else {"checks": list(_checks(conn, row.id))}
            return {
                "config_etag": row.etag,
                "paused": row.paused,
                "flap_protection_threshold": row.flap_protection_threshold,
                "request_full_resync": resync,
                **fresh,
                **_host_metrics(row),
            }

        return self._do(caller, job)

    def events(self, caller: Caller, batch: Batch) -> Answer | Refused:
        """States of checks; `received` are those that were not here before. A check nobody knows has no history."""

        def job(conn: Connection, row: Any, now: float) -> Answer:
            events = sorted(batch.events, key=lambda each: each.observed_ns)
            known = _standing(conn, row.id, {each.check_id for each in events})
            fresh = _new(conn, [each for each in events if each.check_id in known])
            for each in fresh:
                check = known[each.check_id]
                if judge.news(check, each):
                    judge.change(conn, row, check, each, now)
            _keep(conn, row.id, batch.sync_kind, fresh, now)
            _states(conn, known)
            counts = {
                "taken": row.taken + len(fresh),
                "duplicates": row.duplicates + sum(each.check_id in known for each in events) - len(fresh),
            }
            synced = {"resync": False, "resync_asked_at": None} if batch.sync_kind in ("initial", "resync") else {}
            _change(conn, row, {**counts, **synced})
            return {"received": len(fresh)}

        return self._do(caller, job)

    def discoveries(self, caller: Caller, found: Snapshot) -> Answer | Refused:
        """What there is in a cluster; a snapshot is all of it."""

        def job(conn: Connection, row: Any, now: float) -> Answer:
            table = schema.discoveries
            before = conn.scalar(select(table.c.listed).where(table.c.lighthouse_id == row.id))
            merged = {} if found.whole else {_place(each): each for each in json.loads(before or "[]")}
            merged |= {_place(each): each for each in found.items}
            values = {"listed": json.dumps([merged[place] for place in sorted(merged)]), "taken_at": now}
            fresh = database.insert(conn, table).values(lighthouse_id=row.id, **values)
            conn.execute(fresh.on_conflict_do_update(index_elements=["lighthouse_id"], set_=values))
            return {"count": len(found.items)}

        return self._do(caller, job)

    def host_metrics(self, caller: Caller, samples: Sequence[Sample]) -> Answer | Refused:
        """The newest value of each series."""

        def job(conn: Connection, row: Any, now: float) -> Answer | Refused:
            if not row.host_metrics_enabled:
                return Refused(403, "host metrics are off for this lighthouse")
            rows = {found["digest"]: found for each in samples for found in [_series(each)]}
            table = schema.series
            known = set(conn.scalars(select(table.c.digest).where(table.c.lighthouse_id == row.id)))
            if len(known | rows.keys()) > SERIES_MAX:
                return Refused(413, f"a lighthouse has at most {SERIES_MAX} series")
            wanted = [rows[name] for name in sorted(rows)]
            _SERIES(conn, {"lighthouse_id": row.id, **_SERIES.columns(wanted)})
            return {}

        return self._do(caller, job)

    def shutdown(self, caller: Caller, reason: str) -> Answer | Refused:
        """A process ends in order: nobody is to be woken for it."""

        def job(conn: Connection, row: Any, now: float) -> Answer:
            if door.leave(conn, caller, now):
                if row.state == judge.OFFLINE:
                    judge.tell(conn, row, "cleared", now)
                _change(conn, row, {"state": judge.STOPPED, "stop_reason": reason, "changed_at": now})
            return {}

        return self._do(caller, job)

    def _do(
        self, caller: Caller, job: Callable[[Connection, Any, float], T | Refused], runtime: str | None = None
    ) -> T | Refused:
        """A job in a transaction that has let the caller in."""

        def turn(conn: Connection) -> T | Refused:
            now = self._clock.now()
            row = door.enter(conn, caller, now, runtime)
            return row if isinstance(row, Refused) else job(conn, row, now)

        return self._database.share(turn)


# -- reading


def _checks(conn: Connection, lighthouse_id: str) -> Iterator[dict[str, Any]]:
    table = schema.checks
    query = select(table.c.id, table.c.definition).where(table.c.lighthouse_id == lighthouse_id)
    return (wired(row.id, json.loads(row.definition)) for row in conn.execute(query.order_by(table.c.position)))


def _any_check(conn: Connection, lighthouse_id: str) -> bool:
    table = schema.checks
    return conn.scalar(select(table.c.id).where(table.c.lighthouse_id == lighthouse_id).limit(1)) is not None


def _host_metrics(row: Any) -> dict[str, Any]:
    """Absent until somebody has said whether they are wanted."""
    if row.host_metrics_enabled is None:
        return {}
    seconds = row.host_metrics_interval_seconds
    return {"host_metrics": {"enabled": row.host_metrics_enabled, "interval_seconds": seconds}}


def _standing(conn: Connection, lighthouse_id: str, wanted: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What is known of these checks of a lighthouse."""
    table, rest, found = schema.checks, iter(sorted(wanted)), {}
    while some := list(islice(rest, CHUNK)):
        query = select(table).where(table.c.lighthouse_id == lighthouse_id, table.c.id.in_(some))
        for row in conn.execute(query).mappings():
            found[row["id"]] = {**row, "name": json.loads(row["definition"])["name"], "touched": False}
    return found


def _new(conn: Connection, events: Sequence[Event]) -> list[Event]:
    """The events that are not stored yet, each once."""
    table, wanted = schema.events, {(each.check_id, each.observed_ns): each for each in reversed(events)}
    rest = iter(wanted)
    known: set[tuple[str, int]] = set()
    while some := list(islice(rest, CHUNK)):
        ids, stamps = zip(*some, strict=True)
        query = select(table.c.check_id, table.c.observed_ns)
        found = conn.execute(query.where(table.c.check_id.in_(set(ids)), table.c.observed_ns.in_(set(stamps))))
        known.update((row.check_id, row.observed_ns) for row in found)
    return sorted((each for key, each in wanted.items() if key not in known), key=lambda each: each.observed_ns)


# -- writing


def _change(conn: Connection, row: Any, values: dict[str, Any]) -> None:
    if values:
        conn.execute(update(schema.lighthouses).where(schema.lighthouses.c.id == row.id).values(**values))


def _keep(conn: Connection, lighthouse_id: str, sync_kind: str | None, events: Sequence[Event], now: float) -> None:
    same = {"lighthouse_id": lighthouse_id, "sync_kind": sync_kind, "received_at": now}
    if events:
        conn.execute(insert(schema.events), [{**same, **each._asdict()} for each in events])


def _states(conn: Connection, known: dict[str, dict[str, Any]]) -> None:
    names = ("state", "since", "seen_ns", "status_code", "error_message")
    rows = [{"which": each["id"], **{n: each[n] for n in names}} for each in known.values() if each["touched"]]
    if rows:
        table = schema.checks
        values: dict[str, Any] = {name: bindparam(name) for name in names}
        conn.execute(update(table).where(table.c.id == bindparam("which")).values(**values), rows)


def _observe(conn: Connection, lighthouse_id: str, said: Beat) -> None:
    """The latest figures of checks, where they are not older than those that are known."""
    for names, found in (
        (("latency_ms", "latency_at"), said.latencies),
        (("days_to_expiry", "cert_at"), said.expiries),
    ):
        table, (value, at) = schema.checks, names
        rows = [{"which": each, "one": got[0], "two": got[1]} for each, got in sorted(found.items())]
        here = (table.c.lighthouse_id == lighthouse_id, table.c.id == bindparam("which"))
        newer = or_(table.c[at].is_(None), table.c[at] <= bindparam("two"))
        statement = update(table).where(*here, newer).values({value: bindparam("one"), at: bindparam("two")})
        if rows:
            conn.execute(statement, rows)


def _place(item: Any) -> tuple[str, ...]:
    names = ("kind", "namespace", "host", "path", "resource_name")
    return (*(item.get(name, "") for name in names), f"{item.get('port', 0):05d}", item["protocol"])


def _series(sample: Sample) -> dict[str, Any]:
    labels = json.dumps(dict(sample.labels), sort_keys=True)
    digest = hashlib.sha256(f"{sample.name}\n{labels}".encode()).hexdigest()[:32]
    return {"digest": digest, "name": sample.name, "labels": labels, "value": sample.value, "at": sample.at}


_SERIES = Bulk(
    schema.series,
    ("digest", "name", "labels", "value", "at"),
    shared=("lighthouse_id",),
    keys=("lighthouse_id", "digest"),
)
