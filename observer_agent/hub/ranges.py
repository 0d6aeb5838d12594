"""Sets of row ids as ascending, disjoint, never adjacent ranges, both ends included. Pure."""

from __future__ import annotations

from collections.abc import Iterable

Range = tuple[int, int]


def merge(ranges: Iterable[Range], ids: Iterable[int]) -> list[Range]:
    """The ranges with `ids` added, joined where they touch."""
    merged: list[Range] = []
    for first, last in sorted([*ranges, *((each, each) for each in ids)]):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def covers(ranges: Iterable[Range], row_id: int) -> bool:
    """Whether `row_id` lies in one of the ranges."""
    return any(first <= row_id <= last for first, last in ranges)
