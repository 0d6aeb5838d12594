"""The queue's file from outside SQLite: one process at a time, and a new file where the old one is of no use."""

from __future__ import annotations

import fcntl
import logging
from pathlib import Path
from typing import IO, Any

from observer_agent import queuefile, salvage
from observer_agent.errors import NoPlace, QueueError, QueueHeld

log = logging.getLogger(__name__)


def rebuild(file: Path, now: float, error: Exception) -> None:
    """Moves a file that cannot be used aside and carries what can be read of it into a new one."""
    aside = queuefile.quarantine(file, now)
    try:
        report = salvage.rescue(aside, file, now)
        log.error("The queue file cannot be used (%s). It was moved to %s; %s", error, aside, report.text)
    except QueueError as problem:
        file.unlink(missing_ok=True)
        log.error("The queue file cannot be used (%s) nor rebuilt (%s). It was moved to %s", error, problem, aside)


def lock(file: Path) -> IO[Any]:
    """One process a queue file: an flock on a file beside it, gone with the process."""
    try:
        handle = file.with_name(file.name + ".lock").open("a")
    except OSError as error:
        raise NoPlace(f"the directory takes no file: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise QueueHeld("another observer-agent uses this queue file") from None
    return handle
