"""The source type `grpc`: against a real gRPC server, and against servers that speak HTTP/2 as they should not."""

from __future__ import annotations

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.events import PingAckReceived, RequestReceived, StreamEnded
from h2.settings import SettingCodes
from hypothesis import given, settings
from hypothesis import strategies as st

from observer_agent import probes
from observer_agent.errors import InvalidConfig
from observer_agent.model import Fault
from observer_agent.probes import _health, grpc
from observer_agent.probes._h2call import STATUS
from tests import servers
from tests.contracts.test_probe import look, nothing_left
from tests.servers import Authority, Server, has_ipv6, make_prober

OK = (("grpc-status", "0"),)


@pytest.fixture(scope="module")
def authority():
    return Authority()


def framed(message):
    return b"\0" + len(message).to_bytes(4, "big") + message


def status(number):
    return framed(b"\x08" + bytes([number]))


def health(message=None, trailers=OK, head=((":status", "200"), ("content-type", "application/grpc"))):
    """A server that answers each Check with a message and trailers, and records the headers of the requests."""

    def answer(h2, stream_id):
        h2.send_headers(stream_id, head, end_stream=message is None and trailers is None)
        if message is not None:
            h2.send_data(stream_id, message, end_stream=trailers is None)
        if trailers is not None:
            h2.send_headers(stream_id, trailers, end_stream=True)

    return speaks(answer)


def speaks(answer):
    """A handler that speaks HTTP/2 and leaves the answer to `answer(h2, stream_id)`."""

    def handler(conn, server):
        h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8", validate_outbound_headers=False))
        h2.initiate_connection()
        conn.sendall(h2.data_to_send())
        while not server.stopping.is_set():
            data = conn.recv(65536)
            if not data:
                return
            for event in h2.receive_data(data):
                if isinstance(event, RequestReceived):
                    server.requests.append(dict(event.headers))
                elif isinstance(event, StreamEnded):
                    answer(h2, event.stream_id)
            conn.sendall(h2.data_to_send())
            if h2.state_machine.state is ConnectionState.CLOSED:
                while conn.recv(65536):  # what was under way before the goodbye was heard
                    pass
                return

    return handler


def config_for(server, **more):
    host = "::1" if ":" in server._host else "127.0.0.1"
    return {"host": host, "port": server.port, "timeout_ms": 1000, **more}


def ask(server, env=None, **more):
    return look(make_prober(env), "grpc", config_for(server, **more))


def answered(handler, **more):
    with nothing_left(), Server(handler) as server:
        return ask(server, **more)


# -- configuration


def test_a_small_configuration_and_its_defaults():
    config = grpc.parse({"host": "Example.org", "port": 50051})
    assert (config.host, config.service, config.tls_mode) == ("example.org", "", "plaintext")
    assert (config.timeout, config.interpretation, config.metadata) == (5.0, "health_state", ())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("host", ""), ("host", None), ("port", 0), ("port", None), ("service", "x" * 257), ("tls_mode", "maybe"),
        ("timeout_ms", 99), ("timeout_ms", 30_001), ("interpretation", "mood"), ("client_cert_ref", "PROBE_C"),
        ("client_key_ref", "PROBE_K"), ("ca_cert_ref", "lower"), ("unknown", 1), ("metadata", {"a b": "x"}),
        ("metadata", {"x-bin": "x"}), ("metadata", {"grpc-x": "x"}), ("metadata", {"x": "é"}),
        ("metadata", {"x": "a\nb"}), ("metadata", {"Authorization": "x"}), ("metadata", {"a": "1", "A": "2"}),
        ("metadata", {"te": "x"}), ("metadata_refs", {"a": "lower"}), ("metadata_refs", {"x-bin": "PROBE_X"}),
        ("metadata_refs", {str(n): "PROBE_X" for n in range(33)}),
    ],
)  # fmt: skip
def test_what_a_configuration_may_not_hold(field, value):
    with pytest.raises(InvalidConfig) as caught:
        grpc.parse({"host": "a", "port": 1, field: value})
    named = "client_cert_ref" if field == "client_key_ref" else field
    assert str(caught.value).startswith(named)


def test_mtls_needs_both_refs_and_a_key_stands_in_one_map_only():
    with pytest.raises(InvalidConfig, match="client_cert_ref: is required with tls_mode mtls"):
        grpc.parse({"host": "a", "port": 1, "tls_mode": "mtls"})
    with pytest.raises(InvalidConfig, match=r"metadata_refs.X-Mine: stands in metadata too"):
        grpc.parse({"host": "a", "port": 1, "metadata": {"x-mine": "1"}, "metadata_refs": {"X-Mine": "PROBE_X"}})


@pytest.mark.parametrize("host", ["dns:///a", "unix:/run/x", "a:80", "http://a", "a/b", "user@a", "ipv4:1.2.3.4"])
def test_w30_no_scheme_is_smuggled_in_by_the_host(host):
    with pytest.raises(InvalidConfig, match="host"):
        grpc.parse({"host": host, "port": 1})


# -- the message


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"", 0),
        (b"\x08\x01", 1),
        (b"\x08\x02", 2),
        (b"\x08\x81\x00", 1),  # a varint longer than it must be
        (b"\x12\x03abc\x08\x02", 2),
        (b"\x18\x05\x08\x01\x25abcd\x21abcdefgh", 1),
        (b"\x08\x02\x08\x01", 1),
        (b"\x08\x01\x18\x05", 1),
        (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 2**64 - 1),
    ],
)
def test_the_status_in_a_message(message, expected):
    assert _health.framed_status(framed(message)) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0\0\0", framed(b"\x08"), framed(b"\x08\x80"), framed(b"\x12\x05ab"), framed(b"\x0b"),
        framed(b"\x00\x01"), framed(b"\x08" + b"\xff" * 11), framed(b"\x25ab"),
        b"\x01" + framed(b"\x08\x01")[1:], framed(b"\x08\x01") + b"x",
    ],
)  # fmt: skip
def test_a_malformed_message(data):
    with pytest.raises(ValueError, match="message"):
        _health.framed_status(data)


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_give_a_number_or_a_value_error(data):
    with contextlib.suppress(ValueError):
        assert _health.framed_status(framed(data)) >= 0


@settings(deadline=None)
@given(st.text(max_size=256))
def test_the_request_is_what_protobuf_makes(service):
    from grpc_health.v1 import health_pb2

    try:
        expected = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    except UnicodeEncodeError:
        return
    assert _health.framed_request(service) == framed(expected)


# -- values


@pytest.mark.parametrize(("number", "value"), [(1, 1.0), (2, 0.0)])
def test_health_state(number, value):
    reading = answered(health(status(number)))
    assert (reading.value, reading.reason) == (value, None)
    assert reading.detail["health_status"] == ("SERVING", "NOT_SERVING")[number - 1]
    assert set(reading.phases) == {"resolve", "connect", "first_byte"}


@pytest.mark.parametrize("number", [0, 1, 2, 3, 9])
def test_latency_is_the_value_for_any_status(number):
    reading = answered(health(status(number)), interpretation="latency")
    assert 0 < reading.value == reading.detail["latency_ms"] < 1000


def test_what_is_asked():
    env = {"PROBE_TOKEN": " very-secret "}
    with nothing_left(), Server(health(status(1))) as server:
        ask(server, env, service="billing", metadata={"X-Team": "a b"}, metadata_refs={"Authorization": "PROBE_TOKEN"})
    (request,) = server.requests
    assert request[":path"] == "/grpc.health.v1.Health/Check"
    assert request[":authority"] == f"127.0.0.1:{server.port}"
    assert (request["te"], request["content-type"]) == ("trailers", "application/grpc")
    assert (request["x-team"], request["authorization"]) == ("a b", "very-secret")
    assert 1 <= int(request["grpc-timeout"].removesuffix("m")) <= 1000


def test_a_server_that_grants_nothing_but_small_frames():
    def answer(h2, stream_id):
        h2.ping(b"12345678")
        h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        h2.send_headers(stream_id, [(":status", "200"), ("content-type", "application/grpc+proto")])
        for byte in status(1):
            h2.send_data(stream_id, bytes([byte]))
        h2.send_headers(stream_id, OK, end_stream=True)

    assert answered(speaks(answer)).value == 1


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
def test_w30_an_ipv6_host_is_bracketed():
    with nothing_left(), Server(health(status(1)), host="::1") as server:
        reading = ask(server)
    assert reading.value == 1
    assert server.requests[0][":authority"] == reading.detail["target"] == f"[::1]:{server.port}"


def test_w30_latency_is_the_call_without_the_making_of_the_channel(authority):
    context = h2_context(authority)

    def handler(conn, server):
        server.stopping.wait(0.2)  # the handshake has to wait, the call has not
        with context.wrap_socket(conn, server_side=True) as secure:
            health(status(1))(secure, server)

    with Server(handler) as server:
        more = {"host": "localhost", "tls_mode": "tls", "ca_cert_ref": "PROBE_CA", "interpretation": "latency"}
        reading = ask(server, {"PROBE_CA": authority.pem}, **more)
    assert reading.value < 150
    assert reading.phases["tls"] > 190


# -- what a server may say


@pytest.mark.parametrize(
    ("code", "reason", "fault"),
    [
        (1, "grpc_error", Fault.TARGET),
        (2, "grpc_error", Fault.TARGET),
        (4, "grpc_timeout", Fault.TARGET),
        (5, "grpc_service_unknown", Fault.CONFIG),
        (7, "grpc_permission_denied", Fault.CONFIG),
        (8, "grpc_error", Fault.TARGET),
        (12, "grpc_unimplemented", Fault.CONFIG),
        (13, "grpc_error", Fault.TARGET),
        (14, "grpc_unavailable", Fault.TARGET),
        (16, "grpc_unauthenticated", Fault.CONFIG),
        (99, "grpc_error", Fault.TARGET),
    ],
)
@pytest.mark.parametrize("interpretation", grpc.INTERPRETATIONS)
def test_status_codes(code, reason, fault, interpretation):
    reading = answered(health(None, (("grpc-status", str(code)),)), interpretation=interpretation)
    assert (reading.value, reading.reason, reading.fault) == (None, reason, fault)
    assert reading.detail["grpc_code"] == (STATUS[code] if code < len(STATUS) else "UNKNOWN")


@pytest.mark.parametrize(
    ("number", "reason"), [(0, "grpc_health_unknown"), (9, "grpc_health_unknown"), (3, "grpc_service_unknown")]
)
def test_health_states_that_are_no_value(number, reason):
    assert answered(health(status(number))).reason == reason


def test_an_answer_of_trailers_alone():
    head = ((":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "14"), ("grpc-message", "a%20b"))
    reading = answered(health(None, None, head))
    assert reading.reason == "grpc_unavailable"
    assert (reading.detail["error"], reading.detail["said"]) == ("the server said UNAVAILABLE", "a b")


@pytest.mark.parametrize("text", ["ssl", "the certificate of the database expired", "TLS handshake with upstream"])
def test_w30_the_words_of_a_server_do_not_make_it_a_fault_of_tls(text):
    for code, reason in ((14, "grpc_unavailable"), (13, "grpc_error"), (16, "grpc_unauthenticated")):
        trailers = (("grpc-status", str(code)), ("grpc-message", text.replace(" ", "%20")))
        assert answered(health(None, trailers)).reason == reason


def test_a_secret_that_the_server_repeats_is_redacted():
    trailers = (("grpc-status", "16"), ("grpc-message", "bad token very-secret-value"))
    with nothing_left(), Server(health(None, trailers)) as server:
        reading = ask(server, {"PROBE_T": "very-secret-value"}, metadata_refs={"x-token": "PROBE_T"})
    assert reading.reason == "grpc_unauthenticated"
    assert "very-secret-value" not in str(reading)


@pytest.mark.parametrize(
    ("http", "reason"),
    [(200, "grpc_error"), (400, "grpc_error"), (401, "grpc_unauthenticated"), (403, "grpc_permission_denied"),
     (404, "grpc_unimplemented"), (429, "grpc_unavailable"), (500, "grpc_error"), (503, "grpc_unavailable")],
)  # fmt: skip
def test_a_web_server_that_speaks_http2_but_no_grpc(http, reason):
    head = ((":status", str(http)), ("content-type", "text/html"))
    reading = answered(health(b"<html>", None, head))
    assert reading.reason == reason
    assert f"status {http} of HTTP" in reading.detail["error"]


@pytest.mark.parametrize(
    "message", [b"", b"\0\0", framed(b"\xff"), b"\1" + status(1)[1:], status(1) + status(1), framed(b"\x12\x80\x01")]
)
def test_an_answer_that_is_no_message(message):
    assert answered(health(message)).reason == "grpc_error"


def test_an_answer_without_a_status():
    reading = answered(health(status(1), None))
    assert (reading.reason, reading.detail["grpc_code"]) == ("grpc_error", "UNKNOWN")


@pytest.mark.parametrize(
    ("code", "reason"), [(7, "grpc_unavailable"), (8, "grpc_error"), (12, "grpc_permission_denied"), (2, "grpc_error")]
)
def test_a_stream_that_is_reset(code, reason):
    assert answered(speaks(lambda h2, stream_id: h2.reset_stream(stream_id, code))).reason == reason


def test_a_server_that_waits_for_the_answer_to_its_ping():
    def handler(conn, server):
        h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        h2.initiate_connection()
        h2.ping(b"12345678")
        while not server.stopping.is_set():
            conn.sendall(h2.data_to_send())
            for event in h2.receive_data(conn.recv(65536)):
                if isinstance(event, PingAckReceived):
                    h2.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
                    h2.send_data(1, status(2))
                    h2.send_headers(1, OK, end_stream=True)

    assert answered(handler).value == 0


def test_a_connection_that_is_ended_before_it_took_the_request():
    reading = answered(speaks(lambda h2, stream_id: h2.close_connection(0, last_stream_id=0)))
    assert reading.reason == "grpc_unavailable"


def test_w14_a_message_without_end_is_cut_off():
    def answer(h2, stream_id):
        h2.send_headers(stream_id, [(":status", "200"), ("content-type", "application/grpc")])
        h2.send_data(stream_id, b"\0\xff\xff\xff\xff" + b"x" * 16_000)

    reading = answered(speaks(answer))
    assert reading.reason == "grpc_error"
    assert "more than 4096 bytes" in reading.detail["error"]


SETTINGS = b"\0\0\0\x04\0\0\0\0\0"


def floods(data):
    def handler(conn, server):
        conn.sendall(SETTINGS)
        while not server.stopping.is_set():
            conn.sendall(data)

    return handler


@pytest.mark.parametrize(
    "data",
    [
        SETTINGS * 1000,
        b"\0\0\x08\x06\0\0\0\0\0pingping" * 1000,
        b"\0\0\x04\x08\0\0\0\0\0\0\0\0\x01" * 1000,
        b"\0\x40\0\xbb\0\0\0\0\0" + b"x" * 16384,  # frames of an unknown kind
    ],
)
def test_w14_floods_of_frames_end(data):
    reading = answered(floods(data))
    assert reading.reason in ("grpc_error", "grpc_timeout", "grpc_unavailable")


def test_w14_all_that_a_server_sends_is_bounded():
    frame = b"\0\x40\0\xbb\0\0\0\0\0" + b"x" * 16384
    reading = answered(floods(frame), timeout_ms=10_000)
    assert (reading.reason, reading.fault) == ("grpc_error", Fault.TARGET)
    assert "more than 65536 bytes" in reading.detail["error"]


@pytest.mark.parametrize(
    "garbage",
    [b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 64, b"\0\0\x08\x06\0\0\0\0\0pingping",
     b"\0\0\0\x04\x01\0\0\0\0", SETTINGS + b"\0\0\1\1\4\0\0\0\1\xff", SETTINGS + b"\0\0\4\3\0\0\0\0\1\0\0\0\0" * 3],
)  # fmt: skip
def test_garbage_and_a_first_frame_that_is_not_settings(garbage):
    reading = answered(servers.says(garbage))
    assert (reading.reason, reading.fault) in {("grpc_unavailable", Fault.TARGET), ("grpc_error", Fault.TARGET)}
    assert reading.duration_ms < 900


def test_a_first_frame_that_comes_byte_by_byte():
    def handler(conn, server):
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in SETTINGS[:5]:
            conn.sendall(bytes([byte]))
            server.stopping.wait(0.01)
        conn.sendall(SETTINGS[5:])
        head = b""
        while b"PRI * HTTP/2.0" not in head:
            head += conn.recv(65536)
        # 200 and grpc-status 14, trailers alone: indexed :status, two literals
        block = b"\x88" + b"".join(
            b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value
            for name, value in ((b"content-type", b"application/grpc"), (b"grpc-status", b"14"))
        )
        conn.sendall(len(block).to_bytes(3, "big") + b"\x01\x05\0\0\0\x01" + block)
        server.stopping.wait()

    assert answered(handler).detail["grpc_code"] == "UNAVAILABLE"


@pytest.mark.parametrize("handler", [servers.tarpit, servers.says(SETTINGS)])
def test_a_server_that_never_answers(handler):
    reading = answered(handler, timeout_ms=300)
    assert (reading.reason, reading.fault) == ("grpc_timeout", Fault.TARGET)


@pytest.mark.parametrize("handler", [servers.hang_up])
def test_a_server_that_hangs_up(handler):
    reading = answered(handler)
    assert (reading.reason, reading.fault) == ("grpc_unavailable", Fault.TARGET)


# -- secrets and TLS


@pytest.mark.parametrize(
    ("env", "reason"),
    [({}, "metadata_ref_missing"), ({"PROBE_T": "  "}, "metadata_ref_missing"),
     ({"PROBE_T": "é"}, "metadata_ref_invalid"), ({"PROBE_T": "a\tb"}, "metadata_ref_invalid")],
)  # fmt: skip
def test_a_secret_that_is_missing_or_no_ascii(env, reason):
    with nothing_left(), Server(health(status(1))) as server:
        reading = ask(server, env, metadata_refs={"x-token": "PROBE_T"})
    assert (reading.reason, reading.fault) == (reason, Fault.CONFIG)
    assert (reading.detail["metadata_key"], reading.detail["env"]) == ("x-token", "PROBE_T")
    assert server.connections == 0


def h2_context(authority, **options):
    context = authority.server(**options)
    context.set_alpn_protocols(["h2"])
    return context


TLS = {"host": "localhost", "tls_mode": "tls", "ca_cert_ref": "PROBE_CA"}


def test_tls(authority):
    with nothing_left(), Server(health(status(1)), tls=h2_context(authority)) as server:
        reading = ask(server, {"PROBE_CA": authority.pem}, **TLS)
    assert reading.value == 1
    assert reading.phases["tls"] > 0


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda authority: h2_context(Authority()), "not trusted"),
        (lambda authority: h2_context(authority, not_before=servers.days(-9), not_after=servers.days(-1)), "expired"),
        (lambda authority: authority.server(), "ALPN"),
    ],
)
def test_a_server_whose_tls_does_not_hold(make, word, authority):
    with nothing_left(), Server(health(status(1)), tls=make(authority)) as server:
        reading = ask(server, {"PROBE_CA": authority.pem}, **TLS)
    assert (reading.reason, reading.fault) == ("grpc_tls_failed", Fault.TARGET)
    assert word in reading.detail["error"]


def test_a_server_without_tls(authority):
    with nothing_left(), Server(servers.says(SETTINGS)) as server:
        reading = ask(server, {"PROBE_CA": authority.pem}, **TLS)
    assert (reading.reason, reading.detail["code"]) == ("grpc_tls_failed", "tls_handshake_failed")


@pytest.mark.parametrize("value", ["", "/nowhere/ca.pem", "-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----"])
def test_an_authority_that_cannot_be_read(value):
    with nothing_left(), Server(health(status(1))) as server:
        reading = ask(server, {"PROBE_CA": value}, **TLS)
    assert (reading.reason, reading.fault) == ("grpc_ca_unreadable", Fault.CONFIG)
    assert reading.detail["env"] == "PROBE_CA"
    assert server.connections == 0


def client(authority, **options):
    cert, key = authority.issue("client", **options)
    env = {"PROBE_CA": authority.pem, "PROBE_CERT": cert, "PROBE_KEY": key}
    return env, {**TLS, "tls_mode": "mtls", "client_cert_ref": "PROBE_CERT", "client_key_ref": "PROBE_KEY"}


def test_mtls_and_w39_the_warning_is_the_same_object_as_in_http(authority):
    env, config = client(authority, not_after=servers.days(10))
    with nothing_left(), Server(health(status(1)), tls=h2_context(authority, require_client=True)) as server:
        reading = ask(server, env, **config)
    assert reading.value == 1
    assert set(reading.detail["cert_expiry_warning"]) == {"not_after", "days_remaining"}


def test_a_client_certificate_that_the_server_refuses(authority):
    env, config = client(Authority())
    env["PROBE_CA"] = authority.pem
    with nothing_left(), Server(health(status(1)), tls=h2_context(authority, require_client=True)) as server:
        reading = ask(server, env, **config)
    assert reading.reason in ("grpc_tls_failed", "grpc_unavailable")  # the alert may be overtaken by the reset


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"PROBE_CERT": ""}, "mtls_ref_missing"),
        ({"PROBE_CERT": "/nowhere"}, "mtls_file_unreadable"),
        ({"PROBE_KEY": "-----BEGIN X-----"}, "mtls_key_parse_failed"),
        ("other", "mtls_key_mismatch"),
        ("early", "mtls_cert_not_yet_valid"),
    ],
)
def test_w39_a_client_certificate_that_does_not_hold_keeps_its_own_name(change, reason, authority):
    early = {"not_before": servers.days(5), "not_after": servers.days(9)} if change == "early" else {}
    env, config = client(authority, **early)
    if isinstance(change, dict):
        env.update(change)
    elif change == "other":
        env["PROBE_KEY"] = authority.issue("else")[1]
    with nothing_left(), Server(health(status(1))) as server:
        reading = ask(server, env, **config)
    assert (reading.reason, reading.fault) == (reason, Fault.CONFIG)
    assert server.connections == 0


def test_a_client_certificate_is_not_looked_at_without_mtls(authority):
    env, config = client(authority)
    with nothing_left(), Server(health(status(1)), tls=h2_context(authority)) as server:
        assert ask(server, {"PROBE_CA": env["PROBE_CA"]}, **{**config, "tls_mode": "tls"}).value == 1


# -- the real thing


@pytest.fixture(scope="module")
def real(authority):
    """A server of grpcio with its own health service, in plain text, with TLS and with mTLS."""
    import grpc as grpcio
    from grpc_health.v1 import health as servicer
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with ThreadPoolExecutor(4) as pool:
        server = grpcio.server(pool)
        states = servicer.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(states, server)
        states.set("", health_pb2.HealthCheckResponse.SERVING)
        states.set("down", health_pb2.HealthCheckResponse.NOT_SERVING)
        states.set("odd", health_pb2.HealthCheckResponse.UNKNOWN)
        cert, key = authority.issue("localhost", "127.0.0.1")
        pairs = [(key.encode(), cert.encode())]
        ports = {"plaintext": server.add_insecure_port("127.0.0.1:0")}
        plain = grpcio.ssl_server_credentials(pairs)
        ports["tls"] = server.add_secure_port("127.0.0.1:0", plain)
        mutual = grpcio.ssl_server_credentials(pairs, authority.pem.encode(), True)
        ports["mtls"] = server.add_secure_port("127.0.0.1:0", mutual)
        server.start()
        yield ports
        server.stop(0).wait()


@pytest.mark.slow
@pytest.mark.parametrize("mode", grpc.MODES)
def test_a_real_server(real, mode, authority):
    env, config = client(authority)
    prober = make_prober(env)
    config |= {"port": real[mode], "tls_mode": mode}
    found = {service: look(prober, "grpc", {**config, "service": service}) for service in ("", "down", "odd", "nope")}
    assert (found[""].value, found["down"].value) == (1, 0)
    assert (found["odd"].reason, found["nope"].reason) == ("grpc_health_unknown", "grpc_service_unknown")
    assert 0 < look(prober, "grpc", {**config, "interpretation": "latency"}).value < 5000


@pytest.mark.slow
def test_a_real_server_without_a_health_service_and_one_that_wants_a_certificate(real, authority):
    import grpc as grpcio

    with ThreadPoolExecutor(1) as pool:
        server = grpcio.server(pool)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        reading = look(make_prober(), "grpc", {"host": "127.0.0.1", "port": port})
        server.stop(0).wait()
    assert reading.reason == "grpc_unimplemented"
    bare = {**TLS, "port": real["mtls"], "timeout_ms": 2000}
    reading = look(make_prober({"PROBE_CA": authority.pem}), "grpc", bare)
    assert reading.reason in ("grpc_tls_failed", "grpc_unavailable")


def test_every_reason_of_this_type_belongs_to_the_vocabulary():
    assert {name for name in probes.Reason if name.startswith(("grpc_", "metadata_"))} == {
        "grpc_ca_unreadable", "grpc_tls_failed", "grpc_timeout", "grpc_service_unknown", "grpc_unimplemented",
        "grpc_unauthenticated", "grpc_permission_denied", "grpc_unavailable", "grpc_health_unknown", "grpc_error",
        "metadata_ref_missing", "metadata_ref_invalid",
    }  # fmt: skip
