"""What applying would do or did, for people and for programs. Pure: outcomes in, lines of text or plain objects out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from observer_agent.document import Remark
from observer_agent.hub.apply import Outcome
from observer_agent.hub.difference import Change, Field

VALUE_MAX = 200


def as_objects(outcome: Outcome) -> dict[str, Any]:
    """The outcome as JSON-able objects."""
    difference = outcome.difference
    return {
        "applied": outcome.applied,
        "dry_run": outcome.dry_run,
        "created": [_bare(each) for each in difference.created],
        "changed": [{**_bare(each), "fields": [f._asdict() for f in each.fields]} for each in difference.changed],
        "pruned": [_bare(each) for each in difference.pruned],
        "unchanged": difference.unchanged,
        "remarks": remarks(outcome.remarks),
    }


def remarks(found: Iterable[Remark]) -> list[dict[str, Any]]:
    """Remarks as JSON-able objects."""
    return [each._asdict() for each in found]


def lines(outcome: Outcome) -> Iterator[str]:
    """The outcome as text: a line for each object, one for each field of a changed one, and a summary."""
    difference = outcome.difference
    for mark, changes in (("+", difference.created), ("~", difference.changed), ("-", difference.pruned)):
        for change in changes:
            yield f"{mark} {change.kind} {plain(change.key)}"
            yield from (f"    {_field(each)}" for each in change.fields)
    counts = {"created": difference.created, "changed": difference.changed, "pruned": difference.pruned}
    said = ", ".join(f"{len(changes)} {word}" for word, changes in counts.items())
    yield f"{said}, {difference.unchanged} unchanged{_end(outcome)}"


def _end(outcome: Outcome) -> str:
    if outcome.refused:
        return "; nothing was applied, because something would be left out"
    return "; a dry run: nothing was applied" if outcome.dry_run else ""


def _field(field: Field) -> str:
    return f"{plain(field.field)}: {_value(field.old)} -> {_value(field.new)}"


def _value(value: object) -> str:
    """A value as JSON, cut; None is where there is nothing."""
    if value is None:
        return "(none)"
    text = plain(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= VALUE_MAX else f"{text[:VALUE_MAX]}..."


def plain(text: str) -> str:
    """Text for a terminal: nothing of a document may move its cursor."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _bare(change: Change) -> dict[str, Any]:
    return {"kind": change.kind, "key": change.key}
