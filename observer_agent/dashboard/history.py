"""The last half hour of the queue in memory, for the page's two curves.

A worker runs `step` every ten seconds; it reads figures that the queue keeps in memory. `columns` is what
`/api/state` shows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from observer_agent.clock import Clock, iso
from observer_agent.model import Ledger

EVERY = 10.0
POINTS_MAX = 180


class Queue(Protocol):
    """What the history asks of the queue."""

    @property
    def depth(self) -> int:
        """How many samples wait."""

    def ledgers(self) -> tuple[Ledger, ...]:
        """The accounts."""

    def lost(self) -> Mapping[str, int]:
        """Losses by reason."""


class Point(NamedTuple):
    """Depth at a moment; accepted and lost since the point before."""

    depth: int
    accepted: int
    lost: int


class History:
    """See the module. One thread runs `step`, any may read."""

    def __init__(self, queue: Queue, clock: Clock) -> None:
        self._queue = queue
        self._clock = clock
        self._points: deque[Point] = deque(maxlen=POINTS_MAX)
        self._sums = self._count()
        self._at = clock.now()

    def step(self) -> float:
        """Notes one point; returns the seconds until the next."""
        before, now = self._sums, self._count()
        self._points.append(Point(self._queue.depth, max(0, now[0] - before[0]), max(0, now[1] - before[1])))
        self._sums, self._at = now, self._clock.now()
        return EVERY

    def columns(self) -> dict[str, Any]:
        """`{interval_seconds, until, depth, accepted, lost}`; the lists are oldest first."""
        points = list(self._points)
        return {
            "interval_seconds": EVERY,
            "until": iso(self._at),
            "depth": [point.depth for point in points],
            "accepted": [point.accepted for point in points],
            "lost": [point.lost for point in points],
        }

    def _count(self) -> tuple[int, int]:
        return sum(ledger.accepted for ledger in self._queue.ledgers()), sum(self._queue.lost().values())
