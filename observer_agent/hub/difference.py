"""What a document would change: forms before and after in, created, changed, pruned and the number of unchanged out.

Pure. A change names each field with its old and new value, dots for what lies inside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from observer_agent.document import metric_id
from observer_agent.hub.form import METRIC, Form, Forms


class Field(NamedTuple):
    """One field that differs; None where there is none."""

    field: str
    old: Any
    new: Any


class Change(NamedTuple):
    """One object that is created, changed or pruned."""

    kind: str
    key: str
    fields: tuple[Field, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """What applying does."""

    created: tuple[Change, ...] = ()
    changed: tuple[Change, ...] = ()
    pruned: tuple[Change, ...] = ()
    unchanged: int = 0

    def __bool__(self) -> bool:
        return bool(self.created or self.changed or self.pruned)

    def plus(self, other: Difference) -> Difference:
        """Both together."""
        return Difference(
            self.created + other.created,
            self.changed + other.changed,
            self.pruned + other.pruned,
            self.unchanged + other.unchanged,
        )


def compare(kind: str, before: Forms, wanted: Forms, prune: bool) -> Difference:
    """The difference of one kind; a metric that keeps its id under another key counts as changed."""
    renamed = _renamed(kind, before, wanted)
    created, changed, unchanged = [], [], 0
    for key, form in wanted.items():
        old = before.get(renamed.get(key, key))
        if old is None:
            created.append(Change(kind, key))
        elif fields := differing(old, form):
            changed.append(Change(kind, key, fields))
        else:
            unchanged += 1
    gone = sorted(before.keys() - wanted.keys() - set(renamed.values())) if prune else []
    return Difference(tuple(created), tuple(changed), tuple(Change(kind, key) for key in gone), unchanged)


def differing(old: Form, new: Form) -> tuple[Field, ...]:
    """The fields that differ, in the order of the new form."""
    before, after = flat(old), flat(new)
    names = [*after, *(name for name in before if name not in after)]
    return tuple(
        Field(name, before.get(name), after.get(name))
        for name in names
        if exact(before.get(name)) != exact(after.get(name))
    )


def flat(form: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A form with its mappings laid flat; lists stay whole."""
    out: dict[str, Any] = {}
    for name, value in form.items():
        if isinstance(value, Mapping) and value:
            out |= flat(value, f"{above}{name}.")
        else:
            out[f"{above}{name}"] = value
    return out


def exact(value: object) -> str:
    """A value as JSON: unlike in Python, `true`, `1` and `1.0` are three things."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _renamed(kind: str, before: Forms, wanted: Forms) -> dict[str, str]:
    """New key to old key, for metrics that are known by their id alone."""
    if kind != METRIC:
        return {}
    known = {form.get("id") or metric_id(key): key for key, form in before.items() if key not in wanted}
    ids = {key: form.get("id") or metric_id(key) for key, form in wanted.items() if key not in before}
    return {key: known[each] for key, each in ids.items() if each in known}
