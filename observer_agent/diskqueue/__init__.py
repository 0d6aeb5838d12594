"""The bounded queue on disk: samples in by `put`, out by `peek` and `settle`, nothing lost in between.

_queue.py    `DiskQueue`: put, peek, settle, and what may be asked at any time
_base.py     persist-queue's own class, loaded without asyncio
_rounds.py   threads that put at the same time share a transaction
_letters.py  dead letters
_file.py     one process a file; a damaged one is rebuilt
_opening.py  `open_queue`: opens a file in whatever state it is
"""

from observer_agent.diskqueue._opening import open_queue
from observer_agent.diskqueue._queue import Bounds, DiskQueue

__all__ = ["Bounds", "DiskQueue", "open_queue"]
