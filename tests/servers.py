"""Real servers that behave badly on demand, and a prober to point at them.

A `Server` listens on a free port and runs a handler for each connection on a thread of its own; leaving the `with`
block cuts every connection and joins every thread, so that nothing is left behind by the server itself. Waits are
waits on Events.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from observer_agent import config
from observer_agent.clock import Clock
from observer_agent.logs import Redactor
from observer_agent.policy import Policy
from observer_agent.probes import Prober, Registry, Tools
from observer_agent.resolver import Address, ResolveError, Resolver, parse_literal

Handler = Callable[[socket.socket, "Server"], None]


class Server:
    """Listens on 127.0.0.1 (or `host`) while the block runs. `requests` holds what `scripted` handlers read."""

    def __init__(self, handler: Handler, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self._handler = handler
        self._tls = tls
        self._host = host
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.stopping = threading.Event()
        self.seen = threading.Event()
        self.requests: list[bytes] = []
        self.connections = 0

    def __enter__(self) -> Server:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._listener = socket.create_server((self._host, 0), family=family, backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopping.set()
        # A listener that is only closed leaves its accept() waiting.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        while self._threads:
            with self._lock:
                thread = self._threads.pop()
                for sock in self._open:
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            assert not thread.is_alive(), thread.name
        self._listener.close()

    @property
    def url(self) -> str:
        """The server's URL by address."""
        return self.url_of(f"[{self._host}]" if ":" in self._host else self._host)

    def url_of(self, host: str) -> str:
        """The server's URL under another name."""
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    def _start(self, target: Callable[[], None]) -> None:
        with self._lock:
            thread = threading.Thread(target=target, name=f"server-{self.port}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open.append(conn)
            self.seen.set()
            self._start(lambda conn=conn: self._serve(conn))

    def _serve(self, conn: socket.socket) -> None:
        sock = conn
        try:
            if self._tls:
                sock = self._tls.wrap_socket(conn, server_side=True, do_handshake_on_connect=False)
                with self._lock:
                    self._open[self._open.index(conn)] = sock
                sock.do_handshake()
            self._handler(sock, self)
        except (OSError, ValueError):
            pass
        finally:
            with self._lock:
                if sock in self._open:
                    self._open.remove(sock)
                sock.close()
                conn.close()


# -- handlers


def tarpit(conn: socket.socket, server: Server) -> None:
    """Takes the connection and never says a word."""
    server.stopping.wait()


def hang_up(conn: socket.socket, server: Server) -> None:
    """Closes at once."""


def half_close(conn: socket.socket, server: Server) -> None:
    """Reads the request and ends its own direction without an answer, leaving the other one open."""
    read_request(conn)
    conn.shutdown(socket.SHUT_WR)
    server.stopping.wait()


def drip(conn: socket.socket, server: Server) -> None:
    """Sends the headers of a correct answer byte by byte, for ever."""
    read_request(conn)
    conn.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not server.stopping.wait(0.01):
        conn.sendall(b"x")


def drip_body(conn: socket.socket, server: Server) -> None:
    """Sends a body byte by byte, for ever."""
    read_request(conn)
    conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not server.stopping.wait(0.01):
        conn.sendall(b"x")


def endless(conn: socket.socket, server: Server) -> None:
    """Sends a body as fast as it goes, for ever."""
    read_request(conn)
    conn.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while not server.stopping.is_set():
        conn.sendall(b"x" * 65536)


def endless_headers(conn: socket.socket, server: Server) -> None:
    """Sends headers as fast as it goes, for ever."""
    read_request(conn)
    conn.sendall(b"HTTP/1.1 200 OK\r\n")
    while not server.stopping.is_set():
        conn.sendall(b"X-More: and more\r\n" * 100)


def says(data: bytes) -> Handler:
    """Sends `data` without reading anything, then hangs."""

    def handler(conn: socket.socket, server: Server) -> None:
        conn.sendall(data)
        server.stopping.wait()

    return handler


def scripted(*answers: bytes) -> Handler:
    """Answers request number n with answer n, the last one again and again; records the requests."""

    def handler(conn: socket.socket, server: Server) -> None:
        request = read_request(conn)
        with server._lock:
            server.requests.append(request)
            n = len(server.requests) - 1
        conn.sendall(answers[min(n, len(answers) - 1)])

    return handler


def read_request(conn: socket.socket) -> bytes:
    """One request with its body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(conn)
    head, _, body = data.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            while len(body) < int(line.split(b":")[1]):
                body += _more(conn)
    return head + b"\r\n\r\n" + body


def _more(conn: socket.socket) -> bytes:
    data = conn.recv(65536)
    if not data:
        raise OSError("closed")
    return data


# -- answers


def answer(body: bytes | str = b"", status: int = 200, **headers: str) -> bytes:
    """A complete answer with Content-Length; underscores in header names become dashes."""
    body = body.encode() if isinstance(body, str) else body
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{''.join(lines)}\r\n".encode() + body


def redirect(location: str, status: int = 302) -> bytes:
    """An answer that leads elsewhere."""
    return answer(status=status, Location=location)


@contextlib.contextmanager
def refused_port() -> Iterator[int]:
    """A port on which nobody listens, held so that nobody else gets it."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def has_ipv6() -> bool:
    """Whether this machine has the loopback address of IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


# -- certificates


class Authority:
    """A certificate authority of one's own: server contexts, and PEM text for clients."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    @property
    def pem(self) -> str:
        """The authority's certificate."""
        return self._ca.cert_pem.bytes().decode()

    def issue(self, *names: str, **options: object) -> tuple[str, str]:
        """A certificate for names and its key, as PEM text; options as trustme's `issue_cert`."""
        leaf = self._ca.issue_cert(*names, **options)
        return leaf.cert_chain_pems[0].bytes().decode(), leaf.private_key_pem.bytes().decode()

    def server(self, *names: str, require_client: bool = False, **options: object) -> ssl.SSLContext:
        """A server's context with a certificate for names."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(*(names or ("localhost", "127.0.0.1")), **options).configure_cert(context)
        if require_client:
            context.verify_mode = ssl.CERT_REQUIRED
            self._ca.configure_trust(context)
        return context

    def expired(self) -> ssl.SSLContext:
        """A server's context whose certificate ended yesterday."""
        return self.server(not_before=days(-10), not_after=days(-1))


def self_signed(tmp: os.PathLike[str], name: str = "localhost") -> ssl.SSLContext:
    """A server's context with a certificate that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(days(-1)).not_valid_after(days(100))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    cert = builder.sign(key, hashes.SHA256())
    file = os.path.join(tmp, "self-signed.pem")
    with open(file, "wb") as out:
        out.write(cert.public_bytes(serialization.Encoding.PEM) + key_pem(key).encode())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def key_pem(key: object, passphrase: bytes | None = None, form: str = "PKCS8") -> str:
    """A private key as PEM text."""
    hide = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    private = getattr(serialization.PrivateFormat, form)
    return key.private_bytes(serialization.Encoding.PEM, private, hide).decode()


def days(n: float) -> datetime:
    """A moment `n` days from now."""
    return datetime.now(UTC) + timedelta(days=n)


# -- the prober


LOCAL = {"localhost", "good.test", "other.test"}


def lookup(name: str) -> tuple[Address, ...]:
    """A resolver's lookup for tests: the names of LOCAL are 127.0.0.1, nothing else exists."""
    if name not in LOCAL:
        raise ResolveError("ENOTFOUND", "Name or service not known")
    found = parse_literal("127.0.0.1")
    assert found
    return (found,)


def make_tools(
    env: Mapping[str, str] | None = None,
    find: Callable[[str], tuple[Address, ...]] = lookup,
    clock: Clock | None = None,
    policy: Policy | None = None,
    custom: Registry | None = None,
    **settings: str,
) -> Tools:
    """Real tools; `settings` are environment variables of the agent."""
    clock = clock or Clock()
    return Tools(
        clock=clock,
        resolver=Resolver(clock, find),
        env=env or {},
        redact=Redactor(),
        settings=config.load(settings, to_run=False),
        policy=policy,
        custom=custom,
    )


def make_prober(env: Mapping[str, str] | None = None, **options: object) -> Prober:
    """A prober with tools of its own; options as `make_tools`."""
    return Prober(make_tools(env, **options))
