"""Room on the disk for the queue: nothing is accepted whose pages are not there, and the WAL owns its blocks.

On a full disk even a DELETE fails, because the WAL cannot grow, and a checkpoint fails, because the database cannot. So
the WAL is given 192 KiB for good: allocated at the opening, never truncated, kept as a spare file while the database is
closed. And the database file is allocated ahead of its pages: rows are taken only as far as that reaches. SQLite cuts
the file to its pages at each checkpoint, so checkpoints are made here, and the file is allocated ahead again.

Used under the queue's transaction lock, outside of a transaction. The file is kept open for as long as SQLite has it
open: closing it earlier would drop SQLite's own locks.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path

from observer_agent.errors import DiskFull
from observer_agent.queuefile import PAGE_SIZE

log = logging.getLogger(__name__)

WAL_BYTES = 192 * 1024
WAL_HEADER = 32
TIGHT = 16 * 1024 * 1024  # bytes free on the disk below which every page counts
AHEAD_PAGES = (1000, 96)  # allocated ahead on a roomy and on a tight disk
CHECKPOINT_PAGES = (1000, 64)  # written since the last checkpoint, so that the next one is due
ROW_EXTRA = 72  # bytes of a row besides its data and its metric's id, its share of `runs` included
ROW_BYTES = 700  # of a page that hold rows, for short ones
OTHER_PAGES = 12  # a transaction may need besides, at the worst
COMMIT_PAGES = 4  # and usually writes
IDLE_PAGES = 1500  # free pages that an idle queue keeps
VACUUM_PAGES = 64  # given back at a time


class Space:
    """The pages of one open queue file, and the room around it."""

    def __init__(self, conn: sqlite3.Connection, file: Path) -> None:
        self._conn = conn
        self._handle = os.open(file, os.O_RDWR)
        self._free = 0  # a lower bound of the pages that may be used
        self._written = 0  # about how many pages are in the WAL
        self._tight = True
        conn.execute("PRAGMA wal_autocheckpoint = 0")
        own_wal(file)
        self._look_around()
        self._keep_ahead()

    def close(self) -> None:
        """After SQLite has closed the file."""
        os.close(self._handle)

    def reserve(self, rows: int, size: int) -> None:
        """Sees to it that `rows` rows of `size` bytes in all fit; raises DiskFull when they do not."""
        needed = (size + rows * ROW_EXTRA) // ROW_BYTES + OTHER_PAGES
        if self._free < needed:
            self._extend(needed)
        self._free -= needed
        self.wrote(size + rows * ROW_EXTRA)

    def wrote(self, size: int) -> None:
        """A transaction that touches rows of `size` bytes goes through the WAL."""
        self._written += size // ROW_BYTES + COMMIT_PAGES

    def settle(self) -> None:
        """After a commit: makes the checkpoint that is due; one that fails is tried again after the next commit."""
        if self._written < CHECKPOINT_PAGES[self._tight]:
            return
        try:
            self._checkpoint("PASSIVE")
        except sqlite3.Error as error:
            log.warning("The queue's checkpoint failed and will be tried again: %s", error)

    def relieve(self) -> None:
        """A transaction found no room in the WAL: a checkpoint lets it begin at its start again. Raises DiskFull."""
        try:
            self._checkpoint("RESTART")
        except sqlite3.Error as error:
            raise DiskFull(f"no room on the disk for the queue file: {error}") from None

    def give_back(self) -> bool:
        """Returns some free pages to the disk, if there are more than an idle queue wants; says whether there were."""
        spare = int(self._conn.execute("PRAGMA freelist_count").fetchone()[0]) - IDLE_PAGES
        if spare <= 0:
            return False
        # executescript, because execute() steps the pragma once and so frees a single page
        self._conn.executescript(f"PRAGMA incremental_vacuum({min(spare, VACUUM_PAGES)})")
        self._checkpoint("PASSIVE")
        return True

    def _checkpoint(self, kind: str) -> None:
        """Brings the WAL's pages into the database; at its end the WAL begins anew and the file is cut."""
        _, frames, done = self._conn.execute(f"PRAGMA wal_checkpoint({kind})").fetchone()
        if done >= frames:
            self._written = 0
        self._free = 0
        self._look_around()
        self._keep_ahead()

    def _keep_ahead(self) -> None:
        """Allocates ahead at once what SQLite has cut off, before a stranger takes it."""
        try:
            self._extend(AHEAD_PAGES[True])
        except DiskFull as error:
            log.debug("%s", error)

    def _look_around(self) -> None:
        """How roomy the disk is decides how far the WAL may run on and how far the file is allocated ahead."""
        try:
            facts = os.fstatvfs(self._handle)
        except OSError:
            self._tight = True
        else:
            self._tight = facts.f_bavail * facts.f_frsize < TIGHT

    def _extend(self, needed: int) -> None:
        """Counts what is there, and allocates further ahead where that is too little."""
        pages = int(self._conn.execute("PRAGMA page_count").fetchone()[0])
        free = int(self._conn.execute("PRAGMA freelist_count").fetchone()[0])
        there = os.fstat(self._handle).st_size // PAGE_SIZE
        for ahead in (needed + AHEAD_PAGES[self._tight], needed):
            if free + max(0, there - pages) >= needed:
                break
            try:
                os.posix_fallocate(self._handle, 0, (pages + ahead) * PAGE_SIZE)
                there = pages + ahead
            except OSError as error:
                self._look_around()
                problem = error.strerror
        else:
            raise DiskFull(f"no room on the disk for the queue file: {problem}")
        self._free = free + max(0, there - pages)


def donor_of(file: Path) -> Path:
    """The spare file that keeps the WAL's blocks while the database is closed."""
    return file.with_name(file.name + "-spare")


def take_donor(file: Path) -> None:
    """Before the opening: the spare file becomes the WAL, unless a WAL is there already."""
    wal, donor = file.with_name(file.name + "-wal"), donor_of(file)
    if donor.exists() and not (wal.exists() and wal.stat().st_size):
        donor.replace(wal)


def own_wal(file: Path) -> None:
    """After the opening: the WAL gets its blocks. A disk that has none left is not an error yet."""
    wal = file.with_name(file.name + "-wal")
    try:
        with wal.open("r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, WAL_BYTES)
    except OSError as error:
        log.warning("The queue's WAL could not be given its room (%s); a full disk may stop deliveries", error.strerror)


def keep_donor(file: Path) -> None:
    """Before the closing: a second name for the WAL, so that its blocks outlive it."""
    wal, donor = file.with_name(file.name + "-wal"), donor_of(file)
    try:
        donor.unlink(missing_ok=True)
        os.link(wal, donor)
    except OSError as error:
        log.debug("The WAL's blocks are not kept: %s", error.strerror)


def blank_donor(file: Path) -> None:
    """After the closing: the spare file must not look like a WAL with something in it."""
    donor = donor_of(file)
    if donor.exists():
        with donor.open("r+b") as handle:
            handle.write(bytes(WAL_HEADER))
