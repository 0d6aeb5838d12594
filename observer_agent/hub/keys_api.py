"""The face for programs, keys of agents: `/api/v1/keys`. A key is shown once, by the answer that makes it."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify, request
from werkzeug.exceptions import BadRequest

from observer_agent.errors import UsageError
from observer_agent.hub import wire
from observer_agent.hub.access import admit_writer
from observer_agent.hub.keys import GRACE, Keys

ACTOR = "api"


def keys_api(keys: Keys, token: str | None) -> Blueprint:
    """The endpoints, over the keys of one hub."""
    face = Blueprint("keys", __name__, url_prefix="/api/v1/keys")
    api = _KeysApi(keys)
    face.before_request(lambda: admit_writer(token))
    face.register_error_handler(UsageError, _refused)
    face.add_url_rule("", "list", api.list, methods=["GET"])
    face.add_url_rule("", "create", api.create, methods=["POST"])
    face.add_url_rule("/<opaque:name>/rotate", "rotate", api.rotate, methods=["POST"])
    face.add_url_rule("/<opaque:name>/revoke", "revoke", api.revoke, methods=["POST"])
    return face


class _KeysApi:
    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def list(self) -> Response:
        """Every key, without the key."""
        return jsonify({"keys": self._keys.list()})

    def create(self) -> tuple[Response, int]:
        """A new agent, `{"name"}`, and its key."""
        name = _field(_body("name"), "name", str, "")
        return jsonify({"name": name, "key": self._keys.create(name, ACTOR)}), 201

    def rotate(self, name: str) -> tuple[Response, int]:
        """Another key; `grace_seconds` is how long those before stay good."""
        grace = _field(_body("grace_seconds"), "grace_seconds", int, int(GRACE))
        return jsonify({"name": name, "key": self._keys.rotate(name, ACTOR, grace)}), 201

    def revoke(self, name: str) -> Response:
        """Ends every key of an agent, or the one with `hint`; with `dry_run` says which those are."""
        body = _body("hint", "dry_run")
        dry_run = _field(body, "dry_run", bool, False)
        ended = self._keys.revoke(name, ACTOR, _field(body, "hint", str, None), dry_run=dry_run)
        return jsonify({"name": name, "revoked": [] if dry_run else ended, "would_revoke": ended if dry_run else []})


def _body(*names: str) -> dict[str, Any]:
    data = request.get_data(cache=False)
    body = wire.read_json(data) if data else {}
    if not isinstance(body, dict) or not body.keys() <= set(names):
        raise BadRequest(f"the body must be an object with {', '.join(names)}")
    return body


def _field(body: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = body.get(name, default)
    if value is not default and type(value) is not kind:
        raise BadRequest(f"{name} is of the wrong type")
    return value


def _refused(error: UsageError) -> tuple[Response, int]:
    return jsonify({"error": "refused", "message": str(error)}), 400
