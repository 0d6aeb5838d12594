"""The face for programs, the past: history and uptime under `/api/v1`, JSON, oldest first."""

from __future__ import annotations

import re

from flask import Blueprint, Response, jsonify, request
from werkzeug.exceptions import BadRequest, NotFound

from observer_agent.clock import Clock
from observer_agent.hub.access import admit_reader
from observer_agent.hub.database import Database
from observer_agent.hub.history import RAW, STEPS, History, TooMuch, Window
from observer_agent.hub.rollup import DAY
from observer_agent.hub.wire import read_instant

DAYS_DEFAULT = 30
DAYS_MAX = 3660
LONGEST = {"hour": 7 * DAY, "day": 90 * DAY, RAW: DAY}  # where the beginning is not given


def history_api(database: Database, clock: Clock, token: str | None) -> Blueprint:
    """The endpoints, over one database."""
    face = Blueprint("history", __name__, url_prefix="/api/v1")
    api = _HistoryApi(History(database, clock), clock)
    face.before_request(lambda: admit_reader(token))
    face.add_url_rule("/metrics/<opaque:metric_id>/history", "history", api.history)
    face.add_url_rule("/metrics/<opaque:metric_id>/uptime", "uptime", api.uptime)
    face.add_url_rule("/uptime", "uptimes", api.uptimes)
    return face


class _HistoryApi:
    def __init__(self, past: History, clock: Clock) -> None:
        self._past = past
        self._clock = clock

    def history(self, metric_id: str) -> Response:
        """Hours, days or rows between two instants."""
        given = request.args
        step = given.get("step", "hour")
        if step not in (*STEPS, RAW):
            raise BadRequest("step must be hour, day or raw")
        end = _instant("to", self._clock.now())
        begin = _instant("from", end - LONGEST[step])
        if begin >= end:
            raise BadRequest("from must be before to")
        try:
            found = self._past.series(metric_id, Window(begin, end), step, given.get("agent_id"))
        except TooMuch:
            raise BadRequest("too many points: ask for a shorter time, a longer step or one agent_id") from None
        return _answer(found)

    def uptime(self, metric_id: str) -> Response:
        """One metric's seconds by status."""
        return _answer(self._past.uptime(metric_id, _days()))

    def uptimes(self) -> Response:
        """Every metric's seconds by status."""
        return jsonify(self._past.uptimes(_days()))


def _answer(found: object | None) -> Response:
    if found is None:
        raise NotFound("there is no such metric")
    return jsonify(found)


def _days() -> int:
    text = request.args.get("days", str(DAYS_DEFAULT))
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= DAYS_MAX:
        raise BadRequest(f"days must be a number from 1 to {DAYS_MAX}")
    return int(text)


def _instant(name: str, default: float) -> float:
    """An ISO 8601 instant or seconds since 1970."""
    text = request.args.get(name)
    if text is None:
        return default
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", text):
        found: float | None = float(text)
    else:
        found = read_instant(text.replace(" ", "+"))  # a plus sign that was not encoded
    if found is None or found < 0:
        raise BadRequest(f"{name} must be an ISO 8601 instant with its offset, or seconds since 1970")
    return found
