"""The flap machine: what it takes until a state is believed."""

from __future__ import annotations

import itertools

import pytest

from observer_agent.clouds._lighthouse_wire import State
from observer_agent.lighthouse.flap import Change, Track, observe, settle

UP, DOWN = State.UP, State.DOWN


def run(text, threshold=1, track=None, thresholds=()):
    """The changes that a series of looks makes, as `(number of the look, from, to)`: u up, d down, - no result."""
    track, changes = track or Track(UP), []
    for n, (each, at) in enumerate(itertools.zip_longest(text, thresholds, fillvalue=None), 1):
        track, change = observe(track, {"u": UP, "d": DOWN, "-": None}[each], at or threshold)
        if change:
            changes.append((n, change.before, change.after))
    return track, changes


def test_a_threshold_of_one_believes_at_once():
    assert run("dudd")[1] == [(1, UP, DOWN), (2, DOWN, UP), (3, UP, DOWN)]


@pytest.mark.parametrize("threshold", [0, -3])
def test_a_threshold_below_one_is_one(threshold):
    assert run("d", threshold)[1] == [(1, UP, DOWN)]


@pytest.mark.parametrize(
    ("looks", "changes"),
    [
        ("dd", []),
        ("ddd", [(3, UP, DOWN)]),
        ("ddudd", []),
        ("dddd", [(3, UP, DOWN)]),
        ("ddduuduuu", [(3, UP, DOWN), (9, DOWN, UP)]),
        ("dddduuu", [(3, UP, DOWN), (7, DOWN, UP)]),
    ],
)
def test_three_in_a_row_both_ways(looks, changes):
    assert run(looks, 3)[1] == changes


def test_w1_no_result_neither_counts_nor_clears():
    assert run("d-d--d", 3)[1] == [(6, UP, DOWN)]
    assert run("----", 1) == (Track(UP), [])
    assert run("-", 1, Track()) == (Track(), [])


def test_the_first_result_counts_at_once_and_has_nothing_before_it():
    assert observe(Track(), DOWN, 5) == (Track(DOWN), Change(None, DOWN))


def test_another_threshold_holds_for_the_count_that_runs():
    assert run("ddd", thresholds=[5, 5, 2])[1] == [(3, UP, DOWN)]
    assert run("dddd", thresholds=[3, 3, 4, 4])[1] == [(4, UP, DOWN)]


def test_a_sync_counts_at_once_whatever_the_threshold():
    assert settle(Track(UP), DOWN) == Track(DOWN)
    assert settle(Track(), UP) == Track(UP)
    assert settle(Track(UP, DOWN, 2), None) == Track(UP, DOWN, 2)


def test_a_sync_does_not_clear_a_count():
    track = settle(run("dd", 3)[0], UP)
    assert run("d", 3, track)[1] == [(1, UP, DOWN)]


def test_a_sync_that_makes_the_candidate_true_ends_its_count():
    assert settle(run("dd", 3)[0], DOWN) == Track(DOWN)


def test_what_is_believed_differs_from_its_candidate_always():
    for looks in itertools.product("ud-", repeat=6):
        for sync in range(6):
            track = Track()
            for n, each in enumerate(looks):
                seen = {"u": UP, "d": DOWN, "-": None}[each]
                track = settle(track, seen) if n == sync else observe(track, seen, 2)[0]
                assert track.candidate is None or track.candidate is not track.committed
                assert (track.candidate is None) == (track.times == 0)
