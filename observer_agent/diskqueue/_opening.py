"""Opening the queue, whatever state its file is in."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

from observer_agent.clock import Clock
from observer_agent.diskqueue._file import rebuild
from observer_agent.diskqueue._queue import Bounds, DiskQueue
from observer_agent.errors import NoPlace, QueueError, QueueHeld

log = logging.getLogger(__name__)


def open_queue(file: Path, bounds: Bounds, clock: Clock, sync: str = "normal") -> DiskQueue:
    """Opens the queue, or moves a file that cannot be used aside and makes a new one.

    Raises QueueError when another process holds it or the directory takes no file (NoPlace).
    """
    try:
        return _open_roomy_or_not(file, bounds, clock, sync)
    except (QueueError, sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the last: a damaged schema
        if isinstance(error, QueueHeld | NoPlace):
            raise
        if isinstance(error, sqlite3.OperationalError):
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise NoPlace("the disk is full") from error
            raise QueueError(f"{file}: {error}") from error
        rebuild(file, clock.now(), error)
        return DiskQueue(file, bounds, clock, sync)


def _open_roomy_or_not(file: Path, bounds: Bounds, clock: Clock, sync: str) -> DiskQueue:
    """With two connections or, where the disk has not even room for their shared memory, with one."""
    try:
        return DiskQueue(file, bounds, clock, sync)
    except sqlite3.OperationalError as error:
        log.warning("The queue file is opened for this process alone: %s", error)
        return DiskQueue(file, bounds, clock, sync, alone=True)
