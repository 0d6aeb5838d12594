"""Who may come in: an agent by its key, everybody else by the token, or from this machine where there is none.

Comparisons take the same time whether they match or not; what was given is never shown.
"""

from __future__ import annotations

import hashlib
import hmac
from ipaddress import ip_address

from flask import Request, g, request
from werkzeug.exceptions import Forbidden, Unauthorized

from observer_agent.hub.store import Agent, Store

KEY_MAX = 256


def is_loopback(host: str) -> bool:
    """Whether a name or address can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def admit_agent(store: Store) -> None:
    """Lets a request in by its `Agent-Key` and remembers whose it is; else 401."""
    key = request.headers.get("Agent-Key", "")
    agent = store.agent_of(key) if 1 <= len(key) <= KEY_MAX else None
    if agent is None:
        raise Unauthorized("the header Agent-Key is missing or holds no key that is known here")
    g.agent = agent


def current_agent() -> Agent:
    """Whose request this is; only after `admit_agent`."""
    agent: Agent = g.agent
    return agent


def admit_reader(token: str | None) -> None:
    """Lets a request in by the bearer token; where there is none, only one that was addressed to this machine."""
    if token is not None:
        if not _bears(request, token):
            raise Unauthorized("the bearer token of OBSERVER_HUB_TOKEN is needed")
    elif not is_loopback(_host_name(request.host)):
        # A page elsewhere whose name was pointed at 127.0.0.1 must not read a hub without a token.
        raise Forbidden("without OBSERVER_HUB_TOKEN this is served to 127.0.0.1 and localhost alone")


def _bears(given: Request, token: str) -> bool:
    scheme, _, text = given.headers.get("Authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(_digest(text.strip()), _digest(token))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _host_name(host: str) -> str:
    return host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
