"""One number of one OTLP point: what each aggregation means for a number and for the two kinds of histograms. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from observer_agent.probes._otlppoints import Buckets, Data, Exponential, Histogram, Number

QUANTILES: Final = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
AGGREGATIONS: Final = ("latest", "count", "sum", "mean", *QUANTILES)

Bucket = tuple[float, float, int]  # low, high, count


def value_of(data: Data, aggregation: str) -> float | None:
    """The number, or None where this point has none of that kind.

    A gauge or a sum is its number whatever the aggregation. `latest` of a histogram is its mean.
    """
    if isinstance(data, Number):
        return data.value
    if aggregation == "count":
        return float(data.count)
    if aggregation == "sum":
        return data.total
    if aggregation not in QUANTILES:
        return data.total / data.count if data.count and data.total is not None else None
    try:
        return _quantile(list(_buckets(data)), QUANTILES[aggregation])
    except OverflowError:
        return None  # a scale that no float can follow


def _quantile(buckets: list[Bucket], share: float) -> float | None:
    """Linear inside the bucket that holds the rank; None of no observations."""
    total = sum(count for _, _, count in buckets)
    rank, below = share * total, 0
    for low, high, count in buckets:
        if count and below + count >= rank:
            return low + (high - low) * (rank - below) / count
        below += count
    return None


def _buckets(data: Histogram | Exponential) -> Iterator[Bucket]:
    """The buckets in ascending order, the two open ones closed."""
    return _explicit(data) if isinstance(data, Histogram) else _exponential(data)


def _explicit(data: Histogram) -> Iterator[Bucket]:
    """The first bucket begins at 0, or where its own bound is not above that, at the least value or the bound."""
    if not data.bounds:
        return
    first, last = data.bounds[0], data.bounds[-1]
    low = 0.0 if first > 0 else min(first, data.least) if data.least is not None else first
    for high, count in zip(data.bounds, data.counts, strict=False):
        yield low, high, count
        low = high
    yield last, last, data.counts[-1] if data.counts else 0


def _exponential(data: Exponential) -> Iterator[Bucket]:
    width = 2.0**-data.scale
    for low, high, count in reversed(list(_grown(data.negative, width))):
        yield -high, -low, count
    low = -data.threshold if any(data.negative.counts) else 0.0
    yield low, data.threshold if any(data.positive.counts) else 0.0, data.zeros
    yield from _grown(data.positive, width)


def _grown(half: Buckets, width: float) -> Iterable[Bucket]:
    for at, count in enumerate(half.counts, half.offset):
        if count:
            yield 2.0 ** (at * width), 2.0 ** ((at + 1) * width), count
