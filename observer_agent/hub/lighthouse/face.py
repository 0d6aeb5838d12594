"""The face for agents: `/api/lighthouse/v1/...`, every endpoint a POST, errors as `{"error": text}`.

Each request is let in by its bearer token, and its instance held against the active one, before anything is taken. The
success statuses are exact: 200, for events 202, for shutdown and host metrics 204. Runs on the threads of the server.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, abort, g, jsonify, make_response, request

from observer_agent.hub import wire as common
from observer_agent.hub.lighthouse import samples, wire
from observer_agent.hub.lighthouse.door import INSTANCE_MAX, TOKEN_MAX, Caller, Refused
from observer_agent.hub.lighthouse.intake import Intake

PREFIX = "/api/lighthouse/v1"
SNAPSHOT_MAX = 4 * 1024 * 1024
PROTOBUF = "application/x-protobuf"


def lighthouse_face(intake: Intake) -> Blueprint:
    """The endpoints."""
    face = Blueprint("lighthouse_agent", __name__, url_prefix=PREFIX)
    api = _Face(intake)
    face.before_request(api.admit)
    face.register_error_handler(wire.TooMany, lambda error: trouble(413, str(error)))
    for name in ("register", "heartbeat", "events", "discoveries", "shutdown"):
        face.add_url_rule(f"/{name}", name, getattr(api, name), methods=["POST"])
    face.add_url_rule("/host-metrics", "host_metrics", api.host_metrics, methods=["POST"])
    return face


def trouble(status: int, text: str | None) -> Response:
    """A refusal as this dialect writes it."""
    return make_response(jsonify({"error": text or "refused"}), status)


class _Face:
    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def admit(self) -> Response | None:
        """Whose token it is, and which of its processes calls."""
        if request.endpoint == "lighthouse_agent.discoveries":
            request.max_content_length = SNAPSHOT_MAX
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not 1 <= len(token) <= TOKEN_MAX:
            return trouble(401, "the header Authorization is missing or holds no bearer token")
        found = self._intake.whose(token)
        if isinstance(found, Refused):
            return trouble(*found)
        instance = common.clean(request.headers.get("X-Lighthouse-Instance-Id", ""), INSTANCE_MAX)
        uptime = wire.read_uptime(request.headers.get("X-Lighthouse-Process-Uptime"))
        g.caller = Caller(found, instance, self._intake.started(uptime))
        return None

    def register(self) -> Response:
        """A process begins."""
        return _answer(self._intake.register(g.caller, wire.read_registration(_body())))

    def heartbeat(self) -> Response:
        """A process lives."""
        return _answer(self._intake.beat(g.caller, wire.read_beat(_body())))

    def events(self) -> Response:
        """States of checks; nothing of a refused request is kept."""
        return _answer(self._intake.events(g.caller, wire.read_batch(_body())), 202)

    def discoveries(self) -> Response:
        """What there is in a cluster."""
        return _answer(self._intake.discoveries(g.caller, wire.read_snapshot(_body())))

    def shutdown(self) -> Response:
        """A process ends in order; on the seed page it says so without a body."""
        data = request.get_data(cache=False)
        reason = wire.read_reason(common.read_json(data) if data.strip() else None)
        return _answer(self._intake.shutdown(g.caller, reason), 204)

    def host_metrics(self) -> Response:
        """Remote write 1.0, decoded where the libraries are installed."""
        if request.mimetype != PROTOBUF or request.headers.get("Content-Encoding", "").lower() != "snappy":
            abort(415, f"host metrics are {PROTOBUF} with Content-Encoding: snappy")
        try:
            found = samples.decode(request.get_data(cache=False))
        except ImportError:
            return trouble(503, "relay not configured")
        return _answer(self._intake.host_metrics(g.caller, found), 204)


def _body() -> Any:
    return common.read_json(request.get_data(cache=False))


def _answer(found: dict[str, Any] | Refused, status: int = 200) -> Response:
    if isinstance(found, Refused):
        return trouble(*found)
    return Response(status=status) if status == 204 else make_response(jsonify(found), status)
