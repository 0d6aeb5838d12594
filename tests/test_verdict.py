"""Judging and the grid, by table."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observer_agent.model import Fault, Operation, Reading, Status, Thresholds, Verdict
from observer_agent.verdict import Grid, first_delay, judge, matches

RULES = Thresholds(Operation.UNDER, 100, Operation.OVER, 500)


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (99.999, Status.HEALTHY),
        (100, Status.DEGRADED),
        (500, Status.DEGRADED),
        (500.001, Status.UNHEALTHY),
        (-1, Status.HEALTHY),
    ],
)
def test_a_value_on_a_threshold_does_not_match(value, status):
    assert judge(Reading(value), RULES) == Verdict(status, value, None)


def test_healthy_is_asked_first():
    both = Thresholds(Operation.OVER, 0, Operation.OVER, 0)
    assert judge(Reading(1.0), both).status is Status.HEALTHY


def test_equal_is_exact():
    assert matches(Operation.EQUAL, 0.3, 0.3)
    assert not matches(Operation.EQUAL, 0.1 + 0.2, 0.3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_no_data(value):
    assert judge(Reading(value, reason="other"), RULES) == Verdict(Status.NO_DATA, 0, "non_finite_value")


def test_no_value_keeps_its_reason_and_never_lacks_one():
    assert judge(Reading(None, "ETIMEDOUT"), RULES) == Verdict(Status.NO_DATA, 0, "ETIMEDOUT")
    assert judge(Reading(None), RULES) == Verdict(Status.NO_DATA, 0, "no_data")


def test_the_operator_may_have_faults_of_the_target_as_a_verdict():
    refused = Reading(None, "ECONNREFUSED", Fault.TARGET)
    assert judge(refused, RULES, Status.UNHEALTHY) == Verdict(Status.UNHEALTHY, 0, None)
    ours = Reading(None, "EMFILE", Fault.AGENT)
    assert judge(ours, RULES, Status.UNHEALTHY) == Verdict(Status.NO_DATA, 0, "EMFILE")


@given(st.text(min_size=1, max_size=128))
def test_the_first_probe_is_spread_over_eight_seconds_and_stable(metric_id):
    assert 0.5 <= first_delay(metric_id) < 8.0
    assert first_delay(metric_id) == first_delay(metric_id)


def test_the_grid_never_drifts_and_skips_what_was_missed():
    grid = Grid(100.0, 10.0)
    assert grid.advance(100.0003) == 0 and grid.due == 110.0
    assert grid.advance(113.0) == 0 and grid.due == 120.0
    assert grid.advance(151.0) == 3 and grid.due == 160.0


@given(st.floats(0.001, 1e7), st.floats(1, 1e6), st.lists(st.floats(0, 1e5), max_size=20))
def test_the_grid_always_moves_on(start, interval, delays):
    grid = Grid(start, interval)
    for delay in delays:
        now = grid.due + delay
        before = grid.due
        grid.advance(now)
        assert grid.due > before
        assert grid.due > now or math.isclose(grid.due, now, abs_tol=0.002, rel_tol=1e-9)
        assert grid.due <= now + interval * 1.001 + 0.002
