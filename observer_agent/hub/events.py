"""Events and the outbox: what has happened and to whom it is still to be told, in the transaction that made it so.

`emit` is called by whatever changes a state, with that change's connection. Nothing is sent here: `courier.py` does.
The entries of the outbox are numbered in the order in which their transactions are committed: whoever lays out waits
for the one before. So nothing that was delivered is ever followed by something with a lower number.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, insert, select, text

from observer_agent.hub import schema
from observer_agent.hub.database import POSTGRESQL

PENDING = "pending"
STATUS_CHANGED = "metric.status_changed"
NO_DATA = "metric.no_data"
LIGHTHOUSE_OFFLINE = "lighthouse.offline"
CHECK_CHANGED = "check.state_changed"
TEST = "webhook.test"
LAID_OUT = "observer_laid_out"  # marks a connection whose transaction has filled the outbox: `courier.py` looks for it
LAYING_OUT = 0x0B5E_47EC  # the advisory lock of the transaction that lays out, until it is committed


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that has happened, at `at` seconds since 1970; `data` is the wire's object."""

    kind: str
    at: float
    data: Mapping[str, Any]
    agent_id: str | None = None
    metric_id: str | None = None
    id: str = field(default_factory=lambda: str(uuid.uuid4()))


def emit(conn: Connection, event: Event) -> None:
    """Keeps an event and lays it into the outbox of every active webhook that has asked for its kind."""
    keep(conn, event)
    wanted = [row.id for row in conn.execute(select(schema.webhooks)) if row.active and wants(row.event_types, event)]
    if wanted:
        lay_out(conn, wanted, event)


def keep(conn: Connection, event: Event) -> None:
    """Keeps an event and tells nobody."""
    conn.execute(
        insert(schema.events).values(
            event_id=event.id,
            event_type=event.kind,
            occurred_at=event.at,
            agent_id=event.agent_id,
            metric_id=event.metric_id,
            data=json.dumps(dict(event.data)),
        )
    )


def lay_out(conn: Connection, webhook_ids: list[str], event: Event) -> None:
    """One entry of the outbox for each webhook, due at once."""
    if conn.dialect.name == POSTGRESQL:
        conn.execute(_IN_TURN)
    entry = {"event_id": event.id, "state": PENDING, "created_at": event.at, "next_at": event.at}
    conn.execute(insert(schema.outbox), [{**entry, "webhook_id": each} for each in webhook_ids])
    conn.info[LAID_OUT] = True


_IN_TURN = text(f"SELECT pg_advisory_xact_lock({LAYING_OUT})")


def wants(event_types: str, event: Event) -> bool:
    """Whether a webhook's list (JSON; empty is everything) names the event's kind."""
    listed = json.loads(event_types)
    return not listed or event.kind in listed
