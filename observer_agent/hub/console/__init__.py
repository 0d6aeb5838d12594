"""The face for people: the console, made on the server, a little script on top; nothing on it comes from another host.

    door.py        who may come in, forms that are ours, the headers of every page
    parts.py       what every view is handed; a page or its live part of a template
    agents.py      the overview, the agents, one agent
    metrics.py     the metrics, one metric
    services.py    the services and their objectives, one service, which status pages there are
    journal.py     events and the audit log
    hooks.py       webhooks and their deliveries
    keyring.py     keys of agents
    lighthouses.py lighthouses, agents of the second dialect
    status.py      the public status pages
    facts.py       what the pages ask the database beyond `Look`
    words.py       pure: times, numbers and statuses for people
    draw.py        pure: points to SVG paths

Runs on the threads of the server.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Request, Response, make_response, render_template
from flask.blueprints import BlueprintSetupState
from werkzeug.exceptions import HTTPException

from observer_agent import __version__
from observer_agent.clock import Clock
from observer_agent.hub.console import draw, words
from observer_agent.hub.console.agents import Agents
from observer_agent.hub.console.door import FIELD, POLICY, Door, own_form_token, wants_html
from observer_agent.hub.console.hooks import Hooks
from observer_agent.hub.console.journal import Journal
from observer_agent.hub.console.keyring import Keyring
from observer_agent.hub.console.lighthouses import Lighthouses
from observer_agent.hub.console.metrics import Metrics
from observer_agent.hub.console.parts import Parts
from observer_agent.hub.console.services import Services
from observer_agent.hub.console.status import Status

PAGES = (
    ("overview", "Overview"),
    ("agents", "Agents"),
    ("lighthouses", "Lighthouses"),
    ("metrics", "Metrics"),
    ("services", "Services"),
    ("events", "Events"),
    ("webhooks", "Webhooks"),
    ("keys", "Keys"),
    ("audit", "Audit log"),
)


def console(parts: Parts, token: str | None, public_pages: bool) -> Blueprint:
    """The pages, their style and their script."""
    face = Blueprint("console", __name__, template_folder="templates", static_folder="static")
    door = Door(parts.store.database, parts.clock, token, public_pages)
    face.before_request(door.admit)
    face.after_request(door.finish)
    face.record_once(lambda setup: _teach(setup, parts.clock, door))
    _doors(face, door)
    _views(face, parts)
    return face


def is_for_people(given: Request) -> bool:
    """Whether the answer to a request is read by a person, and so a page."""
    return wants_html(given) and not given.path.startswith(("/api/", "/metrics"))


def error_page(error: HTTPException) -> Response:
    """What is not there, not allowed or has failed, as a page."""
    facts = {"title": error.name, "message": error.description}
    response = make_response(render_template("error.html", layout="public.html", **facts), error.code or 500)
    response.headers["Content-Security-Policy"] = POLICY
    return response


def _doors(face: Blueprint, door: Door) -> None:
    face.add_url_rule("/login", "login", door.login, methods=["GET"])
    face.add_url_rule("/login", "enter", door.enter, methods=["POST"])
    face.add_url_rule("/logout", "leave", door.leave, methods=["POST"])


def _views(face: Blueprint, parts: Parts) -> None:
    agents, metrics, journal = Agents(parts), Metrics(parts), Journal(parts)
    hooks, keyring, status, services = Hooks(parts), Keyring(parts), Status(parts), Services(parts)
    face.add_url_rule("/", "overview", agents.overview)
    face.add_url_rule("/console/agents", "agents", agents.index)
    face.add_url_rule("/console/agent", "agent", agents.detail)
    lighthouses = Lighthouses(parts)
    face.add_url_rule("/console/lighthouses", "lighthouses", lighthouses.index, methods=["GET"])
    face.add_url_rule("/console/lighthouses", "create_lighthouse", lighthouses.create, methods=["POST"])
    face.add_url_rule("/console/lighthouses/act", "act_on_lighthouse", lighthouses.act, methods=["POST"])
    face.add_url_rule("/console/lighthouse", "lighthouse", lighthouses.detail, methods=["GET"])
    face.add_url_rule("/console/metrics", "metrics", metrics.index)
    face.add_url_rule("/console/metric", "metric", metrics.detail)
    face.add_url_rule("/console/services", "services", services.index)
    face.add_url_rule("/console/service", "service", services.detail)
    face.add_url_rule("/console/events", "events", journal.events)
    face.add_url_rule("/console/webhooks", "webhooks", hooks.page, methods=["GET"])
    face.add_url_rule("/console/webhooks", "create_webhook", hooks.create, methods=["POST"])
    face.add_url_rule("/console/webhook", "webhook", hooks.detail, methods=["GET"])
    face.add_url_rule("/console/webhook", "change_webhook", hooks.change, methods=["POST"])
    face.add_url_rule("/console/webhooks/act", "act_on_webhook", hooks.act, methods=["POST"])
    face.add_url_rule("/console/keys", "keys", keyring.page, methods=["GET"])
    face.add_url_rule("/console/keys", "create_key", keyring.create, methods=["POST"])
    face.add_url_rule("/console/keys/rotate", "rotate_key", keyring.rotate, methods=["POST"])
    face.add_url_rule("/console/keys/revoke", "revoke_key", keyring.revoke, methods=["POST"])
    face.add_url_rule("/console/audit", "audit", journal.audit)
    face.add_url_rule("/status/<subdomain>", "status_page", status.page)


def _teach(setup: BlueprintSetupState, clock: Clock, door: Door) -> None:
    """The words that templates know."""
    plain = (words.status, words.sign, words.breaks, words.span, words.count, words.number, words.percent, words.plural)
    known: dict[str, Any] = {each.__name__: each for each in (*plain, words.stamp)}
    environment = setup.app.jinja_env
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.finalize = words.straight
    environment.globals.update(
        known,
        when=words.Words(clock).when,
        strip_paths=draw.strip,
        PAGES=PAGES,
        STATUSES=words.STATUSES,
        PUBLIC=words.PUBLIC,
        OBJECTIVES=words.OBJECTIVES,
        public_pages=door.public_pages,
        ALERTS=words.ALERTS,
        LIGHTHOUSES=words.LIGHTHOUSES,
        CHECKS=words.CHECKS,
        FIELD=FIELD,
        form_token=own_form_token,
        guarded=door.guarded,
        version=__version__,
    )
