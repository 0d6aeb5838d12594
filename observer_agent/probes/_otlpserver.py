"""The HTTP side of the OTLP receiver: requests of senders in, points out to the store.

`POST /v1/metrics` (or `/`) with JSON or protobuf, plain or compressed. The size is bounded as it was sent, as it is
unpacked, and over all requests in progress; one request is understood at a time. Runs on the listener's threads.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from observer_agent.clock import Clock
from observer_agent.listener import PIECE, BadBody, Handler, Listener, TooLarge
from observer_agent.logs import Throttle
from observer_agent.probes._otlppoints import Batch, read
from observer_agent.probes._otlpstore import Store
from observer_agent.probes._otlpwire import Malformed, Packed

log = logging.getLogger(__name__)

HANDLERS: Final = 4
PATHS: Final = ("/v1/metrics", "/")
JSON, PROTOBUF = "application/json", "application/x-protobuf"
INVALID_JSON, MALFORMED = "otlp_invalid_json", "otlp_malformed_payload"
ENCODING: Final = "otlp_unsupported_encoding"
GZIP_OR_ZLIB: Final = 47  # of zlib: 15 bits, and the header says which
WARN: Final = 900.0
_CODES: Final = {400: 3, 401: 16, 403: 7, 413: 8, 503: 14}  # of google.rpc.Code; others are INVALID_ARGUMENT


class Refusal(Exception):
    """A request is not taken: the HTTP status, and a word for the sender."""

    def __init__(self, status: int, text: str, **headers: str) -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, text, headers


class Room:
    """The bytes that all requests in progress may hold together."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._lock = threading.Lock()

    @contextmanager
    def held(self) -> Iterator[Held]:
        """What one request takes, given back at the end."""
        held = Held(self)
        try:
            yield held
        finally:
            self.take(-held.size)

    def take(self, size: int) -> bool:
        """Whether there was room."""
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True


class Held:
    """See `Room`."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.size = 0

    def more(self, size: int) -> None:
        """Takes `size` bytes; raises Refusal where there is no room."""
        if not self._room.take(size):
            raise Refusal(503, "too much is being received at once", Retry_After="1")
        self.size += size


class Server(Listener):
    """Listens for senders; raises OSError where it cannot. `token` is asked for where there is one."""

    def __init__(self, place: tuple[str, int], store: Store, *, token: str | None, most: int, clock: Clock) -> None:
        self.store = store
        self.most = most
        self.room = Room(4 * most)
        self.understanding = threading.Lock()
        self._token = _hashed(token) if token else None
        self._lines = threading.Lock()
        self._warn = Throttle(clock, WARN)
        super().__init__("otlp", place, Request, clock=clock, handlers=HANDLERS)

    @property
    def bearer_required(self) -> bool:
        """Whether a token is asked for."""
        return self._token is not None

    def opens(self, authorization: str) -> bool:
        """Whether the header carries the token; compared in constant time."""
        if self._token is None:
            return True
        kind, _, given = authorization.strip().partition(" ")
        right = hmac.compare_digest(_hashed(given.strip()), self._token)
        return right and kind.lower() == "bearer"

    def complain(self, refusal: Refusal) -> None:
        """Tells the operator, now and then, that a sender is refused."""
        with self._lines:
            ready = self._warn.ready(refusal.text)
        if ready:
            log.warning("A sender of OTLP metrics is refused (status %d: %s)", refusal.status, refusal.text)


class Request(Handler):
    """One request of a sender."""

    server: Server

    def do_POST(self) -> None:
        """Takes the points, or says why not."""
        kind = self.headers.get_content_type()
        try:
            self._admit(kind)
            with self.server.room.held() as held:
                body = self._unpacked(self._sent(held), held)
                with self.server.understanding:
                    self.server.store.keep(self._understood(kind, body))
        except Refusal as refusal:
            return self._refuse(refusal, kind)
        return self.say(200, b"" if kind == PROTOBUF else b"{}", kind)

    def do_GET(self) -> None:
        """Nothing is handed out here."""
        self.say(405, b"points are sent by POST\n", Allow="POST")

    do_HEAD = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET

    def _admit(self, kind: str) -> None:
        """Path, token, and forms; the content type also keeps web pages out, which may not set it without asking."""
        server = self.server
        if self.path.partition("?")[0] not in PATHS:
            raise Refusal(404, "metrics are taken under /v1/metrics")
        if not server.opens(self.headers.get("Authorization", "")):
            server.store.count(rejected_auth=1)
            raise Refusal(401, "the bearer token is missing or wrong", WWW_Authenticate="Bearer")
        if not server.bearer_required and not self.is_local():
            server.store.count(rejected_auth=1)
            raise Refusal(403, "without a token, only the names of this machine are served")
        server.store.count(authenticated=1)
        if kind not in (JSON, PROTOBUF):
            raise Refusal(415, f"the content type must be {JSON} or {PROTOBUF}")

    def _sent(self, held: Held) -> bytes:
        out = bytearray()
        try:
            for piece in self.pieces(self.server.most):
                held.more(len(piece))
                out += piece
        except TooLarge:
            raise self._too_large() from None
        except (BadBody, OSError) as error:
            raise Refusal(400, f"the body cannot be read: {error}") from None
        return bytes(out)

    def _unpacked(self, body: bytes, held: Held) -> bytes:
        encoding = self.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding in ("identity", ""):
            return body
        if encoding not in ("gzip", "deflate"):
            raise Refusal(415, ENCODING)
        inflate, out = zlib.decompressobj(GZIP_OR_ZLIB), bytearray()
        try:
            for piece in _inflated(inflate, body):
                if len(out) + len(piece) > self.server.most:
                    raise self._too_large()
                held.more(len(piece))
                out += piece
        except zlib.error:
            raise Refusal(400, f"{MALFORMED}: the body is not {encoding}") from None
        if not inflate.eof or inflate.unused_data:
            raise Refusal(400, f"{MALFORMED}: the compressed body does not end where it should")
        return bytes(out)

    def _understood(self, kind: str, body: bytes) -> Batch:
        try:
            root: Any = Packed(memoryview(body), "ExportMetricsServiceRequest") if kind == PROTOBUF else _json(body)
            return read(root, self.server.store.wants)
        except Malformed as error:
            raise Refusal(400, f"{MALFORMED}: {error}") from None

    def _too_large(self) -> Refusal:
        return Refusal(413, f"a request may have {self.server.most} bytes")

    def _refuse(self, refusal: Refusal, kind: str) -> None:
        if refusal.status not in (401, 403, 404):
            self.server.store.count(rejected_payload=1)
        self.server.complain(refusal)
        code = _CODES.get(refusal.status, 3)
        if kind == PROTOBUF:
            body = _status(code, refusal.text.encode()[:100])
        else:
            body, kind = json.dumps({"code": code, "message": refusal.text}).encode(), JSON
        self.say(refusal.status, body, kind, **refusal.headers)


def _inflated(inflate: Any, body: bytes) -> Iterator[bytes]:
    """What is unpacked, in pieces; the caller may stop at any."""
    for at in range(0, len(body), PIECE):
        packed = body[at : at + PIECE]
        while piece := inflate.decompress(packed, PIECE):
            packed = inflate.unconsumed_tail
            yield piece


def _json(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refusal(400, INVALID_JSON) from None


def _no_constant(name: str) -> float:
    """JSON has no NaN and no infinity."""
    raise ValueError(name)


def _status(code: int, text: bytes) -> bytes:
    """A google.rpc.Status in protobuf, as OTLP wants it; the text is shorter than 128 bytes."""
    return bytes((0x08, code, 0x12, len(text))) + text


def _hashed(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
