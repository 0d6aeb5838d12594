"""OTLP's protobuf form, read one level at a time: bytes in, the same nested objects out as its JSON form gives.

A reader of our own: what OTLP needs of the wire format is a page, a message nobody asks for is skipped without being
decoded, and the agent carries neither generated files nor the memory of a protobuf runtime (`SCHEMA` is held against
the official descriptors by a test). Lengths are checked against the bytes that are there. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

LONGEST_VARINT: Final = 10


class Malformed(Exception):
    """The payload is not what OTLP describes; the text says where."""


class Packed(NamedTuple):
    """A message that has not been looked into: its bytes, and its name in `SCHEMA`."""

    view: memoryview
    kind: str


class Field(NamedTuple):
    """A field of a message: the name that it has in JSON, its type, whether it is a list."""

    name: str
    type: str
    many: bool = False


def _message(**fields: tuple[int, str] | tuple[int, str, bool]) -> Mapping[int, Field]:
    return MappingProxyType({each[0]: Field(name, *each[1:]) for name, each in fields.items()})


_POINT: Final = {"timeUnixNano": (3, "fixed64")}
_TEMPORAL: Final = {"aggregationTemporality": (2, "uint64")}

SCHEMA: Final[Mapping[str, Mapping[int, Field]]] = MappingProxyType(
    {
        "ExportMetricsServiceRequest": _message(resourceMetrics=(1, "ResourceMetrics", True)),
        "ResourceMetrics": _message(resource=(1, "Resource"), scopeMetrics=(2, "ScopeMetrics", True)),
        "Resource": _message(attributes=(1, "KeyValue", True)),
        "ScopeMetrics": _message(scope=(1, "InstrumentationScope"), metrics=(2, "Metric", True)),
        "InstrumentationScope": _message(attributes=(3, "KeyValue", True)),
        "Metric": _message(
            name=(1, "string"), gauge=(5, "Gauge"), sum=(7, "Sum"), histogram=(9, "Histogram"),
            exponentialHistogram=(10, "ExponentialHistogram"), summary=(11, "Summary"),
        ),
        "Gauge": _message(dataPoints=(1, "NumberDataPoint", True)),
        "Sum": _message(dataPoints=(1, "NumberDataPoint", True), **_TEMPORAL, isMonotonic=(3, "bool")),
        "Histogram": _message(dataPoints=(1, "HistogramDataPoint", True), **_TEMPORAL),
        "ExponentialHistogram": _message(dataPoints=(1, "ExponentialHistogramDataPoint", True), **_TEMPORAL),
        "Summary": _message(dataPoints=(1, "SummaryDataPoint", True)),
        "NumberDataPoint": _message(
            **_POINT, asDouble=(4, "double"), asInt=(6, "sfixed64"), attributes=(7, "KeyValue", True),
            flags=(8, "uint64"),
        ),
        "HistogramDataPoint": _message(
            **_POINT, count=(4, "fixed64"), sum=(5, "double"), bucketCounts=(6, "fixed64", True),
            explicitBounds=(7, "double", True), attributes=(9, "KeyValue", True), flags=(10, "uint64"),
            min=(11, "double"),
        ),
        "ExponentialHistogramDataPoint": _message(
            attributes=(1, "KeyValue", True), **_POINT, count=(4, "fixed64"), sum=(5, "double"), scale=(6, "sint32"),
            zeroCount=(7, "fixed64"), positive=(8, "Buckets"), negative=(9, "Buckets"), flags=(10, "uint64"),
            zeroThreshold=(14, "double"),
        ),
        "Buckets": _message(offset=(1, "sint32"), bucketCounts=(2, "uint64", True)),
        "SummaryDataPoint": _message(
            **_POINT, count=(4, "fixed64"), sum=(5, "double"), attributes=(7, "KeyValue", True), flags=(8, "uint64"),
        ),
        "KeyValue": _message(key=(1, "string"), value=(2, "AnyValue")),
        "AnyValue": _message(
            stringValue=(1, "string"), boolValue=(2, "bool"), intValue=(3, "int64"), doubleValue=(4, "double"),
            arrayValue=(5, "ArrayValue"), kvlistValue=(6, "KeyValueList"), bytesValue=(7, "bytes"),
        ),
        "ArrayValue": _message(values=(1, "AnyValue", True)),
        "KeyValueList": _message(),
    }
)  # fmt: skip

_FIXED: Final = MappingProxyType({"fixed64": "Q", "sfixed64": "q", "double": "d"})
_VARINTS: Final[Mapping[str, Callable[[int], Any]]] = MappingProxyType(
    {
        "uint64": lambda n: n,
        "int64": lambda n: n - (1 << 64) if n >> 63 else n,
        "sint32": lambda n: (n >> 1) ^ -(n & 1),
        "bool": bool,
    }
)


def opened(message: Packed) -> dict[str, Any]:
    """The fields of one message by their names; messages inside it stay packed. Raises Malformed."""
    view, fields, at = message.view, SCHEMA[message.kind], 0
    out: dict[str, Any] = {}
    while at < len(view):
        key, at = _varint(view, at)
        wire = key & 7
        raw, at = _varint(view, at) if wire == 0 else _bytes(view, at, wire)
        if field := fields.get(key >> 3):
            value = _value(field, wire, raw)
            if field.many:
                out.setdefault(field.name, []).extend(value if isinstance(value, list) else [value])
            else:
                out[field.name] = value
    return out


def _value(field: Field, wire: int, raw: Any) -> Any:
    kind = field.type
    if kind in _VARINTS:
        if wire == 0:
            return _VARINTS[kind](raw)
        if field.many and wire == 2:
            return _varints(raw, _VARINTS[kind])
    elif kind in _FIXED:
        if wire == 1 or (field.many and wire == 2 and len(raw) % 8 == 0):
            found = list(struct.unpack(f"<{len(raw) // 8}{_FIXED[kind]}", raw))
            return found if wire == 2 else found[0]
    elif wire == 2:
        return _text(raw) if kind == "string" else "" if kind == "bytes" else Packed(raw, kind)
    raise Malformed(f"{field.name} has a wrong wire type")


def _varints(raw: memoryview, convert: Callable[[int], Any]) -> list[Any]:
    out, at = [], 0
    while at < len(raw):
        number, at = _varint(raw, at)
        out.append(convert(number))
    return out


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    for byte in view[at : at + LONGEST_VARINT]:
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
    raise Malformed("a number does not end")


def _bytes(view: memoryview, at: int, wire: int) -> tuple[memoryview, int]:
    if wire == 2:
        size, at = _varint(view, at)
    elif wire in (1, 5):
        size = 8 if wire == 1 else 4
    else:
        raise Malformed("a field has no known wire type")
    if size > len(view) - at:
        raise Malformed("a field is longer than its message")
    return view[at : at + size], at + size


def _text(raw: memoryview) -> str:
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError:
        raise Malformed("a text is not UTF-8") from None
