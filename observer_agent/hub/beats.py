"""How the queue of an agent was, one point a minute for seven days: what the console draws its graphs from.

`POINT` and `tidy` run in the transaction of a heartbeat, `forget` in the worker `roll`, `read` on the threads of the
server.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from zlib import crc32

from sqlalchemy import Connection, bindparam, delete, exists, select

from observer_agent.hub import schema
from observer_agent.hub.database import DIALECTS
from observer_agent.hub.hot import Hot

KEPT_MINUTES = 7 * 1440
TIDY_MINUTES = 60


class Beat(NamedTuple):
    """One point: seconds since 1970, rows waiting, age of the oldest in seconds."""

    at: float
    depth: int
    age: int


def point(agent_id: str, now: float, queue: tuple[int | None, int | None]) -> dict[str, Any]:
    """What `POINT` needs to keep the first heartbeat of a minute."""
    return {"agent_id": agent_id, "minute": int(now // 60), "depth": queue[0] or 0, "age": queue[1] or 0}


def tidy(conn: Connection, agent_id: str, now: float) -> None:
    """Once an hour lets go of what has grown old."""
    beats, minute = schema.beats, int(now // 60)
    if (minute + crc32(agent_id.encode())) % TIDY_MINUTES == 0:  # not all agents in the same minute
        conn.execute(delete(beats).where(beats.c.agent_id == agent_id, beats.c.minute < minute - KEPT_MINUTES))


def forget(conn: Connection, now: float) -> int:
    """Lets go of the points of one agent that comes no more; returns how many went, at most seven days of them."""
    beats, agents = schema.beats, schema.agents
    silent = agents.c.last_heartbeat_at < now - (KEPT_MINUTES + TIDY_MINUTES) * 60
    query = select(agents.c.id).where(silent, exists().where(beats.c.agent_id == agents.c.id))
    gone = conn.scalar(query.limit(1))
    return 0 if gone is None else conn.execute(delete(beats).where(beats.c.agent_id == gone)).rowcount


def read(conn: Connection, agent_id: str, since: float) -> list[Beat]:
    """The points of an agent since an instant, oldest first."""
    beats = schema.beats
    query = select(beats.c.minute, beats.c.depth, beats.c.age).where(beats.c.agent_id == agent_id)
    rows = conn.execute(query.where(beats.c.minute >= int(since // 60)).order_by(beats.c.minute))
    return [Beat(row.minute * 60.0, row.depth, row.age) for row in rows]


def _point(dialect: str) -> Any:
    names = ("agent_id", "minute", "depth", "age")
    values: dict[str, Any] = {name: bindparam(name) for name in names}
    return DIALECTS[dialect].insert(schema.beats).values(values).on_conflict_do_nothing()


POINT = Hot(_point("sqlite"), postgresql=_point("postgresql"))
