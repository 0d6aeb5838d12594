"""`SQLiteQueue` of persist-queue, without what its package loads besides: asyncio, 1.5 MB for queues not used here.

The package goes on where that part cannot be imported; None in `sys.modules` is Python's own word for that.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

_SPARED = "persistqueue.async_queue"


def _lean() -> Any:
    if "persistqueue" in sys.modules:
        return import_module("persistqueue.sqlqueue").SQLiteQueue
    sys.modules[_SPARED] = None  # type: ignore[assignment]
    try:
        return import_module("persistqueue.sqlqueue").SQLiteQueue
    finally:
        del sys.modules[_SPARED]


SQLiteQueue = _lean()
