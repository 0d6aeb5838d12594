"""The face for programs: `/api/v1/...`, JSON, newest first."""

from __future__ import annotations

import re

from flask import Blueprint, Response, jsonify, request
from werkzeug.exceptions import BadRequest, NotFound
from werkzeug.routing import BaseConverter

from observer_agent.hub.access import admit_reader
from observer_agent.hub.look import Look

LIMIT_MAX = 10_000
LIMIT_DEFAULT = 100


class Opaque(BaseConverter):
    """A part of a path that is any text, slashes at its beginning and in a row included: the id of a metric, a name."""

    regex = ".+?"
    part_isolating = False


def read_api(look: Look, token: str | None) -> Blueprint:
    """The endpoints, over one look."""
    face = Blueprint("read", __name__, url_prefix="/api/v1")
    face.before_request(lambda: admit_reader(token))
    face.add_url_rule("/agents", "agents", lambda: jsonify({"agents": look.agents()}))
    face.add_url_rule("/events", "events", lambda: _events(look))
    face.add_url_rule("/metrics", "metrics", lambda: jsonify({"metrics": look.metrics()}))
    face.add_url_rule("/metrics/<opaque:metric_id>/pushes", "pushes", lambda metric_id: _pushes(look, metric_id))
    return face


def _pushes(look: Look, metric_id: str) -> Response:
    found = look.pushes(metric_id, _limit(request.args.get("limit")))
    if found is None:
        raise NotFound("there is no such metric")
    return jsonify({"pushes": found})


def _events(look: Look) -> Response:
    given = request.args
    found = look.events(_limit(given.get("limit")), given.get("agent_id"), given.get("metric_id"))
    return jsonify({"events": found})


def _limit(text: str | None) -> int:
    if text is None:
        return LIMIT_DEFAULT
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= LIMIT_MAX:
        raise BadRequest(f"limit must be a number from 1 to {LIMIT_MAX}")
    return int(text)
