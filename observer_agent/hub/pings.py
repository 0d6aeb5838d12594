"""Pings of jobs, as an agent's relay hands them on (docs/wire.md): each is held against its form. Pure.

What is well formed leaves as a `Ping`, with its moment by the hub's clock: the agent says how long ago it was.
"""

from __future__ import annotations

import re
from typing import Any

from werkzeug.exceptions import BadRequest, RequestEntityTooLarge

from observer_agent.hub import wire
from observer_agent.hub.jobs import FAIL, START, SUCCESS, Ping

MOST = 50
KINDS = (SUCCESS, START, FAIL)
_TOKEN = re.compile(r"[A-Za-z0-9]{22,64}")


def read(body: Any, now: float) -> list[Ping | None]:
    """The pings of a request in its order, None for what is none; raises BadRequest, RequestEntityTooLarge."""
    pings = body.get("pings") if isinstance(body, dict) else None
    if not isinstance(pings, list):
        raise BadRequest("the body must be an object with pings, a list")
    if len(pings) > MOST:
        raise RequestEntityTooLarge(f"a request holds at most {MOST} pings")
    sent = body.get("sent_at")
    sent_at = wire.read_instant(sent) if isinstance(sent, str) else None
    return [_ping(each, sent_at, now) for each in pings]


def _ping(ping: Any, sent_at: float | None, now: float) -> Ping | None:
    if not isinstance(ping, dict):
        return None
    token, kind, code = ping.get("token"), ping.get("kind"), ping.get("exit_code")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token) or kind not in KINDS:
        return None
    texts = (ping.get("body"), ping.get("user_agent"))
    if not all(each is None or isinstance(each, str) for each in texts):
        return None
    known = code is None or (isinstance(code, int) and not isinstance(code, bool) and 0 <= code <= 255)
    received = ping.get("received_at")
    stamp = wire.read_instant(received) if isinstance(received, str) else None
    if not known or stamp is None:
        return None
    ago = (now if sent_at is None else sent_at) - stamp
    return Ping(token, kind, code, stamp, now - max(0.0, ago))
