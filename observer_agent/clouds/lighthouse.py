"""The Lighthouse dialect: register, heartbeats, events, discoveries, host metrics and the goodbye.

Words in, words out (`_lighthouse_wire.py` turns them into bytes); nothing else of the program knows a path, a header or
a status of this protocol. Each endpoint has its one status of success: anything else, another 2xx included, is a
failure, so that a captive portal or a proxy is never taken for the console. Redirects are not followed. One
`Lighthouse` is used by one thread, because its line is.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from observer_agent import backoff
from observer_agent.clock import Clock
from observer_agent.clouds import _lighthouse_wire as wire
from observer_agent.clouds._calls import Calls
from observer_agent.clouds._lighthouse_wire import Beat, Discovered, LighthouseOrders
from observer_agent.model import Answer, Batch, Fate
from observer_agent.transport import CALL_SECONDS, Reply

log = logging.getLogger(__name__)

BATCH = 100
TEXT_MAX = 200
BASE = "/api/lighthouse/v1/"
SUCCESS: Mapping[str, tuple[int, ...]] = {
    "register": (200,),
    "heartbeat": (200,),
    "events": (202,),
    "discoveries": (200,),
    "shutdown": (204,),
    "host-metrics": (200, 202, 204),
}
METRICS_HEADERS = {
    "Content-Type": "application/x-protobuf",
    "Content-Encoding": "snappy",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}
SHUTDOWN_SECONDS = 5.0
NO_BLAME = (401, 403, 407, 408, 409, 410, 421, 425, 429)
_DELETED = re.compile(r"\b(deleted|gone|no longer exists)\b", re.I)


class Process:
    """What identifies this process to the console: its instance id, and for how long it has run.

    None as an id is a command that is no agent: it says neither.
    """

    def __init__(self, clock: Clock, instance_id: str | None) -> None:
        self._clock = clock
        self._since = clock.monotonic()
        self._instance_id = instance_id

    def headers(self) -> dict[str, str]:
        """The headers that change from call to call."""
        if not self._instance_id:
            return {}
        uptime = max(int(self._clock.monotonic() - self._since), 0)
        return {"X-Lighthouse-Instance-Id": self._instance_id, "X-Lighthouse-Process-Uptime": str(uptime)}


def headers(token: str, version: str) -> dict[str, str]:
    """The headers of every request that do not change."""
    return {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
        "User-Agent": f"observer-agent/{version}",
    }


class Lighthouse:
    """One connection to a console. `seed` speaks the form of the seed page.

    `on_verdict` hears `unauthorised` or `gone` when events are answered so; `on_reply` hears every endpoint and status.
    """

    batch_limit = BATCH

    def __init__(
        self,
        line: Calls,
        clock: Clock,
        process: Process,
        version: str,
        *,
        redact: Callable[[str], str] = str,
        seed: bool = False,
    ) -> None:
        self._line = line
        self._clock = clock
        self._process = process
        self._version = version
        self._redact = redact
        self._seed = seed
        self._call_seconds = CALL_SECONDS
        self.on_verdict: Callable[[str], object] = lambda verdict: None
        self.on_reply: Callable[[str, int], object] = lambda endpoint, status: None

    def register(self, agent_version: str, hostname: str, runtime: str | None = None) -> LighthouseOrders:
        """Says that this process begins, and takes what there is to do."""
        body = wire.encode_register(agent_version, hostname, runtime, seed=self._seed)
        return self._orders("register", self._call("register", body))

    def beat(self, beat: Beat) -> LighthouseOrders:
        """Posts a heartbeat."""
        return self._orders(
            "heartbeat", self._call("heartbeat", wire.encode_beat(beat, self._version, seed=self._seed))
        )

    def cut(self, batch: Batch) -> Batch:
        """The longest beginning of a batch that one request can carry: rows of one envelope."""
        kinds = [_envelope(row.data) for row in batch.rows]
        same = next((at for at, kind in enumerate(kinds) if kind != kinds[0]), len(kinds))
        return batch if same == len(kinds) else replace(batch, rows=batch.rows[:same])

    def deliver(self, batch: Batch) -> Answer:
        """Posts the events of a batch that `cut` has cut, and says what the console made of them."""
        found = [wire.decode_row(row.data) for row in batch.rows]
        rows = [row for row in found if row]
        if len(rows) < len(found):
            return Answer(Fate.REFUSED, text="a row of the queue is no event of this dialect")
        if len({sync_kind for sync_kind, _ in rows}) != 1:
            raise ValueError("events of different envelopes in one batch")
        body = wire.encode_events(rows[0][0], [event for _, event in rows], seed=self._seed)
        reply = self._call("events", body)
        verdict = verdict_of("events", reply)
        if verdict in ("unauthorised", "gone"):
            self.on_verdict(verdict)
        return self._answer(reply)

    def discoveries(self, items: Iterable[Discovered], *, snapshot: bool = True) -> LighthouseOrders:
        """Posts what was discovered; with `snapshot` what is not listed is gone."""
        return self._outcome(
            "discoveries", self._call("discoveries", wire.encode_discoveries(items, snapshot=snapshot, seed=self._seed))
        )

    def host_metrics(self, body: bytes) -> int:
        """Posts a write request, already compressed; the status, 0 where there was none.

        The seed page promises that no host metrics are sent: in its form nothing is, and the answer is 0.
        """
        return 0 if self._seed else self._call("host-metrics", body, METRICS_HEADERS).status

    def shutdown(self, reason: str) -> bool:
        """Says why this process ends, once; whether the console heard it."""
        self._call_seconds = min(self._call_seconds, SHUTDOWN_SECONDS)
        reply = self._call("shutdown", wire.encode_shutdown(reason, seed=self._seed))
        return reply.status in SUCCESS["shutdown"]

    def hurry(self, seconds: float) -> None:
        """Calls from now on may take at most `seconds`: the agent is stopping."""
        self._call_seconds = min(CALL_SECONDS, max(seconds, 0.0))

    def leave(self) -> None:
        """Closes the connection."""
        self._line.close()

    # -- one call, and what its answer means

    def _call(self, endpoint: str, body: bytes, extra: Mapping[str, str] | None = None) -> Reply:
        more = {**self._process.headers(), **(extra or {})}
        reply = self._line.call("POST", BASE + endpoint, body, more, self._call_seconds)
        self.on_reply(endpoint, reply.status)
        return reply

    def _orders(self, endpoint: str, reply: Reply) -> LighthouseOrders:
        outcome = self._outcome(endpoint, reply)
        if not outcome.ok:
            return outcome
        orders = wire.decode_orders(reply.body, reply.status)
        for complaint in orders.complaints:
            log.warning("The console's answer to %s: %s", endpoint, complaint)
        return orders

    def _outcome(self, endpoint: str, reply: Reply) -> LighthouseOrders:
        verdict = verdict_of(endpoint, reply)
        if verdict == "ok":
            return LighthouseOrders(True, reply.status, verdict)
        wait = backoff.retry_after(reply.headers.get("Retry-After"), self._clock.now())
        return LighthouseOrders(False, reply.status, verdict, text=self._text(reply), retry_after=wait)

    def _answer(self, reply: Reply) -> Answer:
        """What the console's answer means for the rows (docs/lighthouse-wire.md)."""
        status, text = reply.status, self._text(reply)
        if status in SUCCESS["events"]:
            return Answer(Fate.ACCEPTED, status)
        if status in (400, 422):
            return Answer(Fate.REFUSED, status, text)
        wait = backoff.retry_after(reply.headers.get("Retry-After"), self._clock.now())
        if status == 413:
            return Answer(Fate.TOO_LARGE, status, text, retry_after=wait, blames=True)
        blames = 400 <= status < 600 and status not in NO_BLAME
        return Answer(Fate.LATER, status, text, retry_after=wait, blames=blames)

    def _text(self, reply: Reply) -> str:
        """At most 200 characters of what the console said, for a log line."""
        text = reply.error or _said(reply) or " ".join(reply.body[: 4 * TEXT_MAX].decode("utf-8", "replace").split())
        if 300 <= reply.status < 400:
            text = "a redirect, which is not followed"
        return self._redact(text)[:TEXT_MAX]


def verdict_of(endpoint: str, reply: Reply) -> str:
    """`ok`, `unauthorised`, `gone` (410, or a 401 that says so), else `later`."""
    if reply.status in SUCCESS[endpoint]:
        return "ok"
    if reply.status == 410 or (reply.status == 401 and _DELETED.search(_said(reply))):
        return "gone"
    return "unauthorised" if reply.status == 401 else "later"


def _said(reply: Reply) -> str:
    """The `error` of a body such as {"error": text}."""
    body = wire.read_json(reply.body)
    found = body.get("error") if isinstance(body, dict) else None
    return " ".join(found.split()) if isinstance(found, str) else ""


def _envelope(data: bytes) -> str | bool | None:
    """What a row travels in; False for a row that is no event."""
    found = wire.decode_row(data)
    return found[0] if found else False
