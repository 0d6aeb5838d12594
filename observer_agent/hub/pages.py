"""The face for people: one plain page with agents and metrics; nothing on it comes from another host."""

from __future__ import annotations

from flask import Blueprint, Response, render_template

from observer_agent.hub.access import admit_reader
from observer_agent.hub.look import Look

POLICY = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def pages(look: Look, token: str | None) -> Blueprint:
    """The page and its style."""
    face = Blueprint("pages", __name__, template_folder="templates", static_folder="static")
    face.before_request(lambda: admit_reader(token))
    face.after_request(_guard)
    face.add_url_rule("/", "overview", lambda: _overview(look))
    return face


def _overview(look: Look) -> str:
    agents = look.agents()
    names = {agent["id"]: agent["name"] for agent in agents}
    return render_template("overview.html", agents=agents, metrics=look.metrics(), names=names)


def _guard(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    return response
