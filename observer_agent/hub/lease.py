"""A job that one hub process at a time may do: whoever holds the lease does it, and renews it while it works.

The lease is a row of `counters` whose number is the moment at which it ends, in milliseconds since 1970. A process that
dies loses it when that moment has passed.
"""

from __future__ import annotations

from sqlalchemy import Connection, select, update

from observer_agent.hub import schema
from observer_agent.hub.database import Database, insert
from observer_agent.hub.patient import bearing


class Lease:
    """The lease called `name`, as one process sees it; one thread uses it."""

    def __init__(self, database: Database, name: str, seconds: float) -> None:
        self._database = database
        self._name = f"lease_{name}"
        self._ms = int(seconds * 1000)
        self._mine: int | None = None

    def take(self, now: float) -> bool:
        """Takes or renews it at `now`; says whether this process holds it."""
        moment = int(now * 1000)
        counters = schema.counters
        with self._database.write() as conn:
            until = self._locked(conn)
            if until > moment and until != self._mine:
                return False
            mine = max(moment + self._ms, until + 1)
            conn.execute(update(counters).where(counters.c.name == self._name).values(n=mine))
        self._mine = mine
        return True

    def _locked(self, conn: Connection) -> int:
        """The moment at which it ends, 0 for one that nobody has had yet; no other process changes it meanwhile."""
        counters = schema.counters
        row = select(counters.c.n).where(counters.c.name == self._name).with_for_update()
        until = conn.scalar(row)
        if until is None:  # processes that start together: one makes the row, the others wait for it
            conn.execute(insert(conn, counters).values(name=self._name, n=0).on_conflict_do_nothing())
            until = conn.scalar(row)
        return int(until or 0)

    def release(self) -> None:
        """Lets it go, so that another process need not wait for its end, which comes where the database is away."""
        counters = schema.counters
        if self._mine is not None:
            with bearing(), self._database.write() as conn:
                conn.execute(
                    update(counters).where(counters.c.name == self._name, counters.c.n == self._mine).values(n=0)
                )
            self._mine = None
