"""The Flask application: the faces joined, every error as JSON, limits on what comes in."""

from __future__ import annotations

import logging

from flask import Flask, Response, jsonify, request
from sqlalchemy.exc import OperationalError
from werkzeug.exceptions import HTTPException

from observer_agent.clock import Clock
from observer_agent.hub import wire
from observer_agent.hub.agent_api import agent_api
from observer_agent.hub.expose import expose
from observer_agent.hub.look import Look
from observer_agent.hub.pages import pages
from observer_agent.hub.read_api import read_api
from observer_agent.hub.store import Store

log = logging.getLogger(__name__)

BODY_MAX = 1024 * 1024
CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    500: "internal",
}


def create_app(store: Store, clock: Clock, token: str | None = None) -> Flask:
    """The hub as a WSGI application; with a token everything but `/api/agent` needs it as bearer."""
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = BODY_MAX
    app.json.sort_keys = False  # type: ignore[attr-defined]
    look = Look(store.database, clock)
    app.register_blueprint(agent_api(store, look))
    app.register_blueprint(read_api(look, token))
    app.register_blueprint(expose(look, token))
    app.register_blueprint(pages(look, token))
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(wire.Malformed, _malformed)
    app.register_error_handler(OperationalError, _unavailable)
    app.after_request(_guard)
    return app


def _http_error(error: HTTPException) -> tuple[Response, int, list[tuple[str, str]]]:
    code = error.code or 500
    kept = [(name, value) for name, value in error.get_headers() if name in ("Allow", "Location")]
    if code == 401 and not request.path.startswith("/api/agent/"):
        kept.append(("WWW-Authenticate", "Bearer"))
    body = {"error": CODES.get(code, (error.name or "error").lower().replace(" ", "_")), "message": error.description}
    return jsonify(body), code, kept


def _malformed(error: wire.Malformed) -> tuple[Response, int]:
    return jsonify({"error": "bad_request", "message": str(error)}), 400


def _unavailable(error: OperationalError) -> tuple[Response, int, dict[str, str]]:
    """A full disk or a locked file is for a while: agents keep their rows and come back."""
    log.error("The database refused (%s); agents keep their rows and try again", error.orig)
    body = {"error": "storage_unavailable", "message": "the database refused; try again later"}
    return jsonify(body), 503, {"Retry-After": "5"}


def _guard(response: Response) -> Response:
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cache-Control"] = "no-store"
    return response
