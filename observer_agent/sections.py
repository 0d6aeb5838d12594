"""The sections of a document beside its metrics, `services` and `pages`, and readers for single fields. Pure.

Mappings of `nodes` go in, items with normalised bodies come out; each complaint has the line of its field. Used by
`document`, on the caller's thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from enum import StrEnum
from typing import Any, NamedTuple

from observer_agent.nodes import Complaint, Map, shown

NAME_MAX = 128
TITLE_MAX = 200
TEXT_MAX = 4000
WINDOW_MAX = 366
ORDER_MAX = 1_000_000
SERVICE = frozenset(("key", "name", "description", "slos"))
SLO = frozenset(("key", "metric", "name", "target_pct", "window_days"))
PAGE = frozenset(("key", "subdomain", "title", "metrics"))
ENTRY = frozenset(("metric", "group", "order"))
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class Severity(StrEnum):
    """How bad a remark is: something is left out, something is ignored, something is good to know."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


Say = Callable[[Severity, int, str], object]
Read = Callable[[Map], dict[str, Any]]


class Item(NamedTuple):
    """One service or page: `body` is the object as the document's form has it, defaults filled in.

    `lines` are those where the entries of its list (`slos`, `metrics`) name their metrics.
    """

    kind: str
    key: str
    body: dict[str, Any]
    line: int = 0
    lines: tuple[int, ...] = ()
    source: str = ""


class Sections:
    """Reads services and pages; `say` hears of what is left out or ignored."""

    def __init__(self, source: str, say: Say) -> None:
        self._source = source
        self._say = say

    def service(self, found: Map) -> Item:
        """A service and its objectives; raises Complaint."""
        key = name_of(found, "key")
        body: dict[str, Any] = {"key": key, "name": text_of(found, "name", key, TITLE_MAX)}
        if found.get("description") is not None:
            body["description"] = text_of(found, "description", "", TEXT_MAX)
        body["slos"], lines = self._children(found, f"service {shown(key)}: slo", "slos", (_slo, SLO, ("key",)))
        self.unknown(found, SERVICE, "field of services")
        return Item("service", key, body, found.line, lines, self._source)

    def page(self, found: Map) -> Item:
        """A page and its entries; raises Complaint."""
        key = name_of(found, "key")
        subdomain = name_of(found, "subdomain")
        if not _LABEL.fullmatch(subdomain):
            said = "subdomain must be one label of a host's name: 1 to 63 of a to z, 0 to 9 and -, no - at its ends"
            raise Complaint(found.at("subdomain"), said)
        body: dict[str, Any] = {"key": key, "subdomain": subdomain, "title": text_of(found, "title", key, TITLE_MAX)}
        form = (_entry, ENTRY, ("metric", "group"))
        body["metrics"], lines = self._children(found, f"page {shown(key)}: entry", "metrics", form)
        self.unknown(found, PAGE, "field of pages")
        return Item("page", key, body, found.line, lines, self._source)

    def listed(self, owner: Map, section: str) -> Iterator[Map]:
        """The mappings of a list; what is none is named."""
        found = owner.get(section)
        if found is None:
            return
        if not isinstance(found, list):
            self._say(Severity.ERROR, owner.at(section), f"{section} must be a list; it is left out")
            return
        for number, each in enumerate(found, 1):
            if isinstance(each, Map):
                yield each
            else:
                said = f"number {number} of {section} is not a mapping; it is left out"
                self._say(Severity.ERROR, owner.at(section), said)

    def unknown(self, found: Map, known: Collection[str], noun: str) -> None:
        """Names the fields that nobody knows."""
        for field in found.keys() - known:
            self._say(Severity.WARNING, found.at(field), f"unknown {noun} {shown(field)} is ignored")

    def _children(
        self, owner: Map, noun: str, section: str, form: tuple[Read, frozenset[str], tuple[str, ...]]
    ) -> tuple[list[dict[str, Any]], tuple[int, ...]]:
        """The good ones of a list inside a service or page; the second of two that are the same is left out."""
        read, known, same = form
        out: dict[tuple[object, ...], tuple[dict[str, Any], int]] = {}
        for each in self.listed(owner, section):
            try:
                body = read(each)
                if (mark := tuple(body.get(field) for field in same)) in out:
                    raise Complaint(each.at(same[0]), f"the {same[0]} comes twice, the first one counts")
            except Complaint as complaint:
                named = shown(each.get(same[0])) if each.get(same[0]) is not None else f"without a {same[0]}"
                self._say(Severity.ERROR, complaint.line, f"{noun} {named} is left out: {complaint.text}")
                continue
            out[mark] = body, each.at("metric")
            self.unknown(each, known, f"field of {section}")
        return [body for body, _ in out.values()], tuple(line for _, line in out.values())


def _slo(found: Map) -> dict[str, Any]:
    body: dict[str, Any] = {"key": name_of(found, "key"), "metric": name_of(found, "metric")}
    if found.get("name") is not None:
        body["name"] = text_of(found, "name", "", TITLE_MAX)
    body["target_pct"] = number_of(found, "target_pct", 0, 100)
    body["window_days"] = number_of(found, "window_days", 1, WINDOW_MAX, whole=True)
    return body


def _entry(found: Map) -> dict[str, Any]:
    body: dict[str, Any] = {"metric": name_of(found, "metric")}
    if found.get("group") is not None:
        body["group"] = text_of(found, "group", "", TITLE_MAX)
    if found.get("order") is not None:
        body["order"] = number_of(found, "order", -ORDER_MAX, ORDER_MAX)
    return body


# -- single fields


def name_of(found: Map, field: str) -> str:
    """A text of 1 to 128 characters that must be there; a number counts as its text. Raises Complaint."""
    value = found.get(field)
    if value is None:
        raise Complaint(found.at(field), f"{field} is missing")
    if isinstance(value, bool) or not isinstance(value, str | int) or not 1 <= len(str(value)) <= NAME_MAX:
        raise Complaint(found.at(field), f"{field} must be a text of 1 to {NAME_MAX} characters")
    return str(value)


def text_of(found: Map, field: str, default: str, longest: int) -> str:
    """A text, cut at `longest` characters; raises Complaint."""
    value = found.get(field)
    if value is None:
        return default
    if isinstance(value, dict | list):
        raise Complaint(found.at(field), f"{field} must be a text")
    return str(value)[:longest]


def mapping_of(found: Map, field: str) -> Map:
    """A mapping, an empty one where there is none; raises Complaint."""
    value = found.get(field)
    if value is None:
        value = Map()
        value.line = found.at(field)
    if not isinstance(value, Map):
        raise Complaint(found.at(field), f"{field} must be a mapping")
    return value


def number_of(found: Map, field: str, low: int, high: int, *, whole: bool = False) -> int | float:
    """A number within bounds that must be there; raises Complaint."""
    value = found.get(field)
    if value is None:
        raise Complaint(found.at(field), f"{field} is missing")
    kinds = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        raise Complaint(found.at(field), f"{field} must be a {'whole ' if whole else ''}number from {low} to {high}")
    return value
