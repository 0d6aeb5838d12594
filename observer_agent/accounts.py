"""The queue's accounts: what each queue id was given, what was accepted, what was lost and why.

`Accounts` lives in memory and answers without the disk; every `Change` is written to the file in the transaction that
causes it, and taken over here after the commit. So `given == accepted + pending + lost` holds in both, always.
"""

from __future__ import annotations

import bisect
import itertools
import sqlite3
import threading
import uuid
from collections import Counter
from typing import NamedTuple

from observer_agent.model import Ledger, Loss
from observer_agent.queuefile import TABLE, transaction

KEEP_OPENINGS = 20
TOTAL = "total"  # the name under which forgotten openings are summed

_COUNT = "INSERT INTO counters VALUES (?, ?, ?) ON CONFLICT (queue_id, name) DO UPDATE SET n = n + excluded.n"

Lost = Counter[tuple[str, str]]  # (queue id, reason) to rows


class Held(NamedTuple):
    """What the file holds: the next row id, rows, bytes of data, redundant rows, and when the oldest row was put."""

    next_id: int
    rows: int
    bytes: int
    redundant: int
    oldest: float | None = None

    def without(self, rows: int, size: int, redundant: int) -> Held:
        """After rows have left, or stopped being redundant."""
        left = max(0, self.redundant - redundant)
        return Held(self.next_id, self.rows - rows, max(0, self.bytes - size), left, self.oldest)


class Change(NamedTuple):
    """One transaction's effect on the accounts; `accepted` is rows of a queue id."""

    held: Held
    lost: Lost
    accepted: tuple[str, int] = ("", 0)


class Accounts:
    """See the module. Only the thread that holds the queue's transaction lock changes it; any thread may read."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        """Begins a new opening of the file: draws its queue id."""
        meta = "SELECT next_id, rows, bytes, redundant, started_at FROM meta"
        next_id, rows, size, redundant, self.started_at = conn.execute(meta).fetchone()
        self.queue_id = str(uuid.uuid4())
        with transaction(conn) as tx:
            _fold_old_openings(tx, next_id)
            tx.execute("INSERT INTO openings VALUES (?, ?)", (self.queue_id, next_id))
            tx.execute("UPDATE meta SET clean = 0")
        self.held = Held(next_id, rows, size, redundant, oldest_row(conn))
        openings = conn.execute("SELECT queue_id, first_row_id FROM openings ORDER BY first_row_id").fetchall()
        self._ids = [str(row[0]) for row in openings]
        self._firsts = [int(row[1]) for row in openings]
        self._accepted: Counter[str] = Counter()
        self._lost: dict[str, Counter[str]] = {}
        for queue_id, name, n in conn.execute("SELECT queue_id, name, n FROM counters"):
            if name == "accepted":
                self._accepted[queue_id] = n
            else:
                self._lost.setdefault(queue_id, Counter())[name] = n
        self._lock = threading.Lock()  # never held while the disk works

    def write(self, tx: sqlite3.Connection, change: Change) -> None:
        """Into the file, in the transaction that changes it."""
        held = change.held
        sums = (held.next_id, held.rows, held.bytes, held.redundant)
        tx.execute("UPDATE meta SET next_id = ?, rows = ?, bytes = ?, redundant = ?", sums)
        for (queue_id, reason), n in change.lost.items():
            tx.execute(_COUNT, (queue_id, str(reason), n))
        if change.accepted[1]:
            tx.execute(_COUNT, (change.accepted[0], "accepted", change.accepted[1]))

    def take(self, change: Change) -> None:
        """Into memory, after the commit."""
        with self._lock:
            self.held = change.held
            for (queue_id, reason), n in change.lost.items():
                self._lost.setdefault(queue_id, Counter())[str(reason)] += n
            if change.accepted[1]:
                self._accepted[change.accepted[0]] += change.accepted[1]

    def queue_id_of(self, row_id: int) -> str:
        """The queue id of the opening in which a row was put."""
        return self._ids[max(0, bisect.bisect_right(self._firsts, row_id) - 1)]

    def ledgers(self) -> tuple[Ledger, ...]:
        """The account of every queue id that the file knows, oldest first."""
        with self._lock:
            return tuple(self._ledger(at) for at in range(len(self._ids)))

    def lost(self) -> dict[str, int]:
        """Losses by reason, over all queue ids, forgotten ones included."""
        total: Counter[str] = Counter()
        with self._lock:
            for by_reason in self._lost.values():
                total.update(by_reason)
        return dict(total)

    def count(self, row_ids: list[int], reason: Loss) -> Lost:
        """Lost rows by queue id; the ids ascend."""
        if row_ids and self.queue_id_of(row_ids[0]) == (queue_id := self.queue_id_of(row_ids[-1])):
            return Counter({(queue_id, reason.value): len(row_ids)})
        return Counter((self.queue_id_of(row_id), reason.value) for row_id in row_ids)

    def _ledger(self, at: int) -> Ledger:
        queue_id = self._ids[at]
        end = self._firsts[at + 1] if at + 1 < len(self._firsts) else self.held.next_id
        given, accepted = end - self._firsts[at], self._accepted[queue_id]
        lost = dict(self._lost.get(queue_id, {}))
        return Ledger(queue_id, given, accepted, given - accepted - sum(lost.values()), lost)


def oldest_row(conn: sqlite3.Connection) -> float | None:
    """When the oldest row was put, in seconds since 1970; None when there is none."""
    row = conn.execute(f"SELECT timestamp FROM {TABLE} ORDER BY _id LIMIT 1").fetchone()
    return float(row[0]) if row else None


def _fold_old_openings(tx: sqlite3.Connection, next_id: int) -> None:
    """Forgets openings that hold no row: empty ones at once, others once 20 newer ones stand; keeps their sums."""
    tx.execute("DELETE FROM openings WHERE first_row_id >= ?", (next_id,))
    oldest = tx.execute(f"SELECT min(_id) FROM {TABLE}").fetchone()[0] or next_id
    found = tx.execute("SELECT queue_id, first_row_id FROM openings ORDER BY first_row_id").fetchall()
    kept = len(found) - KEEP_OPENINGS
    for at, ((queue_id, _), (_, end)) in enumerate(itertools.pairwise(found)):
        if at < kept and end <= oldest:
            sums = tx.execute("SELECT name, n FROM counters WHERE queue_id = ?", (queue_id,)).fetchall()
            tx.executemany(_COUNT, [(TOTAL, name, n) for name, n in sums])
            tx.execute("DELETE FROM counters WHERE queue_id = ?", (queue_id,))
            tx.execute("DELETE FROM openings WHERE queue_id = ?", (queue_id,))
