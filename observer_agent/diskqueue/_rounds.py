"""Group commit: threads that put at the same time share one transaction, without a timer.

One round is open at a time. The first thread to come leads it: it waits for the file, closes the round and commits;
threads that come while it waits are taken along and wait for the leader's commit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from observer_agent.errors import QueueError
from observer_agent.rows import Entry


class Round:
    """Entries that will share a transaction. Its leader holds `done` until the commit; the others wait for that."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.missed = 0
        self.done = threading.Lock()
        self.done.acquire()
        self.dropped = 0
        self.error: QueueError | None = QueueError("the put was interrupted")


class Rounds:
    """`commit(close)` takes the file, calls `close` for the round that it then stores, and returns the rows dropped."""

    def __init__(self, commit: Callable[[Callable[[], Round]], int]) -> None:
        self.open: Round | None = None
        self._commit = commit
        self._lock = threading.Lock()

    def put(self, entries: Sequence[Entry], missed: int) -> tuple[int, bool]:
        """Returns after the commit: the rows dropped (for the leader, else 0), and whether this thread led.

        Raises QueueError, the same kind for every thread of a round that failed.
        """
        with self._lock:
            leads = self.open is None
            turn = self.open = self.open or Round()
            turn.entries += entries
            turn.missed += missed
        if leads:
            self._lead(turn)
        else:
            with turn.done:
                pass
        if turn.error:
            raise type(turn.error)(str(turn.error)) from turn.error
        return (turn.dropped, True) if leads else (0, False)

    def _lead(self, turn: Round) -> None:
        try:
            turn.dropped = self._commit(lambda: self._close(turn))
            turn.error = None
        except QueueError as error:
            turn.error = error
        finally:
            self._close(turn)
            turn.done.release()

    def _close(self, turn: Round) -> Round:
        """Who comes from here on opens the next round."""
        with self._lock:
            if self.open is turn:
                self.open = None
        return turn
