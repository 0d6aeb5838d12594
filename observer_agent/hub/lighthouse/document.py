"""A document of checks: the name of a lighthouse, and the list of its checks. Pure: text in, plain values out.

    lighthouse: prod
    checks:
      - {name: shop, type: https, url: "https://shop.internal/health"}

YAML or JSON. A complaint names its line; the checks themselves are held against their form by `checks.read_check`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from observer_agent.errors import DocumentError, UsageError
from observer_agent.hub.lighthouse.checks import CHECKS_MAX, read_check
from observer_agent.nodes import Complaint, Map, Values

LENGTH_MAX = 4 * 1024 * 1024
FIELDS = ("lighthouse", "checks")


class Checks(NamedTuple):
    """The name of the lighthouse, None where the document leaves it to the caller, and its checks."""

    lighthouse: str | None
    checks: tuple[Any, ...]


def read(text: str, source: str) -> Checks:
    """Raises DocumentError."""
    try:
        return _read(text)
    except Complaint as complaint:
        raise DocumentError(f"{source}:{complaint.line}: {complaint.text}") from None


def _read(text: str) -> Checks:
    if len(text) > LENGTH_MAX:
        raise Complaint(1, f"the document is larger than {LENGTH_MAX} characters: split it")
    top = Values(_refuse).read(text)
    if not isinstance(top, Map):
        raise Complaint(1, "not a mapping: begin with `lighthouse: NAME` and `checks:`")
    for field in top:
        if field not in FIELDS:
            raise Complaint(top.at(field), f"unknown field {field[:80]!r}: known are {', '.join(FIELDS)}")
    name, listed = top.get("lighthouse"), top.get("checks")
    if name is not None and not isinstance(name, str):
        raise Complaint(top.at("lighthouse"), "lighthouse must be a name")
    if not isinstance(listed, list) or len(listed) > CHECKS_MAX:
        raise Complaint(top.at("checks"), f"checks must be a list of at most {CHECKS_MAX}")
    for each in listed:
        if not isinstance(each, Map):
            raise Complaint(top.at("checks"), "a check must be a mapping")
        try:
            read_check(each)
        except UsageError as error:
            where = next((word for word in each if str(error).startswith(word)), "")
            raise Complaint(each.at(where), f"check {str(each.get('name'))[:80]!r}: {error}") from None
    return Checks(name, tuple(listed))


def _refuse(line: int, text: str) -> None:
    raise Complaint(line, text)
