"""The outbox as the courier sees it: whose turn it is, an entry claimed, an attempt written down.

The oldest pending entry of a webhook is its head, and nothing else of that webhook may be claimed: that is the order.
A claim ends by itself after `LEASE_SECONDS`, so that a killed process loses nothing; the webhook's row is locked while
its head is claimed or settled (FOR UPDATE on PostgreSQL, the write lock on SQLite), so that two processes never hold
the same entry at the same time. No function here waits for a network.
"""

from __future__ import annotations

import json
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, delete, func, insert, select, update

from observer_agent.clock import iso
from observer_agent.hub import schema
from observer_agent.hub.events import PENDING
from observer_agent.hub.post import Reply

DELIVERED = "delivered"
FAILED = "failed"
LEASE_SECONDS = 30.0  # three times the deadline of a request: the clocks of other hubs may differ a little
FIRST_WAIT = 10.0
LONGEST_WAIT = 3600.0
GIVE_UP_SECONDS = 86_400.0
KEEP_SECONDS = 30 * 86_400.0
PRUNED_AT_ONCE = 1000
GONE = 410


class Head(NamedTuple):
    """The head of a webhook's queue, and when it may be claimed."""

    webhook_id: str
    outbox_id: int
    due: float


class Job(NamedTuple):
    """A claimed entry with all that a request needs; `claim` says that it is still ours."""

    outbox_id: int
    claim: float
    webhook_id: str
    webhook_name: str
    url: str
    secret: str | None
    attempts: int
    created_at: float
    event_id: str
    event_type: str
    body: bytes | None  # None: the event has been deleted


class Settled(NamedTuple):
    """What an attempt has made of its entry; `disabled`: the webhook too is at its end."""

    state: str
    wait: float = 0.0
    disabled: bool = False


def heads(conn: Connection, now: float) -> list[Head]:
    """The head of every active webhook, the one that is due first in front."""
    found = [Head(row.webhook_id, row.id, _due(row, now)) for row in conn.execute(_HEADS)]
    return sorted(found, key=lambda head: head.due)


def claim(conn: Connection, webhook_id: str, now: float) -> Job | None:
    """Claims the head of a webhook; None where there is none that is due, or another process has it in hand."""
    webhooks, outbox = schema.webhooks, schema.outbox
    query = select(webhooks).where(webhooks.c.id == webhook_id, webhooks.c.active.is_(True))
    webhook = conn.execute(query.with_for_update(skip_locked=True)).first()
    entry = conn.execute(_HEADS.where(webhooks.c.id == webhook_id)).first() if webhook else None
    if webhook is None or entry is None or _due(entry, now) > now:
        return None
    until = now + LEASE_SECONDS  # no earlier claim had this mark, or it would not have ended by now
    conn.execute(update(outbox).where(outbox.c.id == entry.id).values(claimed_until=until))
    event = conn.execute(select(schema.events).where(schema.events.c.event_id == entry.event_id)).first()
    return Job(
        entry.id,
        until,
        webhook_id,
        webhook.name,
        webhook.url,
        webhook.secret,
        entry.attempts,
        entry.created_at,
        entry.event_id,
        event.event_type if event else "",
        message(event) if event else None,
    )


def settle(conn: Connection, job: Job, attempt: tuple[float, float, Reply], settled: Settled) -> bool:
    """Writes an attempt (begun at, ended at, reply) and what became of its entry; False where the claim had been lost.

    An attempt is written down in any case; the entry then belongs to whoever has claimed it since.
    """
    begun, now, reply = attempt
    webhooks, outbox = schema.webhooks, schema.outbox
    # The webhook's row first, as `claim` does: so two processes never wait for each other crosswise.
    conn.execute(select(webhooks.c.id).where(webhooks.c.id == job.webhook_id).with_for_update())
    took = round(max(0.0, now - begun) * 1000, 1)
    row = {"at": begun, "status": reply.status, "error": reply.error[:200], "duration_ms": took}
    mine = (outbox.c.id == job.outbox_id) & (outbox.c.state == PENDING) & (outbox.c.claimed_until == job.claim)
    ended = None if settled.state == PENDING else now
    values = {"state": settled.state, "next_at": now + settled.wait, "claimed_until": None, "ended_at": ended}
    done = conn.execute(update(outbox).where(mine).values(attempts=outbox.c.attempts + 1, **values))
    if conn.scalar(select(outbox.c.id).where(outbox.c.id == job.outbox_id)) is not None:
        conn.execute(insert(schema.attempts).values(outbox_id=job.outbox_id, **row))
    if settled.disabled:
        conn.execute(update(webhooks).where(webhooks.c.id == job.webhook_id).values(active=False))
    return done.rowcount == 1


def prune(conn: Connection, now: float) -> int:
    """Deletes entries that ended a month ago, with their attempts, a bounded number at once; returns how many."""
    outbox, attempts = schema.outbox, schema.attempts
    old = select(outbox.c.id).where(outbox.c.ended_at < now - KEEP_SECONDS).order_by(outbox.c.id).limit(PRUNED_AT_ONCE)
    ids = list(conn.scalars(old))
    if ids:
        conn.execute(delete(attempts).where(attempts.c.outbox_id.in_(ids)))
        conn.execute(delete(outbox).where(outbox.c.id.in_(ids)))
    return len(ids)


# -- pure


def verdict(job: Job, reply: Reply, now: float, random: float) -> Settled:
    """What a reply means: delivered, tried again after a while, or given up. `random` is 0 to 1."""
    if 200 <= reply.status < 300:
        return Settled(DELIVERED)
    if reply.status == GONE or job.body is None:
        return Settled(FAILED, disabled=reply.status == GONE)
    left = job.created_at + GIVE_UP_SECONDS - now
    if left <= 0:
        return Settled(FAILED)
    return Settled(PENDING, min(wait(job.attempts + 1, retry_after(reply.retry_after, now), random), left))


def wait(attempt: int, asked: float | None, random: float) -> float:
    """Seconds after failure number `attempt`: 10, 20, 40 ... 3600, times 0.75 to 1; or what the receiver asked for."""
    if asked is not None:
        return min(max(asked, FIRST_WAIT), LONGEST_WAIT)
    return min(FIRST_WAIT * 2.0 ** (min(attempt, 16) - 1), LONGEST_WAIT) * (0.75 + 0.25 * random)


def retry_after(text: str | None, now: float) -> float | None:
    """A `Retry-After` header (seconds or a date) as seconds from `now`; None where it says nothing."""
    text = (text or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return parsedate_to_datetime(text).timestamp() - now
    except (ValueError, OverflowError):
        return None


def message(event: Row[Any]) -> bytes:
    """The body of a request."""
    told = {
        "event_type": event.event_type,
        "event_id": event.event_id,
        "occurred_at": iso(event.occurred_at),
        "data": json.loads(event.data),
    }
    return json.dumps(told, separators=(",", ":")).encode()


def _due(row: Row[Any], now: float) -> float:
    """When an entry may be claimed. A moment beyond all that we set is of a clock that was set back since."""
    due = 0.0 if row.next_at > now + LONGEST_WAIT else float(row.next_at)
    held = row.claimed_until or 0.0
    return due if held > now + 2 * LEASE_SECONDS else max(due, float(held))


def _heads() -> Select[Any]:
    webhooks, outbox = schema.webhooks, schema.outbox
    waiting = outbox.alias("waiting")
    first = (
        select(func.min(waiting.c.id))
        .where(waiting.c.webhook_id == webhooks.c.id, waiting.c.state == PENDING)
        .correlate(webhooks)
        .scalar_subquery()
    )
    return select(outbox).join_from(outbox, webhooks, outbox.c.id == first).where(webhooks.c.active.is_(True))


_HEADS = _heads()
