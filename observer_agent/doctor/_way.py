"""The way to the cloud, as the agent goes it: host, port, the proxy of the environment, the CA bundle.

Sockets leave that the steps of `_cloud` go on with; what fails is raised as `Stopped` with its finding.
"""

from __future__ import annotations

import base64
import errno
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import requests

from observer_agent.clock import Clock
from observer_agent.doctor._report import Finding
from observer_agent.resolver import Address, ResolveError, Resolver

HEAD_MAX = 65_536
PORTS = {"http": 80, "https": 443}
_PROXY_NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class Stopped(Exception):
    """A step found why nothing behind it can work."""

    def __init__(self, *findings: Finding) -> None:
        super().__init__(findings[0].cause)
        self.findings = findings


class Hop(NamedTuple):
    """Whom to connect to first: the cloud, or the proxy before it. `login` is a Proxy-Authorization's value."""

    host: str
    port: int
    scheme: str
    login: str = ""

    @property
    def name(self) -> str:
        """For people."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Way(NamedTuple):
    """The cloud's URL taken apart, and the proxy in front of it."""

    cloud: Hop
    proxy: Hop | None

    @property
    def tls(self) -> bool:
        """Whether the cloud is spoken to in TLS."""
        return self.cloud.scheme == "https"


@contextmanager
def proxies_of(env: Mapping[str, str]) -> Iterator[None]:
    """The service's proxy variables in place of the caller's: requests reads them from this process alone."""
    before = {name: text for name, text in os.environ.items() if name.lower() in _PROXY_NAMES}
    wanted = {name: text for name, text in env.items() if name.lower() in _PROXY_NAMES}
    try:
        _replace(before, wanted)
        yield
    finally:
        _replace(wanted, before)


def _replace(old: Mapping[str, str], new: Mapping[str, str]) -> None:
    for name in old:
        os.environ.pop(name, None)
    os.environ.update(new)


def find_way(url: str) -> Way:
    """The way to `url`; call inside `proxies_of`."""
    proxies = requests.utils.get_environ_proxies(url)
    proxy = requests.utils.select_proxy(url, proxies)
    return Way(_hop(url), _hop(proxy if "://" in proxy else f"http://{proxy}") if proxy else None)


def _hop(url: str) -> Hop:
    parts = urlsplit(url)
    login = ""
    if parts.username:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        login = "Basic " + base64.b64encode(pair.encode()).decode()
    try:
        port = parts.port
    except ValueError:
        port = None
    return Hop(parts.hostname or "", port or PORTS.get(parts.scheme, 0), parts.scheme, login)


# -- names and connections


def resolve(name: str, resolver: Resolver, until: float, clock: Clock) -> tuple[tuple[Address, ...], float]:
    """The addresses of a name and the seconds that it took; raises ResolveError."""
    began = clock.monotonic()
    found = resolver.resolve(name, until)
    return found, clock.monotonic() - began


def connect(addresses: tuple[Address, ...], port: int, until: float, clock: Clock) -> socket.socket:
    """A connection to the first address that takes one; raises OSError."""
    problem: OSError = OSError(errno.EADDRNOTAVAIL, "no address")
    for at, address in enumerate(addresses):
        # What is left, shared between the addresses that are left: one that swallows packets is not the whole answer.
        left = max((until - clock.monotonic()) / (len(addresses) - at), 0.05)
        sock = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            sock.settimeout(left)
            v6 = address.family == socket.AF_INET6
            sock.connect((address.host, port, 0, address.scope) if v6 else (address.host, port))
            return sock
        except OSError as error:
            sock.close()
            problem = error
    raise problem


# -- the proxy


def through_proxy(way: Way, resolver: Resolver, until: float, clock: Clock) -> socket.socket:
    """A connection through the proxy: to the cloud by CONNECT for TLS, else to the proxy itself. Raises Stopped."""
    proxy = way.proxy
    assert proxy is not None
    if proxy.scheme not in PORTS:
        fix = "set HTTPS_PROXY to an http:// proxy, or name the cloud's host in NO_PROXY"
        raise Stopped(Finding("proxy.unsupported", f"a proxy of the kind {proxy.scheme}:// is not spoken", fix))
    sock = _to_proxy(proxy, resolver, until, clock)
    if not way.tls or proxy.scheme == "https":
        return sock
    try:
        _tunnel(sock, way, until, clock)
    except BaseException:
        sock.close()
        raise
    return sock


def _to_proxy(proxy: Hop, resolver: Resolver, until: float, clock: Clock) -> socket.socket:
    mend = "mend HTTPS_PROXY (or HTTP_PROXY), or name the cloud's host in NO_PROXY"
    try:
        addresses, _ = resolve(proxy.host, resolver, until, clock)
    except ResolveError as error:
        cause = f"the proxy's name {proxy.host} is not resolved ({error.reason})"
        raise Stopped(Finding("proxy.not_found", cause, mend)) from None
    try:
        return connect(addresses, proxy.port, until, clock)
    except OSError as error:
        why = "timed out" if isinstance(error, TimeoutError) else (error.strerror or "no connection").lower()
        raise Stopped(Finding("proxy.unreachable", f"the proxy {proxy.name} is not reached: {why}", mend)) from None


def _tunnel(sock: socket.socket, way: Way, until: float, clock: Clock) -> None:
    """CONNECT; raises Stopped for anything but 2xx."""
    assert way.proxy is not None
    name, target = way.proxy.name, way.cloud.name
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    lines += [f"Proxy-Authorization: {way.proxy.login}"] if way.proxy.login else []
    try:
        status = _status(_ask(sock, "\r\n".join([*lines, "", ""]).encode(), until, clock))
    except OSError as error:
        why = "says nothing" if isinstance(error, TimeoutError) else "closes the connection"
        fix = f"ask who runs the proxy; check that {name} is an HTTP proxy"
        raise Stopped(Finding("proxy.not_a_proxy", f"the proxy {name} {why} when asked for {target}", fix)) from None
    if status == 407:
        raise Stopped(login_needed(name, bool(way.proxy.login)))
    if status == 0:
        cause, fix = f"{name} does not speak HTTP: it is no proxy", "mend HTTPS_PROXY (or HTTP_PROXY)"
        raise Stopped(Finding("proxy.not_a_proxy", cause, fix))
    if not 200 <= status < 300:
        cause = f"the proxy {name} refuses to connect to {target} (status {status})"
        fix = f"have {target} allowed on the proxy, or name its host in NO_PROXY"
        raise Stopped(Finding("proxy.refused", cause, fix))


def login_needed(name: str, has_login: bool) -> Finding:
    """The proxy's 407."""
    what = "does not take the user and password in its URL" if has_login else "wants a user and a password"
    fix = "put user, colon, password (percent-encoded) and @ before the host in HTTPS_PROXY (or HTTP_PROXY)"
    return Finding("proxy.login", f"the proxy {name} {what} (status 407)", fix)


def _ask(sock: socket.socket, request: bytes, until: float, clock: Clock) -> bytes:
    """The head of the answer to a request; raises OSError."""
    sock.sendall(request)
    data = b""
    while b"\r\n\r\n" not in data and len(data) < HEAD_MAX:
        left = until - clock.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        sock.settimeout(left)
        more = sock.recv(4096)
        if not more:
            if data:
                break
            raise ConnectionResetError("closed")
        data += more
    return data


def ask_date(sock: socket.socket, host: str, until: float, clock: Clock) -> str | None:
    """The `Date` that a server answers to a bare HEAD, without key or anything else of ours."""
    try:
        head = _ask(sock, _head(host), until, clock).decode("latin-1")
    except OSError:
        return None
    for line in head.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == "date":
            return value.strip()
    return None


def speaks_http(sock: socket.socket, host: str, until: float, clock: Clock) -> bool:
    """Whether the other side answers a bare HEAD in HTTP."""
    try:
        return _status(_ask(sock, _head(host), until, clock)) > 0
    except OSError:
        return False


def _head(host: str) -> bytes:
    return f"HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()


def _status(head: bytes) -> int:
    words = head.split(b"\r\n")[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return 0
    return int(words[1])
