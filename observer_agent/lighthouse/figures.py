"""Words of the metrics that a Lighthouse console takes: a figure, and what one look at a machine or a cluster found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

Labels = tuple[tuple[str, str], ...]


class Figure(NamedTuple):
    """One number of a machine or a cluster; `labels` are pairs of name and value."""

    name: str
    value: float
    labels: Labels = ()


class Look(NamedTuple):
    """Figures, how many things of each kind were left out, and which section failed why."""

    figures: list[Figure]
    left_out: Mapping[str, int]
    faults: Mapping[str, str]


def percent(part: float, whole: float) -> float:
    """From 0 to 100, whatever the counters say; of nothing at all, nothing is used."""
    return min(max(part / whole * 100, 0.0), 100.0) if whole > 0 else 0.0
