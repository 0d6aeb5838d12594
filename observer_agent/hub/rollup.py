"""The verdicts of one metric and agent, split into hours and days.

Pure: what held before and the rows that follow in the order of time come in; seconds by status and what the values
were go out, hour by hour. A row's status holds until the next row, at most for the metric's patience; after that
nobody knows. A day in which nothing at all was heard is left out: `filled` puts it in for whoever reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from observer_agent.model import Status

HOUR, DAY = 3600, 86_400
STALE_SECONDS = 900.0
STALE_INTERVALS = 3
PATIENCE_MAX = 31.0 * DAY
UNKNOWN = "unknown"
SECONDS = ("up", "degraded", "down", UNKNOWN)
_WORDS = {Status.HEALTHY: "up", Status.DEGRADED: "degraded", Status.UNHEALTHY: "down"}


class Seen(NamedTuple):
    """One row: when, its status, its value (None where it has none)."""

    at: float
    status: str
    value: float | None


class Held(NamedTuple):
    """The status that holds since `at`, until the next row or `until`, whichever comes first."""

    at: float
    status: str
    until: float


class Span(NamedTuple):
    """A stretch of time within one hour or day, and the word its seconds count under."""

    start: float
    end: float
    word: str


@dataclass(slots=True)
class Sums:
    """What is known of one hour or day: seconds by status, number, sum and bounds of the values."""

    up: float = 0.0
    degraded: float = 0.0
    down: float = 0.0
    unknown: float = 0.0
    n: int = 0
    total: float = 0.0
    low: float | None = None
    high: float | None = None

    def spend(self, word: str, seconds: float) -> None:
        """Counts seconds under a word."""
        setattr(self, word, getattr(self, word) + seconds)

    def note(self, value: float) -> None:
        """Counts a value."""
        self.n += 1
        self.total += value
        self.low = _bound(min, self.low, value)
        self.high = _bound(max, self.high, value)

    def merge(self, other: Sums) -> None:
        """Adds what is known of another part of the same time."""
        self.up += other.up
        self.degraded += other.degraded
        self.down += other.down
        self.unknown += other.unknown
        self.n += other.n
        self.total += other.total
        self.low = _bound(min, self.low, other.low)
        self.high = _bound(max, self.high, other.high)

    @property
    def seconds(self) -> float:
        """All of them."""
        return self.up + self.degraded + self.down + self.unknown

    @property
    def percent(self) -> float | None:
        """The share that was up or degraded, of what is known."""
        known = self.up + self.degraded + self.down
        return (self.up + self.degraded) / known * 100 if known > 0 else None


def together(parts: Iterable[Sums]) -> Sums:
    """What is known of several parts as one."""
    found = Sums()
    for each in parts:
        found.merge(each)
    return found


def patience(push_minutes: float) -> float:
    """For how many seconds a status holds without another row: three push intervals, at least 15 minutes."""
    return min(PATIENCE_MAX, max(STALE_SECONDS, STALE_INTERVALS * 60.0 * push_minutes))


def roll(before: Held | None, rows: Iterable[Seen], wait: float) -> tuple[dict[int, Sums], Held | None]:
    """The hours from what held before up to the last row, and what holds after it; `wait` is the patience."""
    hours: dict[int, Sums] = {}
    held = before
    for row in rows:
        if held is not None:
            _spend(hours, held, row.at)
        here = hours.setdefault(floor(row.at, HOUR), Sums())
        if row.value is not None:
            here.note(row.value)
        held = Held(row.at, row.status, row.at + wait)
    return hours, held


def fold(hours: Mapping[int, Sums]) -> dict[int, Sums]:
    """The days of hours."""
    days: dict[int, Sums] = {}
    for start, sums in hours.items():
        days.setdefault(floor(start, DAY), Sums()).merge(sums)
    return days


def stretch(held: Held, end: float) -> list[Span]:
    """What becomes of the time from a row to `end`: its status as long as it holds, then unknown."""
    known = max(held.at, min(held.until, end))
    spans = [Span(held.at, known, _WORDS.get(Status(held.status), UNKNOWN)), Span(known, end, UNKNOWN)]
    return [span for span in spans if span.end > span.start]


def rest(held: Held, begin: float, end: float) -> tuple[str, float, float]:
    """What `stretch` says, summed up from `begin` on: the word of the status, its seconds, the unknown ones after."""
    known = max(held.at, min(held.until, end))
    seconds = known - max(held.at, begin)
    silent = end - max(known, begin)
    return _WORDS.get(held.status, UNKNOWN), max(0.0, seconds), max(0.0, silent)  # type: ignore[call-overload]


def split(span: Span, size: int) -> Iterator[tuple[int, float]]:
    """The hours or days of a span, with the seconds that fall into each."""
    start = span.start
    while start < span.end:
        here = floor(start, size)
        end = min(span.end, here + size)
        yield here, end - start
        start = end


def filled(stored: Mapping[int, Sums], size: int, first: int, last: int) -> dict[int, Sums]:
    """The hours or days from `first` to `last`, both included; one that was left out is unknown altogether."""
    return {start: stored.get(start) or Sums(unknown=size) for start in range(first, last + 1, size)}


def floor(at: float, size: int) -> int:
    """The beginning of the hour or day (UTC) in which an instant lies."""
    return int(at // size) * size


def _spend(hours: dict[int, Sums], held: Held, end: float) -> None:
    for span in stretch(held, end):
        for part in _without_silent_days(span):
            for start, seconds in split(part, HOUR):
                hours.setdefault(start, Sums()).spend(part.word, seconds)


def _without_silent_days(span: Span) -> list[Span]:
    """An agent that comes back after years, or whose clock was years behind, must not write every hour of them."""
    first, last = floor(span.start, DAY) + DAY, floor(span.end, DAY)
    if span.word != UNKNOWN or first >= last:
        return [span]
    return [Span(span.start, first, span.word), Span(last, span.end, span.word)]


def _bound(which: Callable[[float, float], float], one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return which(one, other)
