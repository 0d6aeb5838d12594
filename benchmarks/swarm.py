"""Simulated agents, many in one thread: `python -m benchmarks.swarm` reads its orders from stdin as JSON (`Orders`).

The load is open: every request has a moment at which it is due, whatever became of those before it, and its latency
counts from that moment. An agent beats and pushes on connections of its own, opened at their first request and kept,
one request at a time on each, as the real one does; a kept connection that the hub has closed is opened again at once.
Requests are prepared bytes, answers are read as far as status and length. stdout: a line once the warm-up is over,
then the outcome as JSON.

The pace of one agent, with 20 definitions that are pushed every five minutes: a heartbeat every 30 s; every 300 s its
20 rows within 7.5 s, because first probes are spread over that time and forced pushes keep their grid, `rows` of them
in one batch; a state change, a batch of one row, as often; the definitions fetched as often. `speed` makes it faster.
"""

from __future__ import annotations

import json
import random
import select
import socket
import sys
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

BEAT, PUSH, FETCH = "heartbeat", "batch", "definitions"
BEAT_EVERY, PUSH_EVERY, SPREAD, METRICS = 30.0, 300.0, 7.5, 20
STARTED = "2026-05-09T12:00:00.000Z"


@dataclass(frozen=True)
class Orders:
    """What to simulate: against which port, with which keys, for how long, and what is measured of it."""

    port: int
    keys: list[str]
    warm_up: float = 30.0
    seconds: float = 30.0
    rows: int = 5
    speed: float = 1.0


@dataclass
class Outcome:
    """Seconds of latency by kind, faults by what they were, what was still unanswered, CPU seconds of this process."""

    latencies: dict[str, list[float]] = field(default_factory=lambda: {BEAT: [], PUSH: [], FETCH: []})
    faults: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    backlog: int = 0
    cpu: float = 0.0


def metric_id(n: int) -> str:
    """The definitions, the same for every agent."""
    return f"0b9f5a52-7f0e-4c3b-9a50-{n:012}"


class Agent:
    """What one agent sends."""

    def __init__(self, key: str, rows: int) -> None:
        self.queue_id = str(uuid.uuid4())
        self._rows = rows
        self._next_row = 1
        self._turn = 0
        self._bad = False
        common = f"HTTP/1.1\r\nHost: hub\r\nAgent-Key: {key}\r\nAgent-Started-At: {STARTED}\r\nUser-Agent: swarm\r\n"
        posted = f"{common}Content-Type: application/json\r\n"
        self._fetch = f"GET /api/agent/metrics-definitions {common}\r\n".encode()
        self._beat_head = f"POST /api/agent/heartbeat {posted}"
        self._push_head = f"POST /api/agent/receiver/batch {posted}Push-Sequence: {self.queue_id};"

    def beat(self) -> bytes:
        """As docs/wire.md has it."""
        sent = self._next_row - 1
        body = (
            '{"version":"1.0.0","uptime_seconds":3600,"buffer_size":0,"buffer_oldest_age_seconds":0,"queue_depth":0,'
            '"queue_oldest_age_seconds":0,"queue_capacity":10000,"agent_started_at":"' + STARTED + '",'
            '"source_types_active":["http","tcp","dns"],"hostname":"vm","delivery":[{"queue_id":"'
            + self.queue_id
            + '",'
            f'"given":{sent},"accepted":{sent},"pending":0,"lost":{{}}}}]}}'
        )
        return f"{self._beat_head}Content-Length: {len(body)}\r\n\r\n{body}".encode()

    def push(self) -> tuple[bytes, int]:
        """The next rows of the grid."""
        listed = [metric_id((self._turn + n) % METRICS) for n in range(self._rows)]
        self._turn = (self._turn + self._rows) % METRICS
        return self._batch([(name, "unhealthy" if self._bad and name.endswith("00") else "healthy") for name in listed])

    def change(self) -> tuple[bytes, int]:
        """One metric gets worse, and better the next time."""
        self._bad = not self._bad
        return self._batch([(metric_id(0), "unhealthy" if self._bad else "healthy")])

    def fetch(self) -> bytes:
        """The definitions."""
        return self._fetch

    def _batch(self, rows: list[tuple[str, str]]) -> tuple[bytes, int]:
        first, self._next_row = self._next_row, self._next_row + len(rows)
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        each = (f'{{"metric_id":"{m}","value":12.5,"timestamp":"{stamp}","status":"{s}"}}' for m, s in rows)
        body = f"[{','.join(each)}]"
        ids = f"{first}-{self._next_row - 1}"
        return f"{self._push_head}{ids}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode(), len(rows)


@dataclass
class Call:
    """One request: when it was due, and whether it has been tried on a connection that was kept."""

    kind: str
    due: float
    sent: bytes
    rows: int = 0
    again: bool = False


class Line:
    """One connection of an agent, and what waits for it."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self._socket: socket.socket | None = None
        self._answers = 0  # on this connection
        self._got = b""
        self._unsent = b""
        self._expects = False  # to be told when it can be written
        self.waiting: deque[Call] = deque()

    def add(self, call: Call) -> None:
        """Sends it as soon as those before it are answered."""
        self.waiting.append(call)
        if len(self.waiting) == 1:
            self._begin()

    def _begin(self) -> None:
        if self._socket is None:
            self._open()
        self._got, self._unsent = b"", self.waiting[0].sent
        self.ready(select.EPOLLOUT)

    def _open(self) -> None:
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers, self._expects = 0, False
        with suppress(BlockingIOError):
            self._socket.connect(("127.0.0.1", self._swarm.port))
        self._swarm.watch(self._socket, self)

    def ready(self, events: int) -> None:
        """The socket can be written or read."""
        try:
            if self._unsent:
                self._write()
            if events & ~select.EPOLLOUT:
                self._read()
        except OSError as error:
            self._broken(type(error).__name__)

    def _write(self) -> None:
        assert self._socket is not None
        with suppress(BlockingIOError):
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        if bool(self._unsent) != self._expects:
            self._expects = bool(self._unsent)
            self._swarm.expect(self._socket, self._expects)

    def _read(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        if not data:
            self._broken("closed")
            return
        self._got += data
        head, found, rest = self._got.partition(b"\r\n\r\n")
        if found:
            at = head.lower().find(b"content-length:")
            if at < 0 or len(rest) >= int(head[at + 15 :].partition(b"\r\n")[0]):
                self._answered(head)

    def _answered(self, head: bytes) -> None:
        call, status = self.waiting.popleft(), head[9:12]
        self._answers += 1
        self._swarm.done(call, None if status == b"200" else f"{call.kind}: {status.decode()}")
        if b"connection: close" in head.lower():
            self._close()
        if self.waiting:
            self._begin()

    def _broken(self, why: str) -> None:
        kept = self._answers > 0
        self._close()
        if not self.waiting:
            return  # the hub has closed a connection that was idle for long
        if kept and not self.waiting[0].again and not self._got:
            self.waiting[0].again = True
        else:
            call = self.waiting.popleft()
            self._swarm.done(call, f"{call.kind}: {why}")
        if self.waiting:
            self._begin()

    def _close(self) -> None:
        if self._socket is not None:
            self._swarm.forget(self._socket)
            self._socket.close()
            self._socket = None


class Swarm:
    """All agents, on one epoll."""

    def __init__(self, orders: Orders) -> None:
        self.port = orders.port
        self._orders = orders
        self._epoll = select.epoll()
        self._lines: dict[int, Line] = {}
        self._agents = [Agent(key, orders.rows) for key in orders.keys]
        self._by_agent = [(Line(self), Line(self), Line(self)) for _ in orders.keys]
        self._measured_from = 0.0
        self.outcome = Outcome()

    def run(self, out: TextIO) -> None:
        """Sends everything when it is due; what is due at the end is given a second to be answered."""
        orders = self._orders
        moments = schedule(len(self._agents), orders)
        begin = time.perf_counter()
        self._measured_from = begin + orders.warm_up
        end = self._measured_from + orders.seconds
        cpu: float | None = None
        for at, agent, what in moments:
            while (left := begin + at - time.perf_counter()) > 0:
                self._turn(left)
            if cpu is None and at >= orders.warm_up:
                cpu = time.process_time()
                print("measuring", file=out, flush=True)
            self._send(begin + at, agent, what)
            self._turn(0)
        while (left := end + 1.0 - time.perf_counter()) > 0:
            self._turn(left)
        self.outcome.cpu = time.process_time() - (cpu or 0.0)
        self.outcome.backlog = sum(len(line.waiting) for lines in self._by_agent for line in lines)

    def _send(self, due: float, number: int, what: str) -> None:
        agent, lines = self._agents[number], self._by_agent[number]
        if what == BEAT:
            lines[0].add(Call(BEAT, due, agent.beat()))
        elif what == FETCH:
            lines[2].add(Call(FETCH, due, agent.fetch()))
        else:
            body, rows = agent.push() if what == PUSH else agent.change()
            lines[1].add(Call(PUSH, due, body, rows))

    def _turn(self, seconds: float) -> None:
        for number, events in self._epoll.poll(seconds, 256):
            if number in self._lines:
                self._lines[number].ready(events)

    def watch(self, sock: socket.socket, line: Line) -> None:
        self._lines[sock.fileno()] = line
        self._epoll.register(sock, select.EPOLLIN)

    def expect(self, sock: socket.socket, writable: bool) -> None:
        self._epoll.modify(sock, select.EPOLLIN | (select.EPOLLOUT if writable else 0))

    def forget(self, sock: socket.socket) -> None:
        self._lines.pop(sock.fileno(), None)
        with suppress(OSError):
            self._epoll.unregister(sock)

    def done(self, call: Call, fault: str | None) -> None:
        """An answer, or the end of hope for one."""
        if fault:
            self.outcome.faults[fault] += 1
        elif call.due >= self._measured_from:
            self.outcome.latencies[call.kind].append(time.perf_counter() - call.due)
        self.outcome.rows += 0 if fault else call.rows


def schedule(agents: int, orders: Orders) -> list[tuple[float, int, str]]:
    """Moments from the beginning, in order; the same for the same number of agents."""
    chance, end = random.Random(agents), orders.warm_up + orders.seconds
    found: list[tuple[float, int, str]] = []
    batches = -(-METRICS // orders.rows)
    for n in range(agents):
        grid = chance.random() * PUSH_EVERY
        found += every(BEAT_EVERY, chance.random() * BEAT_EVERY, (n, BEAT), end * orders.speed)
        moments = [(grid + SPREAD * k / batches, PUSH) for k in range(batches)]
        moments += [(chance.random() * PUSH_EVERY, what) for what in ("change", FETCH)]
        for at, what in moments:
            found += every(PUSH_EVERY, at % PUSH_EVERY, (n, what), end * orders.speed)
    return sorted((at / orders.speed, n, what) for at, n, what in found)


def every(seconds: float, first: float, what: tuple[int, str], end: float) -> Iterator[tuple[float, int, str]]:
    """Again and again until the end."""
    at = first
    while at < end:
        yield at, *what
        at += seconds


def main() -> None:
    """See the module."""
    given: dict[str, Any] = json.load(sys.stdin)
    swarm = Swarm(Orders(**given))
    swarm.run(sys.stdout)
    print(json.dumps(asdict(swarm.outcome)))


if __name__ == "__main__":
    main()
