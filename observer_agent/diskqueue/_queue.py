"""The bounded queue on disk: samples in by `put`, out by `peek` and `settle`, nothing lost in between.

Built on `persistqueue.SQLiteQueue`: its table, its two WAL connections, its transaction lock. Any thread may `put`; one
thread, the sender, peeks and settles. Everything that changes the file happens in one transaction under `tran_lock`
with the accounts that it changes. `depth`, `oldest_age` and `ledgers` answer from memory and never wait for the disk.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from observer_agent import queuefile, space
from observer_agent.accounts import Accounts, Change, Held, Lost, oldest_row
from observer_agent.clock import Clock
from observer_agent.diskqueue._base import SQLiteQueue
from observer_agent.diskqueue._file import lock, rebuild
from observer_agent.diskqueue._letters import bury, refused
from observer_agent.diskqueue._rounds import Round, Rounds
from observer_agent.errors import Damaged, DiskFull, QueueError
from observer_agent.model import Answer, Batch, Fate, Ledger, Loss, Row, Sample
from observer_agent.queuefile import TABLE, checksum, transaction
from observer_agent.rows import Entry, Flight, Rows, Stored
from observer_agent.space import Space

log = logging.getLogger(__name__)

T = TypeVar("T")

EVICT_AT_ONCE = 32
EXAMINE_MAX = 32 * 1024 * 1024


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
    _getter: sqlite3.Connection
    _putter: sqlite3.Connection

    def __init__(self, file: Path, bounds: Bounds, clock: Clock, sync: str = "normal", *, alone: bool = False) -> None:
        """`alone` opens the file with one connection and no shared memory beside it: a full disk has no room for it."""
        self.file = file
        self._alone = alone
        self._one: sqlite3.Connection | None = None
        self.bounds = bounds
        self.on_put: Callable[[], object] = lambda: None
        self.on_loss: Callable[[Loss, int], object] = lambda reason, n: None
        self._clock = clock
        self._sync = sync
        self._lock_file = lock(file)
        self._flight = Flight()
        self._shut = False  # a rebuilt file could not be opened yet
        self.rounds = Rounds(self._commit)
        space.take_donor(file)
        try:
            super().__init__(str(file.parent), multithreading=True, serializer=_NoSerializer, db_file_name=file.name)
        except BaseException:
            self._lock_file.close()
            raise

    # -- what the base class asks for

    def _new_db_connection(self, path: str, multithreading: bool, timeout: float) -> sqlite3.Connection:
        if self._one:
            return self._one
        conn = queuefile.connect(self.file, timeout, self._sync, alone=self._alone)
        queuefile.create(conn)
        self._one = conn if self._alone else None
        return conn

    def _count(self) -> int:
        """Reads the accounts; the base class calls it once, at the end of its opening."""
        self._examine()
        self._getter.execute("PRAGMA wal_autocheckpoint = 0")
        self.space = Space(self._putter, self.file)
        self.accounts = Accounts(self._putter)
        self.rows = Rows(self._putter)
        return self.accounts.held.rows

    def _examine(self) -> None:
        """After an unclean stop a file that is not large is looked through; raises sqlite3.DatabaseError."""
        clean, next_id = self._putter.execute("SELECT clean, next_id FROM meta").fetchone()
        highest = self._putter.execute(f"SELECT max(_id) FROM {TABLE}").fetchone()[0] or 0
        if highest >= next_id:
            raise sqlite3.DatabaseError("there are rows that the account does not know")
        if not clean and self.file.stat().st_size <= EXAMINE_MAX:
            found = self._putter.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(found)

    def _heal(self, error: Damaged) -> None:
        """The file proved damaged while running: what can be read is carried into a new one, under the same lock."""
        self._putter.close()
        self._getter.close()
        self.space.close()
        self._flight, self._one, self._shut = Flight(), None, True
        rebuild(self.file, self._clock.now(), error)
        self._reopen()

    def _reopen(self) -> None:
        """New connections under the old lock; where that fails the next caller tries again."""
        self._getter = self._conn = self._new_db_connection(self.path, True, self.timeout)
        self._putter = self._new_db_connection(self.path, True, self.timeout)
        self.total = self._count()
        self._shut = False

    @contextmanager
    def _file(self) -> Iterator[None]:
        """The queue's lock; whatever sqlite3 raises comes out as QueueError.

        A file that proves damaged is rebuilt; the caller hears that it has to try again.
        """
        with self.tran_lock:
            try:
                try:
                    if self._shut:
                        self._reopen()
                    yield
                except sqlite3.Error as error:
                    raise queuefile.translated(error) from error
            except Damaged as error:
                if not self._shut:
                    self._heal(error)
                raise QueueError("the queue file was damaged and has been rebuilt") from error

    # -- put

    def put(self, samples: Sequence[Sample], missed: int = 0) -> int:
        """Stores samples and returns how many rows were dropped to make room; returns after the commit.

        `missed` samples that came while the file took none are declared as lost, `disk_full`, with ids of their own.

        Threads that put at the same time share one transaction: the first to come leads, those that come while it
        waits for the file are taken along. Which rows were dropped is told to the leader alone. Raises QueueError when
        the file does not take them; then nothing of that transaction was stored.
        """
        if not samples:
            return 0
        entries = [(sample.metric_id, sample.status, sample.encode()) for sample in samples]
        dropped, led = self.rounds.put(entries, missed)
        if led:
            self.on_put()
        return dropped

    def _commit(self, close: Callable[[], Round]) -> int:
        """The leader's part of a put: takes the file, closes the round, stores it."""
        with self._file():
            turn = close()
            size = sum(len(data) + len(metric) for metric, _, data in turn.entries)
            self.space.reserve(len(turn.entries), size)
            dropped = self._twice(lambda: self._store(turn.entries, turn.missed))
            self.space.settle()
            return dropped

    def _store(self, entries: Sequence[Entry], missed: int) -> int:
        now, before = self._clock.now(), self.accounts.held
        with self._changing() as tx:
            came = self.rows.insert(tx, before.next_id + missed, entries, now)
            held = Held(
                before.next_id + missed + came.rows,
                before.rows + came.rows,
                before.bytes + came.bytes,
                before.redundant + came.redundant,
                before.oldest,
            )
            lost, held = self._evict(tx, held, now)
            if lost or held.oldest is None:
                held = held._replace(oldest=oldest_row(tx))
            dropped = lost.total()
            if missed:
                lost[self.queue_id, Loss.DISK_FULL.value] += missed
            change = Change(held, lost)
            self.accounts.write(tx, change)
        self._take(change)
        return dropped

    def _evict(self, tx: sqlite3.Connection, held: Held, now: float) -> tuple[Lost, Held]:
        """Deletes rows that are not in flight until the bounds hold; returns what went, and what stays."""
        lost: Lost = Counter()
        while True:
            rows, reason = self._victims(tx, held, now)
            if not rows:
                return lost, held
            held = held.without(*self.rows.delete(tx, rows))
            cleared = self.rows.hand_over(tx, rows, held.redundant > 0)
            held = held.without(0, 0, cleared)
            lost.update(self.accounts.count([row.id for row in rows], reason))

    def _victims(self, tx: sqlite3.Connection, held: Held, now: float) -> tuple[list[Stored], Loss]:
        """The next rows to go, and why."""
        bounds, flight = self.bounds, self._flight
        if held.rows > bounds.rows:
            limit = min(held.rows - bounds.rows, EVICT_AT_ONCE)
            return self.rows.victims(tx, limit, held.redundant, flight), Loss.CAP
        if bounds.bytes is not None and held.bytes > bounds.bytes:
            return self.rows.victims(tx, 1, held.redundant, flight), Loss.CAP
        if bounds.age is not None and held.oldest is not None and held.oldest < now - bounds.age:
            return self.rows.older(tx, now - bounds.age, EVICT_AT_ONCE, flight), Loss.AGE
        return [], Loss.CAP

    # -- peek and settle

    def peek(self, limit: int, after: int = 0, upto: int | None = None) -> Batch | None:
        """The oldest rows of one queue id as a batch, in flight until settled; None when there are none.

        At most `limit`, with ids above `after` and not above `upto`, and never more than half the bound, so that a
        full queue can still make room. Raises QueueError.
        """
        limit = max(1, min(limit, self.bounds.rows // 2))
        high = 2**62 if upto is None else upto
        with self._file():
            self._land()
            good: list[tuple[Row, int]] = []
            while not good:
                found = self._read((after, high, limit))
                if not found:
                    return None
                good = [(Row(i, data), flag) for i, data, crc, flag in found if checksum(i, data) == crc]
                if len(good) < len(found):
                    self._discard([each[0] for each in found], {row.id for row, _ in good})
            queue_id = self.accounts.queue_id_of(good[0][0].id)
            mine = good
            if self.accounts.queue_id_of(good[-1][0].id) != queue_id:
                mine = [each for each in good if self.accounts.queue_id_of(each[0].id) == queue_id]
            rows = tuple(row for row, _ in mine)
            self._flight = Flight(rows[0].id, rows[-1].id, sum(flag for _, flag in mine))
        return Batch(queue_id, rows)

    def _read(self, parameters: tuple[int, ...]) -> list[tuple[int, bytes, int, int]]:
        sql = f"SELECT _id, data, crc, redundant FROM {TABLE} WHERE _id > ? AND _id <= ? ORDER BY _id LIMIT ?"
        return [(i, bytes(data), crc, flag) for i, data, crc, flag in self._putter.execute(sql, parameters)]

    def settle(self, batch: Batch, answer: Answer, loss: Loss = Loss.REFUSED) -> None:
        """Closes a batch: accepted rows leave; refused and fenced rows leave as lost; anything else stays.

        `loss` is the reason under which refused rows are counted. Refused rows become dead letters. Raises
        QueueError; then every row is still there, and still out of reach of the bound.
        """
        if answer.fate not in (Fate.ACCEPTED, Fate.REFUSED, Fate.FENCED):
            with self.tran_lock:
                self._land()
            return
        reason = Loss.FENCED if answer.fate is Fate.FENCED else loss
        with self._file():
            change = self._twice(lambda: self._settle(batch, answer, reason))
            if change:
                self._land()
                self._take(change)
                self.space.wrote(sum(len(row.data) for row in batch.rows))
                self.space.settle()

    def _settle(self, batch: Batch, answer: Answer, reason: Loss) -> Change | None:
        """The transaction of `settle`; None when the batch was a suspect that has been evicted meanwhile."""
        letters = refused(batch, answer)
        lost = batch.rows if answer.fate is Fate.FENCED else [row for row, _ in letters]
        low, high = batch.rows[0].id, batch.rows[-1].id
        with self._changing() as tx:
            if not lost and self._flight[:2] == (low, high):
                change = self._accept(tx, batch)
                self.accounts.write(tx, change)
                return change
            found = self.rows.between(tx, low, high)
            if not found:
                return None
            if len(found) != len(batch):
                raise QueueError(f"only {len(found)} rows of a batch of {len(batch)} are in the queue")
            change = self._close(tx, found, {row.id for row in lost}, reason)
            bury(tx, batch, letters, answer, self._clock.now())
            self.accounts.write(tx, change)
        return change

    def _accept(self, tx: sqlite3.Connection, batch: Batch) -> Change:
        """The usual case, quickly: the whole batch in flight was accepted."""
        low, high, redundant = self._flight
        gone = tx.execute(f"DELETE FROM {TABLE} WHERE _id BETWEEN ? AND ?", (low, high)).rowcount
        if gone != len(batch):
            raise QueueError(f"only {gone} rows of a batch of {len(batch)} are in the queue")
        held = self.accounts.held.without(gone, sum(len(row.data) for row in batch.rows), redundant)
        return Change(held._replace(oldest=oldest_row(tx)), Counter(), (batch.queue_id, gone))

    def _close(self, tx: sqlite3.Connection, found: list[Stored], gone: set[int], reason: Loss) -> Change:
        """Takes the rows of a batch out; those in `gone` are lost, the others accepted."""
        low, high = found[0].id, found[-1].id
        tx.execute(f"DELETE FROM {TABLE} WHERE _id BETWEEN ? AND ?", (low, high))
        sums = (len(found), sum(row.size for row in found), sum(row.redundant for row in found))
        held = self.accounts.held.without(*sums)
        lost = [row for row in found if row.id in gone]
        held = held.without(0, 0, self.rows.hand_over(tx, lost, held.redundant > 0))
        accepted = (self.accounts.queue_id_of(low), len(found) - len(lost))
        held = held._replace(oldest=oldest_row(tx))
        return Change(held, self.accounts.count([row.id for row in lost], reason), accepted)

    def _land(self) -> None:
        """No request is in progress any more."""
        self.rows.landed(self._flight)
        self._flight = Flight()

    def _discard(self, seen: list[int], good: set[int]) -> None:
        """Takes rows out that do not match their checksum: they are lost as `damaged`."""
        bad = [row_id for row_id in seen if row_id not in good]
        with self._changing() as tx:
            rows = [row for row in self.rows.between(tx, bad[0], bad[-1]) if row.id not in good]
            held = self.accounts.held.without(*self.rows.delete(tx, rows))
            held = held.without(0, 0, self.rows.hand_over(tx, rows, held.redundant > 0))
            change = Change(held._replace(oldest=oldest_row(tx)), self.accounts.count(bad, Loss.DAMAGED))
            self.accounts.write(tx, change)
        self._take(change)
        log.error("%d samples in the queue file were damaged and are lost", len(bad))

    def _twice(self, work: Callable[[], T]) -> T:
        """A transaction that finds no room is tried once more after a checkpoint."""
        try:
            return work()
        except DiskFull:
            self.space.relieve()
            return work()

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """A transaction on the putting connection, with what it changes of the runs."""
        try:
            with transaction(self._putter) as tx:
                yield tx
                self.rows.write(tx)
            self.rows.commit()
        finally:
            self.rows.rollback()

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

    def told(self) -> dict[str, str]:
        """The status of each metric's last row that waits or was accepted."""
        with self.tran_lock:
            return self.rows.statuses()

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

    def tidy(self) -> bool:
        """In idle moments: gives free pages back, a few at a time; says whether there are more.

        Does nothing while the queue is in use. Raises QueueError.
        """
        if self.depth or not self.tran_lock.acquire(blocking=False):
            return False
        try:
            return self.space.give_back()
        except sqlite3.Error as error:
            raise queuefile.translated(error) from error
        finally:
            self.tran_lock.release()

    def close(self) -> None:
        """Marks the file as cleanly closed and lets go of it; may be called twice."""
        if self._lock_file.closed:
            return
        with self.tran_lock:
            try:
                self._putter.execute("UPDATE meta SET clean = 1")
            except sqlite3.Error as error:
                log.warning("The queue file could not be marked as closed: %s", error)
            space.keep_donor(self.file)
            super().close()
            self.space.close()
            space.blank_donor(self.file)
        self._lock_file.close()

    def __del__(self) -> None:
        """The base class closes here; ours is closed by its owner, on the owner's thread."""
