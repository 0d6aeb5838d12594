"""Whose process is the newest: the classes of a start time (docs/wire.md, "Started-at classes"). Pure.

Start times are instants in seconds since 1970, never compared as text.
"""

from __future__ import annotations

from enum import StrEnum

AHEAD_MAX = 300.0
DUPLICATE_SECONDS = 600.0


class Start(StrEnum):
    """What a request's start time says about the process that sent it."""

    FIRST = "first"
    SAME = "same"
    RESTART = "restart"
    STALE = "stale"
    UNKNOWN = "unknown"


def classify(known: float | None, started: float | None, now: float) -> Start:
    """Holds a request's start time against the newest known one; too far ahead of our clock counts as unknown."""
    if started is None or started > now + AHEAD_MAX:
        return Start.UNKNOWN
    if known is None:
        return Start.FIRST
    if started == known:
        return Start.SAME
    return Start.RESTART if started > known else Start.STALE


def is_duplicate(seen_at: float | None, now: float) -> bool:
    """Whether an older process has shown itself within the last ten minutes."""
    return seen_at is not None and now - seen_at < DUPLICATE_SECONDS
