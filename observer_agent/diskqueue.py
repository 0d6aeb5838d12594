"""The bounded queue on disk: samples in by `put`, out by `peek` and `settle`, nothing lost in between.

Built on `persistqueue.SQLiteQueue`: its table, its two WAL connections, its transaction lock. Any thread may `put`; one
thread, the sender, peeks and settles. Everything that changes the file happens in one transaction under `tran_lock`
with the accounts that it changes. `depth`, `oldest_age` and `ledgers` answer from memory and never wait for the disk.
"""

from __future__ import annotations

import bisect
import fcntl
import itertools
import logging
import sqlite3
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from persistqueue.sqlqueue import SQLiteQueue

from observer_agent import queuefile
from observer_agent.clock import Clock
from observer_agent.errors import QueueError
from observer_agent.model import Answer, Batch, Fate, Ledger, Loss, Reject, Row, Sample
from observer_agent.queuefile import TABLE, checksum, transaction

log = logging.getLogger(__name__)

EVICT_AT_ONCE = 32
KEEP_REJECTED = 1000
KEEP_REJECTED_SECONDS = 7 * 86400.0
KEEP_OPENINGS = 20
TEXT_MAX = 200

_INSERT = f"INSERT INTO {TABLE} (_id, data, timestamp, crc, metric_id) VALUES (?, ?, ?, ?, ?)"
_COUNT = "INSERT INTO counters VALUES (?, ?, ?) ON CONFLICT (queue_id, name) DO UPDATE SET n = n + excluded.n"


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
        self._oldest: float | None = None
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
        meta = "SELECT next_id, rows, bytes, started_at FROM meta"
        self._next_id, rows, self._bytes, self._started_at = self._putter.execute(meta).fetchone()
        self.queue_id = str(uuid.uuid4())
        with transaction(self._putter) as tx:
            _fold_old_openings(tx, self._next_id)
            tx.execute("INSERT INTO openings VALUES (?, ?)", (self.queue_id, self._next_id))
            tx.execute("UPDATE meta SET clean = 0")
        self._load_accounts()
        return int(rows)

    def _load_accounts(self) -> None:
        found = self._putter.execute("SELECT queue_id, first_row_id FROM openings ORDER BY first_row_id").fetchall()
        self._ids = [row[0] for row in found]
        self._firsts = [row[1] for row in found]
        self._accepted: Counter[str] = Counter()
        self._lost: dict[str, Counter[str]] = {}
        for queue_id, name, n in self._putter.execute("SELECT queue_id, name, n FROM counters"):
            if name == "accepted":
                self._accepted[queue_id] = n
            else:
                self._lost.setdefault(queue_id, Counter())[name] = n
        self._oldest = self._read_oldest(self._putter)
        self._ledgers = {queue_id: self._ledger(queue_id) for queue_id in self._ids}

    # -- put

    def put(self, samples: Sequence[Sample]) -> int:
        """Stores samples in one transaction and returns how many rows were dropped to make room.

        Returns after the commit. Raises QueueError when the file does not take them; then nothing was stored.
        """
        if not samples:
            return 0
        now = self._clock.now()
        with self.tran_lock:
            first = self._next_id
            rows = [_row(first + n, sample, now) for n, sample in enumerate(samples)]
            with transaction(self._putter) as tx:
                tx.executemany(_INSERT, rows)
                held = (self.total + len(rows), self._bytes + sum(len(row[1]) for row in rows))
                gone, held = self._evict(tx, held, now)
                self._write_accounts(tx, held, first + len(rows), lost=gone)
                oldest = self._oldest if self._oldest is not None and not gone else self._read_oldest(tx)
            self._take_over(held, first + len(rows), oldest, lost=gone)
        self.on_put()
        return sum(gone.values())

    def _evict(
        self, tx: sqlite3.Connection, held: tuple[int, int], now: float
    ) -> tuple[Counter[tuple[str, str]], tuple[int, int]]:
        """Deletes the oldest rows that are not in flight until the bounds hold; returns what went, and what stays."""
        gone: Counter[tuple[str, str]] = Counter()
        count, size = held
        while True:
            over, loss = self._excess(tx, count, size, now)
            rows = self._oldest_rows(tx, over) if over else []
            if not rows:
                return gone, (count, size)
            tx.executemany(f"DELETE FROM {TABLE} WHERE _id = ?", [(row[0],) for row in rows])
            for row_id, length in rows:
                gone[self._queue_id_of(row_id), loss] += 1
                count, size = count - 1, size - length

    def _excess(self, tx: sqlite3.Connection, count: int, size: int, now: float) -> tuple[int, Loss]:
        """How many rows may go in the next bite, and why."""
        if count > self.bounds.rows:
            return min(count - self.bounds.rows, EVICT_AT_ONCE), Loss.CAP
        if self.bounds.bytes is not None and size > self.bounds.bytes:
            return 1, Loss.CAP
        if self.bounds.age is not None and self._oldest is not None and self._oldest < now - self.bounds.age:
            low, high = self._flight or (0, 0)
            old = f"SELECT count(*) FROM {TABLE} WHERE timestamp < ? AND _id NOT BETWEEN ? AND ?"
            found = tx.execute(old, (now - self.bounds.age, low, high)).fetchone()[0]
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
            queue_id = self._queue_id_of(good[0].id)
            rows = tuple(row for row in good if self._queue_id_of(row.id) == queue_id)
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
        if answer.fate is Fate.FENCED:
            lost = Counter({(batch.queue_id, Loss.FENCED.value): len(batch)})
        else:
            lost = Counter({(batch.queue_id, loss.value): len(refused)}) if refused else Counter()
        with self.tran_lock:
            with transaction(self._putter) as tx:
                gone, size = self._delete(tx, batch)
                held = (self.total - gone, self._bytes - size)
                accepted = gone - sum(lost.values())
                self._bury(tx, batch, refused, answer)
                self._write_accounts(tx, held, self._next_id, lost=lost, accepted=(batch.queue_id, accepted))
                oldest = self._read_oldest(tx)
            self._flight = None
            self._take_over(held, self._next_id, oldest, lost=lost, accepted=(batch.queue_id, accepted))

    def _delete(self, tx: sqlite3.Connection, batch: Batch) -> tuple[int, int]:
        low, high = batch.rows[0].id, batch.rows[-1].id
        gone = tx.execute(f"DELETE FROM {TABLE} WHERE _id BETWEEN ? AND ?", (low, high)).rowcount
        if gone != len(batch):
            raise QueueError(f"{gone} rows of a batch of {len(batch)} were in the queue")
        return gone, sum(len(row.data) for row in batch.rows)

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
        lost = Counter((self._queue_id_of(row_id), Loss.DAMAGED.value) for row_id in bad)
        with transaction(self._putter) as tx:
            size = 0
            for row_id in bad:
                length = f"SELECT length(data) FROM {TABLE} WHERE _id = ?"
                size += tx.execute(length, (row_id,)).fetchone()[0]
                tx.execute(f"DELETE FROM {TABLE} WHERE _id = ?", (row_id,))
            held = (self.total - len(bad), max(0, self._bytes - size))
            self._write_accounts(tx, held, self._next_id, lost=lost)
            oldest = self._read_oldest(tx)
        self._take_over(held, self._next_id, oldest, lost=lost)
        log.error("%d samples in the queue file were damaged and are lost", len(bad))

    # -- accounts

    def _write_accounts(
        self,
        tx: sqlite3.Connection,
        held: tuple[int, int],
        next_id: int,
        *,
        lost: Counter[tuple[str, str]],
        accepted: tuple[str, int] | None = None,
    ) -> None:
        """The accounts in the file, in the transaction that changes them."""
        tx.execute("UPDATE meta SET next_id = ?, rows = ?, bytes = ?", (next_id, *held))
        for (queue_id, reason), n in lost.items():
            tx.execute(_COUNT, (queue_id, str(reason), n))
        if accepted and accepted[1]:
            tx.execute(_COUNT, (accepted[0], "accepted", accepted[1]))

    def _take_over(
        self,
        held: tuple[int, int],
        next_id: int,
        oldest: float | None,
        *,
        lost: Counter[tuple[str, str]],
        accepted: tuple[str, int] | None = None,
    ) -> None:
        """The accounts in memory, after the commit."""
        self.total, self._bytes = held
        self._next_id, self._oldest = next_id, oldest
        touched = {self.queue_id}
        for (queue_id, reason), n in lost.items():
            self._lost.setdefault(queue_id, Counter())[str(reason)] += n
            touched.add(queue_id)
            self.on_loss(Loss(reason), n)
        if accepted:
            self._accepted[accepted[0]] += accepted[1]
            touched.add(accepted[0])
        for queue_id in touched:
            self._ledgers[queue_id] = self._ledger(queue_id)

    def _ledger(self, queue_id: str) -> Ledger:
        at = self._ids.index(queue_id)
        end = self._firsts[at + 1] if at + 1 < len(self._firsts) else self._next_id
        given, accepted = end - self._firsts[at], self._accepted[queue_id]
        lost = dict(self._lost.get(queue_id, {}))
        return Ledger(queue_id, given, accepted, given - accepted - sum(lost.values()), lost)

    def _queue_id_of(self, row_id: int) -> str:
        return str(self._ids[max(0, bisect.bisect_right(self._firsts, row_id) - 1)])

    def _read_oldest(self, conn: sqlite3.Connection) -> float | None:
        row = conn.execute(f"SELECT timestamp FROM {TABLE} ORDER BY _id LIMIT 1").fetchone()
        return float(row[0]) if row else None

    # -- what others may ask at any time

    @property
    def depth(self) -> int:
        """Rows that wait."""
        return int(self.total)

    @property
    def capacity(self) -> int:
        """The hard cap, in rows."""
        return self.bounds.rows

    @property
    def size_bytes(self) -> int:
        """Bytes of data that wait."""
        return int(self._bytes)

    def oldest_age(self) -> float:
        """Seconds for which the oldest row has waited; 0 when there is none."""
        oldest = self._oldest
        return max(0.0, self._clock.now() - oldest) if oldest is not None else 0.0

    def ledgers(self) -> tuple[Ledger, ...]:
        """The account of every queue id that the file knows, oldest first."""
        known = dict(self._ledgers)
        return tuple(known[queue_id] for queue_id in self._ids if queue_id in known)

    def lost(self) -> dict[str, int]:
        """Losses by reason, over all queue ids."""
        total: Counter[str] = Counter()
        for by_reason in list(self._lost.values()):
            total.update(by_reason)
        return dict(total)

    def claim_start(self) -> float:
        """The start time of this process: now, or a millisecond after the last one that the file knows.

        Kept in the file, so that a clock set back never fences an agent against itself. Seconds since 1970.
        """
        now = round(self._clock.now(), 3)
        started_at = max(now, round(self._started_at + 0.001, 3))
        with self.tran_lock, transaction(self._putter) as tx:
            tx.execute("UPDATE meta SET started_at = ?", (started_at,))
        self._started_at = started_at
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


def _fold_old_openings(tx: sqlite3.Connection, next_id: int) -> None:
    """Forgets openings that hold no row: empty ones at once, others once 20 newer ones stand; keeps their sums."""
    tx.execute("DELETE FROM openings WHERE first_row_id >= ?", (next_id,))
    oldest_row = tx.execute(f"SELECT min(_id) FROM {TABLE}").fetchone()[0] or next_id
    found = tx.execute("SELECT queue_id, first_row_id FROM openings ORDER BY first_row_id").fetchall()
    kept = len(found) - KEEP_OPENINGS
    for at, ((queue_id, _), (_, end)) in enumerate(itertools.pairwise(found)):
        if at < kept and end <= oldest_row:
            sums = tx.execute("SELECT name, n FROM counters WHERE queue_id = ?", (queue_id,)).fetchall()
            tx.executemany(_COUNT, [("total", name, n) for name, n in sums])
            tx.execute("DELETE FROM counters WHERE queue_id = ?", (queue_id,))
            tx.execute("DELETE FROM openings WHERE queue_id = ?", (queue_id,))
