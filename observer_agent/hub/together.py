"""Writes of several threads in one transaction, so that the disk is synced once for all of them: SQLite's group commit.

While one transaction is written, those who come meanwhile gather in a round; the first of them leads it, does the jobs
of all on its own connection and commits. Nobody waits for others to come. Used by the threads of the server.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

log = logging.getLogger(__name__)

Job = Callable[[Connection], Any]


class Turn:
    """One thread's part of a round: what its job returned, once that is `done` (committed)."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.value: Any = None
        self.done = False


class _Round:
    """Turns that become one transaction; `over` is held by the thread that leads it until it has ended."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.over = threading.Lock()


class Together:
    """`writing` is the lock of whoever writes, `transaction` begins and ends one."""

    def __init__(
        self,
        writing: AbstractContextManager[Any],
        transaction: Callable[[], AbstractContextManager[Connection]],
    ) -> None:
        self._writing = writing
        self._transaction = transaction
        self._gathering = threading.Lock()
        self._round: _Round | None = None

    @property
    def waiting(self) -> int:
        """How many have gathered for the next round."""
        gathering = self._round
        return len(gathering.turns) if gathering else 0

    def do(self, job: Job) -> Turn:
        """Does a job in the next round and returns its turn; not `done` where the round was undone.

        That may be another's fault: the caller then does the job alone. Raises what a job alone in its round raises.
        """
        turn = Turn(job)
        with self._gathering:
            leads = self._round is None
            here = self._round = self._round or _Round()
            here.turns.append(turn)
            if leads:
                here.over.acquire()
        if leads:
            self._lead(here)
        else:
            with here.over:  # it ends when the round has
                pass
        return turn

    def _lead(self, here: _Round) -> None:
        try:
            with self._writing:
                with self._gathering:
                    self._round = None  # whoever comes from now on opens the next one
                self._commit(here.turns)
        finally:
            here.over.release()

    def _commit(self, turns: Sequence[Turn]) -> None:
        try:
            with self._transaction() as conn:
                for turn in turns:
                    turn.value = turn.job(conn)
        except DBAPIError as error:
            if len(turns) == 1:
                raise
            log.debug(
                "A shared transaction was undone (%s); each of its %d writes is done alone", error.orig, len(turns)
            )
        else:
            for turn in turns:
                turn.done = True
