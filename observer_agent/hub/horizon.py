"""Up to which id the rows of `pushes` are complete: who walks the table by id may not pass one that is not committed.

On PostgreSQL ids are given out before the commit, so that a row can appear behind others that were seen long ago. All
who were writing when the highest id was looked at have ended once no older transaction runs; then nothing can appear up
to it. On SQLite one transaction writes at a time, in the order of ids.
"""

from __future__ import annotations

import math

from sqlalchemy import text

from observer_agent.hub.database import POSTGRESQL, Database

_LOOK = text(
    "SELECT pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint, (SELECT max(id) FROM pushes)"
    " FROM pg_current_snapshot() AS s"
)


class Horizon:
    """What one process knows of it; one thread asks."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._complete = 0
        self._seen: tuple[int, int] | None = None  # an id, and the transaction that has to be the oldest for it

    def id(self) -> float:
        """The highest id that is complete as far as is known; infinite where ids are committed in their order."""
        if self._database.dialect != POSTGRESQL:
            return math.inf
        with self._database.glance() as conn:
            oldest, following, last = conn.execute(_LOOK).one()
        if self._seen and oldest >= self._seen[1]:
            self._complete, self._seen = self._seen[0], None
        if oldest == following:
            self._complete, self._seen = max(self._complete, last or 0), None
        elif self._seen is None:
            self._seen = (last or 0, following)
        return self._complete
