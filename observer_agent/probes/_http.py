"""One HTTP/1.1 exchange on a socket of its own: request out, status, headers and a bounded body in.

Written for probes: a new connection each time, `Connection: close`, `Accept-Encoding: identity`, everything under the
run's deadline, hard limits on what a server may send. Framing by RFC 9112. Redirects are the caller's business.
Runs on the probe's thread; failures are raised as Failed.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from types import TracebackType
from typing import NamedTuple

from observer_agent import __version__
from observer_agent.probes._net import Stream, connect
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tls import Tls, wrap
from observer_agent.probes._tools import Run
from observer_agent.probes._url import Url

HEAD_LIMIT = 65_536
LINE_LIMIT = 4_096

_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(r"HTTP/1\.[0-9] ([1-9][0-9]{2})(?= |\Z)")
_FIELD = re.compile(r"^([^ \t:\n][^:\n]*):(.*)$", re.MULTILINE)
_SPACE = " \t\n\r\x0b\f"  # what bytes.strip takes; that of a text would take the no-break space
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")
_NO_ANSWER = "the connection was closed before an answer came"
_BODILESS = frozenset((204, 304))


class Request(NamedTuple):
    """What to ask. `headers` go out as they are; they may replace Host, User-Agent and Accept."""

    method: str
    url: Url
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def render(self) -> bytes:
        """The request's bytes."""
        if not (self.headers or self.body) and self.method in ("GET", "HEAD"):  # as below, for the usual request
            usual = f"User-Agent: observer-agent/{__version__}\r\nAccept: */*\r\nAccept-Encoding: identity"
            text = f"{self.method} {self.url.target} HTTP/1.1\r\nHost: {self.url.authority}\r\n{usual}"
            return f"{text}\r\nConnection: close\r\n\r\n".encode("utf-8", "surrogateescape")
        fields = {"host": ("Host", self.url.authority), "user-agent": ("User-Agent", f"observer-agent/{__version__}")}
        fields["accept"] = ("Accept", "*/*")
        fields.update((name.lower(), (name, value)) for name, value in self.headers)
        fields["accept-encoding"] = ("Accept-Encoding", "identity")
        fields["connection"] = ("Connection", "close")
        if self.body or self.method in ("POST", "PUT", "PATCH"):
            fields["content-length"] = ("Content-Length", str(len(self.body)))
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.values())
        head = f"{self.method} {self.url.target} HTTP/1.1\r\n{lines}\r\n"
        return head.encode("utf-8", "surrogateescape") + self.body


class Response:
    """Status and headers of an answer, and its body while the connection is open. A context manager."""

    def __init__(self, stream: Stream, reader: _Reader, status: int, headers: dict[str, str]) -> None:
        self.status = status
        self.headers = headers
        self.request: Request | None = None  # what it answers
        self._stream = stream
        self._reader = reader
        self._bodiless = False

    def __enter__(self) -> Response:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; a second time does nothing."""
        self._stream.close()

    @property
    def media_type(self) -> str:
        """The Content-Type as it was sent, at most 100 characters."""
        return self.headers.get("content-type", "")[:100]

    def without_body(self) -> Response:
        """Says that no body follows, whatever the headers promise (HEAD)."""
        self._bodiless = True
        return self

    def body(self, limit: int) -> bytes:
        """The body, at most `limit` bytes of it; raises Failed where it ends early."""
        return b"".join(self._pieces(limit))

    def glimpse(self, limit: int) -> bytes:
        """What comes of a body that nothing depends on, at most `limit` bytes; empty where it is compressed."""
        if self._compressed:
            return b""
        taken: list[bytes] = []
        try:
            taken += self._pieces(limit)
        except Failed:
            taken.append(self._reader.left(limit))
        return b"".join(taken)[:limit]

    def plain_body(self, limit: int) -> bytes:
        """As `body`, for one that will be understood; raises Failed where it comes compressed."""
        if self._compressed:
            raise broken("the body is compressed though plain was asked for")
        return self.body(limit)

    def searchable(self, limit: int) -> tuple[bytes, Failed | None]:
        """At most `limit` bytes of the body, unpacked, and why there are no more where it ended early."""
        taken: list[bytes] = []
        ended = None
        try:
            taken += self._pieces(limit)
        except Failed as failure:
            ended = failure
            taken.append(self._reader.left(limit))
        body = b"".join(taken)[:limit]
        return (self._unpacked(body, limit) if self._compressed else body), ended

    def _unpacked(self, body: bytes, limit: int) -> bytes:
        """Plain was asked for, but some servers know gzip alone."""
        try:
            plain = zlib.decompressobj(47).decompress(body, limit)  # 47: gzip or zlib, whichever it is
        except zlib.error:
            plain = b""
        if body and not plain:
            raise broken("the body is compressed though plain was asked for")
        return plain

    @property
    def _compressed(self) -> bool:
        return self.headers.get("content-encoding", "").strip().lower() not in ("", "identity")

    def _pieces(self, limit: int) -> Iterable[bytes]:
        self._stream.run.enter("body")
        length = _content_length(self.headers)
        coding = self.headers.get("transfer-encoding", "").lower()
        if self._bodiless or self.status in _BODILESS:
            return ()
        if coding.rpartition(",")[2].strip() == "chunked":
            return self._reader.chunked(limit)
        if coding or length is None:
            return (self._reader.rest(limit),)
        return (self._reader.exactly(min(length, limit)),)


def exchange(request: Request, run: Run, tls: Tls | None) -> Response:
    """Sends a request over a new connection and reads the answer's headers; the caller closes the response."""
    stream = connect(request.url.host, request.url.port, run)
    try:
        if tls:
            run.enter("tls")
            wrap(stream, tls, request.url.host)
        run.enter("first_byte")
        stream.send(request.render())
        response = _read_response(stream)
    except BaseException:
        stream.close()
        raise
    response.request = request
    return response.without_body() if request.method == "HEAD" else response


def broken(text: str) -> Failed:
    """The server does not speak HTTP as it should."""
    return Failed(Reason.HTTP_ERROR, text)


def _read_response(stream: Stream) -> Response:
    reader = _Reader(stream)
    budget = HEAD_LIMIT
    while True:
        head = reader.head(budget)
        budget -= len(head)
        first, _, fields = head.decode("latin-1").partition("\n")
        match = _STATUS.match(first.rstrip("\r"))
        if not match:
            raise broken("the answer is not HTTP/1")
        status = int(match[1])
        if status >= 200:
            return Response(stream, reader, status, _headers(fields))
        if status == 101:
            raise broken("the server switches to another protocol")


def _headers(text: str) -> dict[str, str]:
    """The fields, names in small letters; of one that comes again the first, but all that say where a body ends."""
    found = _FIELD.findall(text)
    if text and len(found) <= text.count("\n"):
        raise broken("a header line is malformed")
    out: dict[str, str] = {}
    for name, value in found:
        key = name.strip(_SPACE).lower()
        if key not in out:
            out[key] = value.strip(_SPACE)
        elif key in ("content-length", "transfer-encoding"):
            out[key] += f", {value.strip(_SPACE)}"
    return out


def _content_length(headers: dict[str, str]) -> int | None:
    text = headers.get("content-length", "")
    if text.isascii() and text.isdecimal() and len(text) <= 15:
        return int(text)
    values = {value.strip() for value in text.split(",")}
    if values == {""}:
        return None
    value = values.pop()
    if values or not re.fullmatch(r"[0-9]{1,15}", value):
        raise broken("the Content-Length is malformed")
    return int(value)


class _Reader:
    """Bytes from a stream through a buffer; nothing depends on how the network cut them."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    def head(self, limit: int) -> bytes:
        """Everything up to an empty line, without it; at most `limit` bytes."""
        buffer = self._buffer
        looked = 0
        if not buffer:
            self._more(_NO_ANSWER)
        while True:
            match = _END.search(buffer, looked)
            if match and match.start() <= limit:
                head = bytes(buffer[: match.start()])
                del buffer[: match.end()]
                return head
            if not b"HTTP/".startswith(buffer[:5]):
                raise broken("the answer is not HTTP/1")
            if len(buffer) > limit:
                raise broken("the headers are too long")
            looked = max(0, len(buffer) - 3)
            self._more(_NO_ANSWER)

    def exactly(self, length: int) -> bytes:
        """The next `length` bytes."""
        while len(self._buffer) < length:
            self._more("the body ended early")
        return self._take(length)

    def rest(self, limit: int) -> bytes:
        """Everything up to the end of the connection, at most `limit` bytes."""
        while len(self._buffer) < limit:
            data = self._stream.receive()
            if not data:
                break
            self._buffer += data
        return self._take(min(limit, len(self._buffer)))

    def left(self, limit: int) -> bytes:
        """What has come and was not taken, at most `limit` bytes."""
        return bytes(self._buffer[:limit])

    def chunked(self, limit: int) -> Iterable[bytes]:
        """The pieces of a chunked body, at most `limit` bytes; trailers are read and dropped."""
        while limit > 0:
            match = _SIZE.fullmatch(self._line())
            if not match:
                raise broken("a chunk's size is malformed")
            size = int(match[1], 16)
            if size == 0:
                return self._trailers()
            taken = min(size, limit)
            yield self.exactly(taken)
            limit -= taken
            if taken == size and self._line():
                raise broken("a chunk is longer than its size")

    def _trailers(self) -> None:
        budget = HEAD_LIMIT
        while line := self._line():
            budget -= len(line)
            if budget < 0:
                raise broken("the trailers are too long")

    def _line(self) -> bytes:
        looked = 0
        while True:
            end = self._buffer.find(b"\n", looked, LINE_LIMIT)
            if end >= 0:
                return self._take(end + 1).rstrip(b"\r\n")
            if len(self._buffer) >= LINE_LIMIT:
                raise broken("a line of the body is too long")
            looked = len(self._buffer)
            self._more("the body ended early")

    def _take(self, length: int) -> bytes:
        data = bytes(self._buffer[:length])
        del self._buffer[:length]
        return data

    def _more(self, complaint: str) -> None:
        data = self._stream.receive()
        if not data:
            raise Failed(Reason.RESET, complaint)
        self._buffer += data
