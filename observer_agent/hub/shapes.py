"""The objects of the HTTP API as JSON Schema (2020-12), for `openapi.py`. Data alone; nothing enters.

What agents send is described as a good agent sends it: the hub itself reads it kindly (`wire.py`). What the hub answers
is described whole: every field is there in every answer, unless it is said to be optional.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from observer_agent.document import API_VERSION
from observer_agent.hub.form import SECTIONS
from observer_agent.hub.keys import GRACE_MAX
from observer_agent.hub.webhooks import FIELDS, KINDS, SECRET_MAX, SECRET_MIN
from observer_agent.hub.wire import BATCH_MAX, COUNT_MAX, ID_MAX, REASON_MAX, Code
from observer_agent.model import Status

Schema = Mapping[str, Any]

STATUSES = [status.value for status in Status]
SHOWN = [*STATUSES, "unknown"]
TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": COUNT_MAX}
ROW_ID: Schema = {"type": "integer", "minimum": 0}
INSTANT: Schema = {"type": "string", "format": "date-time"}
UUID: Schema = {"type": "string", "format": "uuid"}
STORABLE = r"^[^\u0000\ud800-\udfff]*$"
COUNTS: Schema = {"type": "object", "additionalProperties": COUNT}
ANYTHING: Schema = {}


def ref(name: str) -> Schema:
    """A schema by its name below."""
    return {"$ref": f"#/components/schemas/{name}"}


def one_of(values: Iterable[str]) -> Schema:
    """One of some words."""
    return {"type": "string", "enum": list(values)}


def many(items: Schema, **more: Any) -> Schema:
    """A list."""
    return {"type": "array", "items": items, **more}


def maybe(schema: Schema) -> Schema:
    """The same or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def whole(fields: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """An object that has all of `fields`, and may have the optional ones."""
    properties = {**fields, **(optional or {})}
    return {"type": "object", "properties": properties, "required": list(fields)}


def closed(fields: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """The same where any other field is refused."""
    return {**whole(fields, optional), "additionalProperties": False}


_METRIC_ID = {"type": "string", "minLength": 1, "maxLength": ID_MAX, "pattern": STORABLE}
_ROW = whole(
    {"metric_id": _METRIC_ID, "timestamp": INSTANT, "status": one_of(STATUSES)},
    {"value": maybe(NUMBER), "reason": maybe({"type": "string", "maxLength": REASON_MAX})},
)
_REJECT = {"index": COUNT, "field": TEXT, "code": one_of(Code)}
_LEDGER = {"queue_id": UUID, "given": COUNT, "accepted": COUNT, "pending": COUNT, "lost": COUNTS}
_HEARTBEAT = {
    "version": TEXT,
    "hostname": TEXT,
    "uptime_seconds": COUNT,
    "buffer_size": COUNT,
    "buffer_oldest_age_seconds": COUNT,
    "queue_depth": COUNT,
    "queue_oldest_age_seconds": COUNT,
    "queue_capacity": COUNT,
    "agent_started_at": INSTANT,
    "source_types_active": many(TEXT),
    "custom_probes": many(whole({"name": TEXT}, {"description": TEXT, "has_config_schema": BOOLEAN})),
    "build": whole({}, {"channel": TEXT, "commit": TEXT, "source_hash": TEXT}),
    "delivery": many(ref("Ledger")),
    "otlp_stats": {"type": "object"},
}
_PING = whole(
    {"token": {"type": "string", "pattern": "^[A-Za-z0-9]{22,64}$"}, "kind": one_of(("success", "start", "fail"))},
    {
        "exit_code": maybe({"type": "integer", "minimum": 0, "maximum": 255}),
        "body": maybe(TEXT),
        "received_at": INSTANT,
        "user_agent": maybe(TEXT),
    },
)
_DEFINITION = whole(
    {"id": _METRIC_ID, "source_type": TEXT, "source_config": {"type": "object"}},
    {
        "title": TEXT,
        "query": TEXT,
        "interval": NUMBER,
        "interval_agent_push": NUMBER,
        "healthy_operation": one_of(("over", "under", "equal")),
        "unhealthy_operation": one_of(("over", "under", "equal")),
        "healthy_value": {"type": ["number", "string"]},
        "unhealthy_value": {"type": ["number", "string"]},
        "agent_id": maybe(TEXT),
    },
)
_AGENT = {
    "id": TEXT,
    "name": TEXT,
    "state": one_of(("online", "offline")),
    "agent_started_at": maybe(INSTANT),
    "last_heartbeat_at": maybe(INSTANT),
    "version": maybe(TEXT),
    "uptime_seconds": maybe(COUNT),
    "restarts": COUNT,
    "queue_depth": maybe(COUNT),
    "queue_oldest_age_seconds": maybe(COUNT),
    "queue_capacity": maybe(COUNT),
    "source_types_active": many(TEXT),
    "hostname": maybe(TEXT),
    "duplicate_key": BOOLEAN,
    "taken": COUNT,
    "duplicates": COUNT,
    "delivery": many(whole({**_LEDGER, "unexplained": COUNT})),
    "uptime_pct": maybe(NUMBER),
    "alerts": many(whole({"type": TEXT, "opened_at": INSTANT})),
}
_METRIC = {
    "id": TEXT,
    "key": maybe(TEXT),
    "title": TEXT,
    "source_type": TEXT,
    "unmanaged": BOOLEAN,
    "agent_id": maybe(TEXT),
    "status": maybe(one_of(SHOWN)),
    "value": maybe(NUMBER),
    "reason": maybe(TEXT),
    "timestamp": maybe(INSTANT),
    "last_push_at": maybe(INSTANT),
}
_VERDICT = {
    "agent_id": TEXT,
    "value": NUMBER,
    "status": one_of(STATUSES),
    "reason": maybe(TEXT),
    "timestamp": INSTANT,
    "received_at": INSTANT,
}
_SECONDS = {"up": NUMBER, "degraded": NUMBER, "down": NUMBER, "unknown": NUMBER}
_UPTIME = {**_SECONDS, "uptime_pct": maybe(NUMBER)}
_FRAME = {"days": COUNT, "from": INSTANT, "to": INSTANT}
_BUCKET = {"start": INSTANT, **_SECONDS, "n": COUNT, "mean": maybe(NUMBER), "low": maybe(NUMBER), "high": maybe(NUMBER)}
_CHANGE = {"kind": TEXT, "key": TEXT}
_REMARK = whole({"severity": TEXT, "source": TEXT, "line": COUNT, "text": TEXT})
# Their fields are in docs/documents.md; a remark names what is not understood.
_ENTRY = whole({}, {"key": TEXT, "title": TEXT, "source_type": TEXT, "source_config": {"type": "object"}})
_SECTIONS = {name: many(_ENTRY) for name in SECTIONS.values()}
_OUTCOME = {
    "applied": BOOLEAN,
    "dry_run": BOOLEAN,
    "created": many(whole(_CHANGE)),
    "changed": many(whole({**_CHANGE, "fields": many(whole({"field": TEXT, "old": ANYTHING, "new": ANYTHING}))})),
    "pruned": many(whole(_CHANGE)),
    "unchanged": COUNT,
    "remarks": many(ref("Remark")),
}
_WEBHOOK = {
    "id": UUID,
    "name": TEXT,
    "url": TEXT,
    "secret": maybe(TEXT),
    "event_types": many(one_of(KINDS)),
    "active": BOOLEAN,
    "created_at": INSTANT,
    "deliveries": whole({"pending": COUNT, "delivered": COUNT, "failed": COUNT}),
}
_WANTED: dict[str, Schema] = {
    "name": {"type": "string", "pattern": "^[A-Za-z0-9]([A-Za-z0-9 ._-]{0,126}[A-Za-z0-9._-])?$"},
    "url": {"type": "string", "format": "uri", "maxLength": 2048},
    "secret": maybe({"type": "string", "pattern": f"^[!-~]{{{SECRET_MIN},{SECRET_MAX}}}$"}),
    "event_types": many(one_of(KINDS)),
    "active": BOOLEAN,
}
assert tuple(_WANTED) == FIELDS
_ATTEMPT = {"at": INSTANT, "status": COUNT, "error": TEXT, "duration_ms": NUMBER}
_DELIVERY = {
    "webhook": TEXT,
    "event_id": TEXT,
    "event_type": maybe(TEXT),
    "state": one_of(("pending", "delivered", "failed")),
    "created_at": INSTANT,
    "next_at": maybe(INSTANT),
    "ended_at": maybe(INSTANT),
    "attempts": many(whole(_ATTEMPT)),
}
_KEY = {
    "agent_id": TEXT,
    "name": TEXT,
    "hint": TEXT,
    "state": one_of(("valid", "expiring", "expired", "revoked")),
    "created_at": INSTANT,
    "expires_at": maybe(INSTANT),
    "revoked_at": maybe(INSTANT),
}
_NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 128}

SHAPES: Mapping[str, Schema] = {
    "Error": whole({"error": TEXT, "message": maybe(TEXT)}),
    "Definition": _DEFINITION,
    "Definitions": many(ref("Definition")),
    "Row": _ROW,
    "Batch": many(ref("Row"), maxItems=BATCH_MAX),
    "Reject": whole(_REJECT),
    "Accepted": whole({"accepted": COUNT, "rejected": many(ref("Reject")), "duplicates": COUNT}),
    "InvalidRow": whole({"error": TEXT, "message": TEXT}, _REJECT),
    "Stale": whole({"error": {"const": "stale_process"}, "newer_started_at": INSTANT}),
    "Ledger": whole(_LEDGER),
    "Heartbeat": whole({}, {name: maybe(each) for name, each in _HEARTBEAT.items()}),
    "Ping": _PING,
    "Pings": whole({"pings": many(ref("Ping"), maxItems=50)}, {"sent_at": INSTANT}),
    "Relayed": whole({"accepted": COUNT, "rejected": many(whole({"index": COUNT, "code": TEXT}))}),
    "Version": whole({"definitions_version": TEXT}),
    "LogLine": whole({}, {"level": TEXT, "message": TEXT, "timestamp": INSTANT}),
    "Empty": whole({}),
    "Agents": whole({"agents": many(whole(_AGENT))}),
    "Event": whole({"event_type": one_of(KINDS), "event_id": TEXT, "occurred_at": INSTANT, "data": {"type": "object"}}),
    "Events": whole({"events": many(ref("Event"))}),
    "Metrics": whole({"metrics": many(whole(_METRIC))}),
    "Pushes": whole({"pushes": many(whole({**_VERDICT, "queue_id": maybe(UUID), "row_id": maybe(ROW_ID)}))}),
    "Rows": whole({"metric_id": TEXT, "step": {"const": "raw"}, "rows": many(whole(_VERDICT)), "truncated": BOOLEAN}),
    "Series": whole(
        {
            "metric_id": TEXT,
            "step": one_of(("hour", "day")),
            "series": many(whole({"agent_id": TEXT, "points": many(whole(_BUCKET))})),
        }
    ),
    "Uptime": whole({"metric_id": TEXT, **_FRAME, **_UPTIME, "agents": many(whole({"agent_id": TEXT, **_UPTIME}))}),
    "Uptimes": whole({**_FRAME, "metrics": many(whole({"metric_id": TEXT, **_UPTIME}))}),
    "Document": whole({"apiVersion": {"const": API_VERSION}}, _SECTIONS),
    "Remark": _REMARK,
    "Outcome": whole(_OUTCOME),
    "InvalidDocument": whole({"error": {"const": "invalid_document"}, "message": TEXT}, _OUTCOME),
    "Webhook": whole(_WEBHOOK),
    "Webhooks": whole({"webhooks": many(ref("Webhook"))}),
    "NewWebhook": closed({name: _WANTED[name] for name in ("name", "url")}, _WANTED),
    "WebhookChanges": closed({}, _WANTED),
    "Deleted": whole({"name": TEXT, "pending": COUNT, "deliveries": COUNT, "dry_run": BOOLEAN}),
    "Tested": whole({"event_id": TEXT}),
    "Redelivery": whole({"event_id": TEXT}, {"webhook": maybe(TEXT)}),
    "Redelivered": whole({"webhooks": many(TEXT)}),
    "Deliveries": whole({"deliveries": many(whole(_DELIVERY))}),
    "Keys": whole({"keys": many(whole(_KEY))}),
    "NewKey": closed({"name": _NAME}),
    "MadeKey": whole({"name": TEXT, "key": TEXT}),
    "Rotation": closed({}, {"grace_seconds": {"type": "integer", "minimum": 0, "maximum": int(GRACE_MAX)}}),
    "Revocation": closed({}, {"hint": TEXT, "dry_run": BOOLEAN}),
    "Revoked": whole({"name": TEXT, "revoked": many(TEXT), "would_revoke": many(TEXT)}),
}
