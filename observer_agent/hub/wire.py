"""What agents send, read strictly where a row would be wrong and kindly everywhere else. Pure.

Bodies and headers come in as text or parsed JSON; rows, rejects, sequences and heartbeats go out. A bad row is named by
index, field and code; a bad field of a heartbeat counts as absent (docs/wire.md: unknown fields are ignored, null
equals absent).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from observer_agent.clock import parse_iso
from observer_agent.model import Status

BATCH_MAX = 100
ID_MAX = 128
REASON_MAX = 64
DELIVERY_MAX = 20
LISTED_MAX = 100
ROW_ID_MAX = 2**63 - 1
COUNT_MAX = 2**53
LATEST = 253_402_300_799.0  # the last second of the year 9999
_STATUSES = frozenset(Status)
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_RANGE = re.compile(r"(0|[1-9][0-9]{0,18})(?:-(0|[1-9][0-9]{0,18}))?")


class Malformed(Exception):
    """A body is not what its endpoint takes; the text says what was expected and holds nothing of the body."""


class Code(StrEnum):
    """Why a row is refused: a closed set."""

    NOT_AN_OBJECT = "not_an_object"
    MISSING = "missing"
    WRONG_TYPE = "wrong_type"
    OUT_OF_RANGE = "out_of_range"
    NOT_FINITE = "not_finite"
    UNKNOWN_VALUE = "unknown_value"
    UNPARSABLE = "unparsable"
    TOO_MANY_METRICS = "too_many_metrics"


class Reject(NamedTuple):
    """One row that is not taken: its place in the body, the field at fault, why."""

    at: int
    field: str
    code: Code


class Row(NamedTuple):
    """One good row: its place in the body and the wire's fields; `timestamp` in seconds since 1970."""

    at: int
    metric_id: str
    value: float
    timestamp: float
    status: str
    reason: str | None


class PushSequence(NamedTuple):
    """The header `Push-Sequence`: the queue id, and one row id for each row of the body, in its order."""

    queue_id: str
    ids: tuple[int, ...]


class Ledger(NamedTuple):
    """One entry of a heartbeat's `delivery`."""

    queue_id: str
    given: int
    accepted: int
    pending: int
    lost: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What an agent said about itself; None where it said nothing that can be used. Ages and uptime in seconds."""

    version: str | None = None
    hostname: str | None = None
    uptime_seconds: int | None = None
    queue_depth: int | None = None
    queue_oldest_age_seconds: int | None = None
    queue_capacity: int | None = None
    started_at: float | None = None
    source_types_active: tuple[str, ...] = ()
    custom_probes: tuple[Mapping[str, Any], ...] = ()
    build: Mapping[str, str] = field(default_factory=dict)
    delivery: tuple[Ledger, ...] = ()


class _Bad(Exception):
    """A field at fault, on its way to a Reject."""

    def __init__(self, name: str, code: Code) -> None:
        super().__init__(name)
        self.name = name
        self.code = code


# -- bodies


def read_json(body: bytes) -> Any:
    """The parsed body; raises Malformed."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Malformed("the body is not JSON") from None


def read_rows(body: Any) -> tuple[list[Row], list[Reject]]:
    """The good rows and the rejects of a batch; raises Malformed for anything but a list."""
    if not isinstance(body, list):
        raise Malformed("the body must be an array of rows")
    rows: list[Row] = []
    rejects: list[Reject] = []
    for at, each in enumerate(body):
        try:
            rows.append(_row(at, each))
        except _Bad as bad:
            rejects.append(Reject(at, bad.name, bad.code))
    return rows, rejects


def _row(at: int, row: object) -> Row:
    """One row of the wire; a field at fault ends it."""
    if not isinstance(row, dict):
        raise _Bad("row", Code.NOT_AN_OBJECT)
    status = _status(row.get("status"))
    no_data = status == Status.NO_DATA
    value = row.get("value")
    return Row(
        at,
        _metric_id(row.get("metric_id")),
        0.0 if no_data and value is None else _value(value),
        _timestamp(row.get("timestamp")),
        status,
        _reason(row.get("reason")) if no_data else None,
    )


def _metric_id(value: object) -> str:
    text = _text("metric_id", value)
    if not 1 <= len(text) <= ID_MAX or not _storable(text):
        raise _Bad("metric_id", Code.OUT_OF_RANGE)
    return text


def _status(value: object) -> str:
    text = _text("status", value)
    if text not in _STATUSES:
        raise _Bad("status", Code.UNKNOWN_VALUE)
    return text


def _value(value: object) -> float:
    if value is None:
        raise _Bad("value", Code.MISSING)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Bad("value", Code.WRONG_TYPE)
    number = _float(value)
    if number is None:
        raise _Bad("value", Code.NOT_FINITE)
    return number


def _timestamp(value: object) -> float:
    instant = read_instant(_text("timestamp", value))
    if instant is None:
        raise _Bad("timestamp", Code.UNPARSABLE)
    return instant


def _reason(value: object) -> str | None:
    return None if value is None else clean(_text("reason", value), REASON_MAX)


def _text(name: str, value: object) -> str:
    if value is None:
        raise _Bad(name, Code.MISSING)
    if not isinstance(value, str):
        raise _Bad(name, Code.WRONG_TYPE)
    return value


def _float(value: int | float) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _storable(text: str) -> bool:
    """No NUL and no half of a surrogate pair: databases refuse them."""
    return "\0" not in text and (text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text))


def clean(text: str, limit: int) -> str:
    """A text that every database can keep, at most `limit` characters."""
    return text[:limit].replace("\0", "\ufffd").encode("utf-8", "replace").decode()


# -- headers


def read_instant(text: object) -> float | None:
    """An ISO 8601 instant with an offset, between 1970 and 9999, in seconds; None for anything else."""
    if not isinstance(text, str) or len(text) > 64:
        return None
    instant = parse_iso(text.strip())
    return instant if instant is not None and 0 <= instant < LATEST else None


def read_sequence(header: str | None, rows: int) -> PushSequence | None:
    """`<queue id>;<range>(,<range>)*` for as many rows, strictly ascending; malformed counts as absent."""
    queue_id, _, listed = (header or "").partition(";")
    if not _UUID.fullmatch(queue_id):
        return None
    ids: list[int] = []
    for part in listed.split(",", rows):
        found = _RANGE.fullmatch(part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        in_order = first <= last <= ROW_ID_MAX and (not ids or first > ids[-1])
        if not in_order or last - first >= rows - len(ids):
            return None
        ids.extend(range(first, last + 1))
    return PushSequence(queue_id, tuple(ids)) if len(ids) == rows else None


# -- heartbeats


def read_heartbeat(body: Any) -> Heartbeat:
    """A heartbeat of any build (the seeds); older ones are read through `buffer_*`. Raises Malformed."""
    if not isinstance(body, dict):
        raise Malformed("the body must be an object")
    return Heartbeat(
        version=_word(body.get("version"), ID_MAX),
        hostname=_word(body.get("hostname"), 255),
        uptime_seconds=_count(body.get("uptime_seconds")),
        queue_depth=_first(body, "queue_depth", "buffer_size"),
        queue_oldest_age_seconds=_first(body, "queue_oldest_age_seconds", "buffer_oldest_age_seconds"),
        queue_capacity=_count(body.get("queue_capacity")),
        started_at=read_instant(body.get("agent_started_at")),
        source_types_active=_words(body.get("source_types_active")),
        custom_probes=tuple(filter(None, map(_probe, _listed(body.get("custom_probes"))))),
        build=_build(body.get("build")),
        delivery=tuple(filter(None, map(_ledger, _listed(body.get("delivery"))[:DELIVERY_MAX]))),
    )


def _first(body: Mapping[str, Any], name: str, older: str) -> int | None:
    count = _count(body.get(name))
    return _count(body.get(older)) if count is None else count


def _count(value: object) -> int | None:
    """A count or an age: a number from 0 to 2^53, cut to an integer."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    number = _float(value)
    return int(number) if number is not None and 0 <= number <= COUNT_MAX else None


def _word(value: object, limit: int) -> str | None:
    return clean(value, limit) if isinstance(value, str) and value else None


def _words(value: object) -> tuple[str, ...]:
    return tuple(filter(None, (_word(each, 64) for each in _listed(value))))


def _listed(value: object) -> Sequence[Any]:
    return value[:LISTED_MAX] if isinstance(value, list) else ()


def _probe(value: object) -> Mapping[str, Any] | None:
    name = _word(value.get("name"), ID_MAX) if isinstance(value, dict) else None
    if name is None or not isinstance(value, dict):
        return None
    described = _word(value.get("description"), 255)
    schema = {"has_config_schema": value.get("has_config_schema") is True}
    return {"name": name, **({"description": described} if described else {}), **schema}


def _build(value: object) -> Mapping[str, str]:
    if not isinstance(value, dict):
        return {}
    words = {name: _word(value.get(name), ID_MAX) for name in ("channel", "commit", "source_hash")}
    return {name: word for name, word in words.items() if word is not None}


def _ledger(value: object) -> Ledger | None:
    if not isinstance(value, dict) or not isinstance(value.get("queue_id"), str):
        return None
    counts = [_count(value.get(name)) for name in ("given", "accepted", "pending")]
    given, accepted, pending = counts
    if not _UUID.fullmatch(value["queue_id"]) or given is None or accepted is None or pending is None:
        return None
    lost = value.get("lost")
    listed = list(lost.items())[:LISTED_MAX] if isinstance(lost, dict) else []
    counted = {clean(name, 64): _count(n) for name, n in listed}
    return Ledger(value["queue_id"], given, accepted, pending, {n: c for n, c in counted.items() if c is not None})
