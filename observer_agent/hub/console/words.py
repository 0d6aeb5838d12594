"""What templates say: times, spans, numbers, statuses. Pure, but for the clock that `Words` is handed.

Everything that comes from outside leaves here escaped.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, NamedTuple

from markupsafe import Markup

from observer_agent.clock import Clock, parse_iso

TURNS = re.compile("[\u202a-\u202e\u2066-\u2069]")
UNITS = (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1))


class Word(NamedTuple):
    """A status for people: a sign and a text; neither colour nor sign is ever alone. Low ranks are shown first."""

    mark: str
    text: str
    rank: int


STATUSES = {
    "unhealthy": Word("✕", "unhealthy", 0),
    "degraded": Word("!", "degraded", 1),
    "no_data": Word("?", "no data", 2),
    "unknown": Word("…", "unknown", 3),
    "nothing": Word("–", "nothing yet", 4),
    "healthy": Word("✓", "healthy", 5),
    "offline": Word("✕", "offline", 0),
    "never": Word("–", "never heard", 4),
    "online": Word("✓", "online", 5),
}
LIGHTHOUSES = {
    "offline": Word("✕", "offline", 0),
    "paused": Word("–", "paused", 2),
    "stopped": Word("–", "stopped", 3),
    "never": Word("–", "never heard", 4),
    "online": Word("✓", "online", 5),
}
CHECKS = {
    "down": Word("✕", "down", 0),
    "paused": Word("–", "paused", 3),
    "nothing": Word("–", "nothing yet", 4),
    "up": Word("✓", "up", 5),
}
PUBLIC = {  # what visitors of a status page read
    "unhealthy": Word("✕", "down", 0),
    "degraded": Word("!", "degraded", 1),
    "no_data": Word("?", "no data", 2),
    "unknown": Word("?", "no data", 2),
    "nothing": Word("–", "no data yet", 4),
    "healthy": Word("✓", "up", 5),
}
OBJECTIVES = {
    "missed": Word("✕", "missed", 0),
    "nothing": Word("–", "nothing known", 4),
    "kept": Word("✓", "kept", 5),
}
ALERTS = {
    "agent.lag_high": "falls behind: too much waits in its queue",
    "agent.uptime_degraded": "was heard in less than 95 % of the last 24 hours",
    "agent.offline": "is silent",
    "agent.duplicate_key": "two processes share its key",
}


class Words:
    """The words that depend on the time of looking."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def when(self, moment: float | str | None, never: str = "never") -> Markup:
        """An instant as ISO 8601 in UTC and as how long ago it was; `never` where there is none."""
        at = parse_iso(moment) if isinstance(moment, str) else moment
        if at is None:
            return Markup('<span class="none">{}</span>').format(never)
        text = stamp(at)
        shape = '<time datetime="{}" title="{}"><span class="iso">{}</span> <span class="ago">{}</span></time>'
        return Markup(shape).format(text, text, text, ago(at, self._clock.now()))


def status(name: str | None, words: dict[str, Word] = STATUSES, n: int | None = None) -> Markup:
    """A status as sign and word, or how many there are of it."""
    word = words.get(name or "nothing", Word("?", name or "", 3))
    return sign(name or "nothing", word.mark, word.text if n is None else f"{n:,} {word.text}")


def sign(kind: str, mark: str, text: str) -> Markup:
    """A sign and its word, in the colour of a status."""
    shape = '<span class="status" data-status="{}"><span class="mark" aria-hidden="true">{}</span> {}</span>'
    return Markup(shape).format(kind, mark, text)


def straight(given: Any) -> Any:
    """What is put into a page, without the controls that turn the text round them: not even `bdi` holds those."""
    if not isinstance(given, str) or given.isascii() or not TURNS.search(given):
        return given
    return type(given)(TURNS.sub("\N{REPLACEMENT CHARACTER}", given))


def breaks(text: str) -> Markup:
    """A name in code, which may be broken after its dots and underscores."""
    parts = re.split(r"(?<=[._])", text)
    return Markup("<wbr>").join(parts)


def stamp(at: float) -> str:
    """An instant to the second; what is no date is said as a number."""
    try:
        return datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{at:.0f}"


def day(at: float) -> str:
    """The date of an instant, in UTC."""
    return stamp(at)[:10]


def ago(at: float, now: float) -> str:
    """How long before now, or how far ahead of it."""
    return f"{span(now - at)} ago" if now >= at else f"in {span(at - now)}"


def span(seconds: float | None) -> str:
    """A length of time in its two largest units."""
    if seconds is None:
        return ""
    whole = int(abs(seconds))
    for unit, size, below, part in UNITS:
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {below}" if rest and whole < 10 * size else "")
    return f"{whole} s"


def count(n: float | None) -> str:
    """A whole number with its thousands apart."""
    return "" if n is None else f"{int(n):,}"


def number(value: float | None) -> str:
    """A value to six digits."""
    if value is None:
        return ""
    if value == int(value) and abs(value) < 1e12:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1e6 and abs(value) < 1e12 else f"{value:,.6g}"


def short(value: float) -> str:
    """A value to four digits, for the edge of a graph."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:,.4g}"


def percent(value: float | None) -> str:
    """A share of a hundred; what is not quite 100 is never shown as 100."""
    if value is None:
        return "–"
    text = f"{min(value, 99.99) if value < 100 else 100:.2f}".rstrip("0").rstrip(".")
    return f"{text} %"


def plural(n: int, one: str, many: str = "") -> str:
    """`1 agent`, `2 agents`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
