"""How the `observer-agent queue` commands come to the queue file, and what they hand to `cli.py`.

Enters: settings, or the file's path. Leaves: a read-only connection, its rows a thousand at a time (so that an agent
may run meanwhile), or the opened queue, which takes the file's lock. A `Report` is what a command says: facts for
`--json`, text for a person, an exit code. Runs on the main thread of a command. A file is never created, moved aside or
mended here.
"""

from __future__ import annotations

import bisect
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import click

from observer_agent import config
from observer_agent.clock import Clock, iso
from observer_agent.config import Settings
from observer_agent.diskqueue import Bounds, DiskQueue
from observer_agent.errors import NoPlace, QueueError, QueueHeld, UsageError
from observer_agent.queuefile import TABLE, VERSION, read_only

SLICE = 1_000  # rows of one look: how long a reader may keep the agent's WAL from being reused
BAR_ABOVE = 10_000
SHOWN = 100  # findings and complaints that are listed; all are counted
TABLES = {TABLE, "meta", "openings", "counters", "runs", "rejected"}
LOWEST = -(2**63)
BROKEN = (sqlite3.Error, UnicodeDecodeError)  # sqlite3 fails to decode its own words about a damaged schema


class Report(NamedTuple):
    """What a command found or did."""

    facts: dict[str, Any]
    text: str
    code: int = 0


class Opening(NamedTuple):
    """One opening of the file: its rows are those with ids from `first` up to, not with, `end`."""

    queue_id: str
    first: int
    end: int


# -- the file, looked at and opened


def load(file: Path | None) -> Settings:
    """The settings of a command that looks at the queue; raises ConfigError."""
    return config.load(config.environment(os.environ), file or config.usual_file(), to_run=False)


@contextmanager
def reading(file: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection; raises UsageError when there is nothing to read, QueueError when it is no queue file."""
    if not os.path.isfile(file):
        raise UsageError(f"{file} does not exist, or not for this user; BUFFER_PATH names the queue file")
    real = file.resolve()  # where SQLite keeps the `-wal`
    with _unchanged(real), _named_errors(file), closing(read_only(real)) as conn:
        conn.isolation_level = None
        conn.text_factory = lambda raw: raw.decode("utf-8", "replace")
        _check_format(conn, file)
        yield conn


@contextmanager
def _named_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except BROKEN as error:
        raise QueueError(f"{file} cannot be used: {error}") from None


@contextmanager
def _unchanged(file: Path) -> Iterator[None]:
    """A file without a WAL is read as one that stays as it is; raises UsageError where it did not."""
    before = None if file.with_name(file.name + "-wal").exists() else _version(file)
    try:
        yield
    finally:
        if before and before != _version(file):
            raise UsageError(f"{file} was changed during the look: an agent has started; ask again") from None


def _version(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _check_format(conn: sqlite3.Connection, file: Path) -> None:
    try:
        version = conn.execute("PRAGMA user_version").fetchone()[0]
        names = {row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.OperationalError as error:
        raise UsageError(f"{file} cannot be opened: {error}") from None
    if version > VERSION:
        raise QueueError(f"{file} has format {version}, this version reads {VERSION}")
    if TABLES - names:
        raise QueueError(f"{file} is not a queue file")


@contextmanager
def changing(settings: Settings) -> Iterator[DiskQueue]:
    """The queue, opened and locked; raises UsageError where an agent holds it, QueueError where it is no queue."""
    file = settings.buffer_path
    with reading(file):
        pass  # the opening below would make a missing file and mistake another program's
    bounds = Bounds(settings.buffer_max_rows, settings.buffer_max_bytes, settings.buffer_max_age)
    try:
        queue = DiskQueue(file, bounds, Clock(), settings.buffer_sync)
    except QueueHeld as error:
        raise UsageError(f"{file}: {error}; stop the agent first") from None
    except NoPlace as error:
        raise UsageError(f"{file}: {error}; run it as the agent does") from None
    except BROKEN as error:
        raise QueueError(f"{file} cannot be opened: {error}") from None
    try:
        yield queue
    finally:
        queue.close()


def changing_unless(dry_run: bool, settings: Settings) -> AbstractContextManager[DiskQueue | None]:
    """The queue as `changing` gives it; None for a dry run."""
    return nullcontext() if dry_run else changing(settings)


@contextmanager
def progress(total: int, label: str) -> Iterator[Callable[[int], object]]:
    """A bar on stderr for more than 10,000 rows, on a terminal alone; give it the rows that were done."""
    if total <= BAR_ABOVE or not sys.stderr.isatty():
        yield lambda rows: None
        return
    with click.progressbar(length=total, label=label, file=sys.stderr) as bar:
        yield bar.update


def slices(conn: sqlite3.Connection, columns: str) -> Iterator[tuple[list[tuple[Any, ...]], list[Opening]]]:
    """The rows oldest first, their id before `columns`, and their openings, in slices that each are of one moment."""
    last, sql = LOWEST, f"SELECT _id, {columns} FROM {TABLE} WHERE _id > ? ORDER BY _id LIMIT ?"
    while True:
        conn.execute("BEGIN")
        try:
            rows, openings = conn.execute(sql, (last, SLICE)).fetchall(), openings_of(conn)
        finally:
            conn.execute("ROLLBACK")
        if not rows:
            return
        yield rows, openings
        last = rows[-1][0]


def openings_of(conn: sqlite3.Connection) -> list[Opening]:
    """The openings in the order of their rows."""
    next_id = meta_of(conn)[0]
    found = conn.execute("SELECT queue_id, first_row_id FROM openings ORDER BY first_row_id").fetchall()
    ends = [_int(first) for _, first in found[1:]] + [next_id]
    return [Opening(str(name), _int(first), end) for (name, first), end in zip(found, ends, strict=False)]


def opening_of(openings: Sequence[Opening], row_id: int) -> str | None:
    """The queue id of a row; None where the file has no opening."""
    at = bisect.bisect_right(openings, row_id, key=lambda each: each.first) - 1
    return openings[max(0, at)].queue_id if openings else None


def meta_of(conn: sqlite3.Connection) -> tuple[int, int, int, int]:
    """Next row id, rows, bytes and redundant rows, as `meta` has them."""
    found = conn.execute("SELECT next_id, rows, bytes, redundant FROM meta").fetchone() or ()
    next_id, rows, size, redundant = [_int(each) for each in found] or (0, 0, 0, 0)
    return next_id, rows, size, redundant


def _int(value: object) -> int:
    """A number of the file; a damaged file has anything anywhere."""
    return value if isinstance(value, int) else 0


def when(seconds: object) -> str | None:
    """A time of the file as the wire writes it; None where it is none."""
    try:
        return iso(seconds) if isinstance(seconds, int | float) else None
    except (ValueError, OverflowError, OSError):
        return None


def plural(count: int, noun: str) -> str:
    """A number with its noun, for a person."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
