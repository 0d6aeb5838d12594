"""The queue's file, format 1: its tables, how a connection is opened, how it is read from outside.

The format (docs/queue-file.md): page size 1024, WAL, `user_version` 1. Row ids are ours and are never given twice
within an opening; `meta` is one row. `openings` says which queue id a row id belongs to: the last opening whose
`first_row_id` is not above it. A row's `crc` is CRC-32 of its data, started with its id.
"""

from __future__ import annotations

import fcntl
import glob
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from observer_agent.errors import Damaged, DiskFull, QueueError

VERSION = 1
PAGE_SIZE = 1024
KEEP_ASIDE = 3
TABLE = "queue_default"

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (
    _id INTEGER PRIMARY KEY, data BLOB NOT NULL, timestamp FLOAT NOT NULL,
    crc INTEGER NOT NULL, metric_id TEXT NOT NULL, redundant INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS meta (
    one INTEGER PRIMARY KEY CHECK (one = 1), next_id INTEGER NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL,
    redundant INTEGER NOT NULL, started_at FLOAT NOT NULL, clean INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS openings (queue_id TEXT PRIMARY KEY, first_row_id INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counters (
    queue_id TEXT NOT NULL, name TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (queue_id, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (
    metric TEXT PRIMARY KEY, status TEXT NOT NULL, head INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rejected (
    id INTEGER PRIMARY KEY, queue_id TEXT NOT NULL, row_id INTEGER NOT NULL, data BLOB NOT NULL,
    reason TEXT NOT NULL, status INTEGER NOT NULL, answer TEXT NOT NULL, rejected_at FLOAT NOT NULL);
INSERT OR IGNORE INTO meta VALUES (1, 1, 0, 0, 0, 0, 1);
PRAGMA user_version = {VERSION};
"""


def connect(file: Path, timeout: float, sync: str, *, alone: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode with our pragmas; transactions are begun by hand.

    `alone` keeps every other connection out, and the WAL's index in memory.
    """
    conn = sqlite3.connect(file, timeout=timeout, check_same_thread=False, isolation_level=None)
    try:
        if alone:
            conn.execute("PRAGMA locking_mode = EXCLUSIVE")
        conn.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        conn.execute("PRAGMA auto_vacuum = INCREMENTAL")
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute(f"PRAGMA synchronous = {sync.upper()}")
        conn.execute("PRAGMA secure_delete = OFF")
        _check_version(conn, file)
    except BaseException:
        conn.close()
        raise
    return conn


def _check_version(conn: sqlite3.Connection, file: Path) -> None:
    version = conn.execute("PRAGMA user_version").fetchone()[0]
    tables = {row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if version > VERSION:
        raise QueueError(f"{file} has format {version}, this version reads {VERSION}")
    if version == 0 and tables - {TABLE}:
        raise QueueError(f"{file} is a database of another program")


def create(conn: sqlite3.Connection) -> None:
    """Makes the tables where they are missing, in one transaction."""
    conn.executescript(f"BEGIN IMMEDIATE;{SCHEMA}COMMIT;")


@contextmanager
def transaction(conn: sqlite3.Connection, what: str = "the queue file") -> Iterator[sqlite3.Connection]:
    """All or nothing; an sqlite3 error comes out as QueueError, a full disk as DiskFull."""
    try:
        conn.execute("BEGIN IMMEDIATE")
        try:
            yield conn
            conn.execute("COMMIT")
        except BaseException:
            if conn.in_transaction:
                conn.execute("ROLLBACK")
            raise
    except sqlite3.Error as error:
        raise translated(error, what) from error


def translated(error: sqlite3.Error, what: str = "the queue file") -> QueueError:
    """An sqlite3 error by what happens next: wait for room, rebuild the file, or try again."""
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    kinds = {sqlite3.SQLITE_FULL: DiskFull, sqlite3.SQLITE_CORRUPT: Damaged, sqlite3.SQLITE_NOTADB: Damaged}
    return kinds.get(code, QueueError)(f"{what}: {error}")


def checksum(row_id: int, data: bytes) -> int:
    """The crc column of a row."""
    return zlib.crc32(data, row_id & 0xFFFFFFFF)


def quarantine(file: Path, now: float) -> Path:
    """Moves a file that cannot be used aside, its `-wal` and `-shm` with it; returns the new name.

    The newest three such files are kept.
    """
    aside = file.with_name(f"{file.name}.corrupt-{int(now)}")
    n = 0
    while aside.exists():
        n += 1
        aside = file.with_name(f"{file.name}.corrupt-{int(now)}.{n}")
    for suffix in ("", "-wal", "-shm"):
        part = file.with_name(file.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    _forget_old(file)
    return aside


def _forget_old(file: Path) -> None:
    parts = [
        p for p in file.parent.glob(f"{glob.escape(file.name)}.corrupt-*") if not p.name.endswith(("-wal", "-shm"))
    ]
    for old in sorted(parts, key=lambda p: (p.stat().st_mtime_ns, p.name))[:-KEEP_ASIDE]:
        for suffix in ("", "-wal", "-shm"):
            old.with_name(old.name + suffix).unlink(missing_ok=True)


def read_stats(file: Path, now: float, capacity: int) -> dict[str, Any]:
    """What `queue stats` shows, read without writing, whether an agent runs or not; raises QueueError."""
    if not file.exists():
        raise QueueError(f"{file} does not exist")
    try:
        with closing(read_only(file)) as conn:
            return _stats(conn, file, now, capacity)
    except sqlite3.Error as error:
        raise QueueError(f"{file} cannot be read: {error}") from None


def is_held(file: Path) -> bool:
    """Whether a process has the queue open: it holds a lock on the file beside it."""
    try:
        with file.with_name(file.name + ".lock").open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def read_only(file: Path) -> sqlite3.Connection:
    """A connection that changes nothing; on a file that nobody has open it leaves no WAL behind either."""
    real = file.resolve()  # the WAL lies beside the file itself, not beside a link to it
    unused = "" if real.with_name(real.name + "-wal").exists() else "&immutable=1"
    return sqlite3.connect(f"{real.as_uri()}?mode=ro{unused}", uri=True, timeout=5.0)


def _stats(conn: sqlite3.Connection, file: Path, now: float, capacity: int) -> dict[str, Any]:
    next_id, size = conn.execute("SELECT next_id, bytes FROM meta").fetchone()
    depth, oldest = conn.execute(f"SELECT count(*), min(timestamp) FROM {TABLE}").fetchone()
    latest = conn.execute("SELECT queue_id FROM openings ORDER BY first_row_id DESC LIMIT 1").fetchone()
    counted = dict(conn.execute("SELECT name, sum(n) FROM counters GROUP BY name").fetchall())
    accepted = counted.pop("accepted", 0)
    counted.pop("given", None)
    return {
        "path": str(file),
        "depth": depth,
        "capacity": capacity,
        "bytes": size,
        "oldest_age_seconds": max(0.0, round(now - oldest, 3)) if depth else 0.0,
        "queue_id": latest[0] if latest else None,
        "next_row_id": next_id,
        "accepted": accepted,
        "lost": counted,
        "rejected": conn.execute("SELECT count(*) FROM rejected").fetchone()[0],
    }
