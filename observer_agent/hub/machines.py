"""The alert state machines of an agent (docs/wire.md, "What the cloud derives").

Pure: state, signal and time in, state out. An `Alert` is one machine's state; it goes from quiet to open and back, and
nothing else makes an event. All instants are of the hub's clock, in seconds since 1970: an agent's clock never counts.

Several hubs judge the same agent, and the clock of one may be behind that of another. So what happened and what time
alone decides never undo one another: where a request opens an alert only time clears it, and the other way round.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

DEPTH_MAX = 1000
AGE_MAX = 300
CALM_SECONDS = 60.0
OFFLINE_SECONDS = 90.0
DUPLICATE_SECONDS = 600.0
UPTIME_MIN = 0.95
DAY_MINUTES = 1440
OBSERVED_MIN = 60  # minutes that must have been observed before uptime is judged
_KEPT = DAY_MINUTES + 1  # a day, and the minute in progress
_MASK = (1 << _KEPT) - 1


class Signal(StrEnum):
    """The event types about agents."""

    LAG_HIGH = "agent.lag_high"
    UPTIME_DEGRADED = "agent.uptime_degraded"
    OFFLINE = "agent.offline"
    DUPLICATE_KEY = "agent.duplicate_key"


class Change(StrEnum):
    """What an event says has happened: `data.state` on the wire."""

    OPEN = "open"
    CLEARED = "cleared"


class Alert(NamedTuple):
    """One machine of one agent: since when it is open, and since when all has been calm while it is open."""

    opened_at: float | None = None
    calm_since: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether the alert stands."""
        return self.opened_at is not None


QUIET = Alert()


def change(before: Alert, after: Alert) -> Change | None:
    """The event between two states; None where nothing was opened or cleared."""
    if before.is_open == after.is_open:
        return None
    return Change.OPEN if after.is_open else Change.CLEARED


# -- the four machines


def lag(state: Alert, depth: int, age: float, now: float) -> Alert:
    """`agent.lag_high` after a heartbeat with this queue depth and oldest age (seconds).

    Opens above 1000 samples or 300 s; clears after both were strictly below for 60 s. A value on a threshold neither
    opens nor counts as calm.
    """
    high = depth > DEPTH_MAX or age > AGE_MAX
    calm = depth < DEPTH_MAX and age < AGE_MAX
    return _with_hysteresis(state, high, calm, now)


def uptime(state: Alert, minutes: Minutes, now: float) -> Alert:
    """`agent.uptime_degraded`: opens below 95 % of the last 24 hours; clears at or above for 60 s."""
    share = minutes.share(now)
    if share is None:
        return state
    return _with_hysteresis(state, share < UPTIME_MIN, share >= UPTIME_MIN, now)


def offline(state: Alert, last_beat: float | None, now: float, after: float = OFFLINE_SECONDS) -> Alert:
    """`agent.offline` as time goes by: opens after `after` seconds without a heartbeat of the owning process.

    Nothing but that process's next heartbeat clears it (to `QUIET`): a hub whose clock is a little behind would still
    see the agent within its 90 s. An agent that has never been heard is not offline.
    """
    if state.is_open or last_beat is None or now - last_beat < after:
        return state
    return Alert(now)


def duplicate_key(state: Alert, seen_at: float | None, now: float) -> Alert:
    """`agent.duplicate_key` as time goes by: clears ten minutes after the last sign of an older process, at `seen_at`.

    Nothing but such a sign opens it (`opened`): a hub whose clock is a little behind would still see the last one.
    """
    return state if seen_at is not None and now - seen_at < DUPLICATE_SECONDS else QUIET


def opened(state: Alert, now: float) -> Alert:
    """After a sign that opens at once: since then, or since the first such sign."""
    return state if state.is_open else Alert(now)


def _with_hysteresis(state: Alert, bad: bool, calm: bool, now: float) -> Alert:
    if not state.is_open:
        return Alert(now) if bad else QUIET
    if not calm:
        return Alert(state.opened_at)  # a relapse starts the 60 s again, without an event
    since = now if state.calm_since is None else min(state.calm_since, now)
    return QUIET if now - since >= CALM_SECONDS else Alert(state.opened_at, since)


# -- uptime


class Minutes(NamedTuple):
    """Which minutes of the last day had a heartbeat: bit 0 is the minute `newest`, counted since 1970.

    `first` is the minute of the first heartbeat ever: what was before it was not observed and does not count.
    """

    newest: int = 0
    bits: int = 0
    first: int | None = None

    def beat(self, now: float) -> Minutes:
        """After a heartbeat at `now`; where the hub's clock was set back it marks the minute that it says."""
        minute = int(now // 60)
        if self.first is None:
            return Minutes(minute, 1, minute)
        if minute >= self.newest:
            gap = minute - self.newest
            bits = (self.bits << gap if gap < _KEPT else 0) | 1
            return Minutes(minute, bits & _MASK, self.first)
        back = self.newest - minute
        bits = self.bits | (1 << back) if back < _KEPT else self.bits
        return Minutes(self.newest, bits & _MASK, min(self.first, minute))

    def share(self, now: float) -> float | None:
        """The share of observed minutes of the last 24 hours that had a heartbeat; None before one hour was observed.

        The minute in progress does not count: its heartbeat may be still to come.
        """
        if self.first is None:
            return None
        last = int(now // 60) - 1
        observed = min(DAY_MINUTES, last - self.first + 1)
        if observed < OBSERVED_MIN:
            return None
        return self._up(last, observed) / observed

    def _up(self, last: int, observed: int) -> int:
        """How many of the `observed` minutes up to `last` had one."""
        ahead = self.newest - last  # minutes that are newer than the window
        bits = self.bits >> ahead if ahead > 0 else self.bits << -ahead if ahead > -_KEPT else 0
        return (bits & ((1 << observed) - 1)).bit_count()

    def pack(self) -> bytes:
        """As it is stored."""
        return self.bits.to_bytes(_KEPT // 8 + 1, "big")


def unpack(newest: int, packed: bytes, first: int | None) -> Minutes:
    """What `Minutes.pack` made of it."""
    return Minutes(newest, int.from_bytes(packed, "big") & _MASK, first)
