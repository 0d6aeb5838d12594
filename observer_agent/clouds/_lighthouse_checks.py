"""The console's checks as typed data: raw JSON in, `CheckDef` out, each field looked at on its own.

A field of a wrong type or out of range keeps what was last good for that check, else its default, and yields a
complaint; a missing or null field has its default, because the console leaves empty fields away. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

CHECKS_MAX = 10_000
ID_MAX = 200
TEXT_MAX = 4096
BODY_MAX = 64 * 1024
LIST_MAX = 100
INTERVAL, INTERVAL_FLOOR, INTERVAL_MAX = 60, 5, 7 * 86_400
TIMEOUT, TIMEOUT_MAX = 5, 300


class Bad(ValueError):
    """A value that is not used; the text says what it must be."""


class HeaderDef(NamedTuple):
    """A header to send."""

    key: str
    value: str


class ExpectedHeader(NamedTuple):
    """A header to expect. `match` as the console wrote it: unknown ones are the check's to complain about."""

    key: str
    value: str
    match: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckDef:
    """One check as the console gives it. Empty text, 0 and False are what a left out field means."""

    id: str
    type: str = ""
    name: str = ""
    url: str = ""
    method: str = ""
    expected_status_code: int = 0
    interval_seconds: int = INTERVAL
    timeout_seconds: int = TIMEOUT
    keyword_check: str = ""
    keyword_present: bool = False
    request_headers: tuple[HeaderDef, ...] = ()
    request_body: str = ""
    expected_headers: tuple[ExpectedHeader, ...] = ()
    skip_tls_verify: bool = False
    dns_record_type: str = ""
    dns_expected_ips: tuple[str, ...] = ()
    dns_resolver: str = ""


def decode_checks(raw: object, before: Mapping[str, CheckDef] | None = None) -> tuple[list[CheckDef], list[str]]:
    """The checks of a list, in its order, and what is wrong with it; one bad check never loses the others."""
    if not isinstance(raw, Sequence) or isinstance(raw, str | bytes):
        return list((before or {}).values()), [f"checks: {kind(raw)} instead of a list; the last good list stays"]
    found: dict[str, CheckDef] = {}
    complaints: list[str] = []
    for at, each in enumerate(raw[:CHECKS_MAX]):
        check_id = each.get("id") if isinstance(each, Mapping) else None
        if not isinstance(check_id, str) or not 0 < len(check_id) <= ID_MAX or not check_id.isprintable():
            complaints.append(f"check number {at + 1} is left out: it has no usable id")
        elif check_id in found:
            complaints.append(f"check {check_id}: it comes twice; the first one counts")
        else:
            found[check_id] = decode_check(each, (before or {}).get(check_id), complaints)
    if len(raw) > CHECKS_MAX:
        complaints.append(f"checks: {len(raw)} of them; those after the first {CHECKS_MAX} are left out")
    return list(found.values()), complaints


def decode_check(raw: Mapping[str, Any], before: CheckDef | None, complaints: list[str]) -> CheckDef:
    """One check with a usable id; adds what is wrong with it to `complaints`."""
    good: dict[str, Any] = {}
    for name, rule in RULES.items():
        value = raw.get(name)
        if value is None:
            continue
        try:
            good[name] = rule(value)
        except Bad as error:
            good[name] = getattr(before or DEFAULTS, name)
            stays = "the last good value stays" if before else "its default is used"
            complaints.append(f"check {raw['id']}: {name}: {shown(value)}: {error}; {stays}")
    if 0 < good.get("interval_seconds", INTERVAL) < INTERVAL_FLOOR:
        complaints.append(f"check {raw['id']}: interval_seconds: {good['interval_seconds']}: {INTERVAL_FLOOR} is used")
        good["interval_seconds"] = INTERVAL_FLOOR
    return CheckDef(id=raw["id"], **good)


def encode_check(check: CheckDef) -> dict[str, Any]:
    """The check as the console would write it; `decode_checks` gives the same check back."""
    found: dict[str, Any] = {"id": check.id}
    for field in fields(check):
        value = getattr(check, field.name)
        if field.name in ("request_headers", "expected_headers"):
            found[field.name] = [each._asdict() for each in value]
        else:
            found[field.name] = list(value) if isinstance(value, tuple) else value
    return found


def kind(value: object) -> str:
    """What sort of JSON value it is, for a complaint."""
    if value is None:
        return "null"
    kinds = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return kinds.get(type(value), "something else")


def shown(value: object) -> str:
    """A value as a complaint may show it: texts may be URLs, headers or bodies, and are not repeated."""
    return repr(value)[:60] if isinstance(value, int | float) else kind(value)


# -- rules: a raw value, not null, to a good one


def _text(most: int = TEXT_MAX) -> Callable[[object], str]:
    def rule(value: object) -> str:
        if not isinstance(value, str):
            raise Bad("must be a text")
        if len(value) > most:
            raise Bad(f"must have at most {most} characters")
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise Bad("must be valid Unicode")
        return value

    return rule


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise Bad("must be true or false")
    return value


def whole(value: object) -> int:
    """A whole number, written with or without a fraction of 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) > 2**53:
        raise Bad("must be a whole number")
    if value != int(value):
        raise Bad("must be a whole number")
    return int(value)


def _seconds(default: int, most: int) -> Callable[[object], int]:
    def rule(value: object) -> int:
        found = whole(value)
        if found > most:
            raise Bad(f"must be at most {most}")
        return found if found > 0 else default

    return rule


def _status(value: object) -> int:
    found = whole(value)
    if found != 0 and not 100 <= found <= 599:
        raise Bad("must be 100 to 599")
    return found


def _items(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise Bad("must be a list")
    if len(value) > LIST_MAX:
        raise Bad(f"must have at most {LIST_MAX} entries")
    return value


def _texts(value: object) -> tuple[str, ...]:
    rule = _text()
    return tuple(rule(each) for each in _items(value))


def _pairs(value: object, *names: str) -> list[tuple[str, ...]]:
    rule = _text(BODY_MAX)
    found = []
    for each in _items(value):
        if not isinstance(each, Mapping):
            raise Bad("must be a list of objects")
        found.append(tuple(rule("" if each.get(name) is None else each[name]) for name in names))
    return [pair for pair in found if pair[0]]


def _headers(value: object) -> tuple[HeaderDef, ...]:
    return tuple(HeaderDef(*pair) for pair in _pairs(value, "key", "value"))


def _expected(value: object) -> tuple[ExpectedHeader, ...]:
    return tuple(ExpectedHeader(*pair) for pair in _pairs(value, "key", "value", "match"))


RULES: Mapping[str, Callable[[object], Any]] = {
    "type": _text(64),
    "name": _text(),
    "url": _text(),
    "method": _text(32),
    "expected_status_code": _status,
    "interval_seconds": _seconds(INTERVAL, INTERVAL_MAX),
    "timeout_seconds": _seconds(TIMEOUT, TIMEOUT_MAX),
    "keyword_check": _text(BODY_MAX),
    "keyword_present": _flag,
    "request_headers": _headers,
    "request_body": _text(BODY_MAX),
    "expected_headers": _expected,
    "skip_tls_verify": _flag,
    "dns_record_type": _text(16),
    "dns_expected_ips": _texts,
    "dns_resolver": _text(300),
}
DEFAULTS = CheckDef(id="")
