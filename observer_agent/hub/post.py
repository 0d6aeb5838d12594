"""One POST of a webhook under one deadline, to an address that the guard has let through: a reply, never an exception.

No proxy, no redirect, no kept connection, no credential of the environment. The deadline covers the lookup, the
connection, TLS, sending and every byte of the answer's head; of the body at most 4 KiB are read, for at most a second:
the status has decided by then. Any thread may post.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from http.client import HTTPException, HTTPResponse, RemoteDisconnected
from pathlib import Path
from typing import Any, NamedTuple

from observer_agent.clock import Clock
from observer_agent.errors import UsageError
from observer_agent.hub.guard import Address, Guard, Refused, Target, check_url

DEADLINE_SECONDS = 10.0
BODY_SECONDS = 1.0
BODY_MAX = 4096
ERROR_MAX = 200

Left = Callable[[], float]


class Reply(NamedTuple):
    """What came back: `status` 0 is no answer, and `error` then says why in a few words; `retry_after` is a header."""

    status: int
    error: str = ""
    retry_after: str | None = None


class Poster:
    """Posts. `context` is what TLS trusts: the machine's authorities unless another is handed in."""

    def __init__(
        self, guard: Guard, clock: Clock, context: ssl.SSLContext | None = None, seconds: float = DEADLINE_SECONDS
    ) -> None:
        self._guard = guard
        self._clock = clock
        self._context = context or trusting()
        self._seconds = seconds

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """One request and what came of it."""
        until = self._clock.monotonic() + self._seconds
        try:
            target = check_url(url, self._guard.allow)
            return self._exchange(target, _request(target, headers, body), until)
        except (Refused, UsageError) as error:
            return Reply(0, str(error)[:ERROR_MAX])
        except (OSError, HTTPException, ValueError) as error:
            return Reply(0, describe(error)[:ERROR_MAX])

    def _exchange(self, target: Target, request: bytes, until: float) -> Reply:
        left = self._timer(until)
        with self._connect(target, until) as sock:
            _send(sock, request, left)
            with contextlib.closing(_Bounded(sock, left)) as bounded:
                answer = HTTPResponse(bounded, method="POST")  # type: ignore[arg-type]
                with contextlib.closing(answer):
                    answer.begin()
                    bounded.left = self._timer(min(until, self._clock.monotonic() + BODY_SECONDS))
                    with contextlib.suppress(OSError, HTTPException, ValueError):
                        answer.read(BODY_MAX)  # a receiver that is cut off in its answer may take it for a failure
                    return Reply(answer.status, retry_after=answer.headers.get("Retry-After"))

    def _timer(self, until: float) -> Left:
        def left() -> float:
            seconds = until - self._clock.monotonic()
            if seconds <= 0:
                raise TimeoutError
            return seconds

        return left

    def _connect(self, target: Target, until: float) -> socket.socket:
        """A connection to the first address that takes it, each with its share of the time, with TLS where asked."""
        left = self._timer(until)
        addresses = self._guard.addresses(target.host, until)
        problem: OSError = OSError()
        for n, address in enumerate(addresses):
            try:
                sock = _open(address, target.port, left() / (len(addresses) - n))
            except OSError as error:
                problem = error
                continue
            return self._wrap(sock, target, left)
        raise problem

    def _wrap(self, sock: socket.socket, target: Target, left: Left) -> socket.socket:
        if target.scheme == "http":
            return sock
        try:
            sock.settimeout(left())
            return self._context.wrap_socket(sock, server_hostname=target.host)
        except BaseException:
            sock.close()
            raise


class _Bounded(io.RawIOBase):
    """The answer's bytes, and what http.client wants of a socket; each read gets what is left of the time."""

    def __init__(self, sock: socket.socket, left: Left) -> None:
        self._sock = sock
        self.left = left

    def makefile(self, *_: object) -> io.BufferedReader:
        """The file that http.client reads."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """It is for reading."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes."""
        self._sock.settimeout(self.left())
        return self._sock.recv_into(buffer)


def trusting() -> ssl.SSLContext:
    """Trusts the machine's authorities (SSL_CERT_FILE, SSL_CERT_DIR); where it has none, those of `requests`."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile or (paths.capath and any(Path(paths.capath).glob("*.0"))):
        return ssl.create_default_context()
    from certifi import where

    return ssl.create_default_context(cafile=where())


def _open(address: Address, port: int, seconds: float) -> socket.socket:
    sock = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        sock.settimeout(seconds)
        sock.connect((str(address), port))
    except OSError:
        sock.close()
        raise
    return sock


def _request(target: Target, headers: Mapping[str, str], body: bytes) -> bytes:
    bare = f"[{target.host}]" if ":" in target.host else target.host
    usual = target.port == (443 if target.scheme == "https" else 80)
    host = bare if usual else f"{bare}:{target.port}"
    fixed = {"Host": host, "Connection": "close", "Content-Length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in {**fixed, **headers}.items())
    return f"POST {target.path} HTTP/1.1\r\n{lines}\r\n".encode("ascii") + body


def _send(sock: socket.socket, data: bytes, left: Left) -> None:
    """Sends as much as the other side takes: one that hangs up may have said why. Not sendall: see `left`."""
    view = memoryview(data)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
        while view:
            sock.settimeout(left())
            view = view[sock.send(view) :]


def describe(error: Exception) -> str:
    """What went wrong, in words of ours: never a text that the other side has chosen, never the URL."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: certificate not verified: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, RemoteDisconnected | ConnectionResetError | BrokenPipeError | ssl.SSLEOFError):
        return "connection closed by the other side"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or 'handshake failed'}"
    if isinstance(error, OSError):
        return os.strerror(error.errno).lower() if error.errno else "no connection"
    return "not an HTTP answer"
