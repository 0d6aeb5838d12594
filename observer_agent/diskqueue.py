"""The bounded queue on disk: samples in by `put`, out by `peek` and `settle`, nothing lost in between.

Built on `persistqueue.SQLiteQueue`: its table, its two WAL connections, its transaction lock. Any thread may `put`; one
thread, the sender, peeks and settles. Everything that changes the file happens in one transaction under `tran_lock`
with the accounts that it changes. `depth`, `oldest_age` and `ledgers` answer from memory and never wait for the disk.
"""

from __future__ import annotations

import fcntl
import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from persistqueue.sqlqueue import SQLiteQueue

from observer_agent import queuefile
from observer_agent.accounts import Accounts, Change, Held, Lost, oldest_row
from observer_agent.clock import Clock
from observer_agent.errors import QueueError
from observer_agent.model import Answer, Batch, Fate, Ledger, Loss, Reject, Row, Sample
from observer_agent.queuefile import TABLE, checksum, transaction

log = logging.getLogger(__name__)

EVICT_AT_ONCE = 32
KEEP_REJECTED = 1000
KEEP_REJECTED_SECONDS = 7 * 86400.0
TEXT_MAX = 200

_INSERT = f"INSERT INTO {TABLE} (_id, data, timestamp, crc, metric_id) VALUES (?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the queue may hold: rows, bytes of data, seconds of age. None is no bound."""

    rows: int
    bytes: int | None = None
    age: float | None = None


class _NoSerializer:
    """Rows are stored as the bytes that are posted; never pickle: a writable file must not become code."""

    dumps = staticmethod(bytes)
    loads = staticmethod(bytes)


class DiskQueue(SQLiteQueue):  # type: ignore[misc]  # persistqueue has no types
    """See the module. Open one with `open_queue`; `on_put` is called after each commit that added rows."""

    _SQL_CREATE = "SELECT 1"  # the tables are made by queuefile.create

    def __init__(self, file: Path, bounds: Bounds, clock: Clock, sync: str = "normal") -> None:
        self.file = file
        self.bounds = bounds
        self.on_put: Callable[[], object] = lambda: None
        self.on_loss: Callable[[Loss, int], object] = lambda reason, n: None
        self._clock = clock
        self._sync = sync
        self._lock_file = _lock(file)
        self._flight: tuple[int, int] | None = None
        try:
            super().__init__(str(file.parent), multithreading=True, serializer=_NoSerializer, db_file_name=file.name)
        except BaseException:
            self._lock_file.close()
            raise

    # -- what the base class asks for

    def _new_db_connection(self, path: str, multithreading: bool, timeout: float) -> sqlite3.Connection:
        conn = queuefile.connect(self.file, timeout, self._sync)
        queuefile.create(conn)
        return conn

    def _count(self) -> int:
        """Reads the accounts; the base class calls it once, at the end of its opening."""
        self.accounts = Accounts(self._putter)
        return self.accounts.held.rows

    # -- put

    def put(self, samples: Sequence[Sample]) -> int:
        """Stores samples in one transaction and returns how many rows were dropped to make room.

        Returns after the commit. Raises QueueError when the file does not take them; then nothing was stored.
        """
        if not samples:
            return 0
        now = self._clock.now()
        with self.tran_lock:
            before = self.accounts.held
            rows = [_row(before.next_id + n, sample, now) for n, sample in enumerate(samples)]
            with transaction(self._putter) as tx:
                tx.executemany(_INSERT, rows)
                size = before.bytes + sum(len(row[1]) for row in rows)
                held = replace(before, next_id=before.next_id + len(rows), rows=before.rows + len(rows), bytes=size)
                lost, held = self._evict(tx, held, now)
                if lost or held.oldest is None:
                    held = replace(held, oldest=oldest_row(tx))
                change = Change(held, lost)
                self.accounts.write(tx, change)
            self._take(change)
        self.on_put()
        return lost.total()

    def _evict(self, tx: sqlite3.Connection, held: Held, now: float) -> tuple[Lost, Held]:
        """Deletes the oldest rows that are not in flight until the bounds hold; returns what went, and what stays."""
        lost: Lost = Counter()
        while True:
            over, reason = self._excess(tx, held, now)
            rows = self._oldest_rows(tx, over) if over else []
            if not rows:
                return lost, held
            tx.executemany(f"DELETE FROM {TABLE} WHERE _id = ?", [(row[0],) for row in rows])
            lost += self.accounts.count([row[0] for row in rows], reason)
            held = held.without(len(rows), sum(row[1] for row in rows))

    def _excess(self, tx: sqlite3.Connection, held: Held, now: float) -> tuple[int, Loss]:
        """How many rows may go in the next bite, and why."""
        bounds = self.bounds
        if held.rows > bounds.rows:
            return min(held.rows - bounds.rows, EVICT_AT_ONCE), Loss.CAP
        if bounds.bytes is not None and held.bytes > bounds.bytes:
            return 1, Loss.CAP
        if bounds.age is not None and held.oldest is not None and held.oldest < now - bounds.age:
            low, high = self._flight or (0, 0)
            old = f"SELECT count(*) FROM {TABLE} WHERE timestamp < ? AND _id NOT BETWEEN ? AND ?"
            found = tx.execute(old, (now - bounds.age, low, high)).fetchone()[0]
            return min(int(found), EVICT_AT_ONCE), Loss.AGE
        return 0, Loss.CAP

    def _oldest_rows(self, tx: sqlite3.Connection, limit: int) -> list[tuple[int, int]]:
        low, high = self._flight or (0, 0)
        sql = f"SELECT _id, length(data) FROM {TABLE} WHERE _id NOT BETWEEN ? AND ? ORDER BY _id LIMIT ?"
        return tx.execute(sql, (low, high, limit)).fetchall()

    # -- peek and settle

    def peek(self, limit: int, after: int = 0, upto: int | None = None) -> Batch | None:
        """The oldest rows of one queue id as a batch, in flight until settled; None when there are none.

        At most `limit`, with ids above `after` and not above `upto`, and never more than half the bound, so that a
        full queue can still make room. Raises QueueError.
        """
        limit = max(1, min(limit, self.bounds.rows // 2))
        high = 2**62 if upto is None else upto
        sql = f"SELECT _id, data, crc FROM {TABLE} WHERE _id > ? AND _id <= ? ORDER BY _id LIMIT ?"
        with self.tran_lock:
            self._flight = None
            good: list[Row] = []
            while not good:
                found = self._read(sql, (after, high, limit))
                if not found:
                    return None
                good = [Row(i, data) for i, data, crc in found if checksum(i, data) == crc]
                if len(good) < len(found):
                    self._discard([row[0] for row in found], {row.id for row in good})
            queue_id = self.accounts.queue_id_of(good[0].id)
            rows = tuple(row for row in good if self.accounts.queue_id_of(row.id) == queue_id)
            self._flight = (rows[0].id, rows[-1].id)
        return Batch(queue_id, rows)

    def _read(self, sql: str, parameters: tuple[int, ...]) -> list[tuple[int, bytes, int]]:
        try:
            return [(i, bytes(data), crc) for i, data, crc in self._putter.execute(sql, parameters)]
        except sqlite3.Error as error:
            raise QueueError(f"the queue file: {error}") from error

    def settle(self, batch: Batch, answer: Answer, loss: Loss = Loss.REFUSED) -> None:
        """Closes a batch: accepted rows leave; refused and fenced rows leave as lost; anything else stays.

        `loss` is the reason under which refused rows are counted. Refused rows become dead letters. Raises
        QueueError; then every row is still there, and still out of reach of the bound.
        """
        if answer.fate not in (Fate.ACCEPTED, Fate.REFUSED, Fate.FENCED):
            self._flight = None
            return
        refused = _refused(batch, answer)
        reason, gone = (Loss.FENCED, len(batch)) if answer.fate is Fate.FENCED else (loss, len(refused))
        lost: Lost = Counter({(batch.queue_id, reason.value): gone} if gone else {})
        with self.tran_lock:
            with transaction(self._putter) as tx:
                if not self._delete(tx, batch):
                    return  # a suspect that was not in flight and has been evicted meanwhile
                self._bury(tx, batch, refused, answer)
                held = self.accounts.held.without(len(batch), sum(len(row.data) for row in batch.rows))
                held = replace(held, oldest=oldest_row(tx))
                change = Change(held, lost, (batch.queue_id, len(batch) - gone))
                self.accounts.write(tx, change)
            self._flight = None
            self._take(change)

    def _delete(self, tx: sqlite3.Connection, batch: Batch) -> bool:
        """Takes the rows of a batch out; False when none of them is there."""
        low, high = batch.rows[0].id, batch.rows[-1].id
        gone = tx.execute(f"DELETE FROM {TABLE} WHERE _id BETWEEN ? AND ?", (low, high)).rowcount
        if gone not in (0, len(batch)):
            raise QueueError(f"only {gone} rows of a batch of {len(batch)} were in the queue")
        return gone > 0

    def _bury(self, tx: sqlite3.Connection, batch: Batch, refused: Sequence[tuple[Row, str]], answer: Answer) -> None:
        """Keeps refused rows as dead letters: the newest 1,000 of seven days."""
        if not refused:
            return
        now = self._clock.now()
        tx.executemany(
            "INSERT INTO rejected (queue_id, row_id, data, reason, status, answer, rejected_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (batch.queue_id, row.id, row.data, reason[:TEXT_MAX], answer.status, answer.text[:TEXT_MAX], now)
                for row, reason in refused
            ],
        )
        tx.execute("DELETE FROM rejected WHERE rejected_at < ?", (now - KEEP_REJECTED_SECONDS,))
        tx.execute(
            "DELETE FROM rejected WHERE id <= (SELECT id FROM rejected ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (KEEP_REJECTED,),
        )

    def _discard(self, seen: list[int], good: set[int]) -> None:
        """Takes rows out that do not match their checksum: they are lost as `damaged`."""
        bad = [row_id for row_id in seen if row_id not in good]
        marks = ",".join("?" * len(bad))
        with transaction(self._putter) as tx:
            size = tx.execute(f"SELECT total(length(data)) FROM {TABLE} WHERE _id IN ({marks})", bad).fetchone()[0]
            tx.execute(f"DELETE FROM {TABLE} WHERE _id IN ({marks})", bad)
            held = replace(self.accounts.held.without(len(bad), int(size)), oldest=oldest_row(tx))
            change = Change(held, self.accounts.count(bad, Loss.DAMAGED))
            self.accounts.write(tx, change)
        self._take(change)
        log.error("%d samples in the queue file were damaged and are lost", len(bad))

    def _take(self, change: Change) -> None:
        self.accounts.take(change)
        self.total = change.held.rows
        for (_, reason), n in change.lost.items():
            self.on_loss(Loss(reason), n)

    # -- what others may ask at any time

    @property
    def queue_id(self) -> str:
        """The queue id of this opening."""
        return self.accounts.queue_id

    @property
    def depth(self) -> int:
        """Rows that wait."""
        return self.accounts.held.rows

    @property
    def capacity(self) -> int:
        """The hard cap, in rows."""
        return self.bounds.rows

    @property
    def size_bytes(self) -> int:
        """Bytes of data that wait."""
        return self.accounts.held.bytes

    def oldest_age(self) -> float:
        """Seconds for which the oldest row has waited; 0 when there is none."""
        oldest = self.accounts.held.oldest
        return max(0.0, self._clock.now() - oldest) if oldest is not None else 0.0

    def ledgers(self) -> tuple[Ledger, ...]:
        """The account of every queue id that the file knows, oldest first."""
        return self.accounts.ledgers()

    def lost(self) -> dict[str, int]:
        """Losses by reason, over all queue ids."""
        return self.accounts.lost()

    def claim_start(self) -> float:
        """The start time of this process: now, or a millisecond after the last one that the file knows.

        Kept in the file, so that a clock set back never fences an agent against itself. Seconds since 1970.
        """
        started_at = max(round(self._clock.now(), 3), round(self.accounts.started_at + 0.001, 3))
        with self.tran_lock, transaction(self._putter) as tx:
            tx.execute("UPDATE meta SET started_at = ?", (started_at,))
        self.accounts.started_at = started_at
        return float(started_at)

    def close(self) -> None:
        """Marks the file as cleanly closed and lets go of it; may be called twice."""
        if self._lock_file.closed:
            return
        with self.tran_lock:
            try:
                self._putter.execute("UPDATE meta SET clean = 1")
            except sqlite3.Error as error:
                log.warning("The queue file could not be marked as closed: %s", error)
            super().close()
        self._lock_file.close()

    def __del__(self) -> None:
        """The base class closes here; ours is closed by its owner, on the owner's thread."""


def open_queue(file: Path, bounds: Bounds, clock: Clock, sync: str = "normal") -> DiskQueue:
    """Opens the queue, or moves a file that cannot be used aside and makes a new one.

    Raises QueueError when another process holds it or the directory takes no file.
    """
    try:
        return DiskQueue(file, bounds, clock, sync)
    except (QueueError, sqlite3.DatabaseError) as error:
        if isinstance(error, QueueHeld | sqlite3.OperationalError):
            raise QueueError(f"{file}: {error}") from error
        aside = queuefile.quarantine(file, clock.now())
        log.error("The queue file cannot be used (%s). It was moved to %s; a new one takes its place", error, aside)
        return DiskQueue(file, bounds, clock, sync)


class QueueHeld(QueueError):
    """Another process has the queue file open."""


def _lock(file: Path) -> IO[Any]:
    """One process a queue file: an flock on a file beside it, gone with the process."""
    try:
        handle = file.with_name(file.name + ".lock").open("a")
    except OSError as error:
        raise QueueHeld(f"the directory takes no file: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise QueueHeld("another observer-agent uses this queue file") from None
    return handle


def _row(row_id: int, sample: Sample, now: float) -> tuple[int, bytes, float, int, str]:
    data = sample.encode()
    return row_id, data, now, checksum(row_id, data), sample.metric_id


def _refused(batch: Batch, answer: Answer) -> list[tuple[Row, str]]:
    """The rows that become dead letters, each with the reason to keep."""
    if answer.fate is Fate.REFUSED:
        return [(row, f"status {answer.status}") for row in batch.rows]
    if answer.fate is Fate.ACCEPTED:
        return [(batch.rows[r.index], _reject_text(r)) for r in _valid(answer.rejects, len(batch))]
    return []


def _valid(rejects: Iterable[Reject], length: int) -> list[Reject]:
    return list({r.index: r for r in rejects if 0 <= r.index < length}.values())


def _reject_text(reject: Reject) -> str:
    return f"{reject.field}: {reject.code}"
