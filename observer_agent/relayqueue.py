"""The relay's own queue: pings of cron jobs in a small SQLite file, on the disk before they are acknowledged.

JSON objects in, in their order, and out again until somebody says that they are done. A full queue takes no more; what
it took is lost only by damage to the file, which is then moved aside. Any thread may call.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Collection
from contextlib import closing, suppress
from pathlib import Path

from observer_agent import queuefile
from observer_agent.clock import Clock
from observer_agent.errors import QueueError
from observer_agent.model import Row

log = logging.getLogger(__name__)

ROWS_MAX = 5000
PATIENCE = 5.0  # seconds that SQLite waits for a lock on the file
_TABLE = "CREATE TABLE IF NOT EXISTS pings (id INTEGER PRIMARY KEY AUTOINCREMENT, data BLOB NOT NULL)"
_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Full(QueueError):
    """The queue holds as many pings as it may."""


class RelayQueue:
    """See the module. The file is opened when it is first needed, and again where that failed.

    `damaged` counts pings that were lost with a damaged file; where nobody knows how many, one for the file.
    """

    def __init__(self, file: Path, clock: Clock, most: int = ROWS_MAX) -> None:
        self.file = file
        self.damaged = 0
        self._clock = clock
        self._most = most
        self._lock = threading.Lock()
        self._done: set[int] = set()  # settled, and not deleted yet
        self._rows = 0
        self._conn: sqlite3.Connection | None = None
        self._closed = False

    @property
    def depth(self) -> int:
        """How many wait."""
        return self._rows - len(self._done)

    def put(self, data: bytes) -> None:
        """Takes one, on the disk when this returns. Raises Full, QueueError."""
        with self._lock:
            self._do(lambda conn: self._insert(conn, data))
            self._rows += 1

    def peek(self, limit: int) -> tuple[Row, ...]:
        """The oldest that are not done. Raises QueueError."""
        with self._lock:
            with suppress(QueueError):
                self._sweep()
            found: list[Row] = []
            query = "SELECT id, data FROM pings ORDER BY id LIMIT ?"
            self._do(lambda conn: found.extend(map(Row._make, conn.execute(query, (limit + len(self._done),)))))
            return tuple(row for row in found if row.id not in self._done)[:limit]

    def done(self, ids: Collection[int]) -> None:
        """These are done with; where the file does not let them go, they are passed over until it does."""
        with self._lock:
            self._done.update(ids)
            try:
                self._sweep()
            except QueueError as error:
                log.error("Pings that were delivered cannot be taken out of %s yet (%s)", self.file, error)

    def close(self) -> None:
        """Closes the file for good."""
        with self._lock:
            self._closed = True
            self._drop()

    def _insert(self, conn: sqlite3.Connection, data: bytes) -> None:
        if self._rows >= self._most:
            raise Full(f"{self._most} pings wait already")
        conn.execute("INSERT INTO pings (data) VALUES (?)", (data,))

    def _sweep(self) -> None:
        gone = [(each,) for each in self._done]
        if gone:
            self._do(lambda conn: conn.executemany("DELETE FROM pings WHERE id = ?", gone))
            self._rows -= len(gone)
            self._done.clear()

    def _do(self, job: Callable[[sqlite3.Connection], object]) -> None:
        """One transaction; a damaged file is replaced for the next one."""
        if self._closed:
            raise QueueError(f"{self.file} is closed")
        try:
            conn = self._conn = self._conn or self._begin()
            with conn:
                job(conn)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _BROKEN:
                self._replace(error)
            raise QueueError(f"{self.file}: {error}") from None
        except OSError as error:
            raise QueueError(f"{self.file}: {error.strerror}") from None

    def _begin(self) -> sqlite3.Connection:
        """Opens or makes the file; only its owner may read it, because tokens are in it."""
        os.close(os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.chmod(self.file, 0o600)
        conn = sqlite3.connect(self.file, timeout=PATIENCE, check_same_thread=False)
        try:
            conn.execute("PRAGMA auto_vacuum = FULL")
            conn.execute("PRAGMA journal_mode = WAL")
            conn.execute("PRAGMA synchronous = FULL")  # each commit waits for the disk
            with conn:
                conn.execute(_TABLE)
            with closing(conn.execute("SELECT count(*) FROM pings")) as cursor:
                self._rows = cursor.fetchone()[0]
        except BaseException:
            conn.close()
            raise
        return conn

    def _replace(self, error: sqlite3.Error) -> None:
        """Moves a file that cannot be read aside; the next transaction makes a new one."""
        self._drop()
        try:
            aside = queuefile.quarantine(self.file, self._clock.now())
        except OSError as problem:
            raise QueueError(f"{self.file}: {error}, and cannot be moved aside: {problem.strerror}") from None
        self.damaged += max(1, self._rows)
        self._rows = 0
        self._done.clear()
        log.error("The relay's queue file cannot be used (%s). It was moved to %s; pings in it are lost", error, aside)

    def _drop(self) -> None:
        if self._conn:
            self._conn.close()
        self._conn = None
