"""Salvage: a damaged queue file goes in, a sound one with every row that could be proved good comes out.

Enters: a queue file that SQLite cannot be trusted with, and its `-wal`. Leaves: a new file of format 1 and a `Report`.
Runs on the thread that opens the queue; nobody else has either file.

Nothing is asked of SQLite about the damaged file. A row is believed when its CRC is right *and* its page is in use: the
table's tree leads there, or the pointer map (which an auto-vacuum file keeps of every page's owner) says so. Pages that
were given back still hold rows that have long been delivered; those must stay dead. What has no checksum (openings,
counters, runs) is believed when it is plausible, and bent to the rows where the two disagree.
"""

from __future__ import annotations

import bisect
import itertools
import json
import re
import sqlite3
import uuid
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from observer_agent.accounts import TOTAL
from observer_agent.errors import QueueError
from observer_agent.model import Loss, Status
from observer_agent.queuefile import TABLE, checksum, connect, create, transaction
from observer_agent.rawpages import load
from observer_agent.rawrecords import SURE, UNPROVEN, Reader, Record, Value

ID_MAX = 2**53
TEN_YEARS = 10 * 366 * 86400.0

_TABLES = (TABLE, "meta", "openings", "counters", "runs", "rejected")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_COUNTERS = {"accepted", "given", *(loss.value for loss in Loss)}
_IN_ORDER = {"accepted", Loss.REFUSED.value, Loss.FENCED.value}  # rows leave for these from the lowest id on
_STATUSES = {*(status.value for status in Status), "up", "down"}  # those of both dialects


@dataclass(frozen=True, slots=True)
class Report:
    """What a rescue did: rows saved, ids counted as `damaged`, and a line for the log."""

    rows: int
    damaged: int
    text: str


def rescue(damaged: Path, fresh: Path, now: float) -> Report:
    """Writes what can be read of `damaged` and its `-wal` to `fresh`, which must not exist yet.

    `now` is seconds since 1970. Bytes of any kind raise nothing. QueueError says that `fresh` could not be written;
    what is there of it is then of no use. `damaged` is only read.
    """
    image = load(damaged)
    try:
        with closing(connect(fresh, 5.0, "normal")) as conn:
            create(conn)
            roots = [row[0] for row in conn.execute("SELECT rootpage FROM sqlite_master")]
            found = _Found(Reader(image, roots, _TABLES).records(), now)
            books = _Books(found, image.torn)
            with transaction(conn) as tx:
                _write(tx, books)
    except sqlite3.Error as error:
        raise QueueError(f"{fresh}: {error}") from error
    return Report(len(books.rows), books.damaged, books.text())


# -- what the records mean


class _Saved(NamedTuple):
    """A row with a good CRC. `status` is what its data says; `doubt` is how little is known of its page."""

    id: int
    data: bytes
    timestamp: float
    metric_id: str
    redundant: int
    status: str
    doubt: int


class _Found:
    """Everything plausible that was read, the best-founded copy of each."""

    def __init__(self, records: Iterable[Record], now: float) -> None:
        self.rows: dict[int, _Saved] = {}
        self.meta: tuple[int, float] = (0, 0.0)  # next id, started at
        self.openings: dict[str, int] = {}
        self.counters: dict[tuple[str, str], int] = {}
        self.runs: dict[str, tuple[str, int]] = {}
        self.rejected: dict[int, tuple[Value, ...]] = {}
        self._now = now
        for record in records:
            self._take(*record)

    def _take(self, key: int, values: tuple[Value, ...], doubt: int) -> None:
        """Tells the tables apart by the shape of the record."""
        match values:
            case (None, bytes(data), int() | float() as stamp, int(crc), str(metric), int(redundant), *_):
                if key not in self.rows and 0 < key < ID_MAX and checksum(key, data) == crc:
                    metric, status = _meaning(data, metric)
                    row = _Saved(key, data, self._plausible(stamp), metric, int(redundant == 1), status, doubt)
                    self.rows[key] = row
            case (None, int(next_id), int(), int(), int(), int() | float() as started, int()) if key == 1:
                if self.meta == (0, 0.0):
                    started = float(started) if 0 <= started < self._now + TEN_YEARS else 0.0
                    self.meta = (next_id if 0 < next_id < ID_MAX else 0, started)
            case (None, str(owner), int(), bytes(), str(), int(), str(), int() | float() as stamp):
                if _UUID.fullmatch(owner):
                    self.rejected.setdefault(key, (key, *values[1:-1], self._plausible(stamp)))
            case (str(owner), int(first)) if _UUID.fullmatch(owner) and 0 < first < ID_MAX:
                self.openings.setdefault(owner, first)
            case (str(owner), str(name), int(n)) if name in _COUNTERS and 0 <= n < ID_MAX:
                if owner == TOTAL or _UUID.fullmatch(owner):
                    self.counters.setdefault((owner, name), n)
            case (str(metric), str(status), int(head)) if status in _STATUSES and 0 < head < ID_MAX:
                self.runs.setdefault(metric, (status, head))

    def _plausible(self, stamp: float) -> float:
        """A wall time as it was stored, or now where that cannot be."""
        return float(stamp) if 0 <= stamp < self._now + TEN_YEARS else self._now


def _meaning(data: bytes, metric: str) -> tuple[str, str]:
    """Metric and status by the data, for which the CRC stands, rather than by the columns."""
    try:
        sample = json.loads(data)
        found, status = sample["metric_id"], sample["status"]
        found.encode()
        return found, status if status in _STATUSES else ""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return metric, ""


# -- accounts


class _Books:
    """What will be written: `given == accepted + pending + lost` for every opening."""

    def __init__(self, found: _Found, torn: bool) -> None:
        self.rows = dict(sorted(found.rows.items()))
        self.rejected = list(found.rejected.values())
        self.counters: Counter[tuple[str, str]] = Counter()
        self.damaged = 0
        self._torn = torn
        highest = max(self.rows, default=0)
        self.started_at = found.meta[1]
        self.openings = self._openings(found, highest)
        self.next_id = max(found.meta[0], highest + 1, *(first for first, _ in self.openings), 1)
        known = {owner for _, owner in self.openings}
        for (owner, name), n in found.counters.items():
            whose = owner if owner in known else TOTAL
            self.counters[whose, name] = min(self.counters[whose, name] + n, ID_MAX)
        for (first, owner), (end, _) in itertools.pairwise([*self.openings, (self.next_id, "")]):
            self._balance(owner, first, end)
        self.runs = self._runs(found)

    def text(self) -> str:
        """One line for the log."""
        line = f"{len(self.rows)} samples were saved, {self.damaged} are lost"
        if self._nameless:
            line += f"; the queue id of {self._nameless} could not be read, they have a new one"
        return line

    def _openings(self, found: _Found, highest: int) -> list[tuple[int, str]]:
        """First row id and queue id, ascending; rows before all that is known get a queue id of their own."""
        limit = max(found.meta[0], highest + 1) if found.meta[0] else ID_MAX
        by_first: dict[int, str] = {}
        for owner, first in found.openings.items():
            if first <= limit:
                by_first.setdefault(first, owner)
        ids = list(self.rows)
        lowest = min(by_first, default=ID_MAX)
        self._nameless = bisect.bisect_left(ids, lowest)
        if self._nameless:
            by_first[ids[0]] = str(uuid.uuid4())
        return sorted(by_first.items())

    def _balance(self, owner: str, first: int, end: int) -> None:
        """Makes an opening's account true: rows that must have left go, what is missing is `damaged`."""
        names = {name: n for (each, name), n in self.counters.items() if each == owner}
        gone = sum(names.values())
        ids = list(self.rows)
        ids = ids[bisect.bisect_left(ids, first) : bisect.bisect_left(ids, end)]
        in_order = set(names) <= _IN_ORDER
        stale = {i for i in ids if self._is_stale(self.rows[i], first + gone, in_order)}
        ids = [i for i in ids if i not in stale]
        over = len(ids) + gone - (end - first)
        doubtful = [i for i in ids if self._torn or self.rows[i].doubt]
        stale.update(doubtful[: max(0, over)])
        for i in stale:
            self.rows.pop(i)
        over -= min(len(doubtful), max(0, over))
        for name in sorted(names):  # `accepted` first
            cut = min(max(0, over), names[name])
            self.counters[owner, name] -= cut
            over -= cut
        if over < 0:
            self.counters[owner, Loss.DAMAGED.value] -= over
            self.damaged -= over

    def _is_stale(self, row: _Saved, floor: int, in_order: bool) -> bool:
        """Whether a row whose page is in doubt has left: where rows leave in order, those below the floor have."""
        if row.doubt == UNPROVEN and not in_order:
            return True
        return in_order and row.id < floor and (self._torn or row.doubt > SURE)

    def _runs(self, found: _Found) -> dict[str, tuple[str, int]]:
        """The runs as they were, or, when rows are lost, only those whose head is here.

        A row may stay redundant only while the row that it repeats is known not to be lost.
        """
        runs: dict[str, tuple[str, int]] = {}
        for i, row in self.rows.items():
            status, head = runs.get(row.metric_id, (row.status if not self.damaged else "", 0))
            if row.redundant and status != row.status:
                self.rows[i] = row._replace(redundant=0)
            runs[row.metric_id] = (row.status, head if self.rows[i].redundant else i)
        if self.damaged:
            return {metric: run for metric, run in runs.items() if all(run)}
        before = {metric: run for metric, run in found.runs.items() if run[1] < self.next_id}
        return {metric: run for metric, run in (runs | before).items() if all(run)}


def _write(tx: sqlite3.Connection, books: _Books) -> None:
    rows = [
        (row.id, row.data, row.timestamp, checksum(row.id, row.data), row.metric_id, row.redundant)
        for row in books.rows.values()
    ]
    tx.executemany(f"INSERT INTO {TABLE} VALUES (?, ?, ?, ?, ?, ?)", rows)
    tx.executemany("INSERT INTO openings VALUES (?, ?)", [(owner, first) for first, owner in books.openings])
    tx.executemany("INSERT INTO counters VALUES (?, ?, ?)", [(*key, n) for key, n in books.counters.items() if n])
    tx.executemany("INSERT INTO runs VALUES (?, ?, ?)", [(metric, *run) for metric, run in books.runs.items()])
    tx.executemany("INSERT INTO rejected VALUES (?, ?, ?, ?, ?, ?, ?, ?)", books.rejected)
    sums = (sum(len(row[1]) for row in rows), sum(row[5] for row in rows))
    tx.execute(
        "UPDATE meta SET next_id = ?, rows = ?, bytes = ?, redundant = ?, started_at = ?, clean = 1",
        (books.next_id, len(rows), *sums, books.started_at),
    )
