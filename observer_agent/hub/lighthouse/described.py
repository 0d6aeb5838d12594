"""The second dialect for the OpenAPI document: its operations and their objects. Data alone; nothing enters.

`openapi.py` makes an operation of each row: method, path, name, what it does, what comes out, what goes in, parameters
and status. What agents send is described as a good agent of today sends it; the shapes of the seed page are taken too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from observer_agent.hub.keys import GRACE_MAX
from observer_agent.hub.lighthouse import checks
from observer_agent.hub.lighthouse.api import PREFIX as MANAGED
from observer_agent.hub.lighthouse.face import PREFIX, PROTOBUF
from observer_agent.hub.lighthouse.judge import NEVER, OFFLINE, ONLINE, STOPPED
from observer_agent.hub.lighthouse.look import EVENTS_MAX, STATUSES
from observer_agent.hub.lighthouse.manage import HEARTBEAT
from observer_agent.hub.lighthouse.wire import KINDS, PROTOCOLS, ROLES, SYNCS

Schema = Mapping[str, Any]
TEXT: Schema = {"type": "string"}
WORD: Schema = {"type": "string", "minLength": 1, "maxLength": 128, "pattern": r"^[^\u0000\ud800-\udfff]*$"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**53}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
INSTANT: Schema = {"type": "string", "format": "date-time"}
NOTHING = "nothing"


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _one_of(words: Any) -> Schema:
    return {"type": "string", "enum": list(words)}


def _many(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _maybe(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _object(fields: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> dict[str, Any]:
    return {"type": "object", "properties": {**fields, **(optional or {})}, "required": list(fields)}


def _closed(fields: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> dict[str, Any]:
    return {**_object(fields, optional), "additionalProperties": False}


_LONG = {"type": "string", "minLength": 1, "maxLength": checks.TEXT_MAX}
_HEADER = _closed({"key": WORD, "value": TEXT})
_FIELDS: dict[str, Schema] = {
    "name": WORD,
    "type": _one_of(checks.TYPES),
    "url": {"type": "string", "minLength": 1, "maxLength": checks.URL_MAX},
    "interval_seconds": _whole(*checks.INTERVAL),
    "timeout_seconds": _whole(*checks.TIMEOUT),
    "method": _one_of(checks.METHODS),
    "expected_status_code": _whole(100, 599),
    "keyword_check": _LONG,
    "keyword_present": FLAG,
    "request_headers": _many(_HEADER),
    "request_body": TEXT,
    "expected_headers": _many(_closed({"key": WORD}, {"value": TEXT, "match": _one_of(checks.MATCHES)})),
    "skip_tls_verify": FLAG,
    "dns_record_type": _one_of(checks.RECORDS),
    "dns_expected_ips": _many(_LONG),
    "dns_resolver": TEXT,
}
_NEEDED = ("name", "type", "url")
_ALWAYS = (*_NEEDED, "interval_seconds", "timeout_seconds")
_NEW_CHECK = ({name: _FIELDS[name] for name in _NEEDED}, {k: v for k, v in _FIELDS.items() if k not in _NEEDED})
_TOLD_CHECK = ({name: _FIELDS[name] for name in _ALWAYS}, {k: v for k, v in _FIELDS.items() if k not in _ALWAYS})
_STATE = _one_of(("up", "down"))
_SETTINGS: dict[str, Schema] = {
    "host": {"type": "string", "maxLength": 255},
    "paused": FLAG,
    "notify_on_lifecycle": FLAG,
    "flap_protection_threshold": _whole(1, 100),
    "heartbeat_interval_seconds": _whole(*HEARTBEAT),
    "allow_multi_instance": FLAG,
    "host_metrics_enabled": FLAG,
    "host_metrics_interval_seconds": _whole(5, 3600),
}
_INSTANCE = {
    "instance_id": TEXT,
    "node_name": _maybe(TEXT),
    "role": _maybe(TEXT),
    "pod_hostname": _maybe(TEXT),
    "agent_version": _maybe(TEXT),
    "active": FLAG,
    "seen_at": INSTANT,
    "started_at": _maybe(INSTANT),
}
_LIGHTHOUSE = {
    "id": TEXT,
    "name": TEXT,
    **_SETTINGS,
    "host": _maybe(TEXT),
    "host_metrics_enabled": _maybe(FLAG),
    "agent_hostname": _maybe(TEXT),
    "agent_version": _maybe(TEXT),
    "runtime": _maybe(TEXT),
    "state": _one_of((NEVER, ONLINE, OFFLINE, STOPPED)),
    "changed_at": INSTANT,
    "stop_reason": _maybe(TEXT),
    "last_heartbeat_at": _maybe(INSTANT),
    "created_at": INSTANT,
    "updated_at": INSTANT,
    "config_etag": TEXT,
    "taken": COUNT,
    "duplicates": COUNT,
    "rival": FLAG,
    "checks": _object({name: COUNT for name in STATUSES}),
    "instances": _many(_object(_INSTANCE)),
    "tokens": _many(_object({"hint": TEXT, "state": TEXT, "created_at": INSTANT})),
}
_STANDING = {
    "id": TEXT,
    "document": FLAG,
    "created_at": INSTANT,
    "updated_at": INSTANT,
    "status": _one_of(STATUSES),
    "state": _maybe(_STATE),
    "since": _maybe(INSTANT),
    "status_code": _maybe(COUNT),
    "error_message": _maybe(TEXT),
    "last_observed_latency_ms": _maybe(COUNT),
    "last_observed_at": _maybe(INSTANT),
    "days_to_expiry": _maybe(WHOLE),
    "certificate_observed_at": _maybe(INSTANT),
}
_SEEN = {"response_time_ms": _maybe(COUNT), "status_code": _maybe(_whole(0, 999)), "error_message": _maybe(TEXT)}
_EVENT = {"check_id": {**WORD, "maxLength": 64}, "new_state": _STATE, "agent_observed_at": INSTANT}
_STORED = {
    **_EVENT,
    **_SEEN,
    "prev_state": _maybe(_STATE),
    "received_at": INSTANT,
    "sync_kind": _maybe(_one_of(SYNCS)),
}
_ITEM = _object(
    {"kind": _one_of(KINDS), "namespace": WORD, "resource_name": WORD, "host": WORD, "protocol": _one_of(PROTOCOLS)},
    {"path": TEXT, "port": _whole(1, 65535)},
)
_METRICS = {"host_metrics": _object({"enabled": FLAG, "interval_seconds": COUNT})}
_ORDERS = {"config_etag": TEXT, "paused": FLAG, "flap_protection_threshold": COUNT}
_LATENCY = _object({"last_observed_at": INSTANT}, {"last_observed_latency_ms": _maybe(COUNT)})
_EXPIRY = _object({"days_to_expiry": WHOLE, "observed_at": INSTANT})

SHAPES: Mapping[str, Schema] = {
    "Trouble": _object({"error": TEXT}),
    "Registration": _object({"agent_version": TEXT, "agent_hostname": TEXT}, {"runtime": TEXT}),
    "Registered": _object(
        {
            "lighthouse_id": TEXT,
            "name": TEXT,
            "host": TEXT,
            "heartbeat_interval_seconds": COUNT,
            **_ORDERS,
            "checks": _many(_ref("CheckDef")),
        },
        _METRICS,
    ),
    "CheckDef": _object({"id": TEXT, **_TOLD_CHECK[0]}, _TOLD_CHECK[1]),
    "LighthouseBeat": _object(
        {"agent_version": TEXT},
        {
            "config_etag": TEXT,
            "check_latencies": {"type": "object", "additionalProperties": _LATENCY},
            "cert_expiry": {"type": "object", "additionalProperties": _EXPIRY},
            "node_name": TEXT,
            "role": _one_of(ROLES),
            "pod_hostname": TEXT,
        },
    ),
    "LighthouseOrders": _object(
        {**_ORDERS, "request_full_resync": FLAG}, {"checks": _many(_ref("CheckDef")), **_METRICS}
    ),
    "CheckEvents": _object(
        {"events": _many(_object({**_EVENT, "prev_state": _maybe(_STATE)}, _SEEN))}, {"sync_kind": _one_of(SYNCS)}
    ),
    "Received": _object({"received": COUNT}),
    "Snapshot": _object({"snapshot": FLAG, "items": _many(_ITEM)}),
    "Counted": _object({"count": COUNT}),
    "Shutdown": _object({}, {"reason": TEXT}),
    "WriteRequest": {"type": "string", "format": "binary"},
    "Lighthouse": _object(_LIGHTHOUSE),
    "NewLighthouse": _closed({"name": WORD}, _SETTINGS),
    "MadeLighthouse": _object({**_LIGHTHOUSE, "token": TEXT}),
    "LighthouseChanges": _closed({}, _SETTINGS),
    "Lighthouses": _object({"lighthouses": _many(_ref("Lighthouse"))}),
    "TokenRotation": _closed({}, {"grace_seconds": _whole(0, int(GRACE_MAX))}),
    "MadeToken": _object({"name": TEXT, "token": TEXT}),
    "NewCheck": _closed(*_NEW_CHECK),
    "CheckChanges": _closed({}, {name: _maybe(each) for name, each in _FIELDS.items()}),
    "Check": _object({**_TOLD_CHECK[0], **_STANDING}, _TOLD_CHECK[1]),
    "Checks": _object({"checks": _many(_ref("Check"))}),
    "CheckDocument": _closed({"checks": _many(_ref("NewCheck"))}, {"prune": FLAG, "dry_run": FLAG}),
    "CheckOutcome": _object(
        {**{name: _many(TEXT) for name in ("created", "changed", "pruned")}, "unchanged": COUNT, "dry_run": FLAG}
    ),
    "CheckHistory": _object({"events": _many(_object(_STORED))}),
    "Discoveries": _object({"taken_at": _maybe(INSTANT), "items": _many(_ITEM)}),
    "HostMetrics": _object(
        {
            "series": _many(
                _object(
                    {
                        "name": TEXT,
                        "labels": {"type": "object", "additionalProperties": TEXT},
                        "value": NUMBER,
                        "at": INSTANT,
                    }
                )
            )
        }
    ),
}
ASKS: Mapping[str, Any] = {
    "most": {"name": "limit", "schema": {**_whole(1, EVENTS_MAX), "default": 100}},
    "check_id": {"schema": TEXT},
}
SEGMENTS: Mapping[str, Schema] = {"check_id": {"type": "string", "minLength": 1, "pattern": "^[^/]"}}
OPTIONAL = ("Shutdown", "TokenRotation")
MEDIA = {"WriteRequest": PROTOBUF}
# Refusals that are the operation's own.
ALSO: Mapping[str, Mapping[int, tuple[str, ...]]] = {
    **{
        f"lighthouse_{name}": {409: ("Trouble",), 410: ("Trouble",), 413: ("Trouble",)}
        for name in ("register", "beat", "events", "discoveries", "shutdown", "host_metrics")
    },
    "create_lighthouse": {409: ("Trouble",)},
    "create_check": {409: ("Trouble",)},
    "change_check": {409: ("Trouble",)},
}
ALSO = {**ALSO, "lighthouse_host_metrics": {code: ("Trouble",) for code in (403, 409, 410, 413, 415)}}
_ONE = f"{MANAGED}/{{ref}}"
_CHECK = f"{_ONE}/checks/{{check_id}}"
# method, path, name, about, gives, takes, asks, status
OPERATIONS: tuple[tuple[Any, ...], ...] = (
    ("post", f"{PREFIX}/register", "lighthouse_register", "A process begins.", "Registered", "Registration"),
    ("post", f"{PREFIX}/heartbeat", "lighthouse_beat", "A process lives.", "LighthouseOrders", "LighthouseBeat"),
    ("post", f"{PREFIX}/events", "lighthouse_events", "States of checks.", "Received", "CheckEvents", (), 202),
    ("post", f"{PREFIX}/discoveries", "lighthouse_discoveries", "What is in a cluster.", "Counted", "Snapshot"),
    ("post", f"{PREFIX}/shutdown", "lighthouse_shutdown", "A process ends.", NOTHING, "Shutdown", (), 204),
    ("post", f"{PREFIX}/host-metrics", "lighthouse_host_metrics", "Remote write.", NOTHING, "WriteRequest", (), 204),
    ("get", MANAGED, "lighthouses", "Every lighthouse.", "Lighthouses"),
    ("post", MANAGED, "create_lighthouse", "A new one, with its token.", "MadeLighthouse", "NewLighthouse", (), 201),
    ("get", _ONE, "lighthouse", "One lighthouse.", "Lighthouse"),
    ("patch", _ONE, "change_lighthouse", "Changes what the body names.", "Lighthouse", "LighthouseChanges"),
    ("delete", _ONE, "delete_lighthouse", "Deletes it; its agent is told.", NOTHING, None, (), 204),
    ("post", f"{_ONE}/rotate", "rotate_token", "Another token.", "MadeToken", "TokenRotation", (), 201),
    ("post", f"{_ONE}/apply", "apply_checks", "Makes its checks what is said.", "CheckOutcome", "CheckDocument"),
    ("get", f"{_ONE}/checks", "checks", "Its checks.", "Checks"),
    ("post", f"{_ONE}/checks", "create_check", "A new check.", "Check", "NewCheck", (), 201),
    ("get", _CHECK, "check", "One check.", "Check"),
    ("patch", _CHECK, "change_check", "Changes what the body names.", "Check", "CheckChanges"),
    ("delete", _CHECK, "delete_check", "Deletes it with its history.", NOTHING, None, (), 204),
    ("get", f"{_ONE}/events", "check_events", "What agents saw.", "CheckHistory", None, ("most", "check_id")),
    ("get", f"{_ONE}/discoveries", "discoveries", "What was discovered.", "Discoveries"),
    ("get", f"{_ONE}/series", "series", "The newest host metrics.", "HostMetrics"),
)
