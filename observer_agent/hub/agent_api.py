"""The face for agents: `/api/agent/...` (docs/wire.md, "Every request" and the sections after it).

Each request is let in by its key; its start time is held against the newest known one before anything is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flask import Blueprint, Response, jsonify, request
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge

from observer_agent.clock import iso
from observer_agent.hub import pings, wire
from observer_agent.hub.access import admit_agent, current_agent
from observer_agent.hub.look import Look
from observer_agent.hub.store import Fenced, Store

VERSION_HEADER = "x-observer-definitions-version"


def agent_api(store: Store, look: Look) -> Blueprint:
    """The endpoints, over one store."""
    face = Blueprint("agent", __name__, url_prefix="/api/agent")
    api = _AgentApi(store, look)
    face.before_request(lambda: admit_agent(store))
    face.add_url_rule("/metrics-definitions", "definitions", api.definitions, methods=["GET"])
    face.add_url_rule("/receiver", "single", api.single, methods=["POST"])
    face.add_url_rule("/receiver/batch", "batch", api.batch, methods=["POST"])
    face.add_url_rule("/heartbeat", "heartbeat", api.heartbeat, methods=["POST"])
    face.add_url_rule("/heartbeat-relay", "relay", api.relay, methods=["POST"])
    face.add_url_rule("/log", "log", api.log_line, methods=["POST"])
    return face


class _AgentApi:
    def __init__(self, store: Store, look: Look) -> None:
        self._store = store
        self._look = look

    def definitions(self) -> Response:
        """The definitions for this agent, with their version in a header."""
        self._store.notice(current_agent(), _started())
        found = self._look.definitions(current_agent())
        return Response(found.body, mimetype="application/json", headers={VERSION_HEADER: found.version})

    def single(self) -> tuple[Response, int]:
        """One row; one that is at fault is 400, since there is nothing else in the request."""
        body = _body()
        if not isinstance(body, dict):
            raise BadRequest("the body must be one row, an object")
        rows, rejects = wire.read_rows([body])
        if rejects:
            bad = rejects[0]
            text = {"error": "invalid_row", "message": f"{bad.field}: {bad.code}", **_reject(bad)}
            return jsonify(text), 400
        return self._take(rows, rejects, 1)

    def batch(self) -> tuple[Response, int]:
        """Up to 100 rows in queue order; more are 413, which makes a sender try with fewer."""
        body = _body()
        if isinstance(body, list) and len(body) > wire.BATCH_MAX:
            raise RequestEntityTooLarge(f"a batch holds at most {wire.BATCH_MAX} rows")
        rows, rejects = wire.read_rows(body)
        return self._take(rows, rejects, len(rows) + len(rejects))

    def heartbeat(self) -> Response:
        """The answer names the version of the definitions, so that the agent fetches them when they change."""
        beat = wire.read_heartbeat(_body())
        started = _started() if "Agent-Started-At" in request.headers else beat.started_at
        self._store.beat(current_agent(), started, beat)
        return jsonify({"definitions_version": self._look.definitions(current_agent()).version})

    def relay(self) -> Response:
        """Pings of jobs, from whichever process of the agent: they are the job's, not its own."""
        found = pings.read(_body(), self._store.now())
        self._store.notice(current_agent(), _started())
        codes = self._store.jobs.take(current_agent().id, found)
        rejected = [{"index": at, "code": code} for at, code in enumerate(codes) if code]
        return jsonify({"accepted": len(codes) - len(rejected), "rejected": rejected})

    def log_line(self) -> Response:
        """Taken and let go: this version keeps no log lines of agents."""
        if not isinstance(_body(), dict):
            raise BadRequest("the body must be an object")
        self._store.notice(current_agent(), _started())
        return jsonify({})

    def _take(self, rows: Sequence[wire.Row], rejects: list[wire.Reject], count: int) -> tuple[Response, int]:
        sequence = wire.read_sequence(request.headers.get("Push-Sequence"), count)
        taken = self._store.take(current_agent(), _started(), rows, sequence)
        if isinstance(taken, Fenced):
            return jsonify({"error": "stale_process", "newer_started_at": iso(taken.newer)}), 409
        refused = sorted([*rejects, *taken.rejects])
        accepted = taken.stored + taken.duplicates
        answer = {"accepted": accepted, "rejected": [_reject(r) for r in refused], "duplicates": taken.duplicates}
        return jsonify(answer), 200


def _started() -> float | None:
    return wire.read_instant(request.headers.get("Agent-Started-At"))


def _body() -> Any:
    return wire.read_json(request.get_data(cache=False))


def _reject(bad: wire.Reject) -> dict[str, Any]:
    return {"index": bad.at, "field": bad.field, "code": bad.code}
