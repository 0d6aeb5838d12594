"""A cheap cloud: one process that hands out definitions from memory, takes batches and heartbeats at once, and counts.

What the agent costs can be told from it alone then. The parent hands it definitions and asks what it has seen.
"""

from __future__ import annotations

import json
import multiprocessing
import socket
import threading
import time
from typing import Any, NamedTuple

_END = b"\r\n\r\n"


class Seen(NamedTuple):
    """Rows that came in all, and the monotonic moments of heartbeats and batches."""

    rows: int
    beats: list[float]
    batches: list[float]


def longest_gap(moments: list[float], begin: float, end: float) -> float:
    """The longest time without one of them until `end`, from the last one before `begin` on."""
    begin = max((at for at in moments if at < begin), default=begin)
    inside = [at for at in moments if begin < at <= end]
    return max(b - a for a, b in zip([begin, *inside], [*inside, end], strict=True))


class Receiver:
    """The process, and the line to it."""

    def __init__(self) -> None:
        self._line, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        self.port = int(self._line.recv())

    def hand_out(self, rows: list[dict[str, object]]) -> None:
        """The definitions from now on; the agent has to be told to fetch them."""
        self._line.send(json.dumps(rows).encode())
        self._line.recv()

    def seen(self) -> Seen:
        """What has come since the start."""
        self._line.send(None)
        return Seen(*self._line.recv())

    def close(self) -> None:
        self._process.terminate()
        self._process.join()


class _Cloud:
    """The child's state; a thread for each of the agent's few connections."""

    def __init__(self) -> None:
        self.definitions = b"[]"
        self.rows = 0
        self.beats: list[float] = []
        self.batches: list[float] = []

    def talk(self, conn: socket.socket) -> None:
        """Answers one request after the other until the connection ends."""
        got = b""
        with conn:
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := conn.recv(1 << 18):
                got += data
                head, found, rest = got.partition(_END)
                if found and len(rest) >= (length := _length(head)):
                    body = self._answer(head, rest[:length])
                    got = rest[length:]
                    conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    def _answer(self, head: bytes, body: bytes) -> bytes:
        target = head.split(b" ", 2)[1]
        if target.endswith(b"/metrics-definitions"):
            return self.definitions
        if target.endswith(b"/heartbeat"):
            self.beats.append(time.monotonic())
        elif b"/receiver" in target:
            self.batches.append(time.monotonic())
            self.rows += body.count(b'"metric_id":')  # only one connection of the agent pushes
        return b'{"accepted":true}'


def _length(head: bytes) -> int:
    at = head.lower().find(b"\r\ncontent-length:")
    return int(head[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0


def _serve(line: Any) -> None:
    cloud = _Cloud()
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    line.send(listener.getsockname()[1])
    threading.Thread(target=_obey, args=(cloud, line), daemon=True).start()
    while True:
        threading.Thread(target=cloud.talk, args=(listener.accept()[0],), daemon=True).start()


def _obey(cloud: _Cloud, line: Any) -> None:
    while True:
        order = line.recv()
        if order is None:
            line.send((cloud.rows, cloud.beats, cloud.batches))
        else:
            cloud.definitions = order
            line.send(True)
