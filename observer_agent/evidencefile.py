"""The file of evidence, beside the queue file: a ring of transitions for each metric, bounded in all.

One process writes (the thread `evidence`), `why` reads whether it runs or not. WAL with synchronous=NORMAL: what is
committed survives the process, however it ends. The newest RING rows of a metric are kept, MOST_BYTES in all, the
oldest go first; what a definition that is gone has left goes after a week. Everything in it has been redacted.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from observer_agent.errors import Damaged, DiskFull, QueueError, UsageError
from observer_agent.queuefile import quarantine, read_only, transaction, translated

VERSION = 1
RING = 20
MOST_BYTES = 32 * 1024 * 1024
LEAST_FREE = 32 * 1024 * 1024  # bytes that are left to the queue: on a disk with less nothing is written here
GONE_FOR = 7 * 86400.0
AT_ONCE = 64  # rows that make room together
WAL_PAGES = 256
WHAT = "the file of evidence"

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS metrics (
    metric_id TEXT PRIMARY KEY, title TEXT NOT NULL, source_type TEXT NOT NULL, gone_at FLOAT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS transitions (
    id INTEGER PRIMARY KEY, metric_id TEXT NOT NULL, status TEXT NOT NULL, data TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS transitions_of ON transitions (metric_id, id);
PRAGMA user_version = {VERSION};
"""


class Record(NamedTuple):
    """One row: `status` is the one after the transition, `data` is JSON."""

    metric_id: str
    title: str
    source_type: str
    status: str
    data: str


class Metric(NamedTuple):
    """A metric of which transitions are kept."""

    id: str
    title: str
    source_type: str


def path_of(buffer: Path) -> Path:
    """Where the evidence lies."""
    return buffer.with_name(buffer.name + ".evidence")


# -- writing


class Ring:
    """The file, open for writing. Every method raises QueueError where the file or the disk refuses."""

    def __init__(self, file: Path, *, most: int = MOST_BYTES, least_free: int = LEAST_FREE) -> None:
        self._file = file
        self._most = most
        self._least_free = least_free
        self._check_room()
        try:
            os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            os.chmod(file, 0o600)  # the WAL gets the same mode from SQLite
            self._conn = _connect(file)
        except OSError as error:
            raise QueueError(f"{file}: {error.strerror}") from None
        except sqlite3.Error as error:
            raise translated(error, WHAT) from error

    def close(self) -> None:
        """Closes the file, the WAL brought into it."""
        self._conn.close()

    def last_statuses(self) -> dict[str, str]:
        """The status that each metric had after its last transition."""
        with transaction(self._conn, WHAT) as conn:
            newest = "SELECT max(id) FROM transitions GROUP BY metric_id"
            return dict(conn.execute(f"SELECT metric_id, status FROM transitions WHERE id IN ({newest})"))

    def add(self, records: Sequence[Record]) -> None:
        """Stores transitions in one transaction, and forgets what they push out."""
        self._check_room()
        with transaction(self._conn, WHAT) as conn:
            for each in records:
                conn.execute(
                    "INSERT INTO metrics VALUES (?, ?, ?, NULL) ON CONFLICT (metric_id) DO UPDATE"
                    " SET title = excluded.title, source_type = excluded.source_type, gone_at = NULL",
                    each[:3],
                )
                conn.execute(
                    "INSERT INTO transitions (metric_id, status, data) VALUES (?, ?, ?)",
                    (each.metric_id, each.status, each.data),
                )
                conn.execute(
                    "DELETE FROM transitions WHERE metric_id = ?1 AND id <= (SELECT id FROM transitions"
                    " WHERE metric_id = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
                    (each.metric_id, RING),
                )
            self._make_room()

    def keep(self, titles: Mapping[str, str], now: float) -> None:
        """These are all the metrics that there are; what those have left that are gone for a week is forgotten."""
        with transaction(self._conn, WHAT) as conn:
            known = dict(conn.execute("SELECT metric_id, gone_at FROM metrics"))
            conn.executemany(
                "UPDATE metrics SET title = ?, gone_at = NULL WHERE metric_id = ?",
                [(titles[each], each) for each in known if each in titles],
            )
            gone = [(now, each) for each, since in known.items() if since is None and each not in titles]
            conn.executemany("UPDATE metrics SET gone_at = ? WHERE metric_id = ?", gone)
            old = "(SELECT metric_id FROM metrics WHERE gone_at < ?)"
            conn.execute(f"DELETE FROM transitions WHERE metric_id IN {old}", (now - GONE_FOR,))
            conn.execute("DELETE FROM metrics WHERE gone_at < ?", (now - GONE_FOR,))

    def _make_room(self) -> None:
        """Deletes the oldest rows until the pages in use are few enough; freed pages are used again."""
        size = self._one("page_size")
        while (self._one("page_count") - self._one("freelist_count")) * size > self._most:
            oldest = "SELECT id FROM transitions ORDER BY id LIMIT ?"
            if not self._conn.execute(f"DELETE FROM transitions WHERE id IN ({oldest})", (AT_ONCE,)).rowcount:
                return

    def _one(self, pragma: str) -> int:
        return int(self._conn.execute(f"PRAGMA {pragma}").fetchone()[0])

    def _check_room(self) -> None:
        try:
            facts = os.statvfs(self._file.parent)
        except OSError as error:
            raise QueueError(f"{self._file.parent}: {error.strerror}") from None
        if facts.f_bavail * facts.f_frsize < self._least_free:
            raise DiskFull(f"less than {self._least_free >> 20} MiB are free on its disk")


def open_ring(file: Path, now: float) -> tuple[Ring, Path | None]:
    """The file, and where a damaged one was moved to so that a new one could be made; raises QueueError."""
    try:
        return Ring(file), None
    except Damaged:
        aside = move_aside(file, now)
        return Ring(file), aside


def move_aside(file: Path, now: float) -> Path:
    """Moves a file that cannot be used out of the way; raises QueueError."""
    try:
        return quarantine(file, now)
    except OSError as error:
        raise QueueError(f"{file} cannot be moved: {error.strerror}") from None


def _connect(file: Path) -> sqlite3.Connection:
    conn = sqlite3.connect(file, timeout=2.0, check_same_thread=False, isolation_level=None)
    try:
        conn.text_factory = _text
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("PRAGMA synchronous = NORMAL")
        conn.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
        conn.execute(f"PRAGMA journal_size_limit = {WAL_PAGES * 4096}")
        _check(conn)
        conn.executescript(f"BEGIN IMMEDIATE;{SCHEMA}COMMIT;")
    except BaseException:
        conn.close()
        raise
    return conn


def _check(conn: sqlite3.Connection) -> None:
    """A file of a newer version or of another program is of no more use than a damaged one."""
    version = conn.execute("PRAGMA user_version").fetchone()[0]
    try:
        tables = {row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except UnicodeDecodeError as error:  # sqlite3 fails to decode its own words about a damaged schema
        raise Damaged(f"{WHAT}: {error}") from None
    if version > VERSION or tables - {"metrics", "transitions"}:
        raise Damaged(f"{WHAT} is none that this version can use")


# -- reading


def find(file: Path, name: str) -> Metric | None:
    """The metric with this id or, where only one has it, this title; raises UsageError, QueueError."""
    with _reading(file) as conn:
        rows = conn.execute("SELECT metric_id, title, source_type FROM metrics").fetchall()
    metrics = [Metric(*row) for row in rows]
    by_id = [each for each in metrics if each.id == name]
    found = by_id or [each for each in metrics if each.title.casefold() == name.casefold()]
    if len(found) > 1:
        ids = ", ".join(sorted(each.id for each in found))
        raise UsageError(f"{len(found)} metrics are called {name!r}; give the id: {ids}")
    return found[0] if found else None


def newest(file: Path, metric_id: str, most: int) -> tuple[list[dict[str, Any]], int]:
    """The transitions of a metric, newest first, and how many are kept; raises QueueError."""
    with _reading(file) as conn:
        total = conn.execute("SELECT count(*) FROM transitions WHERE metric_id = ?", (metric_id,)).fetchone()[0]
        sql = "SELECT data FROM transitions WHERE metric_id = ? ORDER BY id DESC LIMIT ?"
        rows = conn.execute(sql, (metric_id, most)).fetchall()
    return list(_understood(data for (data,) in rows)), total


@contextmanager
def _reading(file: Path) -> Iterator[sqlite3.Connection]:
    if not os.path.isfile(file):
        raise UsageError(f"{file} does not exist, or not for this user; BUFFER_PATH names the file that it lies beside")
    try:
        with closing(read_only(file)) as conn:
            conn.text_factory = _text
            yield conn
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise QueueError(f"{file} cannot be read: {error}") from None


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _understood(rows: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The rows that are JSON objects; a damaged file may hold anything."""
    for text in rows:
        try:
            found = json.loads(text)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found
