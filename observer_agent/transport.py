"""One HTTP call to the cloud under one deadline: an answer, never an exception.

A `Transport` keeps one `requests` session with its connection, and belongs to one thread. The deadline covers
resolving, connecting, TLS, sending and every byte of the answer, because each socket operation gets what is left of
it. Redirects are never followed. Proxies and the CA bundle of the environment are read once, when it is made; without
a bundle the machine's own authorities count, and where it has none those that `requests` brings.
"""

from __future__ import annotations

import io
import os
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from observer_agent.clock import Clock
from observer_agent.resolver import ResolveError, Resolver

CALL_SECONDS = 30.0
ANSWER_MAX = 16 * 1024 * 1024
_TUNNEL = re.compile(r"Tunnel connection failed: (\d{3})")
_STALE = (ConnectionResetError, BrokenPipeError, ConnectionAbortedError)  # RemoteDisconnected is a reset


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: `status` is 0 when nothing did, and `error` then says why, in a few words for a log line."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300


class Deadline:
    """The moment by which the call in progress must be over; the connections read it at each operation."""

    def __init__(self, clock: Clock, resolver: Resolver) -> None:
        self._clock = clock
        self.resolver = resolver
        self.at = 0.0

    def start(self, seconds: float) -> None:
        """A call begins."""
        self.at = self._clock.monotonic() + seconds

    def left(self) -> float:
        """Seconds that remain; raises TimeoutError when none do."""
        left = self.at - self._clock.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline of the call has passed")
        return left


def system_authorities(paths: ssl.DefaultVerifyPaths | None = None) -> str | None:
    """Where the machine keeps the authorities that it trusts: a file, or a directory that holds some; else None."""
    found = paths or ssl.get_default_verify_paths()
    if found.cafile:
        return found.cafile
    return found.capath if found.capath and any(Path(found.capath).glob("*.0")) else None


class Transport:
    """Calls one cloud. `headers` go out with every request; `verify` is False only by the operator's wish."""

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str],
        *,
        clock: Clock,
        resolver: Resolver,
        verify: bool = True,
        env: Mapping[str, str] = os.environ,
    ) -> None:
        self._base = base_url.rstrip("/")
        self._deadline = Deadline(clock, resolver)
        self._session = session = _Session()
        session.trust_env = False
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        session.headers.clear()
        session.headers.update({"Accept": "application/json", **headers})
        session.proxies = dict(requests.utils.get_environ_proxies(base_url))
        bundle = env.get("REQUESTS_CA_BUNDLE") or env.get("CURL_CA_BUNDLE")
        session.verify = (bundle or system_authorities() or True) if verify else False
        if not verify:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        session.mount("http://", _Adapter(self._deadline))
        session.mount("https://", _Adapter(self._deadline))
        self._kept = False

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = CALL_SECONDS,
    ) -> Reply:
        """One request and its answer within `seconds`.

        A kept connection that the server has closed meanwhile is tried once more, at once: every POST of ours is
        safe to repeat.
        """
        self._deadline.start(seconds)
        kept, self._kept = self._kept, False
        try:
            return self._exchange(method, path, body, headers)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            if not (kept and _cause(error, _STALE)):
                return Reply(0, error=describe(error))
        try:
            return self._exchange(method, path, body, headers)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            return Reply(0, error=describe(error))

    def close(self) -> None:
        """Closes the kept connection."""
        self._session.close()

    def _exchange(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None) -> Reply:
        with self._session.request(
            method,
            self._base + path,
            data=body,
            headers=headers,
            timeout=self._deadline.left(),
            allow_redirects=False,
            stream=True,
        ) as answer:
            content = bytearray()
            for chunk in answer.iter_content(65536):
                content += chunk
                if len(content) > ANSWER_MAX:
                    return Reply(0, error="the answer is larger than 16 MiB")
        self._kept = True
        return Reply(answer.status_code, answer.headers, bytes(content))


class _Session(requests.Session):
    """Does not even look at where a redirect leads: looking would read the whole body."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        return None


class _BoundedReader(io.RawIOBase):
    """The answer's bytes; each read gets what is left of the deadline."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._deadline.left())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _BoundedSocket:
    """What http.client's response wants of a socket: a file to read."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self._deadline = deadline

    def makefile(self, *_: object) -> io.BufferedReader:
        return io.BufferedReader(_BoundedReader(self._sock, self._deadline))


class _Adapter(HTTPAdapter):
    """requests' adapter with connections that know the deadline."""

    def __init__(self, deadline: Deadline) -> None:
        self._pools = _pools(deadline)
        super().__init__(max_retries=0, pool_connections=1, pool_maxsize=1)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = self._pools
        return manager


def _pools(deadline: Deadline) -> dict[str, type[HTTPConnectionPool]]:
    """Pool classes whose connections share `deadline`."""

    class Bounded(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return _connect(self, deadline)

        def getresponse(self) -> Any:
            self.response_class = lambda sock, **kw: _response(sock, deadline, **kw)  # type: ignore[assignment]
            return super().getresponse()

    class BoundedTLS(Bounded, HTTPSConnection):
        pass

    class Pool(HTTPConnectionPool):
        ConnectionCls = Bounded

    class PoolTLS(HTTPSConnectionPool):
        ConnectionCls = BoundedTLS

    return {"http": Pool, "https": PoolTLS}


def _response(sock: socket.socket, deadline: Deadline, **kwargs: Any) -> Any:
    from http.client import HTTPResponse

    return HTTPResponse(_BoundedSocket(sock, deadline), **kwargs)  # type: ignore[arg-type]


def _connect(conn: HTTPConnection, deadline: Deadline) -> socket.socket:
    """A connected socket to the connection's host, the name resolved within the deadline as well."""
    host = conn.host.strip("[]")
    try:
        addresses = deadline.resolver.resolve(host, deadline.at)
    except ResolveError as error:
        raise NameResolutionError(conn.host, conn, socket.gaierror(error.reason)) from error
    problem: OSError = OSError("no address")
    for address in addresses:
        sock = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            sock.settimeout(deadline.left())
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            target = (address.host, conn.port, 0, address.scope) if address.family == socket.AF_INET6 else None
            sock.connect(target or (address.host, conn.port))
            sock.settimeout(deadline.left())
            return sock
        except OSError as error:
            sock.close()
            problem = error
    if isinstance(problem, TimeoutError):
        raise ConnectTimeoutError(conn, "the connection was not made in time") from problem
    raise NewConnectionError(conn, f"no connection: {problem}") from problem


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error, what it wraps and what caused it; requests and urllib3 nest them in `args` and `reason`."""
    found: list[BaseException] = []
    waiting = [error]
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or one in found:
            continue
        found.append(one)
        waiting += [one.__cause__, one.__context__, getattr(one, "reason", None)]
        waiting += [a for a in one.args if isinstance(a, BaseException)]
    return found


def _cause(error: BaseException, kinds: tuple[type[BaseException], ...]) -> bool:
    return any(isinstance(one, kinds) for one in _chain(error))


def describe(error: BaseException) -> str:
    """A network error in a few words, without URL, header or key."""
    chain = _chain(error)
    if _cause(error, (requests.exceptions.ProxyError, urllib3.exceptions.ProxyError)):
        refused = next((m for one in chain if (m := _TUNNEL.search(str(one)))), None)
        return f"the proxy refuses (status {refused[1]})" if refused else f"the proxy: {_describe(error, chain)}"
    return _describe(error, chain)


def _describe(error: BaseException, chain: list[BaseException]) -> str:
    for one in chain:
        if isinstance(one, ssl.SSLCertVerificationError):
            return f"TLS: certificate not verified: {one.verify_message}"
        if isinstance(one, ssl.SSLError):
            return f"TLS: {one.reason or 'handshake failed'}"
        if isinstance(one, ResolveError):
            return f"name not resolved ({one.reason})"
    if _cause(error, (TimeoutError, urllib3.exceptions.ReadTimeoutError)):
        return "timed out"
    for one in chain:
        if isinstance(one, OSError) and one.errno and not isinstance(one, requests.RequestException):
            return os.strerror(one.errno).lower()
    if any("CA certificate bundle" in str(one) for one in chain):
        return "the CA bundle that REQUESTS_CA_BUNDLE names cannot be read"
    if _cause(error, _STALE):
        return "connection closed by the other side"
    return type(chain[-1]).__name__
