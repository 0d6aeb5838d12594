"""Delivers the outbox: to each webhook its entries one after the other, to different webhooks side by side.

One worker, `courier`, looks whose head is due and gives each such webhook to a thread `webhook`, at most `THREADS` at
the same time; the thread claims, posts and settles until nothing of that webhook is due. No transaction is open while a
request is under way. The worker sleeps at most five seconds; it is woken as soon as a transaction of this process has
filled the outbox, and when a thread is done.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import random
import threading
from collections.abc import Callable
from typing import Any

from sqlalchemy import event as sqlalchemy_event

from observer_agent import __version__
from observer_agent.clock import Clock
from observer_agent.hub import outbox
from observer_agent.hub.database import Database
from observer_agent.hub.events import LAID_OUT
from observer_agent.hub.outbox import DELIVERED, Job, Settled
from observer_agent.hub.patient import bearing, patient
from observer_agent.hub.post import Poster, Reply
from observer_agent.worker import Thread, Worker, attempt, spawn

log = logging.getLogger(__name__)

LOOK_EVERY = 5.0
PRUNE_EVERY = 3600.0
THREADS = 8
IN_A_ROW = 100  # deliveries to one webhook before another has its turn on the thread
STOP_SECONDS = 3.0


class Courier:
    """See the module. `worker` is for a supervisor to start; `stop` after the worker was asked to stop."""

    def __init__(
        self, database: Database, clock: Clock, poster: Poster, dice: Callable[[], float] = random.random
    ) -> None:
        self.worker = Worker("courier", patient(self.step), clock)
        self._database = database
        self._clock = clock
        self._poster = poster
        self._dice = dice
        self._lock = threading.Lock()
        self._serving: dict[str, Thread | None] = {}
        self._stopping = False
        self._prune_at = clock.monotonic()
        with database.read() as conn:
            self._engine = conn.engine
        sqlalchemy_event.listen(self._engine, "checkin", self._returned)

    def step(self) -> float:
        """The worker's turn: a thread for each webhook whose head is due; returns seconds until the next look."""
        self._prune()
        now = self._clock.now()
        with self._database.read() as conn:
            heads = outbox.heads(conn, now)
        for head in heads:
            if head.due <= now:
                self._begin(head.webhook_id)
        later = min((head.due for head in heads if head.due > now), default=now + LOOK_EVERY)
        return min(LOOK_EVERY, later - now)

    def stop(self) -> None:
        """Lets the deliveries under way end, for a short while; what does not is sent again by the next process."""
        sqlalchemy_event.remove(self._engine, "checkin", self._returned)
        self._stopping = True
        until = self._clock.monotonic() + STOP_SECONDS
        with self._lock:
            threads = [thread for thread in self._serving.values() if thread]
        for thread in threads:
            thread.join(max(0.0, until - self._clock.monotonic()))

    def serve(self, webhook_id: str) -> int:
        """Delivers what is due to one webhook, on this thread; returns how many attempts were made."""
        made, job = 0, self._claim(webhook_id)
        while job is not None:
            begun = self._clock.now()
            reply = self._send(job)
            made += 1
            job = self._settle(job, begun, reply, go_on=made < IN_A_ROW and not self._stopping)
        return made

    # -- one delivery

    def _claim(self, webhook_id: str) -> Job | None:
        with self._database.write() as conn:
            return outbox.claim(conn, webhook_id, self._clock.now())

    def _send(self, job: Job) -> Reply:
        if job.body is None:
            return Reply(0, "the event has been deleted")
        reply = self._poster.post(job.url, headers(job, job.body, int(self._clock.now())), job.body)
        if 300 <= reply.status < 400:
            return reply._replace(error="redirects are not followed")
        return reply

    def _settle(self, job: Job, begun: float, reply: Reply, go_on: bool) -> Job | None:
        """Writes the attempt down and claims the next head, in one transaction."""
        now = self._clock.now()
        settled = outbox.verdict(job, reply, now, self._dice())
        with self._database.write() as conn:
            held = outbox.settle(conn, job, (begun, now, reply), settled)
            following = outbox.claim(conn, job.webhook_id, now) if go_on and held else None
        if held:
            _tell(job, reply, settled)
        return following

    # -- the threads

    def _begin(self, webhook_id: str) -> None:
        with self._lock:
            if self._stopping or webhook_id in self._serving or len(self._serving) >= THREADS:
                return
            self._serving[webhook_id] = None
        try:
            thread = spawn("webhook", lambda: self._run(webhook_id))
        except RuntimeError:
            self._end(webhook_id)
            log.warning("No thread could be started for a webhook; it is tried again")
            return
        with self._lock:
            if webhook_id in self._serving:
                self._serving[webhook_id] = thread

    def _run(self, webhook_id: str) -> None:
        done: list[int] = []

        def deliver() -> None:
            with bearing():  # what was taken and could not be written down is sent again once its claim has ended
                done.append(self.serve(webhook_id))

        try:
            attempt("A delivery to a webhook", deliver)
        finally:
            self._end(webhook_id)
        if sum(done):
            self.worker.wake()  # there may be more; where nothing could be done only the next look says so

    def _end(self, webhook_id: str) -> None:
        with self._lock:
            self._serving.pop(webhook_id, None)

    def _returned(self, _connection: object, record: Any) -> None:
        """A connection goes back to its pool: its transaction is over, and what it laid out can be seen."""
        if record.info.pop(LAID_OUT, None):
            self.worker.wake()

    def _prune(self) -> None:
        if self._clock.monotonic() < self._prune_at:
            return
        with self._database.write() as conn:
            more = outbox.prune(conn, self._clock.now()) == outbox.PRUNED_AT_ONCE
        self._prune_at = self._clock.monotonic() + (0.0 if more else PRUNE_EVERY)


def headers(job: Job, body: bytes, timestamp: int) -> dict[str, str]:
    """The headers of a request, signed where the webhook has a secret (docs/webhooks.md)."""
    found = {
        "Content-Type": "application/json",
        "User-Agent": f"observer-hub/{__version__}",
        "X-Observer-Event": job.event_type,
        "X-Observer-Delivery": job.event_id,
        "X-Observer-Timestamp": str(timestamp),
    }
    if job.secret:
        found["X-Observer-Signature"] = sign(job.secret, body)
        found["X-Observer-Signature-Timestamped"] = sign(job.secret, f"{timestamp}.".encode() + body)
    return found


def sign(secret: str, data: bytes) -> str:
    """`sha256=` and the HMAC-SHA-256 of `data` in hex, keyed with the secret's bytes."""
    return "sha256=" + hmac.new(secret.encode(), data, hashlib.sha256).hexdigest()


def _tell(job: Job, reply: Reply, settled: Settled) -> None:
    """A line where somebody should look; never the URL, which may hold a secret of the receiver."""
    why = reply.error or f"status {reply.status}"
    if settled.disabled:
        log.warning(
            "Webhook %s answered 410 Gone and is switched off; nothing is sent to it any more", job.webhook_name
        )
    elif settled.state == outbox.FAILED:
        log.error("Webhook %s did not take event %s (%s); it is given up", job.webhook_name, job.event_id, why)
    elif settled.state != DELIVERED and job.attempts == 0:
        log.warning("Webhook %s does not take its events (%s); they wait, for 24 hours each", job.webhook_name, why)
