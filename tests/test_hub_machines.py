"""The alert state machines: every edge on a fake clock, and what holds whatever comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observer_agent.hub.machines import (
    CALM_SECONDS,
    DAY_MINUTES,
    QUIET,
    Alert,
    Change,
    Minutes,
    change,
    duplicate_key,
    lag,
    offline,
    opened,
    unpack,
    uptime,
)

T = 1_800_000_000.0


@pytest.mark.parametrize(
    ("depth", "age", "opens"),
    [(1000, 300, False), (1001, 0, True), (0, 301, True), (0, 300.5, True), (1001, 301, True), (0, 0, False)],
)
def test_lag_opens_above_its_thresholds_only(depth, age, opens):
    after = lag(QUIET, depth, age, T)
    assert after.is_open is opens
    assert change(QUIET, after) == (Change.OPEN if opens else None)


def test_lag_clears_after_both_were_below_for_sixty_seconds():
    state = lag(QUIET, 1001, 0, T)
    for seconds in (30, 60, 89):
        state = lag(state, 999, 299, T + seconds)
        assert state.is_open
    assert state.opened_at == T
    assert lag(state, 999, 299, T + 90) == QUIET
    assert lag(state, 999, 299, T + 89.999).is_open


@pytest.mark.parametrize(("depth", "age"), [(1000, 0), (0, 300), (5000, 0)])
def test_a_relapse_starts_the_sixty_seconds_again_without_an_event(depth, age):
    state = lag(lag(QUIET, 1001, 0, T), 0, 0, T + 30)
    again = lag(state, depth, age, T + 60)
    assert change(state, again) is None and again == Alert(T)
    state = lag(again, 0, 0, T + 90)
    assert lag(state, 0, 0, T + 149).is_open
    assert change(state, lag(state, 0, 0, T + 150)) is Change.CLEARED


def test_offline_opens_after_three_intervals_and_time_does_not_clear_it():
    assert offline(QUIET, None, T) == QUIET, "never heard is not offline"
    assert offline(QUIET, T, T + 89.9) == QUIET
    state = offline(QUIET, T, T + 90)
    assert state == Alert(T + 90)
    assert offline(state, T, T + 1000) == state
    assert offline(state, T, T + 89.9) == state, "a clock that is behind takes nothing back"
    assert offline(QUIET, T, T + 29, after=30) == QUIET
    assert offline(QUIET, T, T + 30, after=30).is_open


def test_duplicate_key_clears_ten_minutes_after_the_last_sign():
    state = opened(QUIET, T)
    assert state == Alert(T) == opened(state, T + 1)
    assert duplicate_key(state, T + 300, T + 899.9) == state
    assert duplicate_key(state, T + 300, T + 900) == QUIET
    assert duplicate_key(QUIET, None, T) == QUIET
    assert duplicate_key(QUIET, T, T + 599) == QUIET, "a clock that is behind opens nothing"


def beats(*runs, start=T):
    """Minutes after runs of (number of minutes, whether there were heartbeats), and the moment after them."""
    minutes, now = Minutes(), start
    for count, up in runs:
        for _ in range(count):
            if up:
                minutes = minutes.beat(now).beat(now + 30)
            now += 60
    return minutes, now


@pytest.mark.parametrize(
    ("runs", "share"),
    [
        ([(59, True)], None),
        ([(60, True)], 1.0),
        ([(57, True), (3, False)], 0.95),
        ([(30, True), (30, False)], 0.5),
        ([(DAY_MINUTES, True)], 1.0),
        ([(DAY_MINUTES, True), (DAY_MINUTES, False)], 0.0),
        ([(DAY_MINUTES, False), (60, True)], 1.0),
        ([(1, True), (DAY_MINUTES * 3, False), (72, True)], 0.05),
        ([(100, False), (1368, True), (72, False)], 0.95),
    ],
)
def test_uptime_is_the_share_of_observed_minutes_of_a_day(runs, share):
    minutes, now = beats(*runs)
    assert minutes.share(now) == share
    assert unpack(minutes.newest, minutes.pack(), minutes.first) == minutes


def test_uptime_opens_below_95_percent_and_clears_after_sixty_seconds_at_it():
    minutes, now = beats((56, True), (4, False))
    state = uptime(QUIET, minutes, now)
    assert state == Alert(now)
    better, later = minutes, now
    while (better.share(later) or 0) < 0.95:
        assert uptime(state, better, later) == state
        better, later = better.beat(later), later + 60
    state = uptime(state, better, later)
    assert state.is_open and state.calm_since == later
    assert uptime(state, better.beat(later), later + CALM_SECONDS) == QUIET


def test_before_an_hour_was_observed_uptime_says_nothing():
    minutes, now = beats((10, True), (40, False))
    assert uptime(QUIET, minutes, now) == QUIET
    assert uptime(Alert(T), minutes, now) == Alert(T)


def test_an_agent_that_never_missed_a_minute_is_at_100_percent_at_every_moment_of_it():
    minutes, now = beats((DAY_MINUTES + 100, True))
    minutes = minutes.beat(now)
    assert minutes.share(now + 1) == 1.0 and minutes.share(now + 59) == 1.0
    assert unpack(minutes.newest, minutes.pack(), minutes.first) == minutes


def test_the_minute_in_progress_does_not_count():
    minutes, now = beats((60, True))
    assert minutes.share(now + 59.9) == 1.0
    assert minutes.share(now + 60) < 1.0


jumps = st.floats(-7200, 7200, allow_nan=False)
steps = st.lists(
    st.tuples(st.floats(0, 400, allow_nan=False), st.integers(0, 3000), st.integers(0, 900), st.booleans()), max_size=60
)


@given(steps, jumps)
def test_open_and_cleared_alternate_and_nothing_else_makes_an_event(found, jump):
    """Every machine over any series of signals; the hub's own clock may be set by hours in the middle."""
    now, states, told = T, [QUIET] * 4, [[], [], [], []]
    minutes, last, seen = Minutes(), None, None
    for at, (passed, depth, age, heard) in enumerate(found):
        now += passed + (jump if at == 30 else 0)
        if heard:
            minutes, last = minutes.beat(now), now
        else:
            seen = now if depth % 2 else seen
        fresh = [
            lag(states[0], depth, age, now) if heard else states[0],
            uptime(states[1], minutes, now),
            QUIET if heard else offline(states[2], last, now),
            opened(states[3], now) if seen == now else duplicate_key(states[3], seen, now),
        ]
        for events, before, after in zip(told, states, fresh, strict=True):
            event = change(before, after)
            assert (event is not None) == (before.is_open != after.is_open)
            if event:
                events.append(event)
            assert after.calm_since is None or after.is_open
        states = fresh
    for events, state in zip(told, states, strict=True):
        assert events == [Change.OPEN, Change.CLEARED] * (len(events) // 2) + [Change.OPEN] * (len(events) % 2)
        assert state.is_open == bool(len(events) % 2)


@given(st.lists(st.integers(0, 4000), min_size=1, max_size=200), st.integers(0, 3000))
def test_minutes_equal_a_plain_set(marks, after):
    minutes = Minutes()
    for mark in sorted(marks):
        minutes = minutes.beat(T + mark * 60)
    now = T + (max(marks) + after) * 60
    last, first = int(now // 60) - 1, int(T // 60) + min(marks)
    window = range(max(first, last - DAY_MINUTES + 1), last + 1)
    up = {int(T // 60) + mark for mark in marks}
    expected = sum(minute in up for minute in window) / len(window) if len(window) >= 60 else None
    assert minutes.share(now) == expected
