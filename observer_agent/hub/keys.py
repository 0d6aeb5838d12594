"""The keys of agents: made, listed, rotated, revoked, and asked whose they are. Only a SHA-256 of a key is kept.

A rotation makes a second key; the one before stays good until its grace ends, so that an agent can change over without
a gap. Each change is a row of the audit log, in its transaction. Any thread may call; every look goes to the database,
so that a revoked key is refused by every hub process at once.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import uuid
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, insert, select, text, update

from observer_agent.clock import Clock, iso
from observer_agent.errors import UsageError
from observer_agent.hub import audit, schema
from observer_agent.hub.database import Database
from observer_agent.hub.hot import Hot

PREFIX = "obs_live_"
REVISION = "definitions_revision"  # the counter that every change of a definition moves
GRACE = 86_400.0
GRACE_MAX = 7 * 86_400.0
SHOWN = 13, 2  # of a key, at its beginning and at its end


class Agent(NamedTuple):
    """Whose key a request carries, and the revision of the definitions when it was looked up."""

    id: str
    name: str
    revision: int = 0


class Keys:
    """See the module; `actor` is who changes something, for the audit log."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def agent_of(self, key: str) -> Agent | None:
        """The agent whose key this is, None when nobody's or no longer good."""
        wanted = digest(key)
        with self._database.glance() as conn:
            row = _WHOSE(conn, {"wanted": wanted}).first()
        if row is None or not hmac.compare_digest(row.digest, wanted):
            return None
        return (
            Agent(row.id, row.name, row.revision or 0)
            if state(row, self._clock.now()) in ("valid", "expiring")
            else None
        )

    def create(self, name: str, actor: str) -> str:
        """A new agent and its key, shown this once. Raises UsageError."""
        if not 1 <= len(name) <= 128 or not name.isprintable() or name != name.strip():
            raise UsageError("NAME must be 1 to 128 printable characters without blanks around them")
        agent_id, now = str(uuid.uuid4()), self._clock.now()
        with self._database.write() as conn:
            if conn.scalar(select(schema.agents.c.id).where(schema.agents.c.name == name)):
                raise UsageError(f"there is a key for {name!r} already; choose another name")
            conn.execute(insert(schema.agents).values(id=agent_id, name=name, created_at=now))
            key = _add(conn, agent_id, now)
            audit.record(conn, now, actor, action="key.create", subject=name, detail=hint(key))
        return key

    def rotate(self, name: str, actor: str, grace: float = GRACE) -> str:
        """Another key for an agent; those it had are good for `grace` seconds more. Raises UsageError."""
        if not 0 <= grace <= GRACE_MAX:
            raise UsageError("the grace must be between 0 and 7 days")
        now, keys = self._clock.now(), schema.keys
        with self._database.write() as conn:
            agent_id = _agent_id(conn, name)
            mine = (keys.c.agent_id == agent_id) & keys.c.revoked_at.is_(None)
            longer = keys.c.expires_at.is_(None) | (keys.c.expires_at > now + grace)
            conn.execute(update(keys).where(mine & longer).values(expires_at=now + grace))
            key = _add(conn, agent_id, now)
            detail = f"{hint(key)}; the keys before are good for {grace:.0f} s"
            audit.record(conn, now, actor, action="key.rotate", subject=name, detail=detail)
        return key

    def revoke(self, name: str, actor: str, which: str | None = None, *, dry_run: bool = False) -> list[str]:
        """Ends the keys of an agent, or the one with the hint `which`, at once; their hints. Raises UsageError."""
        now, keys = self._clock.now(), schema.keys
        with self._database.write() as conn:
            agent_id = _agent_id(conn, name)
            rows = conn.execute(select(keys).where(keys.c.agent_id == agent_id).order_by(keys.c.created_at)).all()
            ending = [row for row in rows if state(row, now) in ("valid", "expiring") and which in (None, row.hint)]
            if not ending:
                raise UsageError(f"{name!r} has no such key that is good; `observer-hub key list` shows them")
            if not dry_run:
                ended = keys.c.digest.in_([row.digest for row in ending])
                conn.execute(update(keys).where(ended).values(revoked_at=now))
                hints = ", ".join(row.hint for row in ending)
                audit.record(conn, now, actor, action="key.revoke", subject=name, detail=hints)
        return [row.hint for row in ending]

    def list(self) -> list[dict[str, Any]]:
        """Every key, without the key: by agent, newest first; plain JSON-able objects."""
        agents, keys, now = schema.agents, schema.keys, self._clock.now()
        query = select(agents.c.name, keys).join_from(keys, agents)
        with self._database.read() as conn:
            rows = conn.execute(query.order_by(agents.c.name, keys.c.created_at.desc(), keys.c.digest)).all()
        return [
            {
                "agent_id": row.agent_id,
                "name": row.name,
                "hint": row.hint,
                "state": state(row, now),
                **{each: _iso(getattr(row, each)) for each in ("created_at", "expires_at", "revoked_at")},
            }
            for row in rows
        ]


def state(row: Any, now: float) -> str:
    """What a key is good for: `valid`, `expiring` (until the end of a grace), `expired` or `revoked`."""
    if row.revoked_at is not None:
        return "revoked"
    if row.expires_at is None:
        return "valid"
    return "expiring" if now < row.expires_at else "expired"


def digest(key: str) -> str:
    """The form in which a key is kept: its SHA-256 in hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def hint(key: str) -> str:
    """What may be shown of a key: enough to tell two apart, 37 unknown characters too few to guess it."""
    first, last = SHOWN
    return f"{key[:first]}…{key[-last:]}"


def _add(conn: Connection, agent_id: str, now: float) -> str:
    key = PREFIX + base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")
    values = {"digest": digest(key), "agent_id": agent_id, "created_at": now, "hint": hint(key)}
    conn.execute(insert(schema.keys).values(values))
    return key


def _agent_id(conn: Connection, name: str) -> str:
    """The agent of that name, its row held: rotations and revocations go one after the other."""
    found = conn.scalar(select(schema.agents.c.id).where(schema.agents.c.name == name).with_for_update())
    if found is None:
        raise UsageError(f"there is no agent {name!r}; `observer-hub key list` shows them")
    return str(found)


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else iso(seconds)


_KEY, _AGENT = schema.keys.c, schema.agents.c
_NOW = select(schema.counters.c.n).where(schema.counters.c.name == text(f"'{REVISION}'")).label("revision")
_WHOSE = Hot(
    select(_KEY.digest, _KEY.expires_at, _KEY.revoked_at, _AGENT.id, _AGENT.name, _NOW)
    .join_from(schema.keys, schema.agents)
    .where(_KEY.digest == bindparam("wanted"))
)
