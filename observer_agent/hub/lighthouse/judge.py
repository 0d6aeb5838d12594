"""Whether a lighthouse is there, and which events of a check are news: told inside the transaction that made them so.

A lighthouse is online from its first sign of life until it was silent for `OFFLINE_SECONDS`, or said that it stops.
What stops in order is `stopped`, and nobody is told. `Silence` is the step of a worker, for what silence alone decides.
Several hub processes may look at the same time; each locks the lighthouse's row first.
"""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from observer_agent.clock import Clock, iso
from observer_agent.hub import events
from observer_agent.hub.database import Database
from observer_agent.hub.events import CHECK_CHANGED, LIGHTHOUSE_OFFLINE
from observer_agent.hub.lighthouse import schema
from observer_agent.hub.lighthouse.wire import DOWN, NS, Event, show_ns

log = logging.getLogger(__name__)

OFFLINE_SECONDS = 60.0
RESYNC_AGAIN = 120.0  # an answer that asked for a resync may have been lost
EVERY = 5.0
FORGET_EVERY = 3600.0
BITE = 5000
SERIES_SECONDS = 7 * 86_400.0
NEVER, ONLINE, OFFLINE, STOPPED = "never", "online", "offline", "stopped"


def heard(conn: Connection, row: Any, now: float) -> dict[str, Any]:
    """A sign of life of a lighthouse whose row is held: what changes in it, its return told where it was missed."""
    changed: dict[str, Any] = {"last_heartbeat_at": now, "state": ONLINE, "stop_reason": None}
    silent = row.last_heartbeat_at is not None and now - row.last_heartbeat_at > OFFLINE_SECONDS
    if row.state == OFFLINE:
        tell(conn, row, "cleared", now)
    if row.state == OFFLINE or (silent and row.state != NEVER):
        changed |= {"resync": True, "resync_asked_at": None}
    if row.state != ONLINE:
        changed["changed_at"] = now
    return changed


def asks(row: Any, changed: dict[str, Any], now: float) -> bool:
    """Whether this answer asks for a resync; a paused lighthouse is asked when it goes on."""
    wanted, asked = changed.get("resync", row.resync), changed.get("resync_asked_at", row.resync_asked_at)
    return bool(wanted) and not row.paused and (asked is None or now - asked >= RESYNC_AGAIN)


def tell(conn: Connection, row: Any, state: str, now: float) -> None:
    """`lighthouse.offline` opens or is cleared; webhooks hear of it unless the lighthouse is not to be told of."""
    count = conn.scalar(select(func.count()).where(schema.checks.c.lighthouse_id == row.id))
    seen = None if row.last_heartbeat_at is None else iso(row.last_heartbeat_at)
    about = {"state": state, "lighthouse_id": row.id, "lighthouse_name": row.name}
    event = events.Event(LIGHTHOUSE_OFFLINE, now, {**about, "last_heartbeat_at": seen, "checks": count})
    (events.emit if row.notify_on_lifecycle else events.keep)(conn, event)


def news(check: Any, event: Event) -> bool:
    """Whether an event is newer than what is known of its check."""
    return bool(event.observed_ns >= check["seen_ns"])


def change(conn: Connection, row: Any, check: dict[str, Any], event: Event, now: float) -> None:
    """What an event makes of a check, in `check`; told where the state has changed, and where it is down at first."""
    before = check["state"]
    if event.new_state != before:
        check["since"] = event.observed_ns / NS
        if before is not None or event.new_state == DOWN:
            data = {
                "lighthouse_id": row.id,
                "lighthouse_name": row.name,
                "check_id": event.check_id,
                "check_name": check["name"],
                "old_status": before,
                "new_status": event.new_state,
                "status_code": event.status_code,
                "error_message": event.error_message,
                "observed_at": show_ns(event.observed_ns),
            }
            events.emit(conn, events.Event(CHECK_CHANGED, now, data))
    check.update(
        state=event.new_state,
        seen_ns=min(event.observed_ns, int(now * NS)),  # a clock that is ahead must not shut the next out
        status_code=event.status_code,
        error_message=event.error_message,
        touched=True,
    )


class Silence:
    """The step: who has fallen silent, and what has grown old. `keep` is how long events are kept, in seconds."""

    def __init__(self, database: Database, clock: Clock, keep: float) -> None:
        self._database = database
        self._clock = clock
        self._keep = keep
        # Whoever was silent while this hub was not there has not been silent to anybody.
        self._began = clock.now()
        self._forgot = clock.monotonic()

    def step(self) -> float:
        """One look at every lighthouse."""
        table, now = schema.lighthouses, self._clock.now()
        silent = (table.c.state == ONLINE) & (table.c.last_heartbeat_at < now - OFFLINE_SECONDS)
        with self._database.read() as conn:
            found = list(conn.scalars(select(table.c.id).where(silent)))
        if now - self._began >= OFFLINE_SECONDS:
            for each in found:
                self._database.run(lambda conn, wanted=each: self._judge(conn, wanted))  # type: ignore[misc]
        if self._clock.monotonic() - self._forgot >= FORGET_EVERY:
            self._forgot = self._clock.monotonic()
            self._forget()
        return EVERY

    def _judge(self, conn: Connection, lighthouse_id: str) -> None:
        """Judges anew what stands in the row once it is held: a heartbeat may have come since the look."""
        table = schema.lighthouses
        row = conn.execute(select(table).where(table.c.id == lighthouse_id).with_for_update(skip_locked=True)).first()
        now = self._clock.now()
        if row is None or row.state != ONLINE or now - row.last_heartbeat_at <= OFFLINE_SECONDS:
            return
        conn.execute(update(table).where(table.c.id == row.id).values(state=OFFLINE, changed_at=now))
        tell(conn, row, "open", now)

    def _forget(self) -> None:
        """Events in bites, and the host metrics of what is no more."""
        now, table = self._clock.now(), schema.events
        while True:
            with self._database.write() as conn:
                query = select(table.c.id).where(table.c.received_at < now - self._keep).order_by(table.c.id)
                old = list(conn.scalars(query.limit(BITE)))
                conn.execute(delete(table).where(table.c.id.in_(old)))
            if len(old) < BITE:
                break
        with self._database.write() as conn:
            conn.execute(delete(schema.series).where(schema.series.c.at < now - SERIES_SECONDS))
            seen = schema.instances.c.seen_at
            conn.execute(delete(schema.instances).where(seen < now - SERIES_SECONDS))
