"""A small local HTTP server for programs that push to the agent: bounded connections, times and bodies.

It accepts on one thread and answers each connection on a thread of its own, at most `handlers` at a time; those that
come meanwhile wait in the kernel's queue. A connection that takes too long is cut. Bodies are read in pieces, with a
length or in chunks, never more than the caller allows.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from observer_agent.clock import Clock
from observer_agent.config import LOOPBACK
from observer_agent.worker import attempt, spawn

log = logging.getLogger(__name__)

SLOWEST = 5.0  # for one read or write
LONGEST = 15.0  # for all of a request
POLL = 1.0  # from one look at connections that take too long to the next; `stop` does not wait for it
FREED = 0.1  # how soon it is seen that a handler is free
ENDING = 1.0  # for the requests in progress, at a stop
LINGER, LINGER_MAX = 0.5, 16_777_216  # a body that nobody wants is read away, or it would take the answer with it
PIECE = 65_536
TRAILERS = 32
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")


class BadBody(Exception):
    """A body ends early, or its chunks are none; the text says what is wrong."""


class TooLarge(Exception):
    """A body is larger than it may be."""


class Listener(HTTPServer):
    """See the module. Raises OSError where it cannot listen; `handler` answers, its thread is `<name>-request`."""

    request_queue_size = 128

    def __init__(
        self, name: str, place: tuple[str, int], handler: type[Handler], *, clock: Clock, handlers: int
    ) -> None:
        self.name = name
        self.clock = clock
        self._handlers = handlers
        self._open: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        self._freed = clock.alarm()
        self.address_family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
        super().__init__(place, handler)

    @property
    def at(self) -> str:
        """Where it listens, as host:port."""
        return shown_place(str(self.server_address[0]), self.server_port)

    def start(self) -> None:
        """Serves on a thread of its own until `stop`."""
        spawn(self.name, lambda: self.serve_forever(poll_interval=POLL))

    def stop(self) -> None:
        """Stops listening, lets requests in progress end for a second, then cuts them."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # the wait for connections is over; all that follow it are refused
        self.shutdown()
        self.server_close()
        deadline = self.clock.monotonic() + ENDING
        while self._open and (left := deadline - self.clock.monotonic()) > 0:
            self._freed.wait(min(left, FREED))
        with self._lock:
            for request in self._open:
                _cut(request)

    def server_bind(self) -> None:
        """As the base class, without its look-up of the host's name, which may wait for a name server."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def get_request(self) -> tuple[Any, Any]:
        """The next connection; none is taken from the kernel's queue while all handlers are busy."""
        if len(self._open) >= self._handlers:
            self._freed.wait(FREED)
        if len(self._open) >= self._handlers:
            raise BlockingIOError("all handlers are busy")
        return super().get_request()

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection."""
        with self._lock:
            self._open[request] = self.clock.monotonic()
        job = f"Answering on {self.name}"
        spawn(f"{self.name}-request", lambda: attempt(job, lambda: self._serve(request, client_address)))

    def shutdown_request(self, request: Any) -> None:
        """Closes a connection; its place is free for another."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)
        self._freed.ring()

    def service_actions(self) -> None:
        """Cuts connections that have taken too long; the base class calls this several times a second."""
        now = self.clock.monotonic()
        with self._lock:
            for request, since in self._open.items():
                if now - since > LONGEST:
                    _cut(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is nobody's fault."""
        log.debug("A client of %s went away", self.name)

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)


class Handler(BaseHTTPRequestHandler):
    """One request and its answer; the connection is closed then."""

    timeout = SLOWEST
    server: Listener
    unread = False  # a body was announced and has not been read to its end

    def parse_request(self) -> bool:
        """As the base class; remembers whether a body follows."""
        good = super().parse_request()
        if good:
            self.unread = self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers
        return good

    def handle(self) -> None:
        """Answers, and reads away what is left of a body."""
        super().handle()
        if self.unread:
            self._read_away()

    def pieces(self, most: int) -> Iterator[bytes]:
        """The body as it comes; raises TooLarge, BadBody, OSError."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            yield from self._chunks(most)
        else:
            yield from self._counted(self.announced(), most)
        self.unread = False

    def announced(self) -> int:
        """The length that the head of the request tells, 0 where it tells none; raises BadBody."""
        text = self.headers.get("Content-Length", "0").strip()
        if not (text.isascii() and text.isdigit() and len(text) < 16):
            raise BadBody("the length is no number")
        return int(text)

    def say(self, status: int, body: bytes = b"", content_type: str = "text/plain", **more: str) -> None:
        """The whole answer."""
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Connection", "close")
        for name, value in more.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class says to a request that it does not understand, as a line of text."""
        code = 405 if code == 501 else code
        self.command = getattr(self, "command", None) or "GET"
        self.close_connection = True
        self.say(code, f"{self.responses[code][0] if code in self.responses else message}\n".encode())

    def is_local(self) -> bool:
        """Whether the request names this machine: a web page that points a name of its own at 127.0.0.1 does not."""
        host = self.headers.get("Host", "").strip()
        name = host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        return name.lower() in LOOPBACK

    def version_string(self) -> str:
        return "observer-agent"

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged: who handles them says what matters."""

    def _counted(self, length: int, most: int) -> Iterator[bytes]:
        if length > most:
            raise TooLarge
        while length > 0:
            piece = self.rfile.read(min(length, PIECE))
            if not piece:
                raise BadBody("the body ends early")
            length -= len(piece)
            yield piece

    def _chunks(self, most: int) -> Iterator[bytes]:
        total = 0
        while size := self._chunk_size():
            total += size
            yield from self._counted(size, most - total + size)
            if self.rfile.readline(3).strip(b"\r\n"):
                raise BadBody("a chunk does not end where it should")
        for _ in range(TRAILERS):
            if not self.rfile.readline(PIECE).strip(b"\r\n"):
                return
        raise BadBody("too many trailers")

    def _chunk_size(self) -> int:
        found = _SIZE.fullmatch(self.rfile.readline(1024))
        if not found:
            raise BadBody("a chunk has no size")
        return int(found[1], 16)

    def _read_away(self) -> None:
        """A connection closed with unread bytes would be reset, and the answer lost with it."""
        left = LINGER_MAX
        try:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(LINGER)
            while left > 0 and (piece := self.connection.recv(PIECE)):
                left -= len(piece)
        except OSError:
            log.debug("A client of %s went away", self.server.name)


def shown_place(host: str, port: int) -> str:
    """host:port, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _cut(request: socket.socket) -> None:
    """Ends both directions; the thread that waits for the connection goes on at once."""
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:
        log.debug("A client went away")
