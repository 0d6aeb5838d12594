"""What a hub does while its database is away: one line in the log, and the same again a little later.

`patient` is for the steps of workers, `bearing` for what runs once on a thread, `told` for an error of a request.
Anything else that goes wrong stays an error of the program, with its traceback.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from observer_agent.hub.database import AWAY, said
from observer_agent.worker import Step

log = logging.getLogger(f"{__package__}.database")  # whose line it is, wherever it was met

PAUSE = 2.0


def told(error: BaseException) -> None:
    """The line. It is the same whoever meets the absence, so that what many meet at once is said once."""
    log.error("The database refused (%s); agents keep their rows and try again", said(error))


@contextmanager
def bearing() -> Iterator[None]:
    """What happens inside may find the database away: that is told, and no error comes out."""
    try:
        yield
    except AWAY as error:
        told(error)


def patient(step: Step) -> Step:
    """A worker's step that is tried again where it found the database away."""

    def turn() -> float:
        pause = PAUSE
        with bearing():
            pause = step()
        return pause

    return turn
