"""Receivers of webhooks: real servers that keep what they were sent and answer as a test wants."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests import servers

OK = servers.answer(status=200)


@dataclass(frozen=True)
class Request:
    """One request: its path, its headers in lower case, its raw body."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def event_id(self) -> str:
        """Which event it tells."""
        return str(json.loads(self.body)["event_id"])


class Receiver(servers.Server):
    """`answer` makes the raw answer to a request; `acknowledged` are the events that were answered 2xx, in order.

    `most` is the largest number of requests that were under way at the same time, by path and in all (`""`).
    """

    def __init__(self, answer: Callable[[Request], bytes] = lambda _: OK, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(self._take, tls=tls)
        self._answer = answer
        self._guard = threading.Lock()
        self._under_way: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.got: list[Request] = []
        self.acknowledged: list[str] = []
        self.came = threading.Condition()

    def wait_for(self, count: int, seconds: float = 10.0) -> bool:
        """Waits until `count` requests have been answered 2xx."""
        with self.came:
            return self.came.wait_for(lambda: len(self.acknowledged) >= count, seconds)

    def of(self, path: str) -> list[str]:
        """The events that came to a path, in order."""
        return [each.event_id for each in self.got if each.path == path]

    def _take(self, conn: socket.socket, _server: servers.Server) -> None:
        request = parse(servers.read_request(conn))
        self._count(request.path, 1)
        with self._guard:
            self.got.append(request)
        try:
            data = self._answer(request)
        finally:
            self._count(request.path, -1)
        if data.startswith(b"HTTP/1.1 2"):
            with self.came:
                self.acknowledged.append(request.event_id)
                self.came.notify_all()
        conn.sendall(data)

    def _count(self, path: str, change: int) -> None:
        with self._guard:
            for key in (path, ""):
                now = self._under_way[key] = self._under_way.get(key, 0) + change
                self.most[key] = max(self.most.get(key, 0), now)


def parse(data: bytes) -> Request:
    """A raw request in parts."""
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers: dict[str, Any] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        headers[name.lower()] = value
    return Request(first.split(" ")[1], headers, body)
