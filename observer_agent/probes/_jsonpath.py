"""The paths that pick a value out of a JSON document: names, indexes and wildcards, nothing that computes.

Grammar: `$` then any of `.name`, `['name']`, `["name"]`, `[n]`, `[-n]`, `[*]`, `.*`; the `$` may be left out before a
name. Filters, scripts, slices, unions and recursive descent are refused at the reading (docs/probes.md, W15).
A text in, steps out; steps and a document in, matches out. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from typing import Any, Final

LONGEST: Final = 256

_STEP = re.compile(
    r"""\.(?P<name>[^\W\d][\w-]*|\d+)
    | \.(?P<star>\*)
    | \[(?P<index>-?\d{1,9})\]
    | \[(?P<all>\*)\]
    | \['(?P<single>(?:[^'\\\x00-\x1f]|\\['\\])*)'\]
    | \["(?P<double>(?:[^"\\\x00-\x1f]|\\["\\])*)"\]
    """,
    re.VERBOSE,
)


class Wild(Enum):
    """The step that takes every child."""

    ALL = "*"


Step = str | int | Wild
Path = tuple[Step, ...]


def parse_path(text: str) -> Path:
    """The steps of a path; raises ValueError, which names the place where it is not understood."""
    if not 1 <= len(text) <= LONGEST:
        raise ValueError(f"must be 1 to {LONGEST} characters long")
    at = 1 if text[0] == "$" else 0
    rest = text if at or text[0] in ".[" else f".{text}"
    steps: list[Step] = []
    while at < len(rest):
        match = _STEP.match(rest, at)
        if not match:
            raise ValueError(f"is not understood at character {at + 1}: only names, indexes and wildcards may be used")
        steps.append(_step(match))
        at = match.end()
    return tuple(steps)


def find(path: Path, document: Any) -> list[Any]:
    """Everything that a path leads to."""
    found = [document]
    for step in path:
        found = [child for node in found for child in _children(node, step)]
    return found


def _step(match: re.Match[str]) -> Step:
    kind, text = match.lastgroup, match[match.lastgroup or 0]
    if kind in ("star", "all"):
        return Wild.ALL
    if kind == "index":
        return int(text)
    return re.sub(r"\\(.)", r"\1", text) if kind in ("single", "double") else text


def _children(node: Any, step: Step) -> Iterable[Any]:
    if isinstance(node, dict):
        if step is Wild.ALL:
            return node.values()
        return (node[str(step)],) if str(step) in node else ()
    if not isinstance(node, list):
        return ()
    if step is Wild.ALL:
        return node
    if isinstance(step, str):
        step = int(step) if step.isdecimal() and step.isascii() and len(step) < 10 else len(node)
    return (node[step],) if -len(node) <= step < len(node) else ()
