"""Where the cloud is and by which key: shared by all connections of an agent, and renewed while they are in use.

A `Line` belongs to one thread, as its `Transport` does, and makes a new one when the access has changed since its last
call. An answer of 401 or 410 makes it read the key again: a rotated key is used at once, whoever wrote it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple

from observer_agent.clock import Clock
from observer_agent.config import origin
from observer_agent.errors import ConfigError
from observer_agent.logs import Redactor, Throttle
from observer_agent.resolver import Resolver
from observer_agent.sentlog import SentLog
from observer_agent.transport import CALL_SECONDS, Reply, Transport

log = logging.getLogger(__name__)

THREADS = 4  # lookups of the cloud's name, or its proxy's, at once
READ_AGAIN = 5.0
WARN = 900.0
REFUSALS = (401, 410)  # what a cloud may say to a key that has been replaced


class Place(NamedTuple):
    """What a transport is made from."""

    url: str
    key: str
    verify: bool


class Access:
    """See the module. `read_key` reads the key as a start would; `headers` makes the headers of a key.

    `sent` keeps a record of every call.
    """

    def __init__(
        self,
        place: Place,
        headers: Callable[[str], Mapping[str, str]],
        *,
        clock: Clock,
        redact: Redactor,
        read_key: Callable[[], str] | None = None,
        sent: SentLog | None = None,
    ) -> None:
        self.sent = sent
        self._headers = headers
        self._clock = clock
        self._redact = redact
        self._read_key = read_key
        self._resolver = Resolver(clock, threads=THREADS)
        self._lock = threading.Lock()
        self._read_after = 0.0
        self._warn = Throttle(clock, WARN)
        redact.add(place.key)
        self.place = place
        self.generation = 0

    def renew(self, place: Place) -> None:
        """Every line makes a new transport at its next call: other settings, or a file of CAs that has changed."""
        with self._lock:
            self._go(place)

    def key_refused(self, key: str) -> bool:
        """The cloud has refused `key`: whether there is another one by now."""
        with self._lock:
            now = self._clock.monotonic()
            if self.place.key == key and self._read_key and now >= self._read_after:
                self._read_after = now + READ_AGAIN
                self._look(self._read_key)
            return self.place.key != key

    def transport(self) -> Transport:
        """A transport to the place as it is now."""
        url, key, verify = self.place
        return Transport(url, self._headers(key), clock=self._clock, resolver=self._resolver, verify=verify)

    def _look(self, read_key: Callable[[], str]) -> None:
        try:
            key = read_key()
        except ConfigError as error:
            if self._warn.ready():
                log.warning("The cloud refuses the key, and no other can be read: %s", error)
            return
        if key != self.place.key:
            log.info("The cloud refuses the key; the one that has taken its place is used from now on")
            self._go(self.place._replace(key=key))

    def _go(self, place: Place) -> None:
        self._redact.add(place.key)
        self.place = place
        self.generation += 1


class Line:
    """A transport that follows the access; one thread calls."""

    def __init__(self, access: Access, clock: Clock) -> None:
        self._access = access
        self._clock = clock
        self._generation = access.generation
        self._key = access.place.key
        self._transport = access.transport()

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = CALL_SECONDS,
    ) -> Reply:
        """As `Transport.call`; after a 401 or 410, once more in what is left of `seconds` if there is another key."""
        until = self._clock.monotonic() + seconds
        self._follow()
        reply = self._exchange(method, path, body, headers, seconds)
        if reply.status not in REFUSALS or not self._access.key_refused(self._key):
            return reply
        self._follow()
        return self._exchange(method, path, body, headers, until - self._clock.monotonic())

    def close(self) -> None:
        """Closes the kept connection."""
        self._transport.close()

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None, seconds: float
    ) -> Reply:
        """One call, on record before it leaves."""
        sent = self._access.sent
        if sent is None:
            return self._transport.call(method, path, body, headers, seconds)
        number, began = sent.begin(method, origin(self._access.place.url), path, body), self._clock.monotonic()
        reply = self._transport.call(method, path, body, headers, seconds)
        sent.end(number, reply.status, self._clock.monotonic() - began, reply.error)
        return reply

    def _follow(self) -> None:
        if self._generation == self._access.generation:
            return
        self._transport.close()
        self._generation, self._key = self._access.generation, self._access.place.key
        self._transport = self._access.transport()
