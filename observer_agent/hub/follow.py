"""The document of `serve --config`, read again when it changes or on SIGHUP.

`begin` applies it before the hub serves; `step` runs on the worker `document`, `again` is for the main thread. Of
several processes one begins, and the others `join` with a store of their own: after a fork they know what was applied.
A document that cannot be read changes nothing and is logged once.
"""

from __future__ import annotations

import logging
from pathlib import Path

from observer_agent.errors import DocumentError
from observer_agent.hub.apply import apply_file
from observer_agent.hub.store import Store

log = logging.getLogger(__name__)

EVERY = 5.0


class Follower:
    """Keeps a store in step with a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: object = None
        self._again = False
        self._store: Store | None = None

    def begin(self, store: Store) -> None:
        """Applies the document for the first time; raises DocumentError."""
        self._store = store
        self._seen = self._look()
        apply_file(store, self._file)

    def join(self, store: Store) -> None:
        """Goes on with another store: the first step applies the document unless it is the one that was applied."""
        self._store = store

    def again(self) -> None:
        """The next step reads the document, changed or not."""
        self._again = True

    def step(self) -> float:
        """Applies the document if it is not the one that was applied last."""
        look = self._look()
        if self._store is not None and (self._again or look != self._seen):
            try:
                apply_file(self._store, self._file)
            except DocumentError as error:
                log.error("%s; the definitions stay as they were", error)
            # Only now: where the database refused, the worker comes back and tries the same again.
            self._seen, self._again = look, False
        return EVERY

    def _look(self) -> object:
        """What tells one state of the file from another without reading it."""
        try:
            found = self._file.stat()
        except OSError as error:
            return error.errno
        return found.st_mtime_ns, found.st_size, found.st_ino
