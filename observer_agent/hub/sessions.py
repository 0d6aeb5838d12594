"""Who is logged in to the console: sessions in the database, so that every hub process knows them.

A session is a random id in a cookie; the database holds a SHA-256 of it together with the token, so that a new token
ends every session. Wrong tokens are counted in the memory of each process. Any thread of the server may call.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import secrets
import threading
from collections import OrderedDict, deque

from sqlalchemy import delete, insert, select

from observer_agent.clock import Clock
from observer_agent.hub import schema
from observer_agent.hub.database import Database

log = logging.getLogger(__name__)

SESSION_SECONDS = 12 * 3600.0
ID_MAX = 100
FAILURES_MAX = 5  # from one address
FAILURES_IN_ALL = 50
FAILURES_WITHIN = 60.0
ADDRESSES_MAX = 1000


class Sessions:
    """The sessions of a hub that a token guards."""

    def __init__(self, database: Database, clock: Clock, token: str) -> None:
        self._database = database
        self._clock = clock
        self._token = token.encode("utf-8", "surrogateescape")

    def is_token(self, given: str) -> bool:
        """Compares in constant time."""
        return hmac.compare_digest(_hash(given.encode("utf-8", "surrogatepass")), _hash(self._token))

    def open(self) -> str:
        """A new session; those that have ended are forgotten."""
        name, now, sessions = new_id(), self._clock.now(), schema.sessions
        with self._database.write() as conn:
            conn.execute(delete(sessions).where(sessions.c.expires_at <= now))
            kept = {"digest": self._digest(name), "created_at": now, "expires_at": now + SESSION_SECONDS}
            conn.execute(insert(sessions).values(kept))
        return name

    def holds(self, name: str) -> bool:
        """Whether this is a session that has not ended."""
        if not 1 <= len(name) <= ID_MAX:
            return False
        sessions = schema.sessions
        with self._database.read() as conn:
            until = conn.scalar(select(sessions.c.expires_at).where(sessions.c.digest == self._digest(name)))
        return until is not None and until > self._clock.now()

    def close(self, name: str) -> None:
        """Ends a session."""
        sessions = schema.sessions
        with self._database.write() as conn:
            conn.execute(delete(sessions).where(sessions.c.digest == self._digest(name)))

    def _digest(self, name: str) -> str:
        return hashlib.sha256(_hash(self._token) + name.encode("utf-8", "surrogatepass")).hexdigest()


class Attempts:
    """Wrong tokens of the last minute: five from one address, fifty in all, and none is looked at any more."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._all: deque[float] = deque(maxlen=FAILURES_IN_ALL)
        self._by: OrderedDict[str, deque[float]] = OrderedDict()

    def wait(self, address: str) -> int:
        """Whole seconds until a token from this address is looked at; 0 is at once."""
        with self._lock:
            return max(self._left(self._all), self._left(self._by.get(address)))

    def wrong(self, address: str) -> None:
        """Counts a wrong token."""
        with self._lock:
            mine = self._by.setdefault(address, deque(maxlen=FAILURES_MAX))
            self._by.move_to_end(address)
            for each in (mine, self._all):
                each.append(self._clock.monotonic())
            if len(self._by) > ADDRESSES_MAX:
                self._by.popitem(last=False)
            shut = self._left(mine) > 0
        if shut:
            log.warning(
                "%d wrong tokens at the console's login from %s; none is taken for a minute", FAILURES_MAX, address
            )

    def _left(self, failures: deque[float] | None) -> int:
        if failures is None or len(failures) < (failures.maxlen or 0):
            return 0
        return max(0, math.ceil(failures[0] + FAILURES_WITHIN - self._clock.monotonic()))


def new_id() -> str:
    """The random value of a cookie."""
    return secrets.token_urlsafe(32)


def form_token(cookie: str) -> str:
    """What every form of the holder of this cookie carries; the cookie cannot be computed from it."""
    return hmac.new(cookie.encode("utf-8", "surrogatepass"), b"observer-hub form", hashlib.sha256).hexdigest()


def _hash(given: bytes) -> bytes:
    return hashlib.sha256(given).digest()
