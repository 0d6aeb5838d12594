"""Flap protection: how many looks in a row it takes until a check's state is believed.

A track and an observed state in, the next track and perhaps a change out. Pure: whoever keeps the tracks stores them,
tells the console of changes and forgets the tracks of checks that are gone.
"""

from __future__ import annotations

from typing import NamedTuple

from observer_agent.clouds._lighthouse_wire import State


class Track(NamedTuple):
    """What is believed of one check, and what has been seen `times` in a row instead."""

    committed: State | None = None
    candidate: State | None = None
    times: int = 0


class Change(NamedTuple):
    """The believed state is another one; `before` is None for the first that is known: a row for a sync, no event."""

    before: State | None
    after: State


def observe(track: Track, seen: State | None, threshold: int) -> tuple[Track, Change | None]:
    """One look's outcome. No result (None) changes nothing; a threshold below 1 counts as 1.

    The threshold is the one of now, also for a count that has begun under another.
    """
    if seen is None:
        return track, None
    if seen is track.committed:
        return Track(seen), None
    times = track.times + 1 if seen is track.candidate else 1
    if track.committed is None or times >= threshold:
        return Track(seen), Change(track.committed, seen)
    return track._replace(candidate=seen, times=times), None


def settle(track: Track, seen: State | None) -> Track:
    """A sync's outcome counts at once; what was counted before goes on, unless it has come true."""
    if seen is None:
        return track
    if seen is track.candidate:
        return Track(seen)
    return track._replace(committed=seen)
