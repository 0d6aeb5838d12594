"""Who may come in: an agent by its token, one active instance of a token at a time.

`whose` looks a token up; `enter` is the first thing in every transaction of an agent's request: it holds the
lighthouse's row, so that requests of one lighthouse go one after the other, and refuses a rival. What is refused is
returned, not raised, because others may be in the same transaction (`Database.share`). Threads of the server.
"""

from __future__ import annotations

import base64
import hmac
import os
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from observer_agent.hub import database
from observer_agent.hub.database import Database
from observer_agent.hub.hot import Hot
from observer_agent.hub.keys import digest, hint, state
from observer_agent.hub.lighthouse import schema
from observer_agent.hub.lighthouse.wire import KUBERNETES, ROLES

PREFIX = "lh_"
TOKEN_MAX = 256
INSTANCE_MAX = 64
INSTANCES_MAX = 1000
ACTIVE_SECONDS = 60.0
REGRESSION_SECONDS = 10.0
GONE = "this lighthouse was deleted"
RIVAL = "another instance of this lighthouse is active; stop it, or allow several"


class Refused(NamedTuple):
    """Why a request is not answered well: an HTTP status and a text for a person."""

    status: int
    text: str


class Caller(NamedTuple):
    """Whose process calls: its lighthouse, the id of its instance, and since when it runs."""

    lighthouse_id: str
    instance_id: str
    started_at: float | None


def whose(found: Database, token: str, now: float) -> str | Refused:
    """The id of the lighthouse whose token this is."""
    wanted = digest(token)
    with found.glance() as conn:
        row = _WHOSE(conn, {"wanted": wanted}).first()
    if row is None or not hmac.compare_digest(row.digest, wanted):
        return Refused(401, "the bearer token is not one that is known here")
    if row.deleted_at is not None:
        return Refused(410, GONE)
    if state(row, now) not in ("valid", "expiring"):
        return Refused(401, "this token is no longer good; `observer-hub lighthouse rotate` makes another")
    return str(row.lighthouse_id)


def enter(conn: Connection, caller: Caller, now: float, runtime: str | None = None) -> Any:
    """The lighthouse's row, held, with the caller as one of its instances; or Refused."""
    table = schema.lighthouses
    row = conn.execute(select(table).where(table.c.id == caller.lighthouse_id).with_for_update()).first()
    if row is None:
        return Refused(410, GONE)
    several = row.allow_multi_instance or runtime == KUBERNETES
    if several and not row.allow_multi_instance:  # sticky: a pod that moves overlaps with the one before
        conn.execute(update(table).where(table.c.id == row.id).values(allow_multi_instance=True))
    known = {each.instance_id: each for each in conn.execute(_active(row.id))}
    others = [each for each in known.values() if each.instance_id != caller.instance_id]
    if any(now - each.seen_at < ACTIVE_SECONDS for each in others) and not several:
        conn.execute(update(table).where(table.c.id == row.id).values(rival_seen_at=now))
        return Refused(409, RIVAL)
    mine = known.get(caller.instance_id)
    if mine is None and len(known) >= INSTANCES_MAX:
        return Refused(409, "too many instances of this lighthouse")
    if mine is not None and _goes_back(mine.started_at, caller.started_at):
        conn.execute(update(table).where(table.c.id == row.id).values(rival_seen_at=now))
    _see(conn, caller, now)
    return row


def leave(conn: Connection, caller: Caller, now: float) -> bool:
    """The caller is no more; says whether it was the last one that looks after checks."""
    table = schema.instances
    role = conn.scalar(select(table.c.role).where(*_here(caller)))
    conn.execute(delete(table).where(*_here(caller)))
    rest = conn.execute(_active(caller.lighthouse_id))
    central = [each for each in rest if each.role != ROLES[1] and now - each.seen_at < ACTIVE_SECONDS]
    return role != ROLES[1] and not central


def describe(conn: Connection, caller: Caller, **facts: str | None) -> None:
    """What an instance said about itself."""
    conn.execute(update(schema.instances).where(*_here(caller)).values(**facts))


def make(conn: Connection, lighthouse_id: str, now: float) -> str:
    """Another token, shown this once."""
    token = PREFIX + base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")
    row = {"digest": digest(token), "lighthouse_id": lighthouse_id, "hint": hint(token), "created_at": now}
    conn.execute(insert(schema.tokens).values(row))
    return token


def _goes_back(before: float | None, now: float | None) -> bool:
    """An older process than the one before uses the same instance id: its data directory was copied."""
    return before is not None and now is not None and now < before - REGRESSION_SECONDS


def _active(lighthouse_id: str) -> Any:
    return select(schema.instances).where(schema.instances.c.lighthouse_id == lighthouse_id)


def _here(caller: Caller) -> tuple[Any, Any]:
    table = schema.instances
    return table.c.lighthouse_id == caller.lighthouse_id, table.c.instance_id == caller.instance_id


def _see(conn: Connection, caller: Caller, now: float) -> None:
    seen = {"seen_at": now, "started_at": caller.started_at}
    key = {"lighthouse_id": caller.lighthouse_id, "instance_id": caller.instance_id}
    fresh = database.insert(conn, schema.instances).values(**key, **seen)
    conn.execute(fresh.on_conflict_do_update(index_elements=list(key), set_=seen))


_WHOSE = Hot(select(schema.tokens).where(schema.tokens.c.digest == bindparam("wanted")))
