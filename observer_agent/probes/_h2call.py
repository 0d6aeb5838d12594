"""One unary gRPC call on HTTP/2: a stream, headers and a message in; status and message of the answer out.

The codec is `h2`, which never sees the socket. The server's first frame must be SETTINGS; what it may send in all is
bounded, whatever it consists of. A call is one request on a connection of its own. Runs on the probe's thread; failures
are raised as Failed under the names that `grpc` has for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote

from observer_agent.probes._net import Stream
from observer_agent.probes._reasons import Failed, Reason

if TYPE_CHECKING:
    from h2.connection import H2Connection

ALL_LIMIT: Final = 65_536  # of everything that the server sends
SLICE: Final = 1_024  # what h2 gets at a time: a flood of small frames takes it long, and it knows no deadline
HEADER_LIMIT: Final = 16_384
TEXT_LIMIT: Final = 200

STATUS: Final = (
    "OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED "
    "RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS "
    "UNAUTHENTICATED"
).split()
_OF_HTTP: Final[Mapping[int, str]] = MappingProxyType(
    {
        400: "INTERNAL", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "UNIMPLEMENTED",
        429: "UNAVAILABLE", 502: "UNAVAILABLE", 503: "UNAVAILABLE", 504: "UNAVAILABLE",
    }
)  # fmt: skip
_OF_RESET: Final[Mapping[int, str]] = MappingProxyType(
    {7: "UNAVAILABLE", 8: "CANCELLED", 11: "RESOURCE_EXHAUSTED", 12: "PERMISSION_DENIED"}
)
_SETTINGS: Final = 0x4


class Call(NamedTuple):
    """What to ask: the pseudo-headers and headers in their order, and the framed message."""

    headers: tuple[tuple[str, str], ...]
    message: bytes
    largest: int


class Answer(NamedTuple):
    """What the server said: gRPC's name for it, why there is none, the framed message, its own words (local alone)."""

    code: str
    text: str
    message: bytes
    said: str


class Conversation:
    """One call, made ready before there is a connection, so that the codec's own time is not the server's."""

    def __init__(self, call: Call) -> None:
        self._largest = call.largest
        self._h2 = _connection()
        self._h2.send_headers(1, call.headers)
        self._h2.send_data(1, call.message, end_stream=True)
        self._status = 0
        self._type = ""
        self._code: str | None = None
        self._said = ""
        self._message = bytearray()
        self._ended = False

    def hold(self, stream: Stream) -> Answer:
        """Sends the request together with the preface, and reads until it is answered; raises Failed.

        The caller closes the stream.
        """
        from h2.exceptions import H2Error

        stream.send(self._h2.data_to_send())
        try:
            for data in _begun_with_settings(_received(stream)):
                for event in self._h2.receive_data(data):
                    self._take(event)
                if self._ended:
                    break
                stream.send(self._h2.data_to_send())
        except H2Error as error:
            raise _unavailable(f"the server breaks HTTP/2: {type(error).__name__}") from None
        self._say_goodbye(stream)
        return self._answer()

    def _take(self, event: Any) -> None:
        """One event of h2; its class's name tells what it is."""
        kind = type(event).__name__
        if kind in ("ResponseReceived", "TrailersReceived"):
            self._see(event.headers)
        elif kind == "DataReceived":
            self._message += event.data
            self._h2.acknowledge_received_data(event.flow_controlled_length, 1)
            if len(self._message) > self._largest:
                raise _error(f"the message has more than {self._largest} bytes")
        elif kind == "StreamReset":
            self._code = self._code or _OF_RESET.get(int(event.error_code), "INTERNAL")
            self._ended = True
        elif kind == "ConnectionTerminated" and not (event.last_stream_id or 0):
            raise _unavailable("the server ended the connection before it took the request")
        elif kind == "StreamEnded":
            self._ended = True

    def _see(self, headers: Any) -> None:
        for name, value in headers:
            if name == ":status":
                self._status = int(value) if value.isdecimal() and len(value) == 3 else 0
            elif name == "content-type":
                self._type = value
            elif name == "grpc-status":
                self._code = _code_name(value)
            elif name == "grpc-message":
                self._said = _printable(unquote(value[: 3 * TEXT_LIMIT]))

    def _answer(self) -> Answer:
        code, text = self._code, ""
        if code is None and (self._status != 200 or not self._type.startswith("application/grpc")):
            code, text = _OF_HTTP.get(self._status, "UNKNOWN"), f"status {self._status} of HTTP, no gRPC"
        elif code is None:
            code, text = "UNKNOWN", "the answer ends without a status"
        return Answer(code, text, bytes(self._message), self._said)

    def _say_goodbye(self, stream: Stream) -> None:
        """Ends the connection as HTTP/2 wants it, so that the server has nothing to log."""
        self._h2.close_connection()
        try:
            stream.send(self._h2.data_to_send())
        except Failed:
            pass  # the answer stands


def _connection() -> H2Connection:
    from h2.config import H2Configuration
    from h2.connection import H2Connection
    from h2.settings import SettingCodes, Settings

    config = H2Configuration(
        client_side=True, header_encoding="latin-1", validate_outbound_headers=False, normalize_outbound_headers=False
    )
    connection = H2Connection(config)
    wanted = {
        SettingCodes.ENABLE_PUSH: 0,
        SettingCodes.MAX_HEADER_LIST_SIZE: HEADER_LIMIT,
        SettingCodes.INITIAL_WINDOW_SIZE: 65_535,
    }
    connection.local_settings = Settings(client=True, initial_values=wanted)
    connection.initiate_connection()
    return connection


def _received(stream: Stream) -> Iterator[bytes]:
    """What the server sends, piece by piece; raises Failed where it ends, or is too much."""
    taken = 0
    while taken <= ALL_LIMIT:
        data = stream.receive()
        if not data:
            raise _unavailable("the server closed the connection before it answered")
        taken += len(data)
        for at in range(0, len(data), SLICE):
            stream.run.left()
            yield data[at : at + SLICE]
    raise _error(f"the server sent more than {ALL_LIMIT} bytes")


def _begun_with_settings(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes; raises Failed where the first frame is not SETTINGS, whatever else h2 would take."""
    head = b""
    for data in pieces:
        head += data
        kind, flags, stream_id = head[3:4], head[4:5], head[5:9]
        if head[0] or (kind and kind[0] != _SETTINGS) or (flags and flags[0] & 1) or any(stream_id):
            raise _unavailable("the server does not speak HTTP/2")
        if len(head) >= 9:
            break
    yield head
    yield from pieces


def _code_name(value: str) -> str:
    number = int(value) if value.isdecimal() and len(value) <= 2 else 2
    return STATUS[number] if number < len(STATUS) else "UNKNOWN"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:TEXT_LIMIT])


def _unavailable(text: str) -> Failed:
    return Failed(Reason.GRPC_UNAVAILABLE, text)


def _error(text: str) -> Failed:
    return Failed(Reason.GRPC_ERROR, text)
