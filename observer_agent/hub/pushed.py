"""Finding rows of the table of pushes by time without an index on time: ids rise as rows come in.

Reads only; any thread.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, func, select

from observer_agent.hub import schema

MARGIN = 3600.0  # clocks of hub processes differ, and may be set back


def moment(row: Row[Any]) -> float:
    """The instant a verdict is of: the one on its stamp, at the latest the one at which it came."""
    return float(min(row.timestamp, row.received_at))


def first_id(conn: Connection, since: float) -> int:
    """An id below which no row came at or after an instant; all rows of the instants from there on lie above it."""
    pushes = schema.pushes
    low = int(conn.scalar(select(func.min(pushes.c.id))) or 0)
    high = int(conn.scalar(select(func.max(pushes.c.id))) or 0) + 1
    query = select(pushes.c.id, pushes.c.received_at).order_by(pushes.c.id).limit(1)
    while low < high:
        middle = (low + high) // 2
        row = conn.execute(query.where(pushes.c.id >= middle)).first()
        if row is None or row.received_at >= since - MARGIN:
            high = middle
        else:
            low = int(row.id) + 1
    return low
