"""The API server of the cluster that this process runs in, asked over HTTP/1.1 as the pod's service account.

Enters: the pod's environment and its service account's folder; leaves: answers of lists and the bytes of watches. The
token and the authorities are read again for each connection or request, because the cluster replaces both. A
`Connection` never blocks while it reads, so that one thread can follow many watches; connecting and asking take
`REACH_SECONDS` at most. Nothing goes through a proxy: the API server is inside the cluster. No redirect is followed.
"""

from __future__ import annotations

import json
import re
import select
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlencode

from observer_agent import __version__
from observer_agent.clock import Clock
from observer_agent.resolver import ResolveError, Resolver

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
REACH_SECONDS: Final = 5.0
PAGE: Final = 500
BODY_MAX: Final = 32 * 1024 * 1024
_CHUNK: Final = 65_536
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")


class KubeError(Exception):
    """The API server did not give what was asked: `status` is its HTTP status, 0 where nothing came back."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class TooLarge(KubeError):
    """An answer is larger than this process takes; a shorter page may not be."""


@dataclass(frozen=True, slots=True)
class Account:
    """Where the API server is and what proves who asks. `tell` hears each token, so that no log line holds one."""

    host: str
    port: int
    folder: Path = SERVICE_ACCOUNT
    tell: Callable[[str], object] = lambda token: None

    def token(self) -> str:
        """The token as the file holds it now; raises KubeError."""
        try:
            text = (self.folder / "token").read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise KubeError(0, f"the token file cannot be read ({type(error).__name__})") from None
        if not _TOKEN.fullmatch(text):
            raise KubeError(0, "the token file holds no token")
        self.tell(text)
        return text

    def context(self) -> ssl.SSLContext:
        """TLS that trusts the cluster's own authority and no other; raises KubeError."""
        # Not create_default_context: from Python 3.13 on it wants key identifiers, which many clusters' CAs lack.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(self.folder / "ca.crt")
        except (OSError, ssl.SSLError) as error:
            raise KubeError(0, f"the cluster's CA file cannot be read ({type(error).__name__})") from None
        return context


def in_cluster(
    env: Mapping[str, str], folder: Path = SERVICE_ACCOUNT, tell: Callable[[str], object] = lambda token: None
) -> Account | str:
    """The account of this pod, or a text that says why there is none; `tell` hears each token."""
    host, port = env.get("KUBERNETES_SERVICE_HOST", ""), env.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        return "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT do not name an API server: not in a cluster"
    for name in ("token", "ca.crt"):
        if not (folder / name).is_file():
            return f"the service account has no file {name} in {folder} (automountServiceAccountToken: false?)"
    return Account(host.strip("[]"), int(port), folder, tell)


class Connection:
    """One connection to the API server: `ask`, then `pump` until `ended`, then perhaps `ask` again."""

    def __init__(self, sock: ssl.SSLSocket, host: str) -> None:
        import h11

        self._sock = sock
        self._host = host
        self._h11 = h11.Connection(our_role=h11.CLIENT, max_incomplete_event_size=_CHUNK)
        self.status = 0
        self.ended = False

    def fileno(self) -> int:
        """For poll."""
        return self._sock.fileno()

    @property
    def reusable(self) -> bool:
        """Whether the last answer has ended and the server keeps the connection."""
        import h11

        return self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE

    def ask(self, target: str, token: str) -> None:
        """Sends a GET; raises KubeError."""
        import h11

        if self.reusable:
            self._h11.start_next_cycle()
        self.status, self.ended = 0, False
        head = [
            ("Host", self._host),
            ("Authorization", f"Bearer {token}"),
            ("Accept", "application/json"),
            ("User-Agent", f"observer-agent/{__version__}"),
        ]
        data = self._h11.send(h11.Request(method="GET", target=target, headers=head)) or b""
        data += self._h11.send(h11.EndOfMessage()) or b""
        try:
            self._sock.settimeout(REACH_SECONDS)
            self._sock.sendall(data)
            self._sock.setblocking(False)
        except OSError as error:
            raise KubeError(0, _words(error)) from None

    def pump(self) -> bytes:
        """What has come of the answer's body since the last time, without waiting; raises KubeError."""
        body = bytearray()
        while not self.ended:
            try:
                data = self._sock.recv(_CHUNK)
            except (ssl.SSLWantReadError, BlockingIOError):
                break
            except OSError as error:
                raise KubeError(0, _words(error)) from None
            self._take(data, body)
            if len(body) > BODY_MAX:
                raise TooLarge(self.status, f"more than {BODY_MAX >> 20} MiB in one answer")
        return bytes(body)

    def _take(self, data: bytes, body: bytearray) -> None:
        import h11

        try:
            self._h11.receive_data(data)
            while True:
                event = self._h11.next_event()
                if isinstance(event, h11.Response):
                    self.status = event.status_code
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.InformationalResponse):
                    continue
                else:  # the end, or no more for now
                    self.ended = self.ended or isinstance(event, h11.EndOfMessage | h11.ConnectionClosed)
                    return
        except h11.RemoteProtocolError as error:
            raise KubeError(0, "connection closed before the answer ended" if not data else _short(error)) from None

    def close(self) -> None:
        """Closes the socket; a second time does nothing."""
        self._sock.close()


class Kube:
    """Opens connections for one account. `open` and `get` may be called from any thread, a Connection from one."""

    def __init__(self, account: Account, *, clock: Clock, resolver: Resolver) -> None:
        self._account = account
        self._clock = clock
        self._resolver = resolver

    def ask(self, path: str, query: Mapping[str, str], kept: Connection | None = None) -> Connection:
        """A connection on which the answer to a GET is awaited, `kept` where the server keeps it; raises KubeError."""
        token = self._account.token()
        target = f"{path}?{urlencode(query)}" if query else path
        connection = kept if kept and kept.reusable else self._open()
        try:
            connection.ask(target, token)
        except KubeError:
            connection.close()
            raise
        return connection

    def get(self, path: str, query: Mapping[str, str], seconds: float) -> Any:
        """One answer as JSON, waited for; raises KubeError."""
        until = self._clock.monotonic() + seconds
        connection = self.ask(path, query)
        try:
            body = bytearray()
            while not connection.ended:
                left = until - self._clock.monotonic()
                if left <= 0 or not _readable(connection, left):
                    raise KubeError(0, "timed out")
                body += connection.pump()
            return parsed(connection.status, bytes(body))
        finally:
            connection.close()

    def pages(self, path: str, seconds: float, limit: int = PAGE) -> Iterator[Mapping[str, Any]]:
        """Every object of a list, a page at a time, each within `seconds`; raises KubeError."""
        query = {"limit": str(limit)}
        while True:
            answer = self.get(path, query, seconds)
            yield from objects_of(answer)
            token = metadata_of(answer).get("continue")
            if not token:
                return
            query = {"limit": str(limit), "continue": str(token)}

    def _open(self) -> Connection:
        account, until = self._account, self._clock.monotonic() + REACH_SECONDS
        context = account.context()
        try:
            addresses = self._resolver.resolve(account.host, until)
        except ResolveError as error:
            raise KubeError(0, f"the API server's name was not resolved ({error.reason})") from None
        try:
            raw = socket.create_connection((addresses[0].host, account.port), REACH_SECONDS)
        except OSError as error:
            raise KubeError(0, _words(error)) from None
        try:
            _keep_alive(raw)
            sock = context.wrap_socket(raw, server_hostname=account.host)
        except OSError as error:
            raw.close()
            raise KubeError(0, _words(error)) from None
        host = f"[{account.host}]" if ":" in account.host else account.host
        return Connection(sock, f"{host}:{account.port}")


def parsed(status: int, body: bytes) -> Mapping[str, Any]:
    """An answer's body; raises KubeError with the server's own words where the status is not 200."""
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if status == 200 and isinstance(found, dict):
        return found
    if status == 200:
        raise KubeError(0, "the answer is not JSON")
    message = found.get("message") if isinstance(found, dict) else None
    raise KubeError(status, _short(message or "no reason given"))


def objects_of(answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The objects of a list's page."""
    items = answer.get("items")
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def metadata_of(thing: Mapping[str, Any]) -> Mapping[str, Any]:
    """The metadata of an object or a list."""
    found = thing.get("metadata")
    return cast("Mapping[str, Any]", found) if isinstance(found, dict) else {}


def _readable(connection: Connection, seconds: float) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(max(seconds, 0.0) * 1000))


def _keep_alive(sock: socket.socket) -> None:
    """A peer that vanished without a word is noticed within about a minute."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3)):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _words(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: certificate not verified: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or 'handshake failed'}"
    if isinstance(error, TimeoutError):
        return "timed out"
    return _short(error.strerror or type(error).__name__).lower()


def _short(text: object) -> str:
    return " ".join(str(text).split())[:200]
