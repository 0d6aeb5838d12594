"""The Flask application: the faces joined, every error as JSON, limits on what comes in."""

from __future__ import annotations

from flask import Flask, Response, jsonify, request
from sqlalchemy.exc import ProgrammingError
from werkzeug.exceptions import BadRequest, HTTPException

from observer_agent.clock import Clock
from observer_agent.hub import wire
from observer_agent.hub.access import Gate
from observer_agent.hub.agent_api import agent_api
from observer_agent.hub.console import console, error_page, is_for_people
from observer_agent.hub.console.parts import Parts
from observer_agent.hub.database import AWAY
from observer_agent.hub.document_api import document_api
from observer_agent.hub.expose import expose
from observer_agent.hub.guard import NOTHING_MORE, Allow
from observer_agent.hub.health import health
from observer_agent.hub.history import History
from observer_agent.hub.history_api import history_api
from observer_agent.hub.keys_api import keys_api
from observer_agent.hub.lighthouse.api import lighthouse_api
from observer_agent.hub.lighthouse.face import lighthouse_face
from observer_agent.hub.lighthouse.intake import Intake
from observer_agent.hub.lighthouse.look import Look as LighthouseLook
from observer_agent.hub.lighthouse.manage import Manage
from observer_agent.hub.limits import BehindProxies, Limits
from observer_agent.hub.look import Look
from observer_agent.hub.openapi import openapi_api
from observer_agent.hub.patient import told
from observer_agent.hub.read_api import Opaque, read_api
from observer_agent.hub.settings import Settings
from observer_agent.hub.store import Store
from observer_agent.hub.webhook_api import webhook_api
from observer_agent.hub.webhooks import Webhooks

BODY_MAX = 1024 * 1024
CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    429: "too_many_requests",
    415: "unsupported_media_type",
    500: "internal",
}


def create_app(
    store: Store,
    clock: Clock,
    token: str | None = None,
    *,
    public_pages: bool = False,
    allow: Allow = NOTHING_MORE,
    limits: Limits | None = None,
) -> Flask:
    """The hub as a WSGI application; with a token everything but `/api/agent` needs it as bearer.

    `limits` are how often one may come; None is as often as one likes.
    """
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = BODY_MAX
    app.url_map.converters["opaque"] = Opaque
    app.url_map.merge_slashes = False
    app.json.sort_keys = False  # type: ignore[attr-defined]
    look = Look(store.database, clock)
    app.register_blueprint(agent_api(store, look))
    app.register_blueprint(read_api(look, token))
    app.register_blueprint(keys_api(store.keys, token))
    app.register_blueprint(history_api(store.database, clock, token))
    app.register_blueprint(document_api(store, token))
    app.register_blueprint(expose(look, token))
    app.register_blueprint(openapi_api(token))
    app.register_blueprint(health(store.database))
    app.register_blueprint(lighthouse_face(Intake(store.database, clock)))
    app.register_blueprint(lighthouse_api(Manage(store.database, clock), LighthouseLook(store.database, clock), token))
    webhooks = Webhooks(store.database, clock, allow)
    app.register_blueprint(webhook_api(webhooks, token))
    parts = Parts(store, look, clock, webhooks, History(store.database, clock))
    app.register_blueprint(console(parts, token, public_pages))
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(wire.Malformed, _malformed)
    for refusal in (*AWAY, ProgrammingError):
        app.register_error_handler(refusal, _unavailable)
    app.after_request(_guard)
    gate = Gate(clock, limits or Limits(None, None))
    app.before_request(gate.before)
    app.before_request(_readable)
    app.after_request(gate.after)
    if limits and limits.trusted:
        app.wsgi_app = BehindProxies(app.wsgi_app, limits.trusted)  # type: ignore[method-assign]
    return app


def from_settings(store: Store, clock: Clock, found: Settings) -> Flask:
    """The application as the settings want it."""
    public, allow = found.public_pages, found.webhook_allow
    return create_app(store, clock, found.token, public_pages=public, allow=allow, limits=found.limits)


def _http_error(error: HTTPException) -> Response | tuple[Response, int, list[tuple[str, str]]]:
    if is_for_people(request):
        return error_page(error)
    code = error.code or 500
    kept = [(name, value) for name, value in error.get_headers() if name in ("Allow", "Location", "Retry-After")]
    if code == 401 and not request.path.startswith(("/api/agent/", "/api/lighthouse/")):
        kept.append(("WWW-Authenticate", "Bearer"))
    word = CODES.get(code, (error.name or "error").lower().replace(" ", "_"))
    return _worded(word, error.description), code, kept


def _malformed(error: wire.Malformed) -> tuple[Response, int]:
    return _worded("bad_request", str(error)), 400


def _unavailable(error: Exception) -> tuple[Response, int, dict[str, str]]:
    """A full disk, a locked file, a server that restarts are for a while: agents keep their rows and come back."""
    told(error)
    return _worded("storage_unavailable", "the database refused; try again later"), 503, {"Retry-After": "5"}


def _worded(code: str, text: str | None) -> Response:
    """An error as the dialect of its path writes it."""
    dialect = request.path.startswith(("/api/lighthouse/", "/api/lighthouses"))
    return jsonify({"error": text or code} if dialect else {"error": code, "message": text})


def _readable() -> None:
    """PostgreSQL cannot be asked for a text with a NUL."""
    if "\0" in request.path or any("\0" in each for each in request.args.values()):
        raise BadRequest("the URL holds a NUL")


def _guard(response: Response) -> Response:
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cache-Control"] = "no-store"
    return response
