"""The OTLP receiver of an agent: it listens while there is a definition that wants points, and no longer.

The agent says what is wanted (on the thread of the definitions), probes ask for the freshest point. Where it cannot
listen, the next look tries again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from observer_agent.clock import Clock
from observer_agent.config import LOOPBACK
from observer_agent.probes._otlpstore import Kept, Store, Want
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.resolver import parse_literal

if TYPE_CHECKING:
    from observer_agent.probes._otlpserver import Server

log = logging.getLogger(__name__)

AGAIN: Final = 5.0


class Settings(Protocol):
    """The agent's settings that the receiver reads."""

    @property
    def observer_otlp_disable(self) -> bool: ...
    @property
    def observer_otlp_listen_addr(self) -> str: ...
    @property
    def observer_otlp_bearer_token(self) -> str | None: ...
    @property
    def observer_otlp_max_body_bytes(self) -> int: ...
    @property
    def observer_otlp_max_buffer_points(self) -> int: ...


class Unusable(Exception):
    """The settings do not let the receiver listen; the text says why."""


class Receiver:
    """See the module."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._store = Store(clock, settings.observer_otlp_max_buffer_points)
        self._server: Server | None = None
        self._lock = threading.Lock()
        self._wanted = self._used = False
        self._again = 0.0
        self._problem = ""

    def want(self, wants: Iterable[Want]) -> None:
        """These are the definitions by now: the receiver starts with the first and stops with the last."""
        self._store.subscribe(wants)
        with self._lock:
            self._wanted = self._store.subscriptions > 0
            if self._wanted:
                self._start()
            else:
                self._stop()

    def stop(self) -> None:
        """Stops for good."""
        self.want(())

    def check(self) -> None:
        """Raises Failed where no points can arrive."""
        if self._settings.observer_otlp_disable:
            raise Failed(Reason.OTLP_RECEIVER_DISABLED, "OBSERVER_OTLP_DISABLE is set")
        with self._lock:
            if self._wanted:
                self._start()
            if self._problem:
                raise Failed(Reason.PUSH_SOURCE_INIT_FAILED, self._problem)

    def newest(self, want: Want) -> Kept | None:
        """The freshest point of a definition."""
        return self._store.newest(want)

    def streams_of(self, want: Want) -> int:
        """How many streams belong to a definition."""
        return self._store.streams_of(want)

    def stats(self) -> Mapping[str, Any] | None:
        """What the heartbeat tells, from memory alone; None where nothing has ever listened here."""
        server, store = self._server, self._store
        if not self._used:
            return None
        counts = store.requests
        return {
            "running": server is not None,
            "listen_addr": server.at if server else self._settings.observer_otlp_listen_addr,
            "bearer_required": self._settings.observer_otlp_bearer_token is not None,
            "data_points_received": store.received,
            "data_points_dropped": store.dropped,
            "requests_authenticated": counts.authenticated,
            "requests_rejected_auth": counts.rejected_auth,
            "requests_rejected_payload": counts.rejected_payload,
            "unique_streams": store.streams,
            "active_subscriptions": store.subscriptions,
        }

    def state(self) -> dict[str, Any] | None:
        """What is shown on this machine, from memory alone; None while no definition wants points."""
        server, store = self._server, self._store
        if not self._wanted:
            return None
        disabled = self._settings.observer_otlp_disable
        return {
            "listens_on": server.at if server else None,
            "problem": "OBSERVER_OTLP_DISABLE is set" if disabled else self._problem or None,
            "definitions": store.subscriptions,
            "points": store.received,
            "points_unused": store.dropped,
            "streams": store.streams,
            "requests": store.requests.authenticated,
            "requests_refused": store.requests.rejected_auth + store.requests.rejected_payload,
        }

    def _start(self) -> None:
        """Listens, unless it does, or has failed to a moment ago."""
        now = self._clock.monotonic()
        if self._server or self._settings.observer_otlp_disable or now < self._again:
            return
        from observer_agent.probes._otlpserver import Server

        settings = self._settings
        try:
            place = _place(settings)
            server = Server(
                place, self._store, token=settings.observer_otlp_bearer_token,
                most=settings.observer_otlp_max_body_bytes, clock=self._clock,
            )  # fmt: skip
        except (Unusable, OSError) as error:
            self._again = now + AGAIN
            self._fail(str(error.strerror if isinstance(error, OSError) else error))
            return
        server.start()
        self._server, self._used, self._problem = server, True, ""
        log.info("OTLP metrics are received on %s", server.at)

    def _fail(self, text: str) -> None:
        address = self._settings.observer_otlp_listen_addr
        if text != self._problem:
            log.warning("OTLP metrics cannot be received on %s: %s", address, text)
        self._problem = text

    def _stop(self) -> None:
        self._problem, self._again = "", 0.0
        if self._server:
            self._server.stop()
            self._server = None
            log.info("No definition wants OTLP metrics any more; nothing listens for them")


def _place(settings: Settings) -> tuple[str, int]:
    """Where to listen; raises Unusable."""
    host, port = listen_place(settings.observer_otlp_listen_addr)
    if host not in LOOPBACK and not settings.observer_otlp_bearer_token:
        raise Unusable("an address that is not loopback needs OBSERVER_OTLP_BEARER_TOKEN")
    return "127.0.0.1" if host == "localhost" else host, port


def listen_place(text: str) -> tuple[str, int]:
    """`host:port`, `:port` for loopback, `[v6]:port`, the host being an address or localhost; raises Unusable."""
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host or "127.0.0.1"
    number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else -1
    if not colon or not 0 <= number <= 65535 or (host != "localhost" and parse_literal(host) is None):
        raise Unusable("OBSERVER_OTLP_LISTEN_ADDR must be address:port, such as 127.0.0.1:4318")
    return host, number
