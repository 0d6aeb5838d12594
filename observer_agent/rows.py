"""The rows of the queue by meaning: which ones repeat what is known, and which go first when room is needed.

A row is *redundant* when its status repeats its metric's last row and the head of that run, its first row, was accepted
or still waits. The flag is fixed at put; table `runs` keeps for every metric the run that it is in and its head, and is
written only at transitions. When a head leaves unaccepted, the next waiting row of its metric takes its role.

Every method works inside the caller's transaction, under the queue's transaction lock.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from zlib import crc32

from observer_agent.queuefile import TABLE

_INSERT = f"INSERT INTO {TABLE} (_id, data, timestamp, crc, metric_id, redundant) VALUES (?, ?, ?, ?, ?, ?)"
_COLUMNS = "_id, length(data), metric_id, redundant"
_REDUNDANT = (
    f"SELECT {_COLUMNS} FROM {TABLE} WHERE redundant = 1 AND _id > ? AND _id NOT BETWEEN ? AND ? ORDER BY _id LIMIT ?"
)
_OLDEST = f"SELECT {_COLUMNS} FROM {TABLE} WHERE _id NOT BETWEEN ? AND ? ORDER BY _id LIMIT ?"
_OLDER = f"SELECT {_COLUMNS} FROM {TABLE} WHERE timestamp < ? AND _id NOT BETWEEN ? AND ? ORDER BY _id LIMIT ?"
_BETWEEN = f"SELECT {_COLUMNS} FROM {TABLE} WHERE _id BETWEEN ? AND ?"
_NEXT = f"SELECT _id, redundant FROM {TABLE} WHERE metric_id = ? AND _id > ? ORDER BY _id LIMIT 1"


Entry = tuple[str, str, bytes]  # a sample on its way into the file: metric id, status, the JSON


class Stored(NamedTuple):
    """A row as far as its fate matters: `size` is bytes of data."""

    id: int
    size: int
    metric_id: str
    redundant: int


class Sums(NamedTuple):
    """What some rows amount to."""

    rows: int
    bytes: int
    redundant: int


class Flight(NamedTuple):
    """The rows of the request in progress: their ids, and how many are redundant."""

    low: int = 0
    high: int = 0
    redundant: int = 0


class Rows:
    """The waiting rows. `commit` or `rollback` follows the end of every transaction."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        found = conn.execute("SELECT metric, status, head FROM runs")
        self._runs: dict[str, tuple[str, int]] = {metric: (status, head) for metric, status, head in found}
        self._fresh: dict[str, tuple[str, int] | None] = {}
        self._cursor = 0  # no redundant row has an id up to here, those in flight apart

    # -- in

    def insert(self, tx: sqlite3.Connection, first_id: int, entries: Sequence[Entry], now: float) -> Sums:
        """Writes entries with ids from `first_id` on; `now` is seconds since 1970.

        The loop runs for every row that is ever put, so it spells out `queuefile.checksum`.
        """
        rows, size, repeats, fresh, runs = [], 0, 0, self._fresh, self._runs
        for row_id, (metric, status, data) in enumerate(entries, first_id):
            run = fresh[metric] if metric in fresh else runs.get(metric)
            redundant = run is not None and run[0] == status
            if redundant:
                repeats += 1
            else:
                fresh[metric] = (status, row_id)
            rows.append((row_id, data, now, crc32(data, row_id & 0xFFFFFFFF), metric, redundant))
            size += len(data)
        tx.executemany(_INSERT, rows)
        return Sums(len(rows), size, repeats)

    # -- out

    def victims(self, tx: sqlite3.Connection, limit: int, redundant: int, flight: Flight) -> list[Stored]:
        """The rows that go first: the oldest redundant ones, then the oldest; never those in flight.

        `redundant` is how many redundant rows there are. The cursor makes the search for them cost what they are apart,
        not what the queue is long.
        """
        if redundant > flight.redundant:
            found = self._read(tx, _REDUNDANT, (self._cursor, flight.low, flight.high, limit))
            if found:
                self._cursor = found[-1].id
                return found
            self._cursor = 0
        return self._read(tx, _OLDEST, (flight.low, flight.high, limit))

    def older(self, tx: sqlite3.Connection, moment: float, limit: int, flight: Flight) -> list[Stored]:
        """The oldest rows that were put before `moment`."""
        return self._read(tx, _OLDER, (moment, flight.low, flight.high, limit))

    def between(self, tx: sqlite3.Connection, low: int, high: int) -> list[Stored]:
        """The rows with ids from `low` to `high`."""
        return self._read(tx, _BETWEEN, (low, high))

    def delete(self, tx: sqlite3.Connection, rows: Sequence[Stored]) -> Sums:
        """Takes rows out, a few dozen at the most."""
        marks = ",".join("?" * len(rows))
        tx.execute(f"DELETE FROM {TABLE} WHERE _id IN ({marks})", [row.id for row in rows])
        return Sums(len(rows), sum(row.size for row in rows), sum(row.redundant for row in rows))

    def hand_over(self, tx: sqlite3.Connection, lost: Iterable[Stored], any_redundant: bool) -> int:
        """Heads that have left unaccepted hand their role on; returns how many rows stopped being redundant.

        `any_redundant` false means that no redundant row waits at all: then no row can follow a head in its run, and
        nothing has to be looked for.
        """
        cleared = 0
        for row in lost:
            if row.redundant:
                continue
            heir = tx.execute(_NEXT, (row.metric_id, row.id)).fetchone() if any_redundant else None
            if heir and heir[1]:
                tx.execute(f"UPDATE {TABLE} SET redundant = 0 WHERE _id = ?", (heir[0],))
                cleared += 1
            status, head = self._run(row.metric_id) or ("", 0)
            if head == row.id:
                self._fresh[row.metric_id] = (status, heir[0]) if heir else None
        return cleared

    def landed(self, flight: Flight) -> None:
        """A request is over and its rows may still wait: the cursor may not be beyond them."""
        self._cursor = min(self._cursor, flight.low - 1) if flight.low else self._cursor

    def statuses(self) -> dict[str, str]:
        """What each metric's run is one of."""
        return {metric: status for metric, (status, _) in self._runs.items()}

    # -- transactions

    def write(self, tx: sqlite3.Connection) -> None:
        """Into the file what has changed of the runs."""
        for metric, run in self._fresh.items():
            if run is None:
                tx.execute("DELETE FROM runs WHERE metric = ?", (metric,))
            else:
                tx.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", (metric, *run))

    def commit(self) -> None:
        """The transaction is in the file."""
        for metric, run in self._fresh.items():
            if run is None:
                self._runs.pop(metric, None)
            else:
                self._runs[metric] = run
        self._fresh.clear()

    def rollback(self) -> None:
        """The transaction did not happen; after `commit` this does nothing."""
        if self._fresh:
            self._fresh.clear()
            self._cursor = 0

    def _run(self, metric: str) -> tuple[str, int] | None:
        return self._fresh[metric] if metric in self._fresh else self._runs.get(metric)

    @staticmethod
    def _read(tx: sqlite3.Connection, sql: str, parameters: tuple[float, ...]) -> list[Stored]:
        return [Stored(*row) for row in tx.execute(sql, parameters)]
