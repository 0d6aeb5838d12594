"""The http and tcp probes: framing, values, bodies, redirects and trust."""

from __future__ import annotations

import errno
import json
import resource
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observer_agent import probes
from observer_agent.clock import Clock
from observer_agent.model import Fault
from observer_agent.probes import _http, _reasons
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tools import Run
from observer_agent.probes._url import parse_url
from tests import servers
from tests.servers import Authority, Server, answer, make_prober, make_tools, redirect, scripted


def look(prober, url, **config):
    return prober.look("http", probes.parse("http", {"url": url, "timeout_ms": 2000, **config}))


def ask(*answers, **config):
    with Server(scripted(*answers)) as server:
        return look(make_prober(), server.url, **config)


# -- framing


class Pieces:
    """A stream whose bytes come in the pieces that a test has cut."""

    def __init__(self, pieces):
        tools = make_tools()
        self.run = Run(tools, tools.clock.monotonic() + 60, Reason.HTTP_ERROR)
        self._pieces = list(pieces)

    def receive(self):
        return self._pieces.pop(0) if self._pieces else b""

    def close(self):
        pass


def read(pieces, limit=1000):
    """What the reader makes of an answer: status and body, or the reason."""
    try:
        response = _http._read_response(Pieces(pieces))
        return response.status, response.body(limit)
    except Failed as failure:
        return failure.reason, str(failure)


ANSWERS = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more", (200, b"hello")),
    "close": (b"HTTP/1.0 200 OK\r\n\r\nhello", (200, b"hello")),
    "chunked": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nhel\r\n02\r\nlo\r\n0\r\nTrailer: x\r\n\r\nmore",
        (200, b"hello"),
    ),
    "continue": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 A\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        (200, b"ok"),
    ),
    "bare line feeds": (b"HTTP/1.1 404 Not Found\nContent-Length: 2\n\nno", (404, b"no")),
    "no reason phrase": (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", (200, b"")),
    "no content": (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", (204, b"")),
    "chunked wins": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        (200, b"x"),
    ),
    "the same length twice": (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", (200, b"x")),
    "limit": (b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000, (200, b"x" * 1000)),
    "limit in chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"2BC\r\n"
        + b"x" * 700
        + b"\r\n2bc\r\n"
        + b"x" * 700,
        (200, b"x" * 1000),
    ),
    "short": (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello", ("ECONNRESET", "the body ended early")),
    "short chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        ("ECONNRESET", "the body ended early"),
    ),
    "no end of headers": (
        b"HTTP/1.1 200 OK\r\nA: b\r\n",
        ("ECONNRESET", "the connection was closed before an answer came"),
    ),
    "nothing": (b"", ("ECONNRESET", "the connection was closed before an answer came")),
    "two lengths": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        ("http_error", "the Content-Length is malformed"),
    ),
    "negative length": (
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        ("http_error", "the Content-Length is malformed"),
    ),
    "bad chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n",
        ("http_error", "a chunk's size is malformed"),
    ),
    "long chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n",
        ("http_error", "a chunk is longer than its size"),
    ),
    "no colon": (b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", ("http_error", "a header line is malformed")),
    "http/2": (b"HTTP/2 200\r\n\r\n", ("http_error", "the answer is not HTTP/1")),
    "upgrade": (b"HTTP/1.1 101 Switching\r\n\r\n", ("http_error", "the server switches to another protocol")),
    "long headers": (
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
        ("http_error", "the headers are too long"),
    ),
    "many continues": (b"HTTP/1.1 100 X\r\n\r\n" * 10_000, ("http_error", "the headers are too long")),
    "long line in a body": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 5000,
        ("http_error", "a line of the body is too long"),
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_framing(name):
    data, expected = ANSWERS[name]
    assert read([data]) == expected


@settings(deadline=None)
@given(st.sampled_from([data for data, _ in ANSWERS.values() if len(data) < 3000]), st.data())
def test_w31_how_the_network_cuts_an_answer_changes_nothing(data, draw):
    cuts = sorted(draw.draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=12)))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]
    assert read(pieces) == read([data])


@settings(deadline=None)
@given(st.binary(max_size=300) | st.binary(max_size=100).map(b"HTTP/1.1 200 OK\r\n".__add__))
def test_any_bytes_are_an_answer_or_a_failure(data):
    result = read([data])
    assert isinstance(result[0], int) or _reasons.is_known(result[0])


def test_byte_by_byte():
    for data, expected in ANSWERS.values():
        if len(data) < 3000:
            assert read([bytes((b,)) for b in data]) == expected


# -- the request


def test_the_request_as_it_goes_out():
    with Server(scripted(answer())) as server:
        headers = {"X-Mine": "ü", "User-Agent": "me", "Host": "virtual.example"}
        look(make_prober(), f"{server.url}/a?b=c#d", headers=headers, method="POST")
    request = server.requests[0].decode()
    assert request.startswith("POST /a?b=c HTTP/1.1\r\nHost: virtual.example\r\nUser-Agent: me\r\n")
    for line in ("X-Mine: ü", "Accept-Encoding: identity", "Connection: close", "Content-Length: 0"):
        assert f"\r\n{line}\r\n" in request


def test_the_request_says_who_asks():
    with Server(scripted(answer())) as server:
        look(make_prober(), server.url)
    assert b"User-Agent: observer-agent/" in server.requests[0]


def test_a_body_goes_with_its_length():
    request = _http.Request("POST", parse_url("http://good.test"), (), b"hello")
    assert request.render().endswith(b"Content-Length: 5\r\n\r\nhello")


# -- values and reasons


def test_the_value_is_the_time_to_the_headers():
    reading = ask(answer("x" * 100))
    assert 0 < reading.value <= reading.duration_ms
    assert list(reading.phases) == ["resolve", "connect", "first_byte", "body"]
    parts = sum(reading.phases[name] for name in ("resolve", "connect", "first_byte"))
    assert reading.value == pytest.approx(parts, abs=0.1)
    assert reading.detail == {"status": 200}


def test_w5_latency_does_not_know_the_wall_clock():
    class Jumpy(Clock):
        def now(self):
            self.offset = -getattr(self, "offset", 86_400.0) * 2
            return super().now() + self.offset

    with Server(scripted(answer())) as server:
        prober = make_prober(clock=Jumpy())
        http = look(prober, server.url)
        tcp = prober.look("tcp", probes.parse("tcp", {"host": "127.0.0.1", "port": server.port}))
    for reading in (http, tcp):
        assert 0 < reading.value < 2000
        assert reading.value == round(reading.value, 3)
        assert not reading.value.is_integer()


@pytest.mark.parametrize(
    ("status", "expected", "reason"),
    [
        (200, None, None),
        (500, None, "unexpected_status:500"),
        (204, [200, 204], None),
        (301, 301, None),
        (200, 404, "unexpected_status:200"),
    ],
)
def test_the_status_is_judged(status, expected, reason):
    reading = ask(answer(status=status), expected_status=expected)
    assert reading.reason == reason
    assert reading.fault == (Fault.TARGET if reason else None)
    assert reading.detail["status"] == status


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_with_the_same_method(status):
    with Server(scripted(redirect("../b?c", status), answer())) as server:
        reading = look(make_prober(), f"{server.url}/x/a", method="PUT")
    assert [request.split(b" HTTP")[0] for request in server.requests] == [b"PUT /x/a", b"PUT /b?c"]
    assert reading.detail == {"status": 200, "hops": 1}


def test_redirects_are_judged_themselves_when_they_are_not_followed():
    assert ask(redirect("/x"), follow_redirects=False).reason == "unexpected_status:302"
    assert ask(redirect("/x"), follow_redirects=False, expected_status=302).value > 0
    assert ask(answer(status=302)).reason == "unexpected_status:302"


def test_five_redirects_are_not_too_many():
    assert ask(*[redirect(f"/{n}") for n in range(5)], answer()).value > 0


def test_head_has_no_body():
    with Server(scripted(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")) as server:
        reading = look(make_prober(), server.url, method="HEAD")
    assert reading.value > 0
    assert reading.phases["body"] < 100


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("before", "matches"), [(0, True), (4093, True), (65_530, True), (65_531, False)])
def test_w31_the_window_of_body_match_is_64_kib_exactly(before, matches, chunked):
    body = b"." * before + "nädle".encode()
    data = answer(body)
    if chunked:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        pieces = [body[n : n + 1000] for n in range(0, len(body), 1000)]
        data = head + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    reading = ask(data, body_match="nädle")
    assert reading.reason == (None if matches else "body_mismatch")


def test_json_mode():
    reading = ask(answer('{"a": [1, {"b": "2.5"}]}', Content_Type="application/json"), json_path="$.a[1].b")
    assert reading.value == 2.5
    assert reading.detail["content_type"] == "application/json"
    assert reading.detail["response_time_ms"] > 0


def test_json_mode_checks_the_text_first():
    assert ask(answer("[1]"), json_path="$[0]", body_match="2").reason == "body_mismatch"
    reading = ask(answer("nope"), json_path="$[0]")
    assert (reading.reason, reading.fault, reading.detail["status"]) == ("json_parse_failed", Fault.TARGET, 200)


def test_a_compressed_body_is_not_searched():
    reading = ask(answer("x", Content_Encoding="gzip"), body_match="x")
    assert reading.reason == "http_error"
    assert "compressed" in reading.detail["error"]


# -- trust


@pytest.fixture(scope="module")
def authority():
    return Authority()


def test_w9_a_private_authority_needs_no_client_certificate(authority, tmp_path):
    file = tmp_path / "ca.pem"
    file.write_text(authority.pem)
    prober = make_prober({"PROBE_CA": authority.pem, "PROBE_CA_FILE": str(file)})
    with Server(scripted(answer()), tls=authority.server()) as server:
        assert look(prober, server.url).reason == "tls_verify_failed"
        assert look(prober, server.url, ca_cert_ref="PROBE_CA").value > 0
        assert look(prober, server.url_of("localhost"), ca_cert_ref="PROBE_CA_FILE").value > 0
        assert look(prober, server.url, ca_cert_ref="PROBE_NONE").reason == "mtls_ref_missing"


def test_contexts_are_kept_and_a_changed_file_is_a_new_one(authority, tmp_path):
    file = tmp_path / "ca.pem"
    file.write_text(Authority().pem)
    prober = make_prober({"PROBE_CA": str(file)})
    with Server(scripted(answer()), tls=authority.server()) as server:
        assert look(prober, server.url, ca_cert_ref="PROBE_CA").reason == "tls_verify_failed"
        file.write_text(authority.pem + "\n")
        assert look(prober, server.url, ca_cert_ref="PROBE_CA").value > 0


def test_the_system_s_authorities_are_those_that_openssl_finds(authority, tmp_path, monkeypatch):
    file = tmp_path / "bundle.pem"
    file.write_text(authority.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with Server(scripted(answer()), tls=authority.server()) as server:
        assert look(make_prober(), server.url).value > 0


def test_session_keys_are_not_written_down(authority, tmp_path, monkeypatch):
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    with Server(scripted(answer()), tls=authority.server()) as server:
        look(make_prober(), server.url, verify_tls=False)
    assert not (tmp_path / "keys").exists()


# -- the joint


def test_w6_the_machine_s_errors_have_names_of_ours():
    known = {
        errno.ECONNABORTED: ("ECONNRESET", Fault.TARGET),
        errno.EPIPE: ("ECONNRESET", Fault.TARGET),
        errno.EHOSTUNREACH: ("EHOSTUNREACH", Fault.PATH),
        errno.ENETDOWN: ("ENETUNREACH", Fault.PATH),
        errno.EPERM: ("EACCES", Fault.PATH),
        errno.ENFILE: ("EMFILE", Fault.AGENT),
        errno.EADDRNOTAVAIL: ("EADDRNOTAVAIL", Fault.AGENT),
        errno.EXDEV: ("tcp_error", Fault.PATH),
    }
    for number, expected in known.items():
        failure = _reasons.from_os_error(OSError(number, "text"), "connecting", Reason.TCP_ERROR)
        assert (failure.reason, failure.fault) == expected
        assert failure.detail["errno"] == errno.errorcode[number]
    assert not _reasons.is_known("ConnectionRefused")
    assert not _reasons.is_known("unexpected_status:2000")


def test_an_agent_out_of_files_does_not_blame_the_target():
    prober = make_prober()
    config = probes.parse("tcp", {"host": "127.0.0.1", "port": 9})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as highest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest.fileno(), hard))
        try:
            held = []
            try:
                while True:
                    held.append(socket.socket())
            except OSError:
                reading = prober.look("tcp", config)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for sock in held:
                sock.close()
    assert (reading.reason, reading.fault) == ("EMFILE", Fault.AGENT)


def test_a_probe_that_breaks_is_a_reading_and_a_line_without_its_message(caught):
    class Broken:
        timeout = 1.0
        host = property(lambda self: (_ for _ in ()).throw(RuntimeError("hunter2")))

    reading = make_prober().look("tcp", Broken())
    assert (reading.value, reading.reason, reading.fault) == (None, "source_threw", Fault.AGENT)
    assert reading.detail == {"error": "the probe broke with RuntimeError"}
    assert "RuntimeError" in caught.text and "hunter2" not in caught.text


def test_a_shorter_timeout_may_be_given():
    with Server(servers.tarpit) as server:
        config = probes.parse("http", {"url": server.url})
        reading = make_prober().look("http", config, timeout_override=0.05)
    assert reading.reason == "ETIMEDOUT"
    assert 50 <= reading.duration_ms < 150


def test_a_reading_can_be_written_as_json():
    reading = ask(answer(status=500))
    json.dumps([reading.value, reading.reason, reading.phases, reading.detail, reading.fault])
