"""The face for programs that manage webhooks: `/api/v1/webhooks...`, JSON in and out (docs/webhooks.md).

Let in like the rest of `/api/v1`. A write must say that it is JSON, which no form of another site can.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, jsonify, request
from werkzeug.exceptions import BadRequest

from observer_agent.errors import UsageError
from observer_agent.hub import wire
from observer_agent.hub.access import admit_writer
from observer_agent.hub.webhooks import FIELDS, LOG_LIMIT, Taken, Unknown, Wanted, Webhooks, new_secret

ACTOR = "api"
LIMIT_MAX = 1000


def webhook_api(webhooks: Webhooks, token: str | None) -> Blueprint:
    """The endpoints, over the webhooks of a hub."""
    face = Blueprint("webhooks", __name__, url_prefix="/api/v1/webhooks")
    api = _WebhookApi(webhooks)
    face.before_request(lambda: admit_writer(token))
    face.register_error_handler(UsageError, _refused)
    face.add_url_rule("", "list", api.list, methods=["GET"])
    face.add_url_rule("", "create", api.create, methods=["POST"])
    face.add_url_rule("/deliveries", "deliveries", lambda: api.deliveries(None), methods=["GET"])
    face.add_url_rule("/redeliver", "redeliver", api.redeliver, methods=["POST"])
    face.add_url_rule("/<ref>", "one", api.one, methods=["GET"])
    face.add_url_rule("/<ref>", "change", api.change, methods=["PATCH"])
    face.add_url_rule("/<ref>", "delete", api.delete, methods=["DELETE"])
    face.add_url_rule("/<ref>/test", "test", api.test, methods=["POST"])
    face.add_url_rule("/<ref>/deliveries", "deliveries_of", api.deliveries, methods=["GET"])
    return face


class _WebhookApi:
    def __init__(self, webhooks: Webhooks) -> None:
        self._webhooks = webhooks

    def list(self) -> Response:
        """Every webhook."""
        return jsonify({"webhooks": self._webhooks.all()})

    def one(self, ref: str) -> Response:
        """One webhook."""
        return jsonify(self._webhooks.one(ref))

    def create(self) -> tuple[Response, int]:
        """A new webhook; its secret is in this answer and in no other."""
        fields = _fields(_body())
        if not {"name", "url"} <= set(fields):
            raise BadRequest("name and url are needed")
        wanted = Wanted(**{"secret": new_secret(), **fields})
        made = self._webhooks.create(ACTOR, wanted)
        return jsonify({**self._webhooks.one(made), "secret": wanted.secret}), 201

    def change(self, ref: str) -> Response:
        """Changes what the body names; a new secret is in the body already and is not repeated."""
        return jsonify(self._webhooks.one(self._webhooks.change(ACTOR, ref, _fields(_body()))))

    def delete(self, ref: str) -> Response:
        """Deletes it; with `dry_run=true` only says what that would do."""
        given = request.args.get("dry_run", "false")
        if given not in ("true", "false"):
            raise BadRequest("dry_run must be true or false")
        return jsonify(self._webhooks.delete(ACTOR, ref, given == "true"))

    def test(self, ref: str) -> tuple[Response, int]:
        """Lays a test event out; the deliveries say what became of it."""
        return jsonify({"event_id": self._webhooks.test(ACTOR, ref)}), 202

    def redeliver(self) -> tuple[Response, int]:
        """Lays an event out anew."""
        body = _body()
        event_id, webhook = body.get("event_id"), body.get("webhook")
        if not isinstance(event_id, str) or not (webhook is None or isinstance(webhook, str)):
            raise BadRequest("event_id must be a text, and webhook a name where it is given")
        event_id = wire.clean(event_id, len(event_id))  # no database can be asked for half of a surrogate pair
        webhook = None if webhook is None else wire.clean(webhook, len(webhook))
        return jsonify({"webhooks": self._webhooks.redeliver(ACTOR, event_id, webhook)}), 202

    def deliveries(self, ref: str | None) -> Response:
        """The last deliveries with their attempts."""
        text = request.args.get("limit", str(LOG_LIMIT))
        if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= LIMIT_MAX:
            raise BadRequest(f"limit must be a number from 1 to {LIMIT_MAX}")
        found = self._webhooks.deliveries(ref, int(text), request.args.get("event_id"))
        return jsonify({"deliveries": found})


def _refused(error: UsageError) -> tuple[Response, int]:
    code, word = (
        (404, "not_found")
        if isinstance(error, Unknown)
        else (409, "conflict")
        if isinstance(error, Taken)
        else (400, "bad_request")
    )
    return jsonify({"error": word, "message": str(error)}), code


def _body() -> Mapping[str, Any]:
    body = wire.read_json(request.get_data(cache=False))
    if not isinstance(body, dict):
        raise BadRequest("the body must be an object")
    return body


def _fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a webhook that a body names, each of its type; event types become a tuple."""
    for name in body:
        if name not in FIELDS:
            raise BadRequest(f"unknown field; known are {', '.join(FIELDS)}")
    found = dict(body)
    for name in ("name", "url"):
        if name in found and not isinstance(found[name], str):
            raise BadRequest(f"{name} must be a text")
    if not isinstance(found.get("secret"), str | None):
        raise BadRequest("secret must be a text, or null for none")
    if not isinstance(found.get("active", True), bool):
        raise BadRequest("active must be true or false")
    types = found.get("event_types", [])
    if not isinstance(types, list) or not all(isinstance(each, str) for each in types):
        raise BadRequest("event_types must be a list of texts; an empty one is all events")
    return {**found, "event_types": tuple(types)} if "event_types" in found else found
