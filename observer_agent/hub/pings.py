"""Pings of jobs, as an agent's relay hands them on (docs/wire.md): each is held against its form. Pure.

This version has no heartbeat metrics that a token could belong to, so a ping that is well formed is `not_found`.
"""

from __future__ import annotations

import re
from typing import Any

from werkzeug.exceptions import BadRequest, RequestEntityTooLarge

from observer_agent.hub import wire

MOST = 50
KINDS = ("success", "start", "fail")
_TOKEN = re.compile(r"[A-Za-z0-9]{22,64}")


def codes(body: Any) -> list[str]:
    """What is said to each ping of a request, in its order; raises BadRequest, RequestEntityTooLarge."""
    pings = body.get("pings") if isinstance(body, dict) else None
    if not isinstance(pings, list):
        raise BadRequest("the body must be an object with pings, a list")
    if len(pings) > MOST:
        raise RequestEntityTooLarge(f"a request holds at most {MOST} pings")
    return ["not_found" if _is_ping(each) else "invalid" for each in pings]


def _is_ping(ping: Any) -> bool:
    if not isinstance(ping, dict):
        return False
    token, code = ping.get("token"), ping.get("exit_code")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token) or ping.get("kind") not in KINDS:
        return False
    texts = (ping.get("body"), ping.get("user_agent"))
    if not all(each is None or isinstance(each, str) for each in texts):
        return False
    known = code is None or (isinstance(code, int) and not isinstance(code, bool) and 0 <= code <= 255)
    received = ping.get("received_at")
    return known and isinstance(received, str) and wire.read_instant(received) is not None
