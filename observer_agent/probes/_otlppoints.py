"""An OTLP metrics request to points: those of metrics that somebody asked for, with their attributes as texts.

The nested objects of the JSON form in, or `Packed` protobuf messages that open into the same objects. Metrics that
nobody wants are counted and not looked into. Pure; raises Malformed for anything that OTLP does not describe.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

from observer_agent.probes._otlpwire import Malformed, Packed, opened

NO_VALUE: Final = 1  # a flag of a point: there is none at this time
BUCKETS_MAX: Final = 10_000
_WHOLE = re.compile(r"-?[0-9]{1,20}")
_DECIMAL = re.compile(r"-?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?(?:[eE][+-]?[0-9]{1,4})?|Infinity)|NaN")
_TEMPORALITY: Final[Mapping[object, str]] = {
    1: "delta", 2: "cumulative",
    "AGGREGATION_TEMPORALITY_DELTA": "delta", "AGGREGATION_TEMPORALITY_CUMULATIVE": "cumulative",
}  # fmt: skip


class Number(NamedTuple):
    """A gauge's or a sum's value; None where the sender says that there is none."""

    value: float | None


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts between bounds; `total` is the sum of what was observed, which a sender may leave out."""

    count: int
    total: float | None
    bounds: Sequence[float] = ()
    counts: Sequence[int] = ()
    least: float | None = None


class Buckets(NamedTuple):
    """One half of an exponential histogram: bucket i counts values up to base ** (offset + i + 1)."""

    offset: int = 0
    counts: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Exponential:
    """Counts in buckets that grow by the factor 2 ** (2 ** -scale), around a bucket of zeros."""

    count: int
    total: float | None
    scale: int
    zeros: int
    threshold: float
    positive: Buckets
    negative: Buckets


Data = Number | Histogram | Exponential


@dataclass(frozen=True, slots=True)
class Point:
    """One data point. `time` is the sender's, in seconds; 0 where it told none."""

    name: str
    attributes: Mapping[str, str]
    time: float
    kind: str
    temporality: str | None
    data: Data


class Batch(NamedTuple):
    """The points of a request that were wanted, and how many there were in all."""

    points: list[Point]
    seen: int


def read(root: Any, wanted: Callable[[str], bool]) -> Batch:
    """What a request holds; `wanted` says of a metric's name whether its points are looked at. Raises Malformed."""
    found: list[Point] = []
    seen = 0
    for around, metric in _metrics(_fields(root)):
        name = _text(metric, "name")
        for kind in KINDS:
            if metric.get(kind) is None:
                continue
            batch = _fields(metric[kind])
            seen += len(_listed(batch, "dataPoints"))
            if wanted(name):
                found.extend(_points(name, _shared(around), kind, batch))
    return Batch(found, seen)


def _metrics(root: Mapping[str, Any]) -> Iterator[tuple[tuple[Any, Any], Mapping[str, Any]]]:
    """Each metric, with the resource and the scope around it."""
    for resource in map(_fields, _listed(root, "resourceMetrics")):
        for scope in map(_fields, _listed(resource, "scopeMetrics")):
            for metric in _listed(scope, "metrics"):
                yield (resource.get("resource"), scope.get("scope")), _fields(metric)


def _shared(around: Sequence[Any]) -> dict[str, str]:
    """The attributes that all points inside have; the inner ones win."""
    return {name: value for each in around for name, value in _attributes(each).items()}


def _points(name: str, shared: Mapping[str, str], kind: str, batch: Mapping[str, Any]) -> Iterator[Point]:
    temporality = _TEMPORALITY.get(batch.get("aggregationTemporality"))
    for point in map(_fields, _listed(batch, "dataPoints")):
        attributes = {**shared, **_attributes(point)}
        time = _count(point, "timeUnixNano") / 1e9
        absent = _count(point, "flags") & NO_VALUE
        data = Number(None) if absent else KINDS[kind](point)
        yield Point(name, attributes, time, _SHOWN.get(kind, kind), temporality, data)


# -- what a point can hold


def _number(point: Mapping[str, Any]) -> Number:
    for name in ("asDouble", "asInt", "value"):
        if point.get(name) is not None:
            return Number(_float(point, name))
    return Number(None)


def _histogram(point: Mapping[str, Any]) -> Histogram:
    bounds = [_real(each, "explicitBounds") for each in _listed(point, "explicitBounds")]
    counts = _counts(point)
    if counts and len(counts) != len(bounds) + 1:
        raise Malformed("bucketCounts must have one entry more than explicitBounds")
    if any(low >= high for low, high in pairwise(bounds)) or not all(map(math.isfinite, bounds)):
        raise Malformed("explicitBounds must ascend")
    return Histogram(_count(point, "count"), _float(point, "sum"), bounds, counts, _float(point, "min"))


def _exponential(point: Mapping[str, Any]) -> Exponential:
    return Exponential(
        _count(point, "count"),
        _float(point, "sum"),
        _whole(point.get("scale") or 0, "scale"),
        _count(point, "zeroCount"),
        _float(point, "zeroThreshold") or 0.0,
        _buckets(point.get("positive")),
        _buckets(point.get("negative")),
    )


def _summary(point: Mapping[str, Any]) -> Histogram:
    """The quantiles of a summary are the sender's own; count and sum are of use."""
    return Histogram(_count(point, "count"), _float(point, "sum"))


def _buckets(node: Any) -> Buckets:
    if node is None:
        return Buckets()
    fields = _fields(node)
    return Buckets(_whole(fields.get("offset") or 0, "offset"), _counts(fields))


def _counts(fields: Mapping[str, Any]) -> list[int]:
    listed = _listed(fields, "bucketCounts")
    if len(listed) > BUCKETS_MAX:
        raise Malformed(f"bucketCounts may have {BUCKETS_MAX} entries")
    counts = [_whole(each, "bucketCounts") for each in listed]
    if any(each < 0 for each in counts):
        raise Malformed("bucketCounts must not be negative")
    return counts


KINDS: Final[Mapping[str, Callable[[Mapping[str, Any]], Data]]] = {
    "gauge": _number,
    "sum": _number,
    "histogram": _histogram,
    "exponentialHistogram": _exponential,
    "summary": _summary,
}
_SHOWN: Final = {"exponentialHistogram": "exponential_histogram"}


# -- attributes, as texts


def _attributes(node: Any) -> dict[str, str]:
    if node is None:
        return {}
    pairs = map(_fields, _listed(_fields(node), "attributes"))
    return {_text(pair, "key"): _attribute(pair.get("value")) for pair in pairs}


def _attribute(node: Any) -> str:
    value = _fields(node) if node is not None else {}
    if value.get("arrayValue") is None:
        return _scalar(value)
    return ",".join(_scalar(_fields(each)) for each in _listed(_fields(value["arrayValue"]), "values"))


def _scalar(value: Mapping[str, Any]) -> str:
    if value.get("stringValue") is not None:
        return _text(value, "stringValue")
    if value.get("boolValue") is not None:
        return "true" if value["boolValue"] is True else "false"
    if value.get("intValue") is not None:
        return str(_whole(value["intValue"], "intValue"))
    if (number := _float(value, "doubleValue")) is not None:
        return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)
    return ""


# -- single fields, strictly


def _fields(node: Any) -> Mapping[str, Any]:
    if isinstance(node, Packed):
        return opened(node)
    if not isinstance(node, Mapping):
        raise Malformed("an object is expected")
    return node


def _listed(fields: Mapping[str, Any], name: str) -> Sequence[Any]:
    value = fields.get(name)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise Malformed(f"{name} must be an array")
    return value


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise Malformed(f"{name} must be a text")
    return value or ""


def _count(fields: Mapping[str, Any], name: str) -> int:
    value = _whole(fields.get(name) or 0, name)
    if value < 0:
        raise Malformed(f"{name} must not be negative")
    return value


def _float(fields: Mapping[str, Any], name: str) -> float | None:
    value = fields.get(name)
    return None if value is None else _real(value, name)


def _real(value: Any, name: str) -> float:
    """A number, or a text of one; NaN and the infinities may be."""
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Malformed(f"{name} must be a number")
    try:
        return float(value)
    except OverflowError:
        raise Malformed(f"{name} is too large") from None


def _whole(value: Any, name: str) -> int:
    """64 bits, as a number or as a text of one."""
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**64:
        raise Malformed(f"{name} must be a whole number")
    return value
