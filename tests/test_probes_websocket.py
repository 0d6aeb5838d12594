"""The source type `websocket`: against a real server, and against servers that do what they should not."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observer_agent.errors import InvalidConfig
from observer_agent.model import Fault
from observer_agent.probes import _wstalk, websocket
from tests import servers
from tests.contracts.test_probe import look, nothing_left
from tests.servers import Authority, Server, answer, make_prober, read_request, redirect

MESSAGE = {"ping_mode": "message", "send_message": "marco"}
REPLY = {**MESSAGE, "interpretation": "round_trip_latency"}
EXPECT = {**REPLY, "expect_message": "polo"}
SUCCESS = {"interpretation": "connection_success"}
PING, PONG, TEXT, BINARY, CLOSE = 9, 10, 1, 2, 8


@pytest.fixture(scope="module")
def authority():
    return Authority()


def frame(kind, data=b"", fin=True):
    size = len(data)
    length = bytes([size]) if size < 126 else b"\x7e" + (size & 0xFFFF).to_bytes(2, "big")
    if size > 65535:
        length = b"\x7f" + size.to_bytes(8, "big")
    return bytes([kind | (0x80 if fin else 0)]) + length + data


def accept(request, extra=""):
    key = re.search(rb"(?i)sec-websocket-key: (\S+)", request)[1]
    token = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()
    head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    return f"{head}Sec-WebSocket-Accept: {token}\r\n{extra}\r\n".encode()


def frames(conn):
    """The client's frames as (kind, data); every one is masked."""
    buffer = b""

    def take(n):
        nonlocal buffer
        while len(buffer) < n:
            data = conn.recv(65536)
            if not data:
                raise OSError("closed")
            buffer += data
        out, buffer = buffer[:n], buffer[n:]
        return out

    while True:
        first, second = take(2)
        assert second & 0x80
        size = second & 0x7F
        size = int.from_bytes(take({126: 2, 127: 8}[size]), "big") if size > 125 else size
        mask, data = take(4), take(size)
        yield first & 0x0F, bytes(c ^ mask[n % 4] for n, c in enumerate(data))


def opens(after=lambda conn, server: None, extra="", greeting=b""):
    """Accepts the handshake, records the request, and goes on with `after`."""

    def handler(conn, server):
        request = read_request(conn)
        server.requests.append(request)
        conn.sendall(accept(request, extra) + greeting)
        after(conn, server)
        server.stopping.wait()

    return handler


def replies(*data, pongs=True, greeting=b"", then=lambda conn: None):
    """Answers pings, and the first text with `data`; records the frames."""

    def after(conn, server):
        for kind, payload in frames(conn):
            server.requests.append((kind, payload))
            if kind == PING and pongs:
                conn.sendall(frame(PONG, payload))
            elif kind == TEXT:
                for piece in data:
                    conn.sendall(piece)
                then(conn)
            elif kind == CLOSE:
                conn.sendall(frame(CLOSE, payload))
                return

    return opens(after, greeting=greeting)


def ask(server, env=None, prober=None, **more):
    url = server.url.replace("http", "ws", 1) + "/path?q=1"
    return look(prober or make_prober(env), "websocket", {"url": url, "timeout_ms": 400, **more})


def answered(handler, **more):
    with nothing_left(), Server(handler) as server:
        return ask(server, **more)


# -- configuration


def test_a_small_configuration_and_its_defaults():
    config = websocket.parse({"url": "wss://Example.org/a"})
    assert config.url == ("https", "example.org", 443, "/a")
    assert (config.timeout, config.ping_mode, config.interpretation) == (10.0, "none", "handshake_latency")
    assert websocket.parse({"url": "ws://a"}).url.port == 80


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("url", None), ("url", "http://a"), ("url", "ws:/a"), ("url", "a"), ("url", "ws://u:p@a/"), ("url", "ws://"),
        ("protocols", "chat"), ("protocols", ["a b"]), ("protocols", [""]), ("protocols", ["x" * 129]),
        ("protocols", ["x"] * 17), ("protocols", [1]), ("headers", {"Authorization": "x"}),
        ("headers", {"Upgrade": "x"}), ("headers", {"Sec-WebSocket-Key": "x"}),
        ("header_refs", {"Sec-WebSocket-Protocol": "PROBE_X"}),
        ("header_refs", {"X": "lower"}), ("ping_mode", "ping"), ("send_message", "x" * 8193),
        ("expect_message", "x" * 8193), ("timeout_ms", 99), ("timeout_ms", 30_001), ("interpretation", "mood"),
        ("client_cert_ref", "PROBE_C"), ("verify_tls", "no"), ("unknown", 1),
    ],
)  # fmt: skip
def test_what_a_configuration_may_not_hold(field, value):
    with pytest.raises(InvalidConfig) as caught:
        websocket.parse({"url": "ws://a", field: value})
    assert str(caught.value).startswith(field)


def test_a_round_trip_needs_a_message():
    with pytest.raises(InvalidConfig, match=r"ping_mode: .*; send_message: "):
        websocket.parse({"url": "ws://a", "interpretation": "round_trip_latency"})
    with pytest.raises(InvalidConfig, match="send_message"):
        websocket.parse({"url": "ws://a", "ping_mode": "message"})


def test_w13_credentials_in_the_url_are_refused_and_not_repeated():
    with pytest.raises(InvalidConfig) as caught:
        websocket.parse({"url": "wss://user:secret@a/"})
    assert "secret" not in str(caught.value)


# -- the handshake


def test_the_handshake_and_its_latency():
    with nothing_left(), Server(replies()) as server:
        more = {"headers": {"X-Mine": " 1 ", "Host": "other.test"}, "header_refs": {"Authorization": "PROBE_T"}}
        reading = ask(server, {"PROBE_T": "very-secret"}, **more)
    assert 0 < reading.value == reading.detail["handshake_ms"] < 400
    assert set(reading.phases) == {"resolve", "connect", "first_byte"}
    request = server.requests[0]
    assert request.startswith(b"GET /path?q=1 HTTP/1.1\r\nHost: other.test\r\n")
    assert b"X-Mine: 1\r\n" in request and b"Authorization: very-secret\r\n" in request
    assert server.requests[1] == (CLOSE, b"\x03\xe8")


def test_protocols():
    with nothing_left(), Server(opens(extra="Sec-WebSocket-Protocol: b\r\n")) as server:
        assert ask(server, protocols=["a", "b"]).value > 0
        assert ask(server, protocols=["a"]).reason == "ws_open_failed"
        assert ask(server).reason == "ws_open_failed"
    assert b"Sec-WebSocket-Protocol: a, b\r\n" in server.requests[0]


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: no\r\n\r\n",
        b"HTTP/1.1 101 X\r\nSec-WebSocket-Protocol: \xff\xfe\r\nConnection: Upgrade\r\n\r\n",
        b"SSH-2.0-OpenSSH_9\r\n", b"\0\xff" * 50, b"HTTP/9 nope\r\n\r\n", b"\r\n\r\n\r\n\r\n",
    ],
)  # fmt: skip
def test_an_answer_that_is_no_handshake(data):
    reading = answered(servers.says(data))
    assert (reading.reason, reading.fault) == ("ws_open_failed", Fault.TARGET)
    assert reading.duration_ms < 350


@pytest.mark.parametrize("status", [200, 401, 403, 404, 426, 500, 503])
def test_an_answer_with_another_status(status):
    reading = answered(servers.scripted(answer("no", status)))
    assert (reading.reason, reading.detail["http_status"]) == ("ws_open_failed", status)
    assert reading.detail["status"] == "open_failed"


def test_w29_a_redirect_is_not_followed():
    with (
        nothing_left(),
        Server(servers.scripted(answer())) as other,
        Server(servers.scripted(redirect(other.url))) as server,
    ):
        reading = ask(server)
    assert (reading.reason, reading.detail["http_status"]) == ("ws_open_failed", 302)
    assert other.connections == 0


def test_w14_endless_headers():
    reading = answered(servers.endless_headers)
    assert (reading.reason, reading.fault) == ("ws_open_failed", Fault.TARGET)


@pytest.mark.parametrize("handler", [servers.tarpit, servers.drip])
def test_a_tarpit_before_the_handshake(handler):
    reading = answered(handler)
    assert (reading.reason, reading.fault) == ("ws_handshake_timeout", Fault.TARGET)
    assert reading.detail["status"] == "timeout"


@pytest.mark.parametrize("handler", [servers.hang_up, servers.half_close])
def test_a_server_that_closes_instead_of_shaking_hands(handler):
    reading = answered(handler)
    assert (reading.reason, reading.detail["code"]) == ("ws_open_failed", "ECONNRESET")


def test_a_server_that_does_not_say_goodbye_is_not_waited_for():
    reading = answered(opens())
    assert reading.value > 0
    assert reading.duration_ms < 300


@pytest.mark.parametrize(("env", "reason"), [({}, "header_ref_missing"), ({"PROBE_T": "a\nb"}, "header_ref_invalid")])
@pytest.mark.parametrize("interpretation", websocket.INTERPRETATIONS[::2])
def test_a_secret_that_is_missing_or_broken(env, reason, interpretation):
    with nothing_left(), Server(replies()) as server:
        reading = ask(server, env, header_refs={"X-Token": "PROBE_T"}, interpretation=interpretation)
    assert (reading.value, reading.reason, reading.fault) == (None, reason, Fault.CONFIG)
    assert server.connections == 0


def test_a_name_that_is_too_long_for_the_codec():
    config = {"url": f"ws://{'a' * 62}:8080/", "timeout_ms": 300}
    prober = make_prober(find=lambda name: (servers.parse_literal("127.0.0.1"),))
    with Server(replies()) as server:
        config["url"] = f"ws://{'a' * 62}:{server.port}/"
        reading = look(prober, "websocket", config)
    assert (reading.reason, reading.fault) == ("invalid_url", Fault.CONFIG)


# -- messages


def test_a_round_trip():
    with nothing_left(), Server(replies(frame(TEXT, b"polo"))) as server:
        reading = ask(server, **EXPECT)
    assert 0 < reading.value == reading.detail["round_trip_ms"] < 400
    assert reading.detail["status"] == "round_trip"
    assert [kind for kind, _ in server.requests[1:]] == [TEXT, CLOSE]


def test_a_message_in_the_handshake_mode_still_gives_the_handshake():
    reading = answered(replies(frame(TEXT, b"polo")), **MESSAGE, expect_message="polo")
    assert reading.value == reading.detail["handshake_ms"]
    assert reading.detail["round_trip_ms"] > 0


def test_w29_messages_are_collected_until_the_expected_one():
    noise = frame(TEXT, b"tick") + frame(BINARY, b"polo") + frame(PING, b"?")
    with nothing_left(), Server(replies(noise, frame(TEXT, b"well, polo!"), greeting=frame(TEXT, b"hello"))) as server:
        reading = ask(server, **EXPECT)
    assert reading.value > 0
    assert (PONG, b"?") in server.requests


def test_w29_a_greeting_is_neither_a_mismatch_nor_a_fast_reply():
    """Without an expected text: what was on its way when the message was sent is not the reply."""
    late = threading.Event()

    def after(conn, server):
        for kind, payload in frames(conn):
            if kind == PING:
                conn.sendall(frame(PONG, payload))
            elif kind == TEXT:
                late.wait(0.15)
                conn.sendall(frame(TEXT, b"the reply"))
            elif kind == CLOSE:
                return

    reading = answered(opens(after, greeting=frame(TEXT, b"hello")), **REPLY)
    assert 140 < reading.value < 400


def test_w29_a_server_that_knows_no_pong_gets_the_first_message_counted():
    reading = answered(replies(frame(TEXT, b"polo"), pongs=False), **REPLY)
    assert 0 < reading.value < 200


def test_w29_only_other_messages_until_the_deadline():
    reading = answered(replies(frame(TEXT, b"tick"), frame(TEXT, b"tack")), **EXPECT)
    assert (reading.value, reading.reason, reading.fault) == (None, "ws_reply_mismatch", Fault.TARGET)
    assert (reading.detail["messages"], reading.detail["status"]) == (2, "reply_mismatch")
    assert reading.duration_ms > 390


def test_a_server_that_never_replies_hears_a_goodbye():
    heard = threading.Event()

    def after(conn, server):
        for kind, _ in frames(conn):
            if kind == CLOSE:
                heard.set()
                return

    with nothing_left(), Server(opens(after)) as server:
        reading = ask(server, **REPLY)
        assert heard.wait(5)
    assert (reading.reason, reading.fault) == ("ws_reply_timeout", Fault.TARGET)


@pytest.mark.parametrize(
    ("data", "code"),
    [(frame(CLOSE, b"\x03\xf3no"), 1011), (frame(CLOSE), 1005), (b"", None), (frame(TEXT, b"\xff\xfe"), None),
     (frame(0, b"x"), None), (b"\xf1\x01x", None), (frame(TEXT, b"po", fin=False) + frame(CLOSE, b"\x03\xe8"), 1000)],
)  # fmt: skip
def test_a_server_that_closes_or_breaks_the_protocol_before_its_reply(data, code):
    def after(conn, server):
        next(frames(conn))
        conn.sendall(data)
        conn.shutdown(2)

    reading = answered(opens(after), **EXPECT)
    assert (reading.reason, reading.fault) == ("ws_closed_early", Fault.TARGET)
    assert reading.detail.get("close_code") == code


def test_w29_a_server_that_is_gone_when_the_message_is_sent():
    def handler(conn, server):
        conn.sendall(accept(read_request(conn)) + frame(CLOSE, b"\x03\xe8"))

    assert answered(handler, **EXPECT).reason == "ws_closed_early"


@pytest.mark.parametrize(
    "data",
    [
        frame(TEXT, b"x" * (_wstalk.MESSAGE_LIMIT + 1)),
        frame(TEXT, b"x" * 60_000, fin=False) + frame(0, b"x" * 60_000, fin=False) * 17,
        b"\x81\x7f\x7f\xff\xff\xff\xff\xff\xff\xff" + b"x" * _wstalk.MESSAGE_LIMIT + b"x",
    ],
)
def test_w14_a_message_without_end(data):
    reading = answered(replies(data), **{**EXPECT, "timeout_ms": 5000})
    assert (reading.reason, reading.fault) == ("body_too_large", Fault.TARGET)


def test_w14_messages_without_end():
    def then(conn):
        while True:
            conn.sendall(frame(TEXT, b"x" * 60_000) * 10)

    reading = answered(replies(then=then), **{**EXPECT, "timeout_ms": 5000})
    assert reading.reason == "body_too_large"
    assert "16777216" in reading.detail["error"]


@pytest.mark.parametrize("data", [frame(PING), frame(PONG), frame(TEXT), frame(BINARY, b"x")])
def test_w14_floods_of_small_frames_end_by_the_deadline(data):
    def then(conn):
        while True:
            conn.sendall(data * 30_000)

    reading = answered(replies(then=then), **EXPECT)
    assert reading.reason in ("ws_reply_timeout", "ws_reply_mismatch", "ws_closed_early", "body_too_large")


def test_a_reply_that_drips():
    def then(conn):
        conn.sendall(b"\x81\x7e\xff\xff")
        while True:
            conn.sendall(b"x")
            threading.Event().wait(0.01)

    assert answered(replies(then=then), **EXPECT).reason == "ws_reply_timeout"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=80))
def test_any_bytes_after_the_handshake_give_a_reason_of_ours(data):
    def after(conn, server):
        next(frames(conn))
        conn.sendall(data)
        conn.shutdown(2)

    with Server(opens(after)) as server:
        reading = ask(server, **EXPECT)
    assert reading.reason in ("ws_closed_early", "ws_reply_mismatch") or reading.value > 0


# -- connection_success


def test_connection_success_is_one():
    assert answered(replies(), **SUCCESS).value == 1
    assert answered(replies(frame(TEXT, b"polo")), **{**EXPECT, **SUCCESS}).value == 1


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (servers.hang_up, "ws_open_failed"),
        (servers.tarpit, "ws_handshake_timeout"),
        (servers.scripted(answer("no", 403)), "ws_open_failed"),
    ],
)
def test_connection_success_is_zero_where_nothing_opens(handler, reason):
    reading = answered(handler, **SUCCESS)
    assert (reading.value, reading.reason, reading.detail["reason"]) == (0, None, reason)


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (replies(), "ws_reply_timeout"),
        (replies(frame(TEXT, b"tick")), "ws_reply_mismatch"),
        (replies(frame(CLOSE)), "ws_closed_early"),
    ],
)
def test_w29_connection_success_is_zero_where_the_reply_fails(handler, reason):
    reading = answered(handler, **{**EXPECT, **SUCCESS})
    assert (reading.value, reading.reason, reading.detail["reason"]) == (0, None, reason)


def test_w29_connection_success_says_nothing_where_the_fault_is_not_the_targets():
    def find(name):
        raise servers.ResolveError("EAI_AGAIN", "try again")

    config = {"url": "ws://somewhere.test/", "timeout_ms": 300, **SUCCESS}
    reading = look(make_prober(find=find), "websocket", config)
    assert (reading.value, reading.reason, reading.fault) == (None, "ws_open_failed", Fault.RESOLVER)
    reading = look(make_prober(), "websocket", {**config, "url": "ws://169.254.169.254/"})
    assert (reading.value, reading.reason, reading.fault) == (None, "policy_denied", Fault.POLICY)


def test_w29_open_failures_are_told_apart_in_the_detail():
    codes = set()
    with servers.refused_port() as port:
        for url in (f"ws://127.0.0.1:{port}", "ws://nowhere.test"):
            reading = look(make_prober(), "websocket", {"url": url, "timeout_ms": 300})
            assert reading.reason == "ws_open_failed"
            codes.add(reading.detail["code"])
    assert codes == {"ECONNREFUSED", "ENOTFOUND"}


# -- TLS


def test_w29_tls_with_an_authority_of_ones_own(authority):
    env = {"PROBE_CA": authority.pem}
    with nothing_left(), Server(replies(), tls=authority.server()) as server:
        url = {"url": f"wss://localhost:{server.port}/"}
        good = look(make_prober(env), "websocket", {**url, "ca_cert_ref": "PROBE_CA", "timeout_ms": 1000})
        bad = look(make_prober(env), "websocket", {**url, "timeout_ms": 1000})
        careless = look(make_prober(env), "websocket", {**url, "verify_tls": False, "timeout_ms": 1000})
    assert good.value > 0 and "tls" in good.phases and careless.value > 0
    assert (bad.reason, bad.detail["code"]) == ("ws_open_failed", "tls_verify_failed")


def test_w29_a_client_certificate(authority):
    cert, key = authority.issue("client", not_after=servers.days(9))
    env = {"PROBE_CA": authority.pem, "PROBE_CERT": cert, "PROBE_KEY": key}
    more = {"ca_cert_ref": "PROBE_CA", "client_cert_ref": "PROBE_CERT", "client_key_ref": "PROBE_KEY"}
    with nothing_left(), Server(replies(), tls=authority.server(require_client=True)) as server:
        config = {"url": f"wss://localhost:{server.port}/", "timeout_ms": 1000, **more}
        reading = look(make_prober(env), "websocket", config)
        assert reading.value > 0
        assert reading.detail["cert_expiry_warning"]["days_remaining"] == 8
        env["PROBE_KEY"] = authority.issue("other")[1]
        assert look(make_prober(env), "websocket", config).reason == "mtls_key_mismatch"


def test_a_tarpit_in_the_tls_handshake():
    with nothing_left(), Server(servers.tarpit) as server:
        config = {"url": f"wss://127.0.0.1:{server.port}/", "timeout_ms": 300}
        reading = look(make_prober(), "websocket", config)
    assert reading.reason == "ws_handshake_timeout"
    assert "tls" in reading.phases


# -- the real thing


@contextmanager
def real(**options):
    """A server of the package `websockets` that greets, and answers each message after some noise."""
    from websockets.sync.server import serve

    def talk(connection):
        connection.send("welcome")
        for message in connection:
            connection.send("noise")
            connection.send(b"binary")
            connection.send(f"re: {message}")

    with serve(talk, "127.0.0.1", 0, **options) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("secure", [False, True])
def test_a_real_server(secure, authority):
    prober = make_prober({"PROBE_CA": authority.pem})
    with real(ssl=authority.server() if secure else None, subprotocols=["chat"]) as port:
        url = f"{'wss' if secure else 'ws'}://localhost:{port}/feed"
        config = {"url": url, "ca_cert_ref": "PROBE_CA", "timeout_ms": 3000, "protocols": ["chat"]}
        assert 0 < look(prober, "websocket", config).value < 3000
        expected = look(prober, "websocket", {**config, **REPLY, "expect_message": "re: marco"})
        plain = look(prober, "websocket", {**config, **REPLY})
        never = look(prober, "websocket", {**config, **EXPECT, "timeout_ms": 500})
    assert 0 < expected.value < 3000 and 0 < plain.value < 3000
    assert (never.reason, never.detail["messages"]) == ("ws_reply_mismatch", 4)


@pytest.mark.slow
def test_a_real_server_that_wants_credentials():
    from websockets.sync.server import basic_auth

    with real(process_request=basic_auth(realm="x", credentials=("who", "very-secret"))) as port:
        config = {"url": f"ws://127.0.0.1:{port}", "timeout_ms": 3000}
        refused = look(make_prober(), "websocket", config)
        basic = "Basic " + base64.b64encode(b"who:very-secret").decode()
        prober = make_prober({"PROBE_AUTH": basic})
        allowed = look(prober, "websocket", {**config, "header_refs": {"Authorization": "PROBE_AUTH"}})
    assert (refused.reason, refused.detail["http_status"]) == ("ws_open_failed", 401)
    assert allowed.value > 0
