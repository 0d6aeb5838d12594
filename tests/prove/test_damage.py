"""Hundreds of seeded damages: every good row saved, nothing that had left comes back, the accounts hold.

`SEED=n` runs that one seed alone; a failing seed is in the name of its test.
"""

from __future__ import annotations

import os

import pytest

from tests.test_salvage import damage_case

ONE = os.environ.get("SEED")


def seeds(low: int, high: int) -> list[int]:
    return [int(ONE)] if ONE else list(range(low, high))


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(1000, 1100))
def test_a_hundred_damages(tmp_path, seed):
    print(f"SEED={seed}")
    damage_case(tmp_path, seed)


@pytest.mark.prove
@pytest.mark.parametrize("seed", seeds(2000, 2500))
def test_five_hundred_damages(tmp_path, seed):
    print(f"SEED={seed}")
    damage_case(tmp_path, seed)
