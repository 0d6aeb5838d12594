"""The rows of the `observer-agent queue` commands, read strictly: what the agent would not write is not a row.

Enters: the data of a stored row, or an export as bytes. Leaves: `Sample`s, `Event`s of the second dialect and `Line`s;
a ValueError names the field. Knows no queue file. Runs on the main thread of a command.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

from observer_agent.clock import parse_iso
from observer_agent.clouds._lighthouse_wire import SYNC_KINDS, Event, State
from observer_agent.model import Sample, Status

FIELDS = ("metric_id", "value", "timestamp", "status", "reason")
EVENT_ROW = ("metric_id", "status", "sync_kind", "event")
EVENT = ("check_id", "prev_state", "new_state", "agent_observed_at", "response_time_ms", "status_code", "error_message")
LINE_FIELDS = ("queue_id", "row_id", "queued_at", "row")
_BLANKS = re.compile(r"[ \t\r\n]*")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class Line(NamedTuple):
    """One line of an export, understood."""

    queue_id: str
    row_id: int
    sample: Sample | Event


# -- one row


def read_row(data: object) -> Sample | Event:
    """The sample or the event that a row's data is; raises ValueError with what is wrong."""
    if not isinstance(data, bytes):
        raise ValueError("the data is not bytes")
    return read_any(read_json(data))


def read_json(data: bytes) -> Any:
    """Strict JSON: UTF-8, no NaN, no name twice in an object; raises ValueError."""
    try:
        return _DECODER.decode(data.decode())
    except UnicodeDecodeError:
        raise ValueError("not JSON: not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not JSON that can be read: nested too deep") from None


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice in an object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_no_twins, parse_constant=_no_constant)


def read_sample(row: object) -> Sample:
    """A row of the wire, strictly: its fields and no others; raises ValueError with `field: message`."""
    fields = _fields(row, "row", FIELDS, optional=1)
    status = fields["status"]
    if status not in tuple(Status):
        raise ValueError(f"status: must be one of {', '.join(Status)}")
    if "reason" in fields and status != Status.NO_DATA:
        raise ValueError("reason: is there with no_data alone")
    reason = _text(fields, "reason") if "reason" in fields else None
    moment = _instant(fields, "timestamp")
    return Sample(_text(fields, "metric_id"), _number(fields["value"]), moment, Status(status), reason)


def read_any(row: object) -> Sample | Event:
    """A row of either dialect; raises ValueError."""
    return read_event(row) if isinstance(row, dict) and "event" in row else read_sample(row)


def read_event(row: object) -> Event:
    """A row of the second dialect, strictly: its envelope and its event; raises ValueError with `field: message`."""
    outer = _fields(row, "row", EVENT_ROW)
    fields = _fields(outer["event"], "event", EVENT, optional=3)
    sync_kind, prev, new = outer["sync_kind"], fields["prev_state"], fields["new_state"]
    if sync_kind not in (None, *SYNC_KINDS):
        raise ValueError(f"sync_kind: must be null, {', '.join(SYNC_KINDS)}")
    if new not in tuple(State) or prev not in (None, *State):
        raise ValueError(f"{'prev_state' if new in tuple(State) else 'new_state'}: must be up or down")
    if outer["metric_id"] != fields["check_id"] or outer["status"] != new:
        raise ValueError("metric_id, status: must be those of the event")
    return Event(
        _text(fields, "check_id"),
        State(prev) if prev else None,
        State(new),
        _instant(fields, "agent_observed_at"),
        _whole(fields, "response_time_ms"),
        _whole(fields, "status_code"),
        _text(fields, "error_message") if "error_message" in fields else None,
        sync_kind,
    )


def read_line(line: object) -> Line:
    """One object of an export, strictly; raises ValueError."""
    fields = _fields(line, "line", LINE_FIELDS)
    row_id = fields["row_id"]
    if not isinstance(row_id, int) or isinstance(row_id, bool) or not 1 <= row_id < 2**63:
        raise ValueError("row_id: must be a positive whole number")
    if fields["queued_at"] is not None:
        _instant(fields, "queued_at")
    return Line(_text(fields, "queue_id"), row_id, read_any(fields["row"]))


def _fields(value: object, what: str, names: Sequence[str], optional: int = 0) -> dict[str, Any]:
    """An object with these fields, the last `optional` of which may be missing."""
    if not isinstance(value, dict):
        raise ValueError(f"the {what} is not an object")
    missing = [name for name in names[: len(names) - optional] if name not in value]
    strange = [name for name in value if name not in names]
    if missing or strange:
        raise ValueError(f"{missing[0]}: is missing" if missing else f"{strange[0][:60]!a}: is not a field of a {what}")
    return value


def _text(fields: dict[str, Any], name: str) -> str:
    text = fields[name]
    if not isinstance(text, str) or not text or _UNSTORABLE.search(text):
        raise ValueError(f"{name}: must be a text")
    return text


def _whole(fields: dict[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if name in fields and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53):
        raise ValueError(f"{name}: must be a whole number")
    return value


def _instant(fields: dict[str, Any], name: str) -> str:
    text = fields[name]
    if not isinstance(text, str) or len(text) > 64 or parse_iso(text) is None:
        raise ValueError(f"{name}: must be a time such as 2026-01-31T08:00:00.000Z")
    return text


def _number(value: object) -> float:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return value
    except OverflowError:
        pass
    raise ValueError("value: must be a finite number")


# -- a whole export


def read_export(source: IO[bytes]) -> tuple[list[Line], list[str]]:
    """The lines of an export, and a complaint for each that is none."""
    lines: list[Line] = []
    wrong: list[str] = []
    for at, value in _values(source):
        try:
            if isinstance(value, ValueError):
                raise value
            lines.append(read_line(read_json(value) if isinstance(value, bytes) else value))
        except ValueError as error:
            wrong.append(f"line {at}: {error}")
    return lines, wrong


def _values(source: IO[bytes]) -> Iterator[tuple[int, object]]:
    """Line number and content: JSON lines as bytes, the elements of an array parsed, a ValueError where it breaks."""
    array = None
    for at, line in enumerate(source, 1):
        if array is None and line.strip():
            array = line.lstrip().startswith(b"[")
        if array:
            yield from _elements(at, line + source.read())
            return
        if line.strip():
            yield at, line.strip()


def _elements(line: int, data: bytes) -> Iterator[tuple[int, object]]:
    """The elements of a JSON array that begins on `line`, up to where it breaks off."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        yield line, ValueError("not JSON: not UTF-8")
        return
    at, counted = _past_blanks(text, text.index("[") + 1), 0
    more = text[at : at + 1] != "]"
    at += 0 if more else 1
    while more:
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = _DECODER.raw_decode(text, at)
            yield line, value
            at = _past_blanks(text, at)
            more = text[at : at + 1] == ","
            if not more and text[at : at + 1] != "]":
                raise ValueError("neither , nor ] follows")
        except (ValueError, RecursionError) as error:
            yield line, ValueError(f"the array breaks off here: {getattr(error, 'msg', error)}")
            return
        at = _past_blanks(text, at + 1)
    if text[at:].strip():
        yield line + text.count("\n", counted, at), ValueError("something follows the array")


def _past_blanks(text: str, at: int) -> int:
    blanks = _BLANKS.match(text, at)
    return blanks.end() if blanks else at
