"""One WebSocket conversation over a stream: handshake, messages, close. The codec is `wsproto`; it sees no socket.

What the server sends is bounded: its headers by h11, each message and the whole by the limits below. Extensions are not
offered, redirects not followed. Runs on the probe's thread; failures are raised as Failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from observer_agent import __version__
from observer_agent.model import Fault
from observer_agent.probes._headers import Pairs
from observer_agent.probes._net import Stream
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._url import Url

if TYPE_CHECKING:
    from wsproto import WSConnection

MESSAGE_LIMIT: Final = 1_048_576
ALL_LIMIT: Final = 16 * MESSAGE_LIMIT
HEAD_LIMIT: Final = 65_536
COURTESY: Final = 0.1
_NORMAL: Final = 1000
_BEACON: Final = b"observer-agent"  # the payload of our own ping


class Opening(NamedTuple):
    """What the handshake asks for."""

    url: Url
    protocols: tuple[str, ...]
    headers: Pairs


class Heard(NamedTuple):
    """A whole message (binary ones count as an empty text), or the pong to our ping, whose text is None."""

    text: str | None


class Talk:
    """A conversation; the caller closes the stream. `close_code` is set once the server has said goodbye."""

    def __init__(self) -> None:
        from wsproto import ConnectionType, WSConnection

        self._ws: WSConnection = WSConnection(ConnectionType.CLIENT)
        self.close_code: int | None = None
        self._heard = False

    def open(self, opening: Opening, stream: Stream) -> None:
        """The handshake; raises Failed where the server does not agree to it."""
        from wsproto.events import AcceptConnection, Request

        given = {name.lower(): value for name, value in opening.headers}
        headers = {"user-agent": ("User-Agent", f"observer-agent/{__version__}")}
        headers.update((name.lower(), (name, value)) for name, value in opening.headers if name.lower() != "host")
        request = Request(
            host=given.get("host", opening.url.authority),
            target=opening.url.target,
            subprotocols=list(opening.protocols),
            extra_headers=[
                (n.encode("ascii"), v.strip(" \t").encode("utf-8", "surrogateescape")) for n, v in headers.values()
            ],
        )
        try:
            data = self._ws.send(request)
        except UnicodeError:  # wsproto takes host:port for a name, whose last label may become too long
            raise Failed(Reason.INVALID_URL, "the host's name is too long", Fault.CONFIG) from None
        stream.send(data)
        for event in self._events(stream, HEAD_LIMIT):
            if isinstance(event, AcceptConnection):
                return
            status = getattr(event, "status_code", 0)
            what = "redirects, which is not followed" if 300 <= status < 400 else "does not open a WebSocket"
            raise Failed(Reason.WS_OPEN_FAILED, f"the server answered {status} and {what}", http_status=status)

    def say(self, text: str, stream: Stream, *, ping: bool) -> None:
        """Sends a text, and before it a ping if that is asked for."""
        from wsproto.events import Ping, TextMessage

        first = self._ws.send(Ping(_BEACON)) if ping else b""
        stream.send(first + self._ws.send(TextMessage(text)))

    def listen(self, stream: Stream) -> Iterator[Heard]:
        """Messages and the pong to our ping as they come; raises Failed at the end, whatever it is."""
        pieces: list[str] = []
        size = 0
        for event in self._events(stream, ALL_LIMIT):
            kind = type(event).__name__
            if kind == "Ping":
                stream.send(self._ws.send(event.response()))
            elif kind == "Pong" and bytes(event.payload) == _BEACON:
                yield Heard(None)
            elif kind == "CloseConnection":
                raise self._closed(int(event.code))
            elif kind in ("TextMessage", "BytesMessage"):
                size += len(event.data)
                if size > MESSAGE_LIMIT:
                    raise _too_much("a message", MESSAGE_LIMIT)
                pieces.append(event.data if kind == "TextMessage" else "")
                if event.message_finished:
                    yield Heard("".join(pieces))
                    pieces, size = [], 0

    def _closed(self, code: int) -> Failed:
        """The server said goodbye; or wsproto did, about what it could not understand."""
        from wsproto.connection import ConnectionState

        if self._ws.state is not ConnectionState.REMOTE_CLOSING:
            return Failed(Reason.WS_CLOSED_EARLY, f"the server breaks the protocol (code {code})")
        self.close_code = code
        return Failed(Reason.WS_CLOSED_EARLY, f"the server closed with code {code}")

    def leave(self, stream: Stream) -> None:
        """Says goodbye and waits for the answer, briefly: a server that is cut off logs an error each time."""
        from wsproto.events import CloseConnection

        stream.run.hurry(COURTESY)
        try:
            stream.send(self._ws.send(CloseConnection(_NORMAL)))
            for event in self._events(stream, ALL_LIMIT):
                if isinstance(event, CloseConnection):
                    return
        except Failed:
            pass  # the value stands

    def hang_up(self, stream: Stream) -> None:
        """Says goodbye and waits for nothing: the time may be over."""
        from wsproto.events import CloseConnection
        from wsproto.utilities import LocalProtocolError

        try:
            stream.sock.settimeout(0)
            stream.sock.send(self._ws.send(CloseConnection(_NORMAL)))
        except (OSError, LocalProtocolError):
            pass

    def _events(self, stream: Stream, limit: int) -> Iterator[Any]:
        """What the server does, one by one, over at most `limit` bytes."""
        from wsproto.utilities import ProtocolError

        taken = 0
        while True:
            try:
                for event in self._ws.events():
                    stream.run.left()  # thousands of them may come at once
                    yield event
                if taken > limit:
                    raise _too_much("all that came", limit)
                data = stream.receive()
                if not data:
                    raise Failed(Reason.RESET, "the server closed the connection")
                if not self._heard and not b"HTTP/".startswith(data[:5]):
                    raise Failed(Reason.WS_OPEN_FAILED, "the answer is not HTTP")
                self._heard = True
                taken += len(data)
                self._ws.receive_data(data)
            except (ProtocolError, UnicodeError) as error:
                raise Failed(Reason.WS_CLOSED_EARLY, f"the server breaks the protocol: {error}"[:200]) from None


def _too_much(what: str, limit: int) -> Failed:
    return Failed(Reason.BODY_TOO_LARGE, f"{what} has more than {limit} bytes")
