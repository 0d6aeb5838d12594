"""The transport against real sockets: one deadline for everything, an answer always, nothing followed, nothing said."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import contextmanager, suppress

import pytest

from observer_agent.clock import Clock
from observer_agent.resolver import ResolveError, Resolver
from observer_agent.transport import Transport, system_authorities
from tests.watch import Watch

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
KEY = "obs_live_canary"


@contextmanager
def scripted(*connections):
    """A server that plays one script a connection: bytes to send after a request, None to hang, b'' to close."""
    listener = socket.create_server(("127.0.0.1", 0))
    seen, over = [], threading.Event()

    def serve():
        for script in connections:
            try:
                conn, _ = listener.accept()
            except OSError:
                return
            with conn:
                conn.settimeout(20)
                for part in script:
                    if part is None:
                        over.wait(20)
                        break
                    if not read_request(conn, seen):
                        break
                    try:
                        for piece in part if isinstance(part, list) else [part]:
                            conn.sendall(piece)
                            if isinstance(part, list):
                                over.wait(0.05)
                    except OSError:
                        break

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen
    finally:
        over.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # ends an accept in progress
        listener.close()
        thread.join(20)


def read_request(conn, seen):
    data = b""
    while b"\r\n\r\n" not in data:
        try:
            more = conn.recv(65536)
        except OSError:
            return False
        if not more:
            return False
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length:")), 0)
    while len(body) < length:
        body += conn.recv(65536)
    seen.append((head, body))
    return True


@pytest.fixture
def transport():
    made = []

    def make(url, env=None, resolver=None):
        clock = Clock()
        headers = {"Agent-Key": KEY, "User-Agent": "observer-agent/0"}
        made.append(Transport(url, headers, clock=clock, resolver=resolver or Resolver(clock), env=env or {}))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_call_and_its_answer(transport):
    with scripted([GOOD]) as (url, seen):
        reply = transport(url + "/").call("POST", "/api/x", b'{"a":1}', {"Push-Sequence": "q;1"})
    assert (reply.status, reply.ok, reply.body, reply.error) == (200, True, b"{}", "")
    head, body = seen[0]
    assert head.startswith(b"POST /api/x HTTP/1.1\r\n") and body == b'{"a":1}'
    assert b"Agent-Key: " + KEY.encode() in head and b"Push-Sequence: q;1" in head


def test_the_connection_is_kept(transport):
    with scripted([GOOD, GOOD, GOOD]) as (url, seen):
        one = transport(url)
        assert [one.call("GET", "/").status for _ in range(3)] == [200] * 3
    assert len(seen) == 3


def test_a_kept_connection_that_the_server_closed_is_tried_again_at_once(transport):
    with scripted([GOOD], [GOOD]) as (url, seen):
        one = transport(url)
        assert one.call("GET", "/").status == 200
        assert one.call("GET", "/").status == 200
    assert len(seen) == 2


def test_a_fresh_connection_that_is_closed_is_an_error_and_not_tried_again(transport):
    with scripted([b""], [GOOD]) as (url, seen):
        reply = transport(url).call("POST", "/", b"x")
    assert (reply.status, len(seen)) == (0, 1)
    assert "closed" in reply.error or "reset" in reply.error


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed_and_the_key_goes_nowhere(transport, status):
    with scripted([GOOD]) as (target, stolen):
        answer = f"HTTP/1.1 {status} Moved\r\nLocation: {target}/\r\nContent-Length: 0\r\n\r\n".encode()
        with scripted([answer]) as (url, _):
            assert transport(url).call("POST", "/", b"x").status == status
        assert stolen == []


def test_no_cookie_is_kept(transport):
    answer = b"HTTP/1.1 200 OK\r\nSet-Cookie: track=me\r\nContent-Length: 2\r\n\r\n{}"
    with scripted([answer, GOOD]) as (url, seen):
        one = transport(url)
        one.call("GET", "/")
        one.call("GET", "/")
    assert b"ookie" not in seen[1][0]


@pytest.mark.parametrize("location", [b"http://[::bad", b"/x"])
def test_the_body_of_a_redirect_is_bounded_like_any_other(transport, location):
    head = b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 2\r\n\r\n{}"
    with scripted([head]) as (url, _):
        assert transport(url).call("GET", "/").status == 302


def test_refused_and_unresolved(transport):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert transport(url).call("GET", "/").error == "connection refused"

    def nothing(name):
        raise ResolveError("ENOTFOUND")

    broken = Resolver(Clock(), nothing)
    assert transport("http://cloud.test", resolver=broken).call("GET", "/").error == "name not resolved (ENOTFOUND)"


def within(transport, url, seconds, **kwargs):
    """The reply to a call that ends in time, and the seconds that it took."""
    clock, watch = Clock(), Watch()
    begin = clock.monotonic()
    reply = transport(url, **kwargs).call("POST", "/", b"x", seconds=seconds)
    assert watch.seconds < seconds + 0.5
    return reply, clock.monotonic() - begin


@pytest.mark.parametrize(
    "script",
    [
        [None],  # accepts and never answers
        [[b"HTTP/1.1 200 OK\r\n"] + [b"X-Drip: 1\r\n"] * 400],  # a header every 50 ms, for ever
        [[b"H"] * 400],
        [[b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n"] + [b"x"] * 400],  # a drip of a body
    ],
    ids=["hang", "drip of headers", "drip of the status line", "drip of the body"],
)
def test_the_deadline_covers_every_byte_of_the_answer(transport, script):
    with scripted(script) as (url, _):
        reply, took = within(transport, url, 0.5)
    assert (reply.status, reply.error) == (0, "timed out")
    assert took >= 0.45


def test_the_deadline_covers_resolving(transport):
    release = threading.Event()

    def hang(name):
        release.wait(20)
        raise ResolveError("ENOTFOUND")

    try:
        reply, _ = within(transport, "http://cloud.test", 0.3, resolver=Resolver(Clock(), hang))
    finally:
        release.set()
    assert reply.error.startswith(("timed out", "name not resolved (ETIMEDOUT)"))


@pytest.mark.parametrize("answer", [b"garbage\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\x00\xff\r\n\r\n"])
def test_garbage_is_an_answer_too(transport, answer):
    with scripted([answer]) as (url, _):
        reply = transport(url).call("GET", "/", seconds=2.0)
    assert reply.status == 0 and reply.error


def test_a_body_that_ends_early_is_an_error(transport):
    with scripted([b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"]) as (url, _):
        reply = transport(url).call("GET", "/", seconds=2.0)
    assert reply.status == 0 and reply.error


def test_no_proxy_of_the_environment_is_asked_for_loopback_that_is_excepted(transport, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with scripted([GOOD]) as (url, _):
        assert transport(url).call("GET", "/").status == 200


def test_a_proxy_of_the_environment_is_used(transport, monkeypatch):
    with scripted([GOOD]) as (proxy, seen):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert transport("http://cloud.test:81").call("GET", "/p").status == 200
    assert seen[0][0].startswith(b"GET http://cloud.test:81/p HTTP/1.1")


def test_tls_is_verified_and_the_private_ca_of_the_environment_is_used(transport, tmp_path):
    trustme = pytest.importorskip("trustme")
    import ssl

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"https://127.0.0.1:{listener.getsockname()[1]}"

    def serve():
        for _ in range(2):
            conn, _peer = listener.accept()
            try:
                with context.wrap_socket(conn, server_side=True) as tls:
                    read_request(tls, [])
                    tls.sendall(GOOD)
            except OSError:
                conn.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with listener:
        refused = transport(url).call("GET", "/", seconds=5.0)
        taken = transport(url, env={"REQUESTS_CA_BUNDLE": str(tmp_path / "ca.pem")}).call("GET", "/", seconds=5.0)
        thread.join(20)
    assert refused.status == 0 and refused.error.startswith("TLS: certificate not verified")
    assert taken.status == 200


def test_no_error_shows_the_key(transport):
    with scripted([b""]) as (url, _):
        assert KEY not in transport(url).call("GET", "/").error


def test_the_machines_own_authorities_count(tmp_path):
    nothing = ssl.get_default_verify_paths()._replace(cafile=None, capath=None)
    assert system_authorities(nothing) is None
    assert system_authorities(nothing._replace(capath=str(tmp_path))) is None, "an empty directory is no trust"
    (tmp_path / "ab12cd34.0").touch()
    assert system_authorities(nothing._replace(capath=str(tmp_path))) == str(tmp_path)
    assert system_authorities(nothing._replace(cafile="/ca.pem", capath=str(tmp_path))) == "/ca.pem"


@pytest.mark.parametrize(("said", "text"), [(b"HTTP/1.1 407 No\r\n\r\n", "the proxy refuses (status 407)")])
def test_a_proxy_that_refuses_is_named(monkeypatch, said, text):
    with scripted([said]) as (url, seen):
        monkeypatch.setenv("HTTPS_PROXY", url)
        transport = Transport("https://cloud.test", {}, clock=Clock(), resolver=Resolver(Clock()))
        assert transport.call("GET", "/").error == text
        assert seen
        transport.close()


def test_a_proxy_that_is_not_there_is_named(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
    transport = Transport("https://cloud.test", {}, clock=Clock(), resolver=Resolver(Clock()))
    assert transport.call("GET", "/").error == "the proxy: connection refused"
    transport.close()
