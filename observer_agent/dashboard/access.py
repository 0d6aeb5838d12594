"""Who may see the local page: the token as a bearer header or typed into the form, then a session in a cookie.

Headers and form fields in, decisions out; it knows no sockets. Sessions live in memory: a restart ends them all. Any
thread of the page's server may call.
"""

from __future__ import annotations

import hmac
import logging
import math
import secrets
import threading
from collections import OrderedDict, deque
from enum import Enum

from observer_agent.clock import Clock
from observer_agent.logs import Throttle

log = logging.getLogger(__name__)

COOKIE = "observer_agent"
SESSIONS_MAX = 100
SESSION_SECONDS = 12 * 3600.0
FAILURES_MAX = 5
FAILURES_WITHIN = 60.0


class Entry(Enum):
    """What the door says to a request."""

    OPEN = "open"
    CLOSED = "closed"  # nothing was shown that could open it
    WRONG = "wrong"  # a wrong token
    LATER = "later"  # too many wrong tokens: none is looked at


class Access:
    """The door of a page that a token guards."""

    def __init__(self, token: str, clock: Clock) -> None:
        self._token = token.encode()
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, float] = OrderedDict()
        self._failures: deque[float] = deque(maxlen=FAILURES_MAX)
        self._warn = Throttle(clock, FAILURES_WITHIN)

    def ask(self, authorization: str, cookie: str) -> Entry:
        """Whether a request with these headers may pass."""
        if self._has_session(_session_of(cookie)):
            return Entry.OPEN
        kind, _, given = authorization.strip().partition(" ")
        if not given:
            return Entry.CLOSED
        return self.try_token(given.strip() if kind.lower() == "bearer" else "")

    def try_token(self, given: str) -> Entry:
        """Compares a token in constant time; after five wrong ones within a minute none is looked at."""
        with self._lock:
            if self._retry_after() > 0:
                return Entry.LATER
            if hmac.compare_digest(given.encode("utf-8", "replace"), self._token):
                return Entry.OPEN
            self._failures.append(self._clock.monotonic())
            if self._warn.ready():
                log.warning(
                    "Somebody gave the local page a wrong token; after %d in a minute none is taken", FAILURES_MAX
                )
        return Entry.WRONG

    def retry_after(self) -> int:
        """Whole seconds until a token is looked at again."""
        with self._lock:
            return math.ceil(self._retry_after())

    def open_session(self) -> str:
        """A new session; the oldest ends where there are too many."""
        name = secrets.token_urlsafe(32)
        with self._lock:
            self._sessions[name] = self._clock.monotonic() + SESSION_SECONDS
            while len(self._sessions) > SESSIONS_MAX:
                self._sessions.popitem(last=False)
        return name

    def close_session(self, cookie: str) -> None:
        """Ends the session of a cookie header, if there is one."""
        with self._lock:
            self._sessions.pop(_session_of(cookie), None)

    def _has_session(self, name: str) -> bool:
        with self._lock:
            until = self._sessions.get(name)
            if until is not None and until <= self._clock.monotonic():
                del self._sessions[name]
                return False
            return until is not None

    def _retry_after(self) -> float:
        if len(self._failures) < FAILURES_MAX:
            return 0.0
        return max(0.0, self._failures[0] + FAILURES_WITHIN - self._clock.monotonic())


def set_cookie(session: str) -> str:
    """The header that hands a session to the browser; an empty one takes it back.

    `Secure` would keep it from arriving: the page is served over plain HTTP.
    """
    age = int(SESSION_SECONDS) if session else 0
    return f"{COOKIE}={session}; HttpOnly; SameSite=Strict; Path=/; Max-Age={age}"


def _session_of(cookie: str) -> str:
    """Other programs on this host name set cookies too, of any form: only ours is looked at."""
    for part in cookie.split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value
    return ""
