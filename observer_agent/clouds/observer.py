"""The Observer dialect: batches, heartbeats, definitions and log lines as docs/wire.md says.

Model data in, model data out; nothing else of the program knows a path, a header or a status code. One `Observer` is
used by one thread, because its transport is; the `Notice` is shared by all of them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from observer_agent import backoff
from observer_agent.clock import Clock, iso
from observer_agent.clouds._calls import Calls
from observer_agent.logs import Throttle
from observer_agent.model import Answer, Batch, DefinitionSet, Fate, Health, Ledger, Orders, Reject
from observer_agent.transport import CALL_SECONDS, Reply

log = logging.getLogger(__name__)

BATCH = 100
SINGLE_SECONDS = 3600.0
SUSPENDED = "agent_suspended_plan"
SUSPENDED_SECONDS = 900.0
TEXT_MAX = 200
VERSION_MAX = 128
DELIVERY_MAX = 20


def headers(key: str, started_at: str | None, version: str) -> dict[str, str]:
    """The headers of every request; without a start time the sender is no process of an agent."""
    found = {"Content-Type": "application/json", "Agent-Key": key, "User-Agent": f"observer-agent/{version}"}
    return {**found, "Agent-Started-At": started_at} if started_at else found


class Notice:
    """Tells the operator, at most every 15 minutes, that the plan is suspended; a success resets it."""

    def __init__(self, clock: Clock) -> None:
        self._throttle = Throttle(clock, SUSPENDED_SECONDS)

    def saw(self, reply: Reply) -> None:
        """Every reply passes here."""
        if reply.ok:
            self._throttle.reset()
        elif is_suspended(reply) and self._throttle.ready():
            log.warning("The cloud has suspended this agent's plan; samples wait and go out once it is resumed")


class Observer:
    """One connection to an Observer cloud."""

    def __init__(self, transport: Calls, clock: Clock, notice: Notice, redact: Callable[[str], str] = str) -> None:
        self._transport = transport
        self._clock = clock
        self._notice = notice
        self._redact = redact
        self._single_until = 0.0
        self._call_seconds = CALL_SECONDS
        self.on_reply: Callable[[str, int], object] = lambda endpoint, status: None

    @property
    def batch_limit(self) -> int:
        """Most rows of the next request: 100, or 1 while the cloud knows no batches."""
        return 1 if self._clock.monotonic() < self._single_until else BATCH

    def cut(self, batch: Batch) -> Batch:
        """All of it: any rows may go together."""
        return batch

    def deliver(self, batch: Batch) -> Answer:
        """Posts a batch and says what the cloud made of it."""
        single = self.batch_limit == 1
        path = "/api/agent/receiver" if single else "/api/agent/receiver/batch"
        rows = b",".join(row.data for row in batch.rows)
        sequence = push_sequence(batch.queue_id, [row.id for row in batch.rows])
        reply = self._call("POST", path, rows if single else b"[" + rows + b"]", {"Push-Sequence": sequence})
        if reply.status in (404, 405):
            return self._missing(reply, single)
        return read_answer(reply, len(batch), self._clock.now(), self._redact)

    def beat(self, health: Health) -> Orders:
        """Posts a heartbeat."""
        reply = self._call("POST", "/api/agent/heartbeat", encode_health(health))
        if not reply.ok:
            return Orders(False, reply.status, text=_text(reply, self._redact))
        body = _json(reply.body)
        version = body.get("definitions_version") if isinstance(body, dict) else None
        return Orders(True, reply.status, version if isinstance(version, str) and version else None)

    def definitions(self) -> DefinitionSet:
        """Fetches the definitions."""
        reply = self._call("GET", "/api/agent/metrics-definitions")
        if not reply.ok:
            return DefinitionSet(None, text=_text(reply, self._redact), status=reply.status)
        rows = _json(reply.body)
        if not isinstance(rows, list):
            return DefinitionSet(None, text="the answer is not a JSON array", status=reply.status)
        version = reply.headers.get("x-observer-definitions-version")
        return DefinitionSet(tuple(rows), version[:VERSION_MAX] if version else None, status=reply.status)

    def log(self, line: Mapping[str, str]) -> bool:
        """Posts one log line, best effort."""
        return self._call("POST", "/api/agent/log", json.dumps(dict(line)).encode()).ok

    def relay(self, pings: Sequence[bytes]) -> Answer:
        """Posts pings of jobs; 404 and 405, from a cloud that takes none, mean later."""
        head = json.dumps({"sent_at": iso(self._clock.now())})[:-1].encode()
        body = head + b', "pings": [' + b",".join(pings) + b"]}"
        reply = self._call("POST", "/api/agent/heartbeat-relay", body)
        return read_answer(reply, len(pings), self._clock.now(), self._redact)

    def hurry(self, seconds: float) -> None:
        """Calls from now on may take at most `seconds`: the agent is stopping."""
        self._call_seconds = min(CALL_SECONDS, max(seconds, 0.0))

    def leave(self) -> None:
        """Says goodbye: in this dialect the last heartbeat has done that; closes the connection."""
        self._transport.close()

    def _missing(self, reply: Reply, single: bool) -> Answer:
        """404 or 405: an older cloud without the batch endpoint, or a wrong address."""
        if single:
            self._single_until = 0.0
            wait = backoff.retry_after(reply.headers.get("Retry-After"), self._clock.now())
            return Answer(Fate.LATER, reply.status, _text(reply, self._redact), retry_after=wait, blames=True)
        self._single_until = self._clock.monotonic() + SINGLE_SECONDS
        log.info("The cloud knows no batches (status %d); rows go one by one for an hour", reply.status)
        return Answer(Fate.AGAIN, reply.status)

    def _call(self, method: str, path: str, body: bytes | None = None, extra: Mapping[str, str] | None = None) -> Reply:
        reply = self._transport.call(method, path, body, extra, self._call_seconds)
        self._notice.saw(reply)
        self.on_reply(path.removeprefix("/api/agent/"), reply.status)
        return reply


def read_answer(reply: Reply, length: int, now: float, redact: Callable[[str], str] = str) -> Answer:
    """The table of docs/delivery.md: what an answer of the receiver means for the rows, 404 and 405 apart."""
    status, text = reply.status, _text(reply, redact)
    if reply.ok:
        return Answer(Fate.ACCEPTED, status, rejects=_rejects(_json(reply.body), length))
    if status == 409:
        body = _json(reply.body)
        newer = body.get("newer_started_at") if isinstance(body, dict) else None
        return Answer(Fate.FENCED, status, text, newer_started_at=newer if isinstance(newer, str) else None)
    if status in (400, 422):
        return Answer(Fate.REFUSED, status, text)
    wait = backoff.retry_after(reply.headers.get("Retry-After"), now)
    if status == 413:
        return Answer(Fate.TOO_LARGE, status, text, retry_after=wait, blames=True)
    return Answer(Fate.LATER, status, text, retry_after=wait, blames=500 <= status < 600)


def push_sequence(queue_id: str, ids: Iterable[int]) -> str:
    """`<queue id>;<range>(,<range>)*`, a range being `id` or `id-id`, ascending (docs/wire.md, "Exactly once")."""
    ranges: list[list[int]] = []
    for row_id in ids:
        if ranges and row_id == ranges[-1][1] + 1:
            ranges[-1][1] = row_id
        else:
            ranges.append([row_id, row_id])
    return f"{queue_id};" + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def encode_health(health: Health) -> bytes:
    """The heartbeat's body, field by field as in the seeds."""
    body: dict[str, Any] = {
        "version": health.version,
        "uptime_seconds": health.uptime,
        "buffer_size": health.queue_depth,
        "buffer_oldest_age_seconds": health.queue_oldest_age,
        "queue_depth": health.queue_depth,
        "queue_oldest_age_seconds": health.queue_oldest_age,
        "queue_capacity": health.queue_capacity,
        "agent_started_at": health.started_at,
        "source_types_active": list(health.source_types_active),
    }
    if health.hostname:
        body["hostname"] = health.hostname
    if health.custom_probes:
        body["custom_probes"] = [dict(each) for each in health.custom_probes]
    if health.otlp_stats:
        body["otlp_stats"] = dict(health.otlp_stats)
    if health.delivery:
        body["delivery"] = [encode_ledger(ledger) for ledger in health.delivery[-DELIVERY_MAX:]]
    return json.dumps(body, separators=(",", ":")).encode()


def encode_ledger(ledger: Ledger) -> dict[str, Any]:
    """One entry of the heartbeat's `delivery`."""
    return {
        "queue_id": ledger.queue_id,
        "given": ledger.given,
        "accepted": ledger.accepted,
        "pending": ledger.pending,
        "lost": dict(ledger.lost),
    }


def is_suspended(reply: Reply) -> bool:
    """403 with the code `agent_suspended_plan` in `code` or `error`."""
    if reply.status != 403:
        return False
    body = _json(reply.body)
    return isinstance(body, dict) and SUSPENDED in (body.get("code"), body.get("error"))


def _rejects(body: object, length: int) -> tuple[Reject, ...]:
    """The `rejected` of a 2xx body to `length` rows, each row once; with the body of an older cloud none."""
    listed = body.get("rejected") if isinstance(body, dict) else None
    if not isinstance(listed, list):
        return ()
    found = {r["index"]: r for r in listed if isinstance(r, dict) and type(r.get("index")) is int}
    return tuple(
        Reject(at, str(r.get("field"))[:64], str(r.get("code"))[:64])
        for at, r in sorted(found.items())
        if 0 <= at < length
    )


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _text(reply: Reply, redact: Callable[[str], str]) -> str:
    """At most 200 characters of what the cloud said, for a log line or a dead letter."""
    text = reply.error or " ".join(reply.body[: 4 * TEXT_MAX].decode("utf-8", "replace").split())
    return redact(text)[:TEXT_MAX]
