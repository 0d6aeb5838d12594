"""How long to wait after a failure. Pure: attempt, age and a random number in, seconds out."""

from __future__ import annotations

from email.utils import parsedate_to_datetime

YOUNG = 120.0  # seconds for which a failure is asked about often
RETRY_AFTER_MAX = 300.0
FETCH_MAX = 300.0


def later(attempt: int, age: float, random: float) -> float:
    """Seconds until the sender's next request: 1, 2, 4, then 5 while the failure is young, then 30; times 0.75 to 1.

    `attempt` counts failures in a row from 1, `age` is seconds since the first of them, `random` is 0 to 1.
    """
    base = 30.0 if age >= YOUNG else (1.0, 2.0, 4.0, 5.0)[min(attempt, 4) - 1]
    return base * (0.75 + 0.25 * random)


def fetch(attempt: int) -> float:
    """Seconds until the definitions are asked for again after `attempt` failures in a row: 30, 60, 120 ... 300."""
    return min(30.0 * 2.0 ** (min(attempt, 8) - 1), FETCH_MAX)


def retry_after(text: str | None, now: float) -> float | None:
    """A `Retry-After` header (seconds or an HTTP date) as seconds from `now`, 0 to 300; None where it says nothing."""
    if not text:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        return min(float(text), RETRY_AFTER_MAX)
    try:
        moment = parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(moment - now, 0.0), RETRY_AFTER_MAX)
