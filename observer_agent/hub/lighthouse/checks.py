"""A check as a person or a document writes it, held against its form. Pure: values in, the wire's object out.

Strict: an unknown field, a wrong type, a value out of range is a UsageError that names the field. What was not written
is not sent: the agent has the defaults. Values of request headers and request bodies are secrets: `shown` hides them,
and a hidden one that comes back keeps what stands.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from observer_agent.errors import UsageError
from observer_agent.hub.wire import clean
from observer_agent.logs import HIDDEN

TYPES = ("http", "https", "tcp", "udp", "ssl", "dns")
MATCHES = ("present", "exact", "contains")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
RECORDS = ("A", "AAAA", "CNAME", "MX", "TXT", "NS", "PTR", "SOA", "SRV", "CAA")
CHECKS_MAX = 5000
NAME_MAX = 128
URL_MAX = 2048
TEXT_MAX = 1000
BODY_MAX = 65_536
LISTED_MAX = 50
INTERVAL = (5, 86_400)
TIMEOUT = (1, 300)
Read = Callable[[str, Any], Any]


def text(limit: int, least: int = 1) -> Read:
    """Reads a text that every database can keep, of so many characters."""

    def read(name: str, value: Any) -> str:
        if not isinstance(value, str) or not least <= len(value) <= limit or clean(value, limit) != value:
            raise UsageError(f"{name} must be a text of {least} to {limit} characters")
        return value

    return read


def whole(low: int, high: int) -> Read:
    """Reads a whole number between two bounds."""

    def read(name: str, value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise UsageError(f"{name} must be a whole number from {low} to {high}")
        return int(value)

    return read


def _one_of(words: Sequence[str], turn: Callable[[str], str]) -> Read:
    def read(name: str, value: Any) -> str:
        if not isinstance(value, str) or turn(value) not in words:
            raise UsageError(f"{name} must be one of {', '.join(words)}")
        return turn(value)

    return read


def flag(name: str, value: Any) -> bool:
    """Reads true or false."""
    if type(value) is not bool:
        raise UsageError(f"{name} must be true or false")
    return bool(value)


def _list(read: Read) -> Read:
    def read_all(name: str, value: Any) -> list[Any]:
        if not isinstance(value, list) or len(value) > LISTED_MAX:
            raise UsageError(f"{name} must be a list of at most {LISTED_MAX}")
        return [read(f"{name}[{at}]", each) for at, each in enumerate(value)]

    return read_all


def _object(fields: Mapping[str, Read], needed: Sequence[str]) -> Read:
    def read(name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or not set(needed) <= value.keys() <= fields.keys():
            raise UsageError(f"{name} must be an object with {', '.join(fields)}")
        return {each: fields[each](f"{name}.{each}", value[each]) for each in fields if each in value}

    return read


_HEADER = {"key": text(NAME_MAX), "value": text(BODY_MAX, 0)}
FIELDS: Mapping[str, Read] = {
    "name": text(NAME_MAX),
    "type": _one_of(TYPES, str.lower),
    "url": text(URL_MAX),
    "method": _one_of(METHODS, str.upper),
    "expected_status_code": whole(100, 599),
    "interval_seconds": whole(*INTERVAL),
    "timeout_seconds": whole(*TIMEOUT),
    "keyword_check": text(TEXT_MAX),
    "keyword_present": flag,
    "request_headers": _list(_object(_HEADER, ("key", "value"))),
    "request_body": text(BODY_MAX, 0),
    "expected_headers": _list(_object({**_HEADER, "match": _one_of(MATCHES, str.lower)}, ("key",))),
    "skip_tls_verify": flag,
    "dns_record_type": _one_of(RECORDS, str.upper),
    "dns_expected_ips": _list(text(TEXT_MAX)),
    "dns_resolver": text(255),
}
DEFAULTS = {"interval_seconds": 60, "timeout_seconds": 5}
_HTTP = frozenset(
    "method expected_status_code keyword_check keyword_present request_headers request_body expected_headers "
    "skip_tls_verify".split()
)
_ONLY = {
    "http": _HTTP,
    "https": _HTTP,
    "dns": frozenset(("dns_record_type", "dns_expected_ips", "dns_resolver")),
}
_EVERY = frozenset(("name", "type", "url", "interval_seconds", "timeout_seconds"))


def read_check(given: Any, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A whole check, or the changes of one that stands; null takes a field away. Raises UsageError."""
    if not isinstance(given, dict):
        raise UsageError("a check must be an object")
    unknown = [name for name in given if name not in FIELDS]
    if unknown:
        raise UsageError(f"unknown field {str(unknown[0])[:80]!r}; known are {', '.join(FIELDS)}")
    given = {**(before or {}), **_kept(given, before or {})}
    found = {name: FIELDS[name](name, given[name]) for name in FIELDS if given.get(name) is not None}
    missing = [name for name in ("name", "type", "url") if name not in found]
    if missing:
        raise UsageError(f"{missing[0]} is needed")
    extra = found.keys() - _EVERY - _ONLY.get(found["type"], frozenset())
    if extra:
        raise UsageError(f"{min(extra)} means nothing to a check of type {found['type']}")
    if found["type"] in ("http", "https") and not re.match(r"https?://[^/]", found["url"], re.I):
        raise UsageError("url must begin with http:// or https://")
    return {**DEFAULTS, **found}


def wired(check_id: str, definition: Mapping[str, Any]) -> dict[str, Any]:
    """The check as agents are told it."""
    return {"id": check_id, **definition}


def shown(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The check as it may be seen."""
    found = dict(definition)
    if "request_headers" in found:
        found["request_headers"] = [{**each, "value": HIDDEN} for each in found["request_headers"]]
    if "request_body" in found:
        found["request_body"] = HIDDEN
    return found


def etag(checks: Sequence[Mapping[str, Any]]) -> str:
    """The tag of a list: another list has another one."""
    told = json.dumps(list(checks), sort_keys=True)
    return f"etag-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def id_of(lighthouse_id: str, name: str) -> str:
    """The id of a check that a document names: the same each time."""
    return str(uuid.uuid5(uuid.UUID(lighthouse_id), name))


def _kept(given: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Hidden values that come back, as they stand."""
    found = dict(given)
    if found.get("request_body") == HIDDEN and "request_body" in before:
        found["request_body"] = before["request_body"]
    listed = found.get("request_headers")
    if isinstance(listed, list):
        stand = {each["key"]: each["value"] for each in before.get("request_headers", ())}
        found["request_headers"] = [_filled(each, stand) for each in listed]
    return found


def _filled(header: Any, stand: Mapping[str, str]) -> Any:
    if isinstance(header, dict) and header.get("value") == HIDDEN and isinstance(header.get("key"), str):
        return {**header, "value": stand.get(header["key"], HIDDEN)}
    return header
