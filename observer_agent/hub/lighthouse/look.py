"""Everything that is read of lighthouses: plain objects for the API, the commands and the console.

The checks of a lighthouse that is offline count as down, whatever they were last; `state` says what the agent last
saw, `status` what holds now. Secrets of checks are hidden. Runs on the threads of the server and in commands.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, func, select

from observer_agent.clock import Clock, iso
from observer_agent.hub.database import Database
from observer_agent.hub.keys import state as token_state
from observer_agent.hub.lighthouse import judge, schema
from observer_agent.hub.lighthouse.checks import shown
from observer_agent.hub.lighthouse.door import ACTIVE_SECONDS
from observer_agent.hub.lighthouse.manage import SETTINGS, Unknown, find
from observer_agent.hub.lighthouse.wire import show_ns

EVENTS_MAX = 10_000
RIVAL_SECONDS = 600.0
STATUSES = ("down", "up", "paused", "nothing")


class Look:
    """See the module."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def all(self) -> list[dict[str, Any]]:
        """Every lighthouse, by name."""
        table = schema.lighthouses
        with self._database.read() as conn:
            rows = conn.execute(select(table).order_by(table.c.name)).all()
            counted = _states(conn)
            return [self._shown(conn, row, counted.get(row.id, {})) for row in rows]

    def one(self, ref: str) -> dict[str, Any]:
        """One lighthouse, by id or name. Raises Unknown."""
        with self._database.read() as conn:
            row = find(conn, ref)
            return self._shown(conn, row, _states(conn, row.id).get(row.id, {}))

    def checks(self, ref: str) -> list[dict[str, Any]]:
        """Its checks, in their order. Raises Unknown."""
        table = schema.checks
        with self._database.read() as conn:
            row = find(conn, ref)
            found = conn.execute(select(table).where(table.c.lighthouse_id == row.id).order_by(table.c.position))
            return [_check(row, each) for each in found]

    def check(self, ref: str, check_id: str) -> dict[str, Any]:
        """One of them. Raises Unknown."""
        table = schema.checks
        with self._database.read() as conn:
            row = find(conn, ref)
            each = conn.execute(select(table).where(table.c.id == check_id, table.c.lighthouse_id == row.id)).first()
            if each is None:
                raise Unknown("there is no such check")
            return _check(row, each)

    def events(self, ref: str, limit: int, check_id: str | None = None) -> list[dict[str, Any]]:
        """What agents saw, newest first: of one check as it was observed, of all of them as it came. Raises Unknown."""
        table = schema.events
        with self._database.read() as conn:
            row = find(conn, ref)
            query = select(table).where(table.c.lighthouse_id == row.id).limit(limit)
            if check_id is None:
                query = query.order_by(table.c.id.desc())
            else:
                query = query.where(table.c.check_id == check_id).order_by(table.c.observed_ns.desc())
            return [_event(each) for each in conn.execute(query)]

    def discoveries(self, ref: str) -> dict[str, Any]:
        """What was discovered, and when the list came. Raises Unknown."""
        table = schema.discoveries
        with self._database.read() as conn:
            row = find(conn, ref)
            found = conn.execute(select(table).where(table.c.lighthouse_id == row.id)).first()
        items = json.loads(found.listed) if found else []
        return {"taken_at": iso(found.taken_at) if found else None, "items": items}

    def series(self, ref: str) -> list[dict[str, Any]]:
        """The newest host metrics. Raises Unknown."""
        table = schema.series
        with self._database.read() as conn:
            row = find(conn, ref)
            query = select(table).where(table.c.lighthouse_id == row.id).order_by(table.c.name, table.c.labels)
            return [
                {"name": each.name, "labels": json.loads(each.labels), "value": each.value, "at": iso(each.at)}
                for each in conn.execute(query)
            ]

    def _shown(self, conn: Connection, row: Any, counted: dict[str | None, int]) -> dict[str, Any]:
        now, counts = self._clock.now(), dict.fromkeys(STATUSES, 0)
        for state, n in counted.items():
            counts[_status(row, state)] += n
        rival = row.rival_seen_at is not None and now - row.rival_seen_at < RIVAL_SECONDS
        return {
            "id": row.id,
            "name": row.name,
            **{name: getattr(row, name) for name in SETTINGS},
            "agent_hostname": row.agent_hostname,
            "agent_version": row.agent_version,
            "runtime": row.runtime,
            "state": row.state,
            "changed_at": iso(row.changed_at),
            "stop_reason": row.stop_reason,
            "last_heartbeat_at": _iso(row.last_heartbeat_at),
            "created_at": iso(row.created_at),
            "updated_at": iso(row.updated_at),
            "config_etag": row.etag,
            "taken": row.taken,
            "duplicates": row.duplicates,
            "rival": rival,
            "checks": counts,
            "instances": _instances(conn, row.id, now),
            "tokens": _tokens(conn, row.id, now),
        }


def _states(conn: Connection, lighthouse_id: str | None = None) -> dict[str, dict[str | None, int]]:
    """How many checks of each lighthouse are in which state."""
    table = schema.checks
    query = select(table.c.lighthouse_id, table.c.state, func.count()).group_by(table.c.lighthouse_id, table.c.state)
    if lighthouse_id is not None:
        query = query.where(table.c.lighthouse_id == lighthouse_id)
    found: dict[str, dict[str | None, int]] = {}
    for which, state, n in conn.execute(query):
        found.setdefault(which, {})[state] = n
    return found


def _status(row: Any, state: str | None) -> str:
    """What holds now."""
    if row.paused:
        return "paused"
    if row.state == judge.OFFLINE:
        return "down"
    return state or "nothing"


def _check(row: Any, each: Any) -> dict[str, Any]:
    return {
        "id": each.id,
        **shown(json.loads(each.definition)),
        "document": each.document,
        "created_at": iso(each.created_at),
        "updated_at": iso(each.updated_at),
        "status": _status(row, each.state),
        "state": each.state,
        "since": _iso(each.since),
        "status_code": each.status_code,
        "error_message": each.error_message,
        "last_observed_latency_ms": each.latency_ms,
        "last_observed_at": _iso(each.latency_at),
        "days_to_expiry": each.days_to_expiry,
        "certificate_observed_at": _iso(each.cert_at),
    }


def _event(each: Any) -> dict[str, Any]:
    return {
        "check_id": each.check_id,
        "agent_observed_at": show_ns(each.observed_ns),
        "received_at": iso(each.received_at),
        "sync_kind": each.sync_kind,
        "prev_state": each.prev_state,
        "new_state": each.new_state,
        "response_time_ms": each.response_time_ms,
        "status_code": each.status_code,
        "error_message": each.error_message,
    }


def _instances(conn: Connection, lighthouse_id: str, now: float) -> list[dict[str, Any]]:
    table = schema.instances
    query = select(table).where(table.c.lighthouse_id == lighthouse_id).order_by(table.c.seen_at.desc())
    return [
        {
            "instance_id": each.instance_id,
            "node_name": each.node_name,
            "role": each.role,
            "pod_hostname": each.pod_hostname,
            "agent_version": each.agent_version,
            "active": now - each.seen_at < ACTIVE_SECONDS,
            "seen_at": iso(each.seen_at),
            "started_at": _iso(each.started_at),
        }
        for each in conn.execute(query.limit(100))
    ]


def _tokens(conn: Connection, lighthouse_id: str, now: float) -> list[dict[str, Any]]:
    table = schema.tokens
    query = select(table).where(table.c.lighthouse_id == lighthouse_id).order_by(table.c.created_at.desc())
    rows: Iterable[Any] = conn.execute(query.limit(20))
    return [{"hint": each.hint, "state": token_state(each, now), "created_at": iso(each.created_at)} for each in rows]


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else iso(seconds)
