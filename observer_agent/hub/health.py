"""Whether this process lives, and whether it can work: `/healthz` and `/readyz`, for balancers and containers.

Open to everybody, because they tell nothing else. Runs on the threads of the server.
"""

from __future__ import annotations

from flask import Blueprint, Response
from sqlalchemy import text

from observer_agent.hub.database import Database


def health(database: Database) -> Blueprint:
    """The two paths; a database that does not answer makes `/readyz` a 503, like everything that needs it."""
    face = Blueprint("health", __name__)
    face.add_url_rule("/healthz", "lives", _ok)

    def ready() -> Response:
        with database.glance() as conn:
            conn.execute(text("SELECT 1"))
        return _ok()

    face.add_url_rule("/readyz", "ready", ready)
    return face


def _ok() -> Response:
    return Response("ok\n", content_type="text/plain; charset=utf-8")
