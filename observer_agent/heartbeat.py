"""The heartbeat: every 30 s it tells the cloud how the agent is, on a connection and a thread of its own.

It reports from snapshots in memory and never waits for the queue, the sender or a probe. What the cloud answers is
handed up: that it succeeded, and which definitions it holds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from observer_agent.clock import Clock
from observer_agent.logs import Throttle
from observer_agent.model import Health, Ledger, Orders
from observer_agent.verdict import Grid

log = logging.getLogger(__name__)

INTERVAL = 30.0
SPREAD = 0.2  # of the interval, by which a beat after a failed one may come earlier
WARN = 300.0
DELIVERY_MAX = 20


class Cloud(Protocol):
    """What the heartbeat asks of the cloud."""

    def beat(self, health: Health) -> Orders:
        """Posts a heartbeat."""


class Heartbeat:
    """See the module. `health` makes the snapshot, `on_orders` hears of every outcome, `random` returns 0 to 1."""

    def __init__(
        self,
        cloud: Cloud,
        health: Callable[[], Health],
        clock: Clock,
        on_orders: Callable[[Orders], object],
        random: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._random = random
        self._cloud = cloud
        self._health = health
        self._clock = clock
        self._on_orders = on_orders
        self._told: dict[str, Ledger] = {}
        self._warn = Throttle(clock, WARN)
        self._grid = Grid(clock.monotonic(), INTERVAL)
        self._retired = False
        self.sent = 0
        self.last_ok: float | None = None
        self.heard_at: float | None = None  # the same moment on the monotonic clock
        self.last_orders: Orders | None = None

    def successor(self, cloud: Cloud) -> Heartbeat:
        """Another heartbeat in place of this one, whose thread hangs; it beats at once."""
        self._retired = True
        fresh = Heartbeat(cloud, self._health, self._clock, self._on_orders, self._random)
        fresh.sent, fresh.last_ok, fresh.heard_at = self.sent, self.last_ok, self.heard_at
        fresh.last_orders = self.last_orders
        return fresh

    def soon(self) -> None:
        """The next turn beats, whatever the grid says."""
        self._grid = Grid(self._clock.monotonic(), INTERVAL)

    def step(self) -> float:
        """One heartbeat; returns the seconds until the next."""
        now = self._clock.monotonic()
        if not self._grid.is_due(now):
            return self._grid.due - now
        begun = now
        self.beat()
        now = self._clock.monotonic()
        if self.last_orders and not self.last_orders.ok:
            self._grid = Grid(after_failure(begun, now, self._random()), INTERVAL)
        else:
            self._grid.advance(now)
        return max(0.0, self._grid.due - now)

    def beat(self) -> Orders:
        """Sends one now."""
        health = self._health()
        news = tuple(ledger for ledger in health.delivery if self._is_news(ledger))[-DELIVERY_MAX:]
        orders = self._cloud.beat(replace(health, delivery=news))
        if self._retired:
            return orders
        self.last_orders = orders
        if orders.ok:
            self.sent += 1
            self.last_ok, self.heard_at = self._clock.now(), self._clock.monotonic()
            self._told.update({ledger.queue_id: ledger for ledger in news})
            self._warn.reset()
        elif self._warn.ready():
            log.warning("The cloud did not take the heartbeat (status %d: %r)", orders.status, orders.text)
        self._on_orders(orders)
        return orders

    def _is_news(self, ledger: Ledger) -> bool:
        """Rows that wait, or a change since the last beat that the cloud took."""
        return ledger.pending > 0 or self._told.get(ledger.queue_id, _nothing(ledger.queue_id)) != ledger


def after_failure(begun: float, ended: float, random: float) -> float:
    """When the next beat is due after one that failed: up to a fifth of the interval off the grid, at random.

    A fleet that was started together must not come back together. After a call that hung it is the end that counts.
    """
    shift = INTERVAL * SPREAD * random
    return max(begun + INTERVAL - shift, ended + shift)


def _nothing(queue_id: str) -> Ledger:
    return Ledger(queue_id, 0, 0, 0, {})
