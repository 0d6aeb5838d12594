"""The face for programs: `/api/lighthouses...`, JSON in and out, errors as `{"error": text}`, for the hub's token.

A token of a lighthouse is in the answer that makes it and in no other. Writes with a body say that they are JSON, which
no form of another site can. Runs on the threads of the server.
"""

from __future__ import annotations

import re
from typing import Any

from flask import Blueprint, Response, jsonify, request
from werkzeug.exceptions import BadRequest, UnsupportedMediaType

from observer_agent.errors import UsageError
from observer_agent.hub import wire
from observer_agent.hub.access import admit_reader
from observer_agent.hub.lighthouse.checks import CHECKS_MAX
from observer_agent.hub.lighthouse.face import trouble
from observer_agent.hub.lighthouse.look import EVENTS_MAX, Look
from observer_agent.hub.lighthouse.manage import Manage, Taken, Unknown

ACTOR = "api"
PREFIX = "/api/lighthouses"
EVENTS = 100


def lighthouse_api(manage: Manage, look: Look, token: str | None) -> Blueprint:
    """The endpoints."""
    face = Blueprint("lighthouses", __name__, url_prefix=PREFIX)
    api = _Api(manage, look)
    face.before_request(lambda: _admit(token))
    face.register_error_handler(UsageError, _refused)
    one, check = "/<ref>", "/<ref>/checks/<check_id>"
    face.add_url_rule("", "list", api.list, methods=["GET"])
    face.add_url_rule("", "create", api.create, methods=["POST"])
    face.add_url_rule(one, "one", api.one, methods=["GET"])
    face.add_url_rule(one, "change", api.change, methods=["PATCH"])
    face.add_url_rule(one, "delete", api.delete, methods=["DELETE"])
    face.add_url_rule(f"{one}/rotate", "rotate", api.rotate, methods=["POST"])
    face.add_url_rule(f"{one}/apply", "apply", api.apply, methods=["POST"])
    face.add_url_rule(f"{one}/checks", "checks", api.checks, methods=["GET"])
    face.add_url_rule(f"{one}/checks", "create_check", api.create_check, methods=["POST"])
    face.add_url_rule(check, "check", api.check, methods=["GET"])
    face.add_url_rule(check, "change_check", api.change_check, methods=["PATCH"])
    face.add_url_rule(check, "delete_check", api.delete_check, methods=["DELETE"])
    face.add_url_rule(f"{one}/events", "events", api.events, methods=["GET"])
    face.add_url_rule(f"{one}/discoveries", "discoveries", api.discoveries, methods=["GET"])
    face.add_url_rule(f"{one}/series", "series", api.series, methods=["GET"])
    return face


class _Api:
    def __init__(self, manage: Manage, look: Look) -> None:
        self._manage = manage
        self._look = look

    def list(self) -> Response:
        """Every lighthouse."""
        return jsonify({"lighthouses": self._look.all()})

    def create(self) -> tuple[Response, int]:
        """A new one, with its token."""
        body = _body()
        name = body.pop("name", None)
        if not isinstance(name, str):
            raise BadRequest("name must be a text")
        made, token = self._manage.create(ACTOR, _clean(name), body)
        return jsonify({**self._look.one(made), "token": token}), 201

    def one(self, ref: str) -> Response:
        """One of them, by its id or its name."""
        return jsonify(self._look.one(ref))

    def change(self, ref: str) -> Response:
        """Changes the settings that the body names."""
        return jsonify(self._look.one(self._manage.change(ACTOR, ref, _body())))

    def delete(self, ref: str) -> tuple[str, int]:
        """Deletes it with its checks; its agent is told so."""
        self._manage.delete(ACTOR, ref)
        return "", 204

    def rotate(self, ref: str) -> tuple[Response, int]:
        """Another token; those before end at once, or after `grace_seconds`."""
        body = _body("grace_seconds")
        grace = body.get("grace_seconds", 0)
        if type(grace) is not int:
            raise BadRequest("grace_seconds must be a whole number")
        token = self._manage.rotate(ACTOR, ref, grace)
        return jsonify({"name": self._look.one(ref)["name"], "token": token}), 201

    def apply(self, ref: str) -> Response:
        """Makes its checks what the body says."""
        body = _body("checks", "prune", "dry_run")
        listed, prune, dry_run = body.get("checks"), body.get("prune", False), body.get("dry_run", False)
        if not isinstance(listed, list) or len(listed) > CHECKS_MAX:
            raise BadRequest(f"checks must be a list of at most {CHECKS_MAX}")
        if type(prune) is not bool or type(dry_run) is not bool:
            raise BadRequest("prune and dry_run must be true or false")
        return jsonify(self._manage.apply(ACTOR, ref, listed, prune=prune, dry_run=dry_run))

    def checks(self, ref: str) -> Response:
        """Its checks, secrets hidden."""
        return jsonify({"checks": self._look.checks(ref)})

    def create_check(self, ref: str) -> tuple[Response, int]:
        """A new check."""
        made = self._manage.create_check(ACTOR, ref, _body())
        return jsonify(self._look.check(ref, made)), 201

    def check(self, ref: str, check_id: str) -> Response:
        """One check."""
        return jsonify(self._look.check(ref, check_id))

    def change_check(self, ref: str, check_id: str) -> Response:
        """Changes the fields that the body names; null takes one away."""
        self._manage.change_check(ACTOR, ref, check_id, _body())
        return jsonify(self._look.check(ref, check_id))

    def delete_check(self, ref: str, check_id: str) -> tuple[str, int]:
        """Deletes a check with its history."""
        self._manage.delete_check(ACTOR, ref, check_id)
        return "", 204

    def events(self, ref: str) -> Response:
        """What agents saw, newest first."""
        text = request.args.get("limit", str(EVENTS))
        if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= EVENTS_MAX:
            raise BadRequest(f"limit must be a number from 1 to {EVENTS_MAX}")
        return jsonify({"events": self._look.events(ref, int(text), request.args.get("check_id"))})

    def discoveries(self, ref: str) -> Response:
        """What was discovered."""
        return jsonify(self._look.discoveries(ref))

    def series(self, ref: str) -> Response:
        """The newest host metrics."""
        return jsonify({"series": self._look.series(ref)})


def _admit(token: str | None) -> None:
    admit_reader(token)
    if request.method in ("POST", "PATCH") and request.mimetype != "application/json":
        raise UnsupportedMediaType("a write needs the header Content-Type: application/json")


def _refused(error: UsageError) -> Response:
    return trouble(404 if isinstance(error, Unknown) else 409 if isinstance(error, Taken) else 400, str(error))


def _body(*names: str) -> dict[str, Any]:
    """The object of the body, which holds none but these fields where some are named; none is an empty one there."""
    data = request.get_data(cache=False)
    body = wire.read_json(data) if data or not names else {}
    if not isinstance(body, dict) or (names and not body.keys() <= set(names)):
        raise BadRequest(f"the body must be an object{' with ' + ', '.join(names) if names else ''}")
    return body


def _clean(text: str) -> str:
    """No database can be asked for half of a surrogate pair."""
    return wire.clean(text, len(text))
