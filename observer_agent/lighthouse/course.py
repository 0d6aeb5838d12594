"""The way of the agent with its console: register, then heartbeats, and what an answer to them means.

`step` runs on the worker `beat`; `hear` is called from `send`. Checks go on whatever the console says (W7, W8): a
register is repeated until it succeeds, a token that is refused is read again, and only a console that says twice that
this Lighthouse is gone, to the token that the file holds by now, ends the agent.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Protocol

from observer_agent import backoff
from observer_agent.clock import Clock
from observer_agent.clouds._lighthouse_wire import Beat, LighthouseOrders
from observer_agent.errors import ConfigError
from observer_agent.logs import Throttle

log = logging.getLogger(__name__)

FLOOR, FALLBACK, CEILING = 5.0, 60.0, 3600.0  # seconds between heartbeats
AGAIN_MAX = 30.0  # after a heartbeat that failed
SPREAD = 0.1  # of the interval, by which a heartbeat comes earlier, at random
CONFIRM = 6.0  # before the console is asked once more whether it means it; a token is read again every 5 s
WARN = 300.0
GONE_TWICE = 2


class Cloud(Protocol):
    """What the course asks of the console."""

    def register(self, agent_version: str, hostname: str, runtime: str | None = None) -> LighthouseOrders:
        """Says that this process begins."""

    def beat(self, beat: Beat) -> LighthouseOrders:
        """Posts a heartbeat."""


class Home(Protocol):
    """What the course asks of the agent."""

    def announce(self) -> tuple[str, str, str]:
        """Version, host name and runtime."""

    def report(self) -> Beat:
        """What the next heartbeat tells."""

    def keep(self, beat: Beat) -> None:
        """The console has not heard this."""

    def adopt(self, orders: LighthouseOrders, registering: bool) -> float:
        """The console's word counts; returns the interval of heartbeats."""

    def heard(self, ok: bool) -> None:
        """How a heartbeat went."""

    def token(self) -> str:
        """The token as a start would read it now; raises ConfigError."""

    def gone(self) -> None:
        """The console has no place for this agent any more."""


class Course:
    """See the module. `random` returns 0 to 1."""

    def __init__(self, cloud: Cloud, home: Home, clock: Clock, random: Callable[[], float]) -> None:
        self._cloud = cloud
        self._home = home
        self._clock = clock
        self._random = random
        self._due = clock.monotonic()
        self._attempt = 0
        self._since = 0.0
        self._gone = 0
        self._gone_token = ""
        self._retired = False
        self._warn = Throttle(clock, WARN)
        self.wake: Callable[[], object] = lambda: None
        self.registered = False
        self.interval = FALLBACK
        self.sent = 0
        self.last_ok: float | None = None
        self.heard_at: float | None = None
        self.last_orders: LighthouseOrders | None = None
        self.version: str | None = None
        self.last_text = ""

    def successor(self, cloud: Cloud) -> Course:
        """Another course in place of this one, whose thread hangs."""
        self._retired = True
        fresh = Course(cloud, self._home, self._clock, self._random)
        fresh.registered, fresh.interval, fresh.wake = self.registered, self.interval, self.wake
        fresh.sent, fresh.last_ok, fresh.heard_at = self.sent, self.last_ok, self.heard_at
        fresh.last_orders, fresh.version = self.last_orders, self.version
        return fresh

    def hear(self, verdict: str) -> None:
        """The console has answered events so: it is asked at once what it means, once in a while."""
        now = self._clock.monotonic()
        if self.last_orders is None or self.last_orders.verdict != verdict:
            self._due = min(self._due, now)
            self.wake()

    def soon(self) -> None:
        """The next turn asks, whatever the schedule says."""
        self._due = self._clock.monotonic()
        self.wake()

    def step(self) -> float:
        """One request at most; returns the seconds until the next."""
        left = self._due - self._clock.monotonic()
        if left > 0:
            return left
        self._due = math.inf  # whoever wants another one meanwhile brings it forward
        wait = self._turn()
        self._due = min(self._due, self._clock.monotonic() + wait)
        return max(0.0, self._due - self._clock.monotonic())

    def _turn(self) -> float:
        registering = not self.registered
        beat = None if registering else self._home.report()
        orders = self._cloud.register(*self._home.announce()) if beat is None else self._cloud.beat(beat)
        if self._retired:
            return FALLBACK
        self.last_orders = orders
        if orders.ok:
            return self._taken(orders, registering)
        if beat:
            self._home.keep(beat)
        self._home.heard(False)
        if orders.verdict == "gone":
            return self._ask_again(orders)
        self._gone = 0
        return self._failed(orders)

    def _taken(self, orders: LighthouseOrders, registering: bool) -> float:
        wanted = self._home.adopt(orders, registering)
        self._attempt, self._gone, self.registered = 0, 0, True
        self.sent += 1
        self.last_ok, self.heard_at = self._clock.now(), self._clock.monotonic()
        for verdict in ("later", "unauthorised", "gone"):
            self._warn.reset(verdict)
        self.interval = min(max(wanted, FLOOR), CEILING)
        if registering:
            log.info("Registered with the console; a heartbeat every %.0f s", self.interval)
        self._home.heard(True)
        return self.interval * (1.0 - SPREAD * self._random())

    def _failed(self, orders: LighthouseOrders) -> float:
        now = self._clock.monotonic()
        self._attempt += 1
        if self._attempt == 1:
            self._since = now
        wait = orders.retry_after or backoff.later(self._attempt, now - self._since, self._random())
        if self.registered:
            wait = max(wait, min(self.interval, AGAIN_MAX) * (1.0 - SPREAD * self._random()))
        if self._warn.ready(orders.verdict):
            self._complain(orders)
        return wait

    def _complain(self, orders: LighthouseOrders) -> None:
        what = "a heartbeat" if self.registered else "the registration"
        if orders.verdict == "unauthorised":
            log.error(
                "The console refuses the token (status %d: %r). Checks go on and events wait; put a token that is "
                "valid where this one came from: it is read again by itself",
                orders.status, orders.text,
            )  # fmt: skip
        elif orders.status == 409:
            log.error(
                "The console has another active agent with this token (409: %r): stop one of the two", orders.text
            )
        else:
            log.warning(
                "The console did not take %s (status %d: %r). Checks go on and events wait",
                what, orders.status, orders.text,
            )  # fmt: skip

    def _ask_again(self, orders: LighthouseOrders) -> float:
        """The console says gone: it is asked to register once more, with the token that the file holds by then."""
        token = self._token()
        if not token or token != self._gone_token:
            self._gone, self._gone_token = 0, token
        self._gone += 1
        self.registered = False
        if token and self._gone >= GONE_TWICE:
            log.error("The console says that this Lighthouse was deleted, and the token is the same: the agent ends")
            self._home.gone()
            return FALLBACK
        if self._warn.ready("gone"):
            log.error(
                "The console says that this Lighthouse is gone (status %d: %r); checks go on until it says so again "
                "to the token as it is then", orders.status, orders.text,
            )  # fmt: skip
        return CONFIRM

    def _token(self) -> str:
        """The token as it is now; nothing where it cannot be read, and then nothing is final."""
        try:
            return self._home.token()
        except ConfigError as error:
            if self._warn.ready("token"):
                log.error("The token cannot be read again: %s", error)
            return ""
