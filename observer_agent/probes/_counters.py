"""The last figures of counters that only grow, by key, so that a look can tell what happened since the one before.

One `Counters` for an agent, in `Tools`: probes have no state of their own. A base is at least LEAST old, whoever else
reads the same counters meanwhile, and at most LONGEST. Safe from any thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Final, NamedTuple

LEAST: Final = 1.0
LONGEST: Final = 3_600.0
MOST: Final = 256


class Mark(NamedTuple):
    """Figures by name, and the moment of the monotonic clock at which they were read."""

    at: float
    figures: Mapping[str, float]


class Counters:
    """Two marks for each of the last `most` keys: the newest, and one that is old enough while the newest is not."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._marks: OrderedDict[Hashable, tuple[Mark, ...]] = OrderedDict()

    def swap(self, key: Hashable, now: Mark) -> Mark | None:
        """Keeps `now`, and returns the mark to compare it with; None where there is none of a usable age."""
        with self._lock:
            marks = self._marks.pop(key, ())
            base = next((mark for mark in reversed(marks) if LEAST <= now.at - mark.at <= LONGEST), None)
            fresh = not marks or now.at - marks[-1].at >= LEAST
            self._marks[key] = (*marks[-1:], now) if fresh else marks
            while len(self._marks) > self._most:
                self._marks.popitem(last=False)
            return base

    def __len__(self) -> int:
        return len(self._marks)
