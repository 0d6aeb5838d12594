"""How the queue of an agent was, one point a minute for seven days: what the console draws its graphs from.

`note` runs in the transaction of a heartbeat, `read` on the threads of the server.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, delete, select

from observer_agent.hub import schema
from observer_agent.hub.database import insert

KEPT_MINUTES = 7 * 1440
TIDY_MINUTES = 60


class Beat(NamedTuple):
    """One point: seconds since 1970, rows waiting, age of the oldest in seconds."""

    at: float
    depth: int
    age: int


def note(conn: Connection, agent_id: str, now: float, queue: tuple[int | None, int | None]) -> None:
    """Keeps the first heartbeat of each minute; once an hour what has grown old is let go."""
    beats, minute = schema.beats, int(now // 60)
    point = {"agent_id": agent_id, "minute": minute, "depth": queue[0] or 0, "age": queue[1] or 0}
    conn.execute(insert(conn, beats).values(point).on_conflict_do_nothing())
    if minute % TIDY_MINUTES == 0:
        conn.execute(delete(beats).where(beats.c.agent_id == agent_id, beats.c.minute < minute - KEPT_MINUTES))


def read(conn: Connection, agent_id: str, since: float) -> list[Beat]:
    """The points of an agent since an instant, oldest first."""
    beats = schema.beats
    query = select(beats.c.minute, beats.c.depth, beats.c.age).where(beats.c.agent_id == agent_id)
    rows = conn.execute(query.where(beats.c.minute >= int(since // 60)).order_by(beats.c.minute))
    return [Beat(row.minute * 60.0, row.depth, row.age) for row in rows]
