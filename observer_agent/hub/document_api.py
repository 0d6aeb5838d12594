"""The face for documents of definitions: POST /api/v1/apply and GET /api/v1/export.

Let in like the rest of `/api/v1`. A document must come as YAML or JSON by its Content-Type, which no form or script of
another site can send without asking first.
"""

from __future__ import annotations

from flask import Blueprint, Response, jsonify, request
from werkzeug.exceptions import BadRequest, UnsupportedMediaType

from observer_agent import document
from observer_agent.errors import DocumentError
from observer_agent.hub.access import admit_reader
from observer_agent.hub.apply import Options, apply, check
from observer_agent.hub.form import held, to_text
from observer_agent.hub.store import Store
from observer_agent.hub.tell import as_objects

ACTOR = "api"
BODY_MAX = 4 * 1024 * 1024
SOURCE = "document"
TYPES = ("application/json", "application/yaml", "application/x-yaml", "text/yaml")
FLAGS = {"true": True, "false": False}


def document_api(store: Store, token: str | None) -> Blueprint:
    """The endpoints, over one store."""
    face = Blueprint("documents", __name__, url_prefix="/api/v1")
    face.before_request(lambda: admit_reader(token))
    face.add_url_rule("/apply", "apply", lambda: _apply(store), methods=["POST"])
    face.add_url_rule("/export", "export", lambda: _export(store))
    return face


def _apply(store: Store) -> tuple[Response, int]:
    options = Options(_flag("dry_run"), _flag("prune"), _flag("allow_partial"), ACTOR)
    try:
        found = document.read(_text(), SOURCE, check)
    except DocumentError as error:
        return jsonify({"error": "invalid_document", "message": str(error)}), 422
    outcome = apply(store, found, options)
    body = as_objects(outcome)
    if not outcome.refused:
        return jsonify(body), 200
    message = "something would be left out: see remarks; nothing was applied"
    return jsonify({"error": "invalid_document", "message": message, **body}), 422


def _text() -> str:
    if request.mimetype not in TYPES:
        raise UnsupportedMediaType(f"the Content-Type must be one of {', '.join(TYPES)}")
    request.max_content_length = BODY_MAX
    try:
        return request.get_data().decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("the body is not UTF-8 text") from None


def _flag(name: str) -> bool:
    given = request.args.get(name, "false")
    if given not in FLAGS:
        raise BadRequest(f"{name} must be true or false")
    return FLAGS[given]


def _export(store: Store) -> Response:
    with store.database.read() as conn:
        text = to_text(held(conn))
    return Response(text, mimetype="application/yaml")
