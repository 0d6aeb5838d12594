"""The heartbeat relay: takes pings of jobs on this machine, keeps them on disk, hands them on to the cloud.

A ping is answered 202 once it is on the disk. The worker `relay` sees to it that the door is open and sends what waits,
on a connection of its own; nothing else waits for it.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from observer_agent import backoff
from observer_agent.clock import Clock, iso
from observer_agent.config import LOOPBACK
from observer_agent.errors import QueueError
from observer_agent.listener import shown_place
from observer_agent.logs import Throttle
from observer_agent.model import Answer, Fate, Row
from observer_agent.relaydoor import Door, Ping, Rates
from observer_agent.relayqueue import Full, RelayQueue
from observer_agent.selfmetrics import SelfMetrics, totals

log = logging.getLogger(__name__)

BATCH = 25
AGENT_MAX = 200
IDLE, DISK_PAUSE, OPEN_AGAIN = 60.0, 5.0, 30.0
WARN = 60.0
UNKNOWN = 300.0  # before a cloud that knows no relay is asked again


class Cloud(Protocol):
    """What the relay asks of the cloud."""

    def relay(self, pings: Sequence[bytes]) -> Answer:
        """Posts pings."""


class Relay:
    """See the module. `random` returns 0 to 1; `wake` ends the worker's pause."""

    def __init__(
        self, queue: RelayQueue, cloud: Cloud, clock: Clock, *, place: tuple[str, int], metrics: SelfMetrics,
        random: Callable[[], float] = lambda: 0.0,
    ) -> None:  # fmt: skip
        self._queue = queue
        self._cloud = cloud
        self._clock = clock
        self._place = place
        self._metrics = metrics
        self._random = random
        self._rates = Rates(clock)
        self._door: Door | None = None
        self._door_again = 0.0
        self._shut = self._unheard = ""  # why the door is closed, why nobody takes pings
        self._lock = threading.Lock()
        self._warn = Throttle(clock, WARN)
        self._limit = BATCH
        self._good = self._attempt = 0
        self._since = self._until = 0.0
        self._deaf = False
        self._damaged = 0
        self.wake: Callable[[], object] = lambda: None
        metrics.relay_depth.set_function(lambda: queue.depth)

    # -- the door

    def take(self, ping: Ping, body: bytes, agent: str) -> int:
        """Queues a ping, and says with which status its sender is answered."""
        if not self._rates.admit(ping.token):
            self.turned_away("rate_limited")
            if self._ready("rate"):
                log.warning("Pings of %s come too often and are turned away", short(ping.token))
            return 429
        row = {
            "token": ping.token,
            "kind": ping.kind,
            "exit_code": ping.exit_code,
            "body": body.decode("utf-8", "replace") or None,
            "received_at": iso(self._clock.now()),
            "user_agent": agent[:AGENT_MAX] or None,
        }
        try:
            self._queue.put(json.dumps(row, separators=(",", ":")).encode())
        except QueueError as error:
            self.turned_away("full" if isinstance(error, Full) else "disk")
            if self._ready("put"):
                log.error("A ping of %s could not be queued (%s); its sender was told so", short(ping.token), error)
            self._count_damage()
            return 503
        self._metrics.relay_queued.inc()
        self.wake()
        return 202

    def turned_away(self, reason: str) -> None:
        """A request was not taken."""
        self._metrics.relay_refused.labels(reason).inc()

    def state(self) -> dict[str, Any]:
        """What is shown on this machine, from memory alone."""
        metrics = self._metrics
        return {
            "listens_on": self.at,
            "problem": self._shut or self._unheard or None,
            "waiting": self._queue.depth,
            "taken": sum(totals(metrics.relay_queued).values()),
            "delivered": sum(totals(metrics.relay_accepted).values()),
            "lost": totals(metrics.relay_lost),
            "refused": totals(metrics.relay_refused),
        }

    @property
    def at(self) -> str | None:
        """Where the door is, as host:port; None while it is closed."""
        door = self._door
        return door.at if door else None

    def stop(self) -> None:
        """Closes the door and the queue for good; the worker has been stopped. What waits stays on the disk."""
        self._door_again = float("inf")
        if self._door:
            self._door.stop()
            self._door = None
        self._queue.close()

    def _open(self) -> None:
        now = self._clock.monotonic()
        if self._door or now < self._door_again:
            return
        try:
            door = Door(self._place, self.take, self.turned_away, self._clock)
        except OSError as error:
            self._door_again = now + OPEN_AGAIN
            host, port = self._place
            self._shut = f"it cannot listen on {shown_place(host, port)} ({error.strerror})"
            if self._ready("door"):
                log.warning(
                    "The heartbeat relay cannot listen on %s:%d (%s); it tries again", host, port, error.strerror
                )
            return
        door.start()
        self._door, self._shut = door, ""
        log.info("The heartbeat relay listens on %s; %d pings wait", door.at, self._queue.depth)
        if self._place[0] not in LOOPBACK:
            log.warning("The heartbeat relay listens beyond this machine: tokens of jobs can be read on the way")

    # -- the way to the cloud

    def heartbeat(self, ok: bool) -> None:
        """The heartbeat's outcome: one that succeeds ends a wait that no Retry-After asked for."""
        if ok and self._attempt and not self._deaf:
            self._until = 0.0
            self.wake()

    def step(self) -> float:
        """One request at most; returns the seconds until the next."""
        self._open()
        wait = self._until - self._clock.monotonic()
        if wait > 0:
            return min(wait, OPEN_AGAIN)
        try:
            rows = self._queue.peek(self._limit)
        except QueueError as error:
            if self._ready("peek"):
                log.error("The relay's queue file refuses (%s); pings wait", error)
            return DISK_PAUSE
        finally:
            self._count_damage()
        if not rows:
            return IDLE if self._door else OPEN_AGAIN
        return self._settle(rows, self._cloud.relay([row.data for row in rows]))

    def _settle(self, rows: Sequence[Row], answer: Answer) -> float:
        if answer.fate is Fate.ACCEPTED:
            return self._accepted(rows, answer)
        if answer.fate is Fate.REFUSED:
            return self._refused(rows, answer)
        if answer.fate is Fate.TOO_LARGE:
            self._limit, self._good = max(1, len(rows) // 2), 0
        return self._later(answer)  # 409 as well: a ping is its job's, whichever process took it

    def _accepted(self, rows: Sequence[Row], answer: Answer) -> float:
        self._queue.done([row.id for row in rows])
        self._recovered()
        self._metrics.relay_accepted.inc(len(rows) - len(answer.rejects))
        for reject in answer.rejects:
            reason = reject.code if reject.code in ("invalid", "not_found", "rate_limited") else "rejected"
            self._lose(rows[reject.index], reason)
        self._good += 1
        if self._good >= 10:
            self._limit, self._good = min(self._limit * 2, BATCH), 0
        return 0.0

    def _refused(self, rows: Sequence[Row], answer: Answer) -> float:
        """400 or 422: of several rows, the half is tried; one alone will never be taken."""
        self._recovered()
        self._good = 0
        self._limit = max(1, len(rows) // 2)
        if len(rows) == 1:
            self._queue.done([rows[0].id])
            self._lose(rows[0], "refused")
        return 0.0

    def _later(self, answer: Answer) -> float:
        now = self._clock.monotonic()
        self._attempt += 1
        if self._attempt == 1:
            self._since = now
        asked = answer.retry_after or (UNKNOWN if answer.status in (404, 405) else 0.0)
        wait = asked or backoff.later(self._attempt, now - self._since, self._random())
        self._until, self._deaf = now + wait, asked > 0
        self._unheard = f"the cloud does not take pings (status {answer.status}: {answer.text})"
        if self._ready(f"later {answer.status}"):
            log.warning(
                "The cloud did not take pings (status %d: %r); %d wait, next try in %.1f s",
                answer.status, answer.text, self._queue.depth, wait,
            )  # fmt: skip
        return min(wait, OPEN_AGAIN)

    def _recovered(self) -> None:
        if self._attempt:
            self._unheard = ""
            log.info("The cloud takes pings again; %d wait", self._queue.depth)
        self._attempt, self._until, self._deaf = 0, 0.0, False

    # -- what is lost

    def _lose(self, row: Row, reason: str) -> None:
        self._metrics.relay_lost.labels(reason).inc()
        if self._ready(f"lost {reason}"):
            log.warning("A ping of %s was dropped: the cloud says %s", _token_of(row), reason)

    def _count_damage(self) -> None:
        """A file that was moved aside has been told in the log; how many pings were in it nobody knows."""
        more, self._damaged = self._queue.damaged - self._damaged, self._queue.damaged
        self._metrics.relay_lost.labels("damaged").inc(more)

    def _ready(self, key: str) -> bool:
        with self._lock:
            return self._warn.ready(key)


def _token_of(row: Row) -> str:
    try:
        return short(str(json.loads(row.data)["token"]))
    except (ValueError, KeyError, TypeError):
        return "an unknown job"


def short(token: str) -> str:
    """A token as it may be shown."""
    return f"{token[:4]}…"
