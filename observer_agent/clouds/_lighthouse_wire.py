"""The Lighthouse protocol's messages: words to JSON bytes, and the console's answers to words.

Only here is it known how a field is called on the wire, in today's form (`current`) and in that of the seed page
(`seed`, docs/lighthouse-wire.md). Pure: no clock, no network; any thread.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from observer_agent.clouds._lighthouse_checks import (
    Bad,
    CheckDef,
    ExpectedHeader,
    HeaderDef,
    decode_checks,
    encode_check,
    shown,
    whole,
)

__all__ = [
    "Beat",
    "CheckDef",
    "Discovered",
    "Event",
    "ExpectedHeader",
    "HeaderDef",
    "HostMetricsOrder",
    "LighthouseOrders",
    "State",
    "decode_checks",
    "encode_check",
]

ERROR_MAX = 200
ETAG_MAX = 1024
NAME_MAX = 300
HEARTBEAT_MAX = 86_400
METRICS_INTERVAL, METRICS_MAX = 30.0, 86_400
FLAP_MAX = 1000
COMMAS_MAX = 500_000  # of an answer: 16 MiB of `{},` would be half a gigabyte of memory
DIGITS_MAX = 300  # of a number
SYNC_KINDS = ("initial", "resync", "new_check")
SEED_STATES = {"up": "ok", "down": "down"}
_STATUS_TEXT = re.compile(r"status (\d+), want (\d+)")


class State(StrEnum):
    """What a check can be for the console."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Event:
    """A change of state, or a row of a sync; `observed_at` is RFC 3339, UTC, nanoseconds, `Z`.

    The console tells events apart by check and `observed_at`. What is None is left out.
    """

    check_id: str
    prev_state: State | None
    new_state: State
    observed_at: str
    response_time_ms: int | None = None
    status_code: int | None = None
    error_message: str | None = None
    sync_kind: str | None = None

    @property
    def metric_id(self) -> str:
        """What the queue calls it."""
        return self.check_id

    @property
    def status(self) -> State:
        """What the queue compares."""
        return self.new_state

    def encode(self) -> bytes:
        """The queue's row: the event with the envelope that it has to travel in (W4).

        The first two fields are what every row of the queue has, for a repair of its file; they are not posted.
        """
        event: dict[str, Any] = {
            "check_id": self.check_id,
            "prev_state": self.prev_state,
            "new_state": self.new_state,
            "response_time_ms": self.response_time_ms,
            "status_code": self.status_code or None,
            "error_message": self.error_message[:ERROR_MAX] if self.error_message else None,
            "agent_observed_at": self.observed_at,
        }
        kept = {name: value for name, value in event.items() if value is not None or name == "prev_state"}
        row = {"metric_id": self.check_id, "status": self.new_state, "sync_kind": self.sync_kind, "event": kept}
        return _dumps(row)


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat tells besides the version. Times are RFC 3339; a latency of None was not measured."""

    config_etag: str = ""
    check_latencies: Mapping[str, tuple[int | None, str]] = field(default_factory=dict)
    cert_expiry: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    node_name: str = ""
    role: str = "central"
    pod_hostname: str = ""


@dataclass(frozen=True, slots=True)
class Discovered:
    """Something in a cluster that could be watched."""

    kind: str
    namespace: str
    resource_name: str
    host: str
    path: str | None = None
    port: int | None = None
    protocol: str = "http"


@dataclass(frozen=True, slots=True)
class HostMetricsOrder:
    """Whether the console wants host metrics, and every how many seconds."""

    enabled: bool
    interval: float


@dataclass(frozen=True, slots=True)
class LighthouseOrders:
    """What the console said to a register, a heartbeat or a snapshot of discoveries.

    `verdict` is `ok`, `unauthorised`, `gone` or `later`. A field that was missing or not usable is None: the last good
    value stays; what was not usable is named in `complaints`. `checks` are raw, for `decode_checks`.
    """

    ok: bool
    status: int = 0
    verdict: str = "later"
    lighthouse_id: str | None = None
    name: str | None = None
    paused: bool | None = None
    heartbeat_interval: float | None = None
    flap_threshold: int | None = None
    etag: str | None = None
    checks: list[Any] | None = None
    resync: bool = False
    host_metrics: HostMetricsOrder | None = None
    text: str = ""
    retry_after: float | None = None
    complaints: tuple[str, ...] = ()


# -- requests


def encode_register(version: str, hostname: str, runtime: str | None, *, seed: bool = False) -> bytes:
    """The body of `register`; the seed page knows no `runtime`."""
    body = {"agent_version": version, "agent_hostname": hostname}
    return _dumps(body if seed or not runtime else {**body, "runtime": runtime})


def encode_beat(beat: Beat, version: str, *, seed: bool = False) -> bytes:
    """The body of `heartbeat`; what is empty is left out."""
    latencies = {
        check: {"last_observed_latency_ms": ms, "last_observed_at": at}
        for check, (ms, at) in beat.check_latencies.items()
        if ms is not None
    }
    body: dict[str, Any] = {"agent_version": version, "config_etag": beat.config_etag, "check_latencies": latencies}
    if not seed:
        body["cert_expiry"] = {
            check: {"days_to_expiry": days, "observed_at": at} for check, (days, at) in beat.cert_expiry.items()
        }
        body |= {"node_name": beat.node_name, "role": beat.role, "pod_hostname": beat.pod_hostname}
    return _dumps({name: value for name, value in body.items() if value})


def decode_row(data: bytes) -> tuple[str | None, dict[str, Any]] | None:
    """A row of the queue as its envelope and its event; None where it is no event of this dialect."""
    row = read_json(data)
    if not isinstance(row, dict) or not isinstance(row.get("event"), dict) or "check_id" not in row["event"]:
        return None
    sync_kind = row.get("sync_kind")
    return (sync_kind if isinstance(sync_kind, str) else None), row["event"]


def encode_events(sync_kind: str | None, events: Sequence[Mapping[str, Any]], *, seed: bool = False) -> bytes:
    """The body of `events`: rows that share one envelope."""
    if seed:
        return _dumps({"sync_kind": sync_kind or "ongoing", "events": [_seed_event(event) for event in events]})
    return _dumps({**({"sync_kind": sync_kind} if sync_kind else {}), "events": list(events)})


def encode_discoveries(items: Iterable[Discovered], *, snapshot: bool = True, seed: bool = False) -> bytes:
    """The body of `discoveries`; with `snapshot` what is not listed is gone."""
    rows = [_discovered(item, seed) for item in items]
    return _dumps({"discoveries": rows} if seed else {"snapshot": snapshot, "items": rows})


def encode_shutdown(reason: str, *, seed: bool = False) -> bytes:
    """The body of `shutdown`; empty as the seed page has it."""
    return b"" if seed else _dumps({"reason": reason})


def _discovered(item: Discovered, seed: bool) -> dict[str, Any]:
    """The seed page gives an Ingress the port of its protocol; today it has none."""
    port = item.port
    if seed and port is None:
        port = {"https": 443, "http": 80}.get(item.protocol)
    row = {
        "kind": item.kind,
        "namespace": item.namespace,
        "resource_name": item.resource_name,
        "host": item.host,
        "path": item.path or None,
        "port": port or None,
        "protocol": item.protocol,
    }
    return {name: value for name, value in row.items() if value is not None}


def _seed_event(event: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(event)
    for name in ("prev_state", "new_state"):
        found[name] = SEED_STATES.get(str(event.get(name)), event.get(name))
    text = event.get("error_message")
    if isinstance(text, str) and (match := _STATUS_TEXT.fullmatch(text)):
        found["error_message"] = f"expected status {match[2]}, got {match[1]}"
    return found


# -- answers


def decode_orders(body: bytes, status: int = 200) -> LighthouseOrders:
    """The answer to a register or a heartbeat that was taken, field by field."""
    if body.count(b",") > COMMAS_MAX:
        return LighthouseOrders(False, status, text="the answer holds too much to be read")
    raw = read_json(body, parse_int=_int)
    if not isinstance(raw, dict):
        return LighthouseOrders(False, status, text="the answer is not a JSON object")
    complaints: list[str] = []

    def take(name: str, rule: Callable[[Any], Any]) -> Any:
        value = raw.get(name)
        if value is None:
            return None
        try:
            return rule(value)
        except Bad as error:
            complaints.append(f"{name}: {shown(value)}: {error}; the last good value stays")
            return None

    return LighthouseOrders(
        True,
        status,
        "ok",
        lighthouse_id=take("lighthouse_id", _name),
        name=take("name", _name),
        paused=take("paused", _flag),
        heartbeat_interval=take("heartbeat_interval_seconds", _interval),
        flap_threshold=take("flap_protection_threshold", _flap),
        etag=take("config_etag", _etag),
        checks=take("checks", _list),
        resync=bool(take("request_full_resync", _flag)),
        host_metrics=take("host_metrics", _host_metrics),
        complaints=tuple(complaints),
    )


def _name(value: object) -> str:
    return _short(value, NAME_MAX)


def _etag(value: object) -> str:
    return _short(value, ETAG_MAX)


def _short(value: object, most: int) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise Bad(f"must be a text of at most {most} characters")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise Bad("must be valid Unicode")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise Bad("must be true or false")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise Bad("must be a list")
    return value


def _interval(value: object) -> float:
    found = whole(value)
    if not 0 < found <= HEARTBEAT_MAX:
        raise Bad(f"must be 1 to {HEARTBEAT_MAX}")
    return float(found)


def _flap(value: object) -> int:
    found = whole(value)
    if found > FLAP_MAX:
        raise Bad(f"must be at most {FLAP_MAX}")
    return max(found, 1)


def _host_metrics(value: object) -> HostMetricsOrder:
    if not isinstance(value, dict):
        raise Bad("must be an object")
    enabled = _flag(value.get("enabled"))
    seconds = whole(0 if value.get("interval_seconds") is None else value["interval_seconds"])
    if seconds > METRICS_MAX:
        raise Bad(f"interval_seconds must be at most {METRICS_MAX}")
    return HostMetricsOrder(enabled, float(seconds) if seconds > 0 else METRICS_INTERVAL if enabled else 0.0)


def _int(digits: str) -> int | float:
    """A number of thousands of digits is out of range like any other, and spoils its own field alone."""
    return int(digits) if len(digits) <= DIGITS_MAX else math.inf


def read_json(body: bytes, *, parse_int: Callable[[str], int | float] | None = None) -> Any:
    """What a body holds; None where it is no JSON."""
    try:
        return json.loads(body, parse_int=parse_int)
    except (ValueError, RecursionError):
        return None


def _dumps(body: object) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()
