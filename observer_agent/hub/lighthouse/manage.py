"""Lighthouses, their tokens and their checks: made, changed, deleted, applied. One transaction each.

A token leaves once, when it is made. A deleted lighthouse leaves the digests of its tokens behind, so that its agent is
told that it is gone. `actor` is who changes something, for the audit log. Used by the server and by commands.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from observer_agent.clock import Clock
from observer_agent.errors import UsageError
from observer_agent.hub import audit
from observer_agent.hub.database import Database
from observer_agent.hub.keys import GRACE_MAX, hint
from observer_agent.hub.lighthouse import door, judge, schema
from observer_agent.hub.lighthouse.checks import CHECKS_MAX, etag, flag, id_of, read_check, text, whole, wired

HEARTBEAT = (5, 30)  # online means heard within 60 s: two heartbeats may be lost
SETTINGS: Mapping[str, Callable[[str, Any], Any]] = {
    "host": text(255, 0),
    "paused": flag,
    "notify_on_lifecycle": flag,
    "flap_protection_threshold": whole(1, 100),
    "heartbeat_interval_seconds": whole(*HEARTBEAT),
    "allow_multi_instance": flag,
    "host_metrics_enabled": flag,
    "host_metrics_interval_seconds": whole(5, 3600),
}
DEFAULTS = {
    "host": None,
    "paused": False,
    "notify_on_lifecycle": True,
    "flap_protection_threshold": 1,
    "heartbeat_interval_seconds": 20,
    "allow_multi_instance": False,
    "host_metrics_enabled": None,
    "host_metrics_interval_seconds": 30,
}


class Unknown(UsageError):
    """There is no such lighthouse, or no such check."""


class Taken(UsageError):
    """The name belongs to another one."""


class Outcome:
    """What applying a document did, or would do: names of checks."""

    def __init__(self) -> None:
        self.created: list[str] = []
        self.changed: list[str] = []
        self.pruned: list[str] = []
        self.unchanged = 0

    def as_object(self, dry_run: bool) -> dict[str, Any]:
        """Plain JSON-able."""
        lists = {"created": self.created, "changed": self.changed, "pruned": self.pruned}
        return {**lists, "unchanged": self.unchanged, "dry_run": dry_run}


class Manage:
    """See the module."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    # -- lighthouses

    def create(self, actor: str, name: str, settings: Mapping[str, Any]) -> tuple[str, str]:
        """A new lighthouse: its id and its token. Raises UsageError."""
        if not 1 <= len(name) <= 128 or not name.isprintable() or name != name.strip():
            raise UsageError("name must be 1 to 128 printable characters without blanks around them")
        values, made, now = {**DEFAULTS, **read_settings(settings)}, str(uuid.uuid4()), self._clock.now()
        fixed = {"etag": etag([]), "state": judge.NEVER, "changed_at": now, "resync": False, "taken": 0}
        with self._database.write() as conn:
            if conn.scalar(select(schema.lighthouses.c.id).where(schema.lighthouses.c.name == name)):
                raise Taken(f"there is a lighthouse {name!r} already; choose another name")
            row = {"id": made, "name": name, "created_at": now, "updated_at": now, "duplicates": 0, **fixed, **values}
            conn.execute(insert(schema.lighthouses).values(row))
            token = door.make(conn, made, now)
            audit.record(conn, now, actor, action="lighthouse.create", subject=name, detail=hint(token))
        return made, token

    def change(self, actor: str, ref: str, settings: Mapping[str, Any]) -> str:
        """Changes what `settings` names; returns the id. Raises UsageError."""
        values, now, table = read_settings(settings), self._clock.now(), schema.lighthouses
        with self._database.write() as conn:
            row = _held(conn, ref)
            conn.execute(update(table).where(table.c.id == row.id).values(**values, updated_at=now))
            said = ", ".join(f"{name} {value}" for name, value in sorted(values.items()))
            audit.record(conn, now, actor, action="lighthouse.change", subject=row.name, detail=said)
        return str(row.id)

    def rotate(self, actor: str, ref: str, grace: float = 0.0) -> str:
        """Another token; those before stay good for `grace` seconds, by default for none. Raises UsageError."""
        if not 0 <= grace <= GRACE_MAX:
            raise UsageError("the grace must be between 0 and 7 days")
        now, tokens = self._clock.now(), schema.tokens
        with self._database.write() as conn:
            row = _held(conn, ref)
            mine = (tokens.c.lighthouse_id == row.id) & tokens.c.revoked_at.is_(None)
            longer = tokens.c.expires_at.is_(None) | (tokens.c.expires_at > now + grace)
            conn.execute(update(tokens).where(mine & longer).values(expires_at=now + grace))
            token = door.make(conn, row.id, now)
            detail = f"{hint(token)}; the tokens before are good for {grace:.0f} s"
            audit.record(conn, now, actor, action="lighthouse.rotate", subject=row.name, detail=detail)
        return token

    def delete(self, actor: str, ref: str, dry_run: bool = False) -> dict[str, Any]:
        """Deletes a lighthouse with its checks and their history, or says what that would do. Raises Unknown."""
        with self._database.write() as conn:
            row, now = _held(conn, ref), self._clock.now()
            said = {"name": row.name, "checks": _count(conn, schema.checks, row.id), "dry_run": dry_run}
            said["events"] = _count(conn, schema.events, row.id)
            if not dry_run:
                for table in (schema.instances, schema.checks, schema.events, schema.discoveries, schema.series):
                    conn.execute(delete(table).where(table.c.lighthouse_id == row.id))
                conn.execute(delete(schema.lighthouses).where(schema.lighthouses.c.id == row.id))
                tokens = schema.tokens
                conn.execute(update(tokens).where(tokens.c.lighthouse_id == row.id).values(deleted_at=now))
                audit.record(conn, now, actor, action="lighthouse.delete", subject=row.name)
        return said

    # -- checks

    def create_check(self, actor: str, ref: str, given: Any) -> str:
        """A new check; returns its id. Raises UsageError."""
        definition, made = read_check(given), str(uuid.uuid4())
        with self._database.write() as conn:
            row, now = _held(conn, ref), self._clock.now()
            _room(conn, row.id, 1)
            _unique(conn, row.id, definition["name"])
            _put(conn, row.id, made, definition, now, document=False)
            self._changed(conn, row, now)
            audit.record(conn, now, actor, action="check.create", subject=f"{row.name}/{definition['name']}")
        return made

    def change_check(self, actor: str, ref: str, check_id: str, given: Any) -> None:
        """Changes the fields that `given` names. Raises UsageError."""
        table = schema.checks
        with self._database.write() as conn:
            row, now = _held(conn, ref), self._clock.now()
            before = json.loads(_check(conn, row.id, check_id).definition)
            definition = read_check(given, before)
            if definition["name"] != before["name"]:
                _unique(conn, row.id, definition["name"])
            values = {"definition": json.dumps(definition), "updated_at": now}
            conn.execute(update(table).where(table.c.id == check_id).values(**values))
            self._changed(conn, row, now)
            fields = ", ".join(sorted(given))
            subject = f"{row.name}/{before['name']}"
            audit.record(conn, now, actor, action="check.change", subject=subject, detail=fields)

    def delete_check(self, actor: str, ref: str, check_id: str) -> None:
        """Deletes a check with its history. Raises Unknown."""
        with self._database.write() as conn:
            row, now = _held(conn, ref), self._clock.now()
            name = json.loads(_check(conn, row.id, check_id).definition)["name"]
            _drop(conn, check_id)
            self._changed(conn, row, now)
            audit.record(conn, now, actor, action="check.delete", subject=f"{row.name}/{name}")

    def apply(
        self, actor: str, ref: str, given: Sequence[Any], *, prune: bool = False, dry_run: bool = False
    ) -> dict[str, Any]:
        """Makes the checks what a document says: by name; with `prune` those that documents made before and this one
        does not name are deleted. All of it or nothing. Raises UsageError.
        """
        wanted = [read_check(each) for each in given]
        names = [each["name"] for each in wanted]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise UsageError(f"the check {twice[0]!r} comes twice")
        outcome, table = Outcome(), schema.checks
        with self._database.write() as conn:
            row, now = _held(conn, ref), self._clock.now()
            found = conn.execute(select(table).where(table.c.lighthouse_id == row.id)).all()
            stand = {json.loads(each.definition)["name"]: each for each in found}
            for definition in wanted:
                self._apply_one(conn, row.id, definition, stand, outcome, dry_run, now)
            for name, each in stand.items() if prune else ():
                if each.document and name not in names:
                    outcome.pruned.append(name)
                    if not dry_run:
                        _drop(conn, each.id)
            if not dry_run and (outcome.created or outcome.changed or outcome.pruned):
                _room(conn, row.id, 0)
                self._changed(conn, row, now)
                counts = f"{len(outcome.created)} created, {len(outcome.changed)} changed, {len(outcome.pruned)} pruned"
                audit.record(conn, now, actor, action="lighthouse.apply", subject=row.name, detail=counts)
        return outcome.as_object(dry_run)

    def _apply_one(
        self,
        conn: Connection,
        lighthouse_id: str,
        definition: dict[str, Any],
        stand: Mapping[str, Row[Any]],
        outcome: Outcome,
        dry_run: bool,
        now: float,
    ) -> None:
        name, table = definition["name"], schema.checks
        before = stand.get(name)
        if before is None:
            outcome.created.append(name)
            if not dry_run:
                _put(conn, lighthouse_id, id_of(lighthouse_id, name), definition, now, document=True)
        elif json.loads(before.definition) == definition:
            outcome.unchanged += 1
        else:
            outcome.changed.append(name)
            if not dry_run:
                values = {"definition": json.dumps(definition), "document": True, "updated_at": now}
                conn.execute(update(table).where(table.c.id == before.id).values(**values))

    def _changed(self, conn: Connection, row: Row[Any], now: float) -> None:
        """Another list of checks has another etag; a heartbeat that shows the one before gets the list."""
        table = schema.checks
        query = select(table.c.id, table.c.definition).where(table.c.lighthouse_id == row.id).order_by(table.c.position)
        tag = etag([wired(each.id, json.loads(each.definition)) for each in conn.execute(query)])
        here = schema.lighthouses.c.id == row.id
        conn.execute(update(schema.lighthouses).where(here).values(etag=tag, updated_at=now))


def read_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a lighthouse, each of its type and within its range. Raises UsageError."""
    unknown = [name for name in given if name not in SETTINGS]
    if unknown:
        raise UsageError(f"unknown field {str(unknown[0])[:80]!r}; known are {', '.join(SETTINGS)}")
    found = {name: read(name, given[name]) for name, read in SETTINGS.items() if name in given}
    return {**found, "host": found["host"] or None} if "host" in found else found


def find(conn: Connection, ref: str) -> Any:
    """A lighthouse by its id or its name. Raises Unknown."""
    return _find(conn, ref, hold=False)


def _held(conn: Connection, ref: str) -> Any:
    return _find(conn, ref, hold=True)


def _find(conn: Connection, ref: str, *, hold: bool) -> Any:
    table = schema.lighthouses
    query = select(table).where((table.c.id == ref) | (table.c.name == ref)).order_by(table.c.id != ref)
    row = conn.execute(query.with_for_update() if hold else query).first()
    if row is None:
        raise Unknown("there is no such lighthouse")
    return row


def _check(conn: Connection, lighthouse_id: str, check_id: str) -> Any:
    table = schema.checks
    row = conn.execute(select(table).where(table.c.id == check_id, table.c.lighthouse_id == lighthouse_id)).first()
    if row is None:
        raise Unknown("there is no such check")
    return row


def _count(conn: Connection, table: Any, lighthouse_id: str) -> int:
    return conn.scalar(select(func.count()).select_from(table).where(table.c.lighthouse_id == lighthouse_id)) or 0


def _room(conn: Connection, lighthouse_id: str, more: int) -> None:
    if _count(conn, schema.checks, lighthouse_id) + more > CHECKS_MAX:
        raise UsageError(f"a lighthouse has at most {CHECKS_MAX} checks")


def _unique(conn: Connection, lighthouse_id: str, name: str) -> None:
    table = schema.checks
    listed = conn.scalars(select(table.c.definition).where(table.c.lighthouse_id == lighthouse_id))
    if any(json.loads(each)["name"] == name for each in listed):
        raise Taken(f"there is a check {name!r} already; choose another name")


def _put(
    conn: Connection, lighthouse_id: str, check_id: str, definition: Mapping[str, Any], now: float, *, document: bool
) -> None:
    table = schema.checks
    last = conn.scalar(select(func.max(table.c.position)).where(table.c.lighthouse_id == lighthouse_id))
    row = {"id": check_id, "lighthouse_id": lighthouse_id, "position": (last or 0) + 1, "seen_ns": 0}
    stamps = {"created_at": now, "updated_at": now, "document": document, "definition": json.dumps(definition)}
    conn.execute(insert(table).values(**row, **stamps))


def _drop(conn: Connection, check_id: str) -> None:
    conn.execute(delete(schema.events).where(schema.events.c.check_id == check_id))
    conn.execute(delete(schema.checks).where(schema.checks.c.id == check_id))
