"""Who may come in: an agent by its key, everybody else by the token, or from this machine where there is none.

Comparisons take the same time whether they match or not; what was given is never shown. `Gate` bounds how often: a key
by its rate, an address by what it was refused. Runs on the threads of the server.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections import OrderedDict
from ipaddress import ip_address

from flask import Request, Response, g, request
from werkzeug.exceptions import Forbidden, TooManyRequests, Unauthorized, UnsupportedMediaType

from observer_agent.clock import Clock
from observer_agent.hub.limits import Buckets, Limits, household
from observer_agent.hub.store import Agent, Store

KEY_MAX = 256
GOOD_MAX = 20_000
READS = ("GET", "HEAD", "OPTIONS")


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


class Gate:
    """Bounds how often one may come; `before` and `after` stand round every request.

    An address that was refused too often is told to wait, but not for a key or a token that was good lately: one agent
    with a dead key must not shut out the others behind the same address.
    """

    def __init__(self, clock: Clock, limits: Limits) -> None:
        self._by_key = Buckets(limits.by_key, clock)
        self._refused = Buckets(limits.refused, clock)
        self._good: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def before(self) -> None:
        """Raises TooManyRequests where it is too often."""
        name = _credential(request)
        if name is None:
            return
        if name in self._good:
            if "Agent-Key" in request.headers or request.path.startswith("/api/lighthouse/"):
                _enough(self._by_key.take(name), "this key comes too often")
        else:
            _enough(self._refused.wait(household(request.remote_addr)), "too many refusals from this address")

    def after(self, response: Response) -> Response:
        """Remembers what became of a key or token."""
        name = _credential(request)
        if name is None:
            return response
        if response.status_code == 401:
            self._refused.take(household(request.remote_addr))
            with self._lock:
                self._good.pop(name, None)
        elif response.status_code < 300 and name not in self._good:
            with self._lock:
                self._good[name] = None
                if len(self._good) > GOOD_MAX:
                    self._good.popitem(last=False)
        return response


def _enough(seconds: int, why: str) -> None:
    if seconds:
        raise TooManyRequests(f"{why}; try again in {seconds} s", retry_after=seconds)


def _credential(given: Request) -> str | None:
    """The key or token of a request as a digest; None where it shows none."""
    text = given.headers.get("Agent-Key") or given.headers.get("Authorization")
    return _digest(text).hex() if text else None


def admit_writer(token: str | None) -> None:
    """Like `admit_reader`; a write besides says that it is JSON, which no form of another site can."""
    admit_reader(token)
    if request.method not in READS and request.mimetype != "application/json":
        raise UnsupportedMediaType("a write needs the header Content-Type: application/json")


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
