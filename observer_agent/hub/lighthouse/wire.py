"""What agents of this dialect send, in today's shapes and in those of the seed page. Pure: parsed JSON in, words out.

An event that would make a wrong history (no check, no state, no time) refuses the whole request, so that nothing of a
refused request is kept and a sender can halve until it has found the one; everything else is read kindly: a field of
the wrong type counts as absent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from observer_agent.hub.wire import ID_MAX, Malformed, clean, read_instant

EVENTS_MAX = 5000
ITEMS_MAX = 20_000
OBSERVED_MAX = 10_000  # checks in one heartbeat
TEXT_MAX = 1000
HOST_MAX = 255
ROLES = ("central", "host_metrics")
KUBERNETES = "kubernetes"
UP, DOWN = "up", "down"
STATES = {UP: UP, DOWN: DOWN, "ok": UP}  # the seed page says `ok`
SYNCS = ("initial", "resync", "new_check")
KINDS = ("ingress", "service", "httproute")
PROTOCOLS = ("http", "https", "tcp", "udp")
NS = 1_000_000_000
_NS_MAX = 2**63 - 1
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")


class Registration(NamedTuple):
    """A process that begins."""

    version: str | None
    hostname: str | None
    runtime: str | None


class Latency(NamedTuple):
    """How long a check took last; None where the agent has no figure."""

    ms: int | None
    at: float


class Expiry(NamedTuple):
    """How many days a certificate is still good, 0 or less for one that is not."""

    days: int
    at: float


class Beat(NamedTuple):
    """A heartbeat."""

    version: str | None
    etag: str
    latencies: Mapping[str, Latency]
    expiries: Mapping[str, Expiry]
    node_name: str | None
    role: str
    pod_hostname: str | None


class Event(NamedTuple):
    """One state of a check that an agent saw; `observed_ns` in nanoseconds since 1970."""

    check_id: str
    observed_ns: int
    prev_state: str | None
    new_state: str
    response_time_ms: int | None
    status_code: int | None
    error_message: str | None


class Batch(NamedTuple):
    """The events of one request; `sync_kind` is None for ordinary transitions."""

    sync_kind: str | None
    events: tuple[Event, ...]


class Snapshot(NamedTuple):
    """What was discovered: `whole` where anything else is gone."""

    whole: bool
    items: tuple[Mapping[str, Any], ...]


class TooMany(Malformed):
    """More in one request than is taken at once: it may come in halves."""


# -- bodies


def read_registration(body: Any) -> Registration:
    """Raises Malformed."""
    body = _object(body)
    runtime = _word(body.get("runtime"), 32)
    return Registration(_word(body.get("agent_version")), _word(body.get("agent_hostname"), HOST_MAX), runtime)


def read_beat(body: Any) -> Beat:
    """Raises Malformed."""
    body = _object(body)
    role = body.get("role")
    return Beat(
        _word(body.get("agent_version")),
        _word(body.get("config_etag")) or "",
        dict(_latencies(body.get("check_latencies"))),
        dict(_expiries(body.get("cert_expiry"))),
        _word(body.get("node_name"), HOST_MAX),
        role if role in ROLES else ROLES[0],
        _word(body.get("pod_hostname"), HOST_MAX),
    )


def read_batch(body: Any) -> Batch:
    """Raises Malformed, and TooMany."""
    body = _object(body)
    kind, listed = body.get("sync_kind"), body.get("events")
    if not isinstance(listed, list):
        raise Malformed("events must be an array")
    if len(listed) > EVENTS_MAX:
        raise TooMany(f"a request holds at most {EVENTS_MAX} events")
    return Batch(kind if kind in SYNCS else None, tuple(_event(at, each) for at, each in enumerate(listed)))


def read_snapshot(body: Any) -> Snapshot:
    """The seed page calls the list `discoveries` and has no `snapshot`. Raises Malformed, and TooMany."""
    body = _object(body)
    listed = body.get("items", body.get("discoveries"))
    if not isinstance(listed, list):
        raise Malformed("items must be an array")
    if len(listed) > ITEMS_MAX:
        raise TooMany(f"a snapshot holds at most {ITEMS_MAX} items")
    return Snapshot(body.get("snapshot", True) is not False, tuple(_item(at, each) for at, each in enumerate(listed)))


def read_reason(body: Any) -> str:
    """Why a process ends; the seed page sends no body. Raises Malformed."""
    if body is None:
        return "shutdown"
    return _word(_object(body).get("reason"), 64) or "shutdown"


# -- parts of bodies


def _object(body: Any) -> Mapping[str, Any]:
    if not isinstance(body, dict):
        raise Malformed("the body must be an object")
    return body


def _event(at: int, event: Any) -> Event:
    if not isinstance(event, dict):
        raise Malformed(f"events[{at}] must be an object")
    check_id, observed = event.get("check_id"), read_ns(event.get("agent_observed_at"))
    if not isinstance(check_id, str) or not 1 <= len(check_id) <= 64 or clean(check_id, 64) != check_id:
        raise Malformed(f"events[{at}].check_id must be the id of a check")
    state, before = _state(event.get("new_state")), event.get("prev_state")
    if state is None:
        raise Malformed(f"events[{at}].new_state must be up or down")
    if before is not None and _state(before) is None:
        raise Malformed(f"events[{at}].prev_state must be up, down or null")
    if observed is None:
        raise Malformed(f"events[{at}].agent_observed_at must be a time such as 2026-05-09T12:00:01.5Z")
    said = event.get("error_message")
    return Event(
        check_id,
        observed,
        _state(before),
        state,
        _whole(event.get("response_time_ms"), 0, 2**53),
        _whole(event.get("status_code"), 0, 999),
        _word(said, TEXT_MAX),
    )


def _state(value: Any) -> str | None:
    return STATES.get(value) if isinstance(value, str) else None


def _item(at: int, item: Any) -> Mapping[str, Any]:
    if not isinstance(item, dict):
        raise Malformed(f"items[{at}] must be an object")
    kind, protocol = item.get("kind"), item.get("protocol")
    if kind not in KINDS or protocol not in PROTOCOLS:
        raise Malformed(f"items[{at}] must have a kind of {', '.join(KINDS)} and a protocol of {', '.join(PROTOCOLS)}")
    found = {"kind": kind, "protocol": protocol}
    for name in ("namespace", "resource_name", "host"):
        word = _word(item.get(name), 253)
        if word is None:
            raise Malformed(f"items[{at}].{name} must be a text")
        found[name] = word
    path, port = _word(item.get("path"), TEXT_MAX), _whole(item.get("port"), 1, 65535)
    return {**found, **({"path": path} if path else {}), **({"port": port} if port else {})}


def _latencies(given: Any) -> Iterator[tuple[str, Latency]]:
    for check_id, each in _observed(given):
        at = read_instant(each.get("last_observed_at"))
        if at is not None:
            yield check_id, Latency(_whole(each.get("last_observed_latency_ms"), 0, 2**53), at)


def _expiries(given: Any) -> Iterator[tuple[str, Expiry]]:
    for check_id, each in _observed(given):
        at, days = read_instant(each.get("observed_at")), _whole(each.get("days_to_expiry"), -(10**6), 10**6)
        if at is not None and days is not None:
            yield check_id, Expiry(days, at)


def _observed(given: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    listed = list(given.items())[:OBSERVED_MAX] if isinstance(given, dict) else []
    return ((check_id, each) for check_id, each in listed if isinstance(each, dict))


def _word(value: Any, limit: int = ID_MAX) -> str | None:
    return clean(value, limit) if isinstance(value, str) and value else None


def _whole(value: Any, low: int, high: int) -> int | None:
    """A whole number between two bounds; a fraction is cut, anything else counts as absent."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        return None
    return int(value)


# -- instants


def read_ns(text: Any) -> int | None:
    """An RFC 3339 instant in nanoseconds since 1970; None for anything else, and for what no 64 bits hold."""
    found = _STAMP.fullmatch(text) if isinstance(text, str) and len(text) <= 64 and text.isascii() else None
    if found is None:
        return None
    try:
        moment = datetime.fromisoformat(found[1] + ("+00:00" if found[3] == "Z" else found[3]))
        seconds = round(moment.timestamp())
    except (ValueError, OverflowError):
        return None
    ns = seconds * NS + int((found[2] or "").ljust(9, "0"))
    return ns if 0 <= ns <= _NS_MAX else None


def show_ns(ns: int) -> str:
    """An instant as agents write it: RFC 3339 in UTC with nine decimals."""
    seconds, rest = divmod(ns, NS)
    return f"{datetime.fromtimestamp(seconds, _UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def read_uptime(header: str | None) -> int | None:
    """The header `X-Lighthouse-Process-Uptime` in seconds; None where it says nothing that can be used."""
    return int(header) if header and re.fullmatch(r"[0-9]{1,10}", header) else None


_UTC = datetime.fromisoformat("1970-01-01T00:00:00+00:00").tzinfo
