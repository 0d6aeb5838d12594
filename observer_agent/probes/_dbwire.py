"""The connection of a database probe, as drivers want it: reads exactly, bounded, under the run's deadline.

A driver is handed a `Wire` in place of a socket and of its file: each read and write gets what is left of the deadline,
and a server can send ANSWER_LIMIT bytes in all. Failures pass through the driver as Failed, which no driver
catches. Runs on the probe's thread.
"""

from __future__ import annotations

import os
import ssl
import struct
from typing import Any, Final, NamedTuple

from observer_agent.probes._dsn import VERIFY_CA, VERIFY_FULL, Dsn
from observer_agent.probes._net import Stream
from observer_agent.probes._reasons import Failed, Reason, timed_out
from observer_agent.probes._tls import Tls, new_context, wrap
from observer_agent.probes._tools import Run

ANSWER_LIMIT: Final = 1_048_576
AUTHORITIES_LIMIT: Final = 1_048_576
HASHES_PER_SECOND: Final = 300_000  # PBKDF2 iterations on a slow machine; nothing can interrupt them

# What drivers and decoders raise at bytes that no honest server sends.
BROKEN: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


class Table(NamedTuple):
    """What a query gave: how many columns, and its first rows (two at most)."""

    columns: int
    rows: list[tuple[Any, ...]]


class Wire:
    """A connection with an exact, bounded reader; drivers take it for a socket and for a socket's file.

    `goodbye` is what the protocol says before it hangs up, so that the server's log stays quiet.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.run = stream.run
        self.goodbye = b""
        self._buffer = bytearray()
        self._out = bytearray()
        self._left = ANSWER_LIMIT
        self._open = True

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes; raises Failed where they do not come, or are too many."""
        if not 0 <= size <= self._left + len(self._buffer):
            raise Failed(Reason.DB_ERROR, f"the server's answer is malformed or longer than {ANSWER_LIMIT} bytes")
        while len(self._buffer) < size:
            self._more()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def line(self, longest: int) -> bytes:
        """Everything up to a line's end (CR LF), without it."""
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > longest:
                raise broken("a line is too long")
            self._more()
        return self.read(end + 2)[:-2]

    def write(self, data: bytes) -> None:
        """Keeps bytes until `flush`."""
        self._out += data

    def flush(self) -> None:
        """Sends what was written."""
        data, self._out = bytes(self._out), bytearray()
        if self._open and data:
            self.stream.send(data)

    def sendall(self, data: bytes) -> None:
        """Sends at once."""
        self.write(data)
        self.flush()

    def makefile(self, mode: str) -> Wire:
        """Itself: it reads and writes like a file."""
        return self

    def settimeout(self, seconds: float | None) -> None:
        """Nothing: the deadline is the run's."""

    def close(self) -> None:
        """Says goodbye and closes; a second time does nothing. Raises nothing."""
        if not self._open:
            return
        try:
            self.sendall(self.goodbye)
        except Failed:
            pass
        finally:
            self._open = False
            self.stream.close()

    def secure(self, dsn: Dsn) -> None:
        """Shakes hands as the connection string wants it; raises Failed."""
        if self._buffer:
            raise broken("the server sent something before the handshake")  # it would pass for protected
        doing = self.run
        doing.enter("tls")
        wrap(self.stream, _tls(dsn, doing), dsn.host)
        doing.enter("login")

    def _more(self) -> None:
        data = self.stream.receive()
        if not data:
            self._open = False
            self.stream.close()
            raise Failed(Reason.RESET, "the server closed the connection before its answer was complete")
        self._left -= len(data)
        self._buffer += data


def broken(text: str) -> Failed:
    """The server does not speak its protocol as it should."""
    return Failed(Reason.DB_ERROR, text)


def check_iterations(server_first: bytes, run: Run) -> None:
    """Raises Failed where a SCRAM server asks for more hashing than the deadline has room for."""
    for part in server_first.split(b","):
        count = part[2:]
        if part.startswith(b"i=") and (len(count) > 9 or not count.isdigit()):
            raise broken("the server asks for an impossible number of hashes")
        if part.startswith(b"i=") and int(count) > run.left() * HASHES_PER_SECOND:
            raise timed_out("the server asks for more hashing than there is time for")


def unavailable(package: str, extra: str) -> Failed:
    """The driver is not installed."""
    return Failed(Reason.SOURCE_UNAVAILABLE, f"{package} is not installed: pip install '{extra}'")


def _tls(dsn: Dsn, run: Run) -> Tls:
    key = ("database", dsn.tls, dsn.ca, _stamp(dsn.ca or ssl.get_default_verify_paths().cafile or ""))
    found: Tls = run.tools.contexts.own.get(key, lambda: _make(dsn), run)
    return found


def _make(dsn: Dsn) -> Tls:
    verify = dsn.tls in (VERIFY_CA, VERIFY_FULL)
    try:
        context = new_context(verify, _authorities(dsn.ca) if verify and dsn.ca else None)
    except (ssl.SSLError, ValueError):
        raise Failed(Reason.DB_DSN_INVALID, "the file of authorities holds no certificate that can be read") from None
    context.set_alpn_protocols([])  # PostgreSQL 17 hangs up on a client that offers another protocol
    context.check_hostname = dsn.tls == VERIFY_FULL
    return Tls(context)


def _authorities(path: str) -> str:
    try:
        # Not blocking: the path may lead to a pipe.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(AUTHORITIES_LIMIT).decode("latin-1")
    except OSError:
        raise Failed(Reason.DB_DSN_INVALID, "the file of authorities cannot be read") from None


def _stamp(path: str) -> tuple[int, int] | None:
    """Changes when the file does."""
    try:
        facts = os.stat(path)
    except (OSError, ValueError):
        return None
    return facts.st_mtime_ns, facts.st_size
