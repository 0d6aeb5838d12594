"""Who this agent is to the console: a UUID in `<data_dir>/instance.id`, made once and kept for good.

The data directory is made where it is missing, for this user alone. Runs at the start, before the queue is opened.
"""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path

log = logging.getLogger(__name__)

FILE = "instance.id"


def instance_id(folder: Path) -> str:
    """The id; one that cannot be kept lasts as long as this process."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _read(folder / FILE) or _make(folder / FILE)
    except OSError as error:
        log.warning(
            "The instance id cannot be kept in %s (%s): after a restart the console sees another agent; "
            "make the directory writable or set LIGHTHOUSE_DATA_DIR",
            folder, error.strerror,
        )  # fmt: skip
        return str(uuid.uuid4())


def _read(file: Path) -> str | None:
    try:
        text = file.read_bytes()[:100].decode("ascii").strip()
        return str(uuid.UUID(text))
    except FileNotFoundError:
        return None
    except ValueError:
        log.warning("%s does not hold an instance id and is replaced: the console sees another agent", file)
        return None


def _make(file: Path) -> str:
    fresh, made = file.with_name(file.name + ".tmp"), str(uuid.uuid4())
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(made + "\n")
        handle.flush()
        os.fsync(handle.fileno())
    fresh.replace(file)
    return made
