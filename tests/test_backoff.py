"""The waits, by table."""

from __future__ import annotations

import pytest

from observer_agent import backoff


@pytest.mark.parametrize(
    ("attempt", "age", "low", "high"),
    [(1, 0, 0.75, 1), (2, 1, 1.5, 2), (3, 3, 3, 4), (4, 7, 3.75, 5), (20, 119.9, 3.75, 5), (21, 120, 22.5, 30)],
)
def test_later_waits_1_2_4_5_then_30(attempt, age, low, high):
    assert backoff.later(attempt, age, 0.0) == low
    assert backoff.later(attempt, age, 1.0) == high


def test_fetches_back_off_to_five_minutes():
    assert [backoff.fetch(n) for n in range(1, 7)] == [30, 60, 120, 240, 300, 300]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("", None),
        ("7", 7),
        (" 0 ", 0),
        ("86400", 300),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 100),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("soon", None),
        ("Mon, 1 Jan 99999999999 00:00:00 GMT", None),
    ],
)
def test_retry_after_in_both_spellings(text, seconds):
    assert backoff.retry_after(text, now=0.0) == seconds
