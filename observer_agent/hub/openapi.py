"""The whole HTTP API as an OpenAPI 3.1 document, built from the table below and served at `/api/v1/openapi.json`.

`document()` is pure; the endpoint is guarded like the rest of the read API. tests/test_hub_openapi.py holds the table
and the URL rules of the application together, both ways.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flask import Blueprint, jsonify

from observer_agent import __version__
from observer_agent.hub.access import KEY_MAX, admit_reader
from observer_agent.hub.lighthouse import described
from observer_agent.hub.shapes import COUNT, INSTANT, SHAPES, TEXT, Schema, one_of, ref

JSON = "application/json"
YAML = "application/yaml"
TEXT_FORMAT = "text/plain"
AGENT = "agentKey"
TOKEN = "token"
NOBODY = ""  # open to everybody
LIGHTHOUSE = "lighthouseToken"
OPTIONAL = ("Rotation", "Revocation", *described.OPTIONAL)  # bodies that may be left out
GUARDS = {
    AGENT: {
        "type": "apiKey",
        "in": "header",
        "name": "Agent-Key",
        "description": f"The key of an agent, at most {KEY_MAX} characters (observer-hub key create).",
    },
    TOKEN: {
        "type": "http",
        "scheme": "bearer",
        "description": "The token of OBSERVER_HUB_TOKEN. A hub without one answers on its own machine alone.",
    },
    LIGHTHOUSE: {
        "type": "http",
        "scheme": "bearer",
        "description": "The token of a lighthouse (observer-hub lighthouse create).",
    },
}
ABOUT = "Writes under /api/v1 need Content-Type: application/json, those without a body too; apply takes YAML besides."
REFUSALS = {
    400: "Something in the request is not as it should be; the message says what.",
    401: "No key or token, or one that is not known.",
    403: "A hub without a token was addressed by another name than this machine's.",
    404: "There is no such thing.",
    409: "Something else has that name, or another instance is active.",
    410: "It was deleted.",
    413: "The body is too large, or a batch has too many rows.",
    415: "The Content-Type is not one that is taken here.",
    422: "The document was refused; nothing was applied.",
    429: "Too often; Retry-After says when to come again.",
    503: "The database refused for now; Retry-After says when to come again.",
}
WAITING = (429, 503)


class Op(NamedTuple):
    """One method of one path: its name, what it does, what comes out and what goes in.

    `gives` names the shape of a good answer, or a media type; `takes` that of the body, `asks` the parameters.
    """

    method: str
    path: str
    name: str
    about: str
    gives: str
    takes: str | None = None
    asks: tuple[str, ...] = ()
    status: int = 200

    @property
    def guard(self) -> str:
        """Who may."""
        if self.path.startswith("/api/lighthouse/"):
            return LIGHTHOUSE
        if self.path in ("/healthz", "/readyz"):
            return NOBODY
        return AGENT if self.path.startswith("/api/agent/") else TOKEN

    @property
    def trouble(self) -> str:
        """The shape of a refusal: each dialect has its own."""
        return "Trouble" if self.path.startswith(("/api/lighthouse/", "/api/lighthouses")) else "Error"

    @property
    def refusals(self) -> set[int]:
        """The codes with which it may be refused."""
        writes = self.method != "get"
        if self.guard == NOBODY:
            return {400, 429, 503}
        found = {400, 401, 429, 503, *ALSO.get(self.name, {})}
        found |= {403} if self.guard == TOKEN else set()
        found |= {404} if "{" in self.path else set()
        found |= {413} if self.takes else set()
        return found | ({415} if writes and self.guard == TOKEN else set())


def _number(highest: int, default: int) -> Schema:
    return {"type": "integer", "minimum": 1, "maximum": highest, "default": default}


_FLAG = {**one_of(("true", "false")), "default": "false"}
_STAMP = {"description": "An ISO 8601 instant with its offset, or seconds since 1970.", "schema": TEXT}
APPLYING = {name: {"schema": _FLAG} for name in ("dry_run", "prune", "allow_partial")}
_SEQUENCE = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12};[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$"
ASKS: Mapping[str, Mapping[str, Any]] = {
    "limit": {"schema": _number(10_000, 100)},
    "last": {"name": "limit", "schema": _number(1000, 20)},
    "days": {"schema": _number(3660, 30)},
    "agent_id": {"schema": TEXT},
    "metric_id": {"schema": TEXT},
    "event_id": {"schema": TEXT},
    "from": _STAMP,
    "to": _STAMP,
    "step": {"schema": {**one_of(("hour", "day", "raw")), "default": "hour"}},
    **APPLYING,
    **described.ASKS,
    "Agent-Started-At": {
        "in": "header",
        "description": "When the agent's process began; what cannot be read counts as absent.",
        "schema": INSTANT,
    },
    "Push-Sequence": {
        "in": "header",
        "description": "Queue id and row ids of the body, in its order; malformed counts as absent.",
        "schema": {"type": "string", "pattern": _SEQUENCE},
    },
}
# A path's own names; an empty segment, or one that is a word of another path, means something else.
SEGMENTS: Mapping[str, Schema] = {
    "metric_id": {"type": "string", "minLength": 1, "pattern": "^[^/]"},
    "name": {"type": "string", "minLength": 1, "pattern": "^[^/]"},
    "ref": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9 ._-]*$", "description": "Name or id."},
    **described.SEGMENTS,
}
_RANGE = ("from", "to", "step", "agent_id")
_PUSHED = ("Agent-Started-At", "Push-Sequence")
# Refusals that are the operation's own, with the shapes of their bodies.
ALSO: Mapping[str, Mapping[int, tuple[str, ...]]] = {
    "push": {400: ("InvalidRow", "Error"), 409: ("Stale",)},
    "push_batch": {409: ("Stale",)},
    "apply": {422: ("InvalidDocument",)},
    "create_webhook": {409: ("Error",)},
    "change_webhook": {409: ("Error",)},
    "redeliver": {404: ("Error",)},
    **described.ALSO,
}
_V1 = "/api/v1"
_HOOK = f"{_V1}/webhooks/{{ref}}"
_METRIC = f"{_V1}/metrics/{{metric_id}}"
_AGENT = "/api/agent"
OPERATIONS: tuple[Op, ...] = (
    Op("get", f"{_AGENT}/metrics-definitions", "definitions", "What to watch.", "Definitions", asks=_PUSHED[:1]),
    Op("post", f"{_AGENT}/receiver", "push", "One row.", "Accepted", "Row", _PUSHED),
    Op("post", f"{_AGENT}/receiver/batch", "push_batch", "Rows in queue order.", "Accepted", "Batch", _PUSHED),
    Op("post", f"{_AGENT}/heartbeat", "beat", "The agent lives.", "Version", "Heartbeat", _PUSHED[:1]),
    Op("post", f"{_AGENT}/heartbeat-relay", "relay", "Pings of jobs.", "Relayed", "Pings", _PUSHED[:1]),
    Op("post", f"{_AGENT}/log", "log", "A log line; taken and let go.", "Empty", "LogLine", _PUSHED[:1]),
    Op("get", f"{_V1}/agents", "agents", "Every agent.", "Agents"),
    Op("get", f"{_V1}/events", "events", "Events, newest first.", "Events", asks=("limit", "agent_id", "metric_id")),
    Op("get", f"{_V1}/metrics", "metrics", "Every metric, once for each agent that pushes it.", "Metrics"),
    Op("get", f"{_METRIC}/pushes", "pushes", "The last rows.", "Pushes", asks=("limit",)),
    Op("get", f"{_METRIC}/history", "history", "Hours, days or rows.", "Series Rows", asks=_RANGE),
    Op("get", f"{_METRIC}/uptime", "uptime", "Seconds by status.", "Uptime", asks=("days",)),
    Op("get", f"{_V1}/uptime", "uptimes", "The same of every metric.", "Uptimes", asks=("days",)),
    Op("post", f"{_V1}/apply", "apply", "Applies a document.", "Outcome", "Document", tuple(APPLYING)),
    Op("get", f"{_V1}/export", "export", "What documents have made, as one.", YAML),
    Op("get", f"{_V1}/webhooks", "webhooks", "Every webhook.", "Webhooks"),
    Op("post", f"{_V1}/webhooks", "create_webhook", "A new one, with its secret.", "Webhook", "NewWebhook", status=201),
    Op("get", f"{_V1}/webhooks/deliveries", "deliveries", "The last ones.", "Deliveries", asks=("last", "event_id")),
    Op("post", f"{_V1}/webhooks/redeliver", "redeliver", "Once more.", "Redelivered", "Redelivery", status=202),
    Op("get", _HOOK, "webhook", "One webhook.", "Webhook"),
    Op("patch", _HOOK, "change_webhook", "Changes what the body names.", "Webhook", "WebhookChanges"),
    Op("delete", _HOOK, "delete_webhook", "Deletes it.", "Deleted", asks=("dry_run",)),
    Op("post", f"{_HOOK}/test", "test_webhook", "Lays a test event out.", "Tested", status=202),
    Op("get", f"{_HOOK}/deliveries", "deliveries_of", "Its last ones.", "Deliveries", asks=("last", "event_id")),
    Op("get", f"{_V1}/keys", "keys", "Every key, without the key.", "Keys"),
    Op("post", f"{_V1}/keys", "create_key", "A new agent, with its key.", "MadeKey", "NewKey", status=201),
    Op("post", f"{_V1}/keys/{{name}}/rotate", "rotate_key", "Another key.", "MadeKey", "Rotation", status=201),
    Op("post", f"{_V1}/keys/{{name}}/revoke", "revoke_key", "Ends keys.", "Revoked", "Revocation"),
    Op("get", f"{_V1}/openapi.json", "openapi", "This document.", "Empty"),
    Op("get", "/healthz", "lives", "Whether the process lives.", TEXT_FORMAT),
    Op("get", "/readyz", "ready", "Whether it can work: its database answers.", TEXT_FORMAT),
    Op("get", "/metrics", "hub_metrics", "The hub's own numbers for Prometheus.", TEXT_FORMAT),
    Op("get", f"{_V1}/metrics/export", "export_metrics", "The last verdicts for Prometheus.", TEXT_FORMAT),
    *(Op(*row) for row in described.OPERATIONS),
)


def openapi_api(token: str | None) -> Blueprint:
    """The endpoint."""
    face = Blueprint("openapi", __name__, url_prefix=_V1)
    face.before_request(lambda: admit_reader(token))
    face.add_url_rule("/openapi.json", "document", lambda: jsonify(document()))
    return face


def document() -> dict[str, Any]:
    """The document, plain JSON-able objects."""
    paths: dict[str, dict[str, Any]] = {}
    for op in OPERATIONS:
        paths.setdefault(op.path, {})[op.method] = _operation(op)
    return {
        "openapi": "3.1.0",
        "info": {"title": "observer-hub", "version": __version__, "description": ABOUT},
        "paths": paths,
        "components": {"schemas": {**SHAPES, **described.SHAPES}, "securitySchemes": GUARDS},
    }


def _operation(op: Op) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": op.name,
        "summary": op.about,
        "security": [{op.guard: []}] if op.guard else [],
        "parameters": list(_parameters(op)),
        "responses": {str(op.status): _answer(op), **{str(code): _refusal(op, code) for code in sorted(op.refusals)}},
    }
    if op.takes:
        kinds = (JSON, YAML) if op.name == "apply" else (described.MEDIA.get(op.takes, JSON),)
        content = {kind: {"schema": ref(op.takes)} for kind in kinds}
        found["requestBody"] = {"required": op.takes not in OPTIONAL, "content": content}
    return found


def _parameters(op: Op) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", op.path):
        yield {"name": name, "in": "path", "required": True, "schema": SEGMENTS[name]}
    for name in op.asks:
        yield {"name": name, "in": "query", **ASKS[name]}


def _answer(op: Op) -> dict[str, Any]:
    if op.gives == described.NOTHING:
        return {"description": op.about}
    if "/" in op.gives:
        return {
            "description": op.about,
            "content": {op.gives: {"schema": TEXT if op.gives == TEXT_FORMAT else ref("Document")}},
        }
    found = _body(op.about, op.gives.split())
    if op.name == "definitions":
        found["headers"] = {"x-observer-definitions-version": {"schema": TEXT, "required": True}}
    return found


def _refusal(op: Op, code: int) -> dict[str, Any]:
    found = _body(REFUSALS[code], ALSO.get(op.name, {}).get(code, (op.trouble,)))
    if code in WAITING:
        found["headers"] = {"Retry-After": {"schema": COUNT}}
    return found


def _body(about: str, names: Sequence[str]) -> dict[str, Any]:
    schema = ref(names[0]) if len(names) == 1 else {"anyOf": [ref(name) for name in names]}
    return {"description": about, "content": {JSON: {"schema": schema}}}
