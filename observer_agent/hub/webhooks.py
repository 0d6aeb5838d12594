"""Webhooks: who is told of events, and what a person asks of it: a test, a redelivery, the log.

Each write is one transaction with a row of the audit log; nothing here is sent, `courier.py` does that. A secret leaves
once, when it is made. Runs on the threads of the server and in commands.
"""

from __future__ import annotations

import base64
import json
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from observer_agent.clock import Clock, iso
from observer_agent.errors import UsageError
from observer_agent.hub import audit, schema
from observer_agent.hub.database import Database
from observer_agent.hub.events import (
    CHECK_CHANGED,
    LIGHTHOUSE_OFFLINE,
    NO_DATA,
    PENDING,
    STATUS_CHANGED,
    TEST,
    Event,
    keep,
    lay_out,
    wants,
)
from observer_agent.hub.guard import NOTHING_MORE, Allow, check_url
from observer_agent.hub.machines import Signal
from observer_agent.logs import Redactor

SECRET_PREFIX = "whsec_"
SECRET_MIN, SECRET_MAX = 16, 256
KINDS = (*(signal.value for signal in Signal), STATUS_CHANGED, NO_DATA, LIGHTHOUSE_OFFLINE, CHECK_CHANGED, TEST)
RESERVED = ("deliveries", "redeliver")  # words of the API's paths
LOG_LIMIT = 20


class Unknown(UsageError):
    """There is no such webhook, or no such event."""


class Taken(UsageError):
    """The name belongs to another webhook."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A webhook as somebody wants it; no event types are all of them."""

    name: str
    url: str
    secret: str | None = None
    event_types: tuple[str, ...] = ()
    active: bool = True


class Webhooks:
    """The subscriptions of one hub. `actor` says who asks, for the audit log."""

    def __init__(self, database: Database, clock: Clock, allow: Allow = NOTHING_MORE) -> None:
        self._database = database
        self._clock = clock
        self._allow = allow

    # -- subscriptions

    def create(self, actor: str, wanted: Wanted) -> str:
        """A new webhook; returns its id. Raises UsageError."""
        values, made = self._checked(wanted), str(uuid.uuid4())
        with self._database.write() as conn:
            _free(conn, wanted.name)
            now = self._clock.now()
            conn.execute(insert(schema.webhooks).values(id=made, created_at=now, **values))
            types = ", ".join(wanted.event_types) or "all events"
            audit.record(conn, now, actor, action="webhook.create", subject=wanted.name, detail=types)
        return made

    def change(self, actor: str, ref: str, changes: Mapping[str, Any]) -> str:
        """Changes the fields of `Wanted` that `changes` names, and nothing else; returns the id. Raises UsageError."""
        webhooks = schema.webhooks
        with self._database.write() as conn:
            found = _find(conn, ref)
            now_wanted = Wanted(found.name, found.url, found.secret, tuple(json.loads(found.event_types)), found.active)
            wanted = Wanted(**{**{name: getattr(now_wanted, name) for name in FIELDS}, **changes})
            values = self._checked(wanted)
            if wanted.name != found.name:
                _free(conn, wanted.name)
            conn.execute(update(webhooks).where(webhooks.c.id == found.id).values(**values))
            changed = ", ".join(sorted(changes))
            audit.record(conn, self._clock.now(), actor, action="webhook.change", subject=found.name, detail=changed)
        return str(found.id)

    def delete(self, actor: str, ref: str, dry_run: bool = False) -> dict[str, Any]:
        """Deletes a webhook with its deliveries, or says what that would do; raises Unknown."""
        webhooks, outbox, attempts = schema.webhooks, schema.outbox, schema.attempts
        with self._database.write() as conn:
            found = _find(conn, ref)
            counts = _counts(conn, found.id)
            said = {"name": found.name, "pending": counts.get(PENDING, 0), "deliveries": sum(counts.values())}
            if not dry_run:
                of_it = select(outbox.c.id).where(outbox.c.webhook_id == found.id)
                conn.execute(delete(webhooks).where(webhooks.c.id == found.id))
                conn.execute(delete(attempts).where(attempts.c.outbox_id.in_(of_it)))
                conn.execute(delete(outbox).where(outbox.c.webhook_id == found.id))
                audit.record(conn, self._clock.now(), actor, action="webhook.delete", subject=found.name)
        return {**said, "dry_run": dry_run}

    def all(self) -> list[dict[str, Any]]:
        """Every webhook, by name."""
        with self._database.read() as conn:
            rows = conn.execute(select(schema.webhooks).order_by(schema.webhooks.c.name)).all()
            return [_shown(row, _counts(conn, row.id)) for row in rows]

    def one(self, ref: str) -> dict[str, Any]:
        """One webhook, by name or id; raises Unknown."""
        with self._database.read() as conn:
            row = _find(conn, ref)
            return _shown(row, _counts(conn, row.id))

    # -- deliveries

    def test(self, actor: str, ref: str) -> str:
        """Lays a test event out for one webhook, behind what waits already; returns the event's id."""
        with self._database.write() as conn:
            found, now = _active(conn, ref), self._clock.now()
            event = Event(TEST, now, {"webhook": found.name, "message": "This is a test."})
            keep(conn, event)
            lay_out(conn, [found.id], event)
            audit.record(conn, now, actor, action="webhook.test", subject=found.name, detail=event.id)
        return event.id

    def redeliver(self, actor: str, event_id: str, ref: str | None = None) -> list[str]:
        """Lays an event out anew, for one webhook or for every active one that asks for its kind; returns names."""
        with self._database.write() as conn:
            now, events = self._clock.now(), schema.events
            row = conn.execute(select(events).where(events.c.event_id == event_id)).first()
            if row is None:
                raise Unknown("there is no such event")
            event = Event(row.event_type, now, {}, id=row.event_id)
            to = [_active(conn, ref)] if ref is not None else _listeners(conn, event)
            if not to:
                raise UsageError("no active webhook asks for this kind of event")
            lay_out(conn, [each.id for each in to], event)
            names = [each.name for each in to]
            audit.record(conn, now, actor, action="webhook.redeliver", subject=event_id, detail=", ".join(names))
        return names

    def deliveries(
        self, ref: str | None = None, limit: int = LOG_LIMIT, event_id: str | None = None
    ) -> list[dict[str, Any]]:
        """The last deliveries with their attempts, newest first, of one webhook or event where one is named."""
        outbox, events, webhooks = schema.outbox, schema.events, schema.webhooks
        query = (
            select(outbox, events.c.event_type, webhooks.c.name)
            .join(webhooks, webhooks.c.id == outbox.c.webhook_id)
            .outerjoin(events, events.c.event_id == outbox.c.event_id)
        )
        with self._database.read() as conn:
            if ref is not None:
                query = query.where(outbox.c.webhook_id == _find(conn, ref).id)
            if event_id is not None:
                query = query.where(outbox.c.event_id == event_id)
            rows = conn.execute(query.order_by(outbox.c.id.desc()).limit(limit)).all()
            attempts = _attempts(conn, [row.id for row in rows])
        return [_delivery(row, attempts.get(row.id, [])) for row in rows]

    def _checked(self, wanted: Wanted) -> dict[str, Any]:
        """A wanted webhook as the columns of its row; raises UsageError."""
        if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9 ._-]{0,126}[A-Za-z0-9._-])?", wanted.name):
            raise UsageError("the name must be 1 to 128 letters, digits, blanks, dots, dashes or underscores")
        if wanted.name in RESERVED:
            raise UsageError(f"the name must be another word than {' or '.join(RESERVED)}")
        check_url(wanted.url, self._allow)
        _check_secret(wanted.secret)
        unknown = [each for each in wanted.event_types if each not in KINDS]
        if unknown:
            raise UsageError(f"unknown event type {unknown[0][:80]!r}; known are {', '.join(KINDS)}")
        return {
            "name": wanted.name,
            "url": wanted.url,
            "secret": wanted.secret,
            "event_types": json.dumps(list(dict.fromkeys(wanted.event_types))),
            "active": wanted.active,
        }


FIELDS = ("name", "url", "secret", "event_types", "active")


def new_secret() -> str:
    """A secret of 256 random bits."""
    return SECRET_PREFIX + base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")


def _check_secret(secret: str | None) -> None:
    if secret is not None and not re.fullmatch(rf"[!-~]{{{SECRET_MIN},{SECRET_MAX}}}", secret):
        raise UsageError(f"the secret must be {SECRET_MIN} to {SECRET_MAX} printable ASCII characters without blanks")


def _find(conn: Connection, ref: str) -> Row[Any]:
    """A webhook by name or id, the name first; its row is locked where the transaction writes."""
    webhooks = schema.webhooks
    query = select(webhooks).where((webhooks.c.name == ref) | (webhooks.c.id == ref))
    rows = conn.execute(query).all()
    if not rows:
        raise Unknown("there is no such webhook")
    return next((row for row in rows if row.name == ref), rows[0])


def _active(conn: Connection, ref: str) -> Row[Any]:
    found = _find(conn, ref)
    if not found.active:
        raise UsageError("the webhook is switched off; switch it on first (observer-hub webhook change NAME --on)")
    return found


def _listeners(conn: Connection, event: Event) -> list[Row[Any]]:
    webhooks = schema.webhooks
    query = select(webhooks).where(webhooks.c.active.is_(True)).order_by(webhooks.c.name)
    return [row for row in conn.execute(query) if wants(row.event_types, event)]


def _free(conn: Connection, name: str) -> None:
    webhooks = schema.webhooks
    if conn.scalar(select(webhooks.c.id).where(webhooks.c.name == name)) is not None:
        raise Taken(f"there is a webhook {name!r} already; choose another name")


def _counts(conn: Connection, webhook_id: str) -> dict[str, int]:
    outbox = schema.outbox
    query = select(outbox.c.state, func.count()).where(outbox.c.webhook_id == webhook_id).group_by(outbox.c.state)
    return {state: n for state, n in conn.execute(query)}


def _attempts(conn: Connection, ids: Iterable[int]) -> dict[int, list[dict[str, Any]]]:
    attempts = schema.attempts
    found: dict[int, list[dict[str, Any]]] = {}
    for row in conn.execute(select(attempts).where(attempts.c.outbox_id.in_(list(ids))).order_by(attempts.c.id)):
        shown = {"at": iso(row.at), "status": row.status, "error": row.error, "duration_ms": row.duration_ms}
        found.setdefault(row.outbox_id, []).append(shown)
    return found


def _shown(row: Row[Any], counts: Mapping[str, int]) -> dict[str, Any]:
    """A webhook as it may be seen: whether it has a secret, never which, and its URL without the query."""
    return {
        "id": row.id,
        "name": row.name,
        "url": Redactor()(row.url),
        "secret": None if row.secret is None else "********",
        "event_types": json.loads(row.event_types),
        "active": row.active,
        "created_at": iso(row.created_at),
        "deliveries": {state: counts.get(state, 0) for state in (PENDING, "delivered", "failed")},
    }


def _delivery(row: Row[Any], attempts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "webhook": row.name,
        "event_id": row.event_id,
        "event_type": row.event_type,
        "state": row.state,
        "created_at": iso(row.created_at),
        "next_at": iso(row.next_at) if row.state == PENDING else None,
        "ended_at": None if row.ended_at is None else iso(row.ended_at),
        "attempts": attempts,
    }
