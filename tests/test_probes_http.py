"""The http and tcp probes: requests, values, bodies, redirects and trust."""

from __future__ import annotations

import errno
import gzip
import json
import resource
import socket
import zlib

import pytest

from observer_agent import probes
from observer_agent.clock import Clock
from observer_agent.errors import InvalidConfig
from observer_agent.model import Fault
from observer_agent.probes import _http, _reasons
from observer_agent.probes._hops import Hops
from observer_agent.probes._reasons import Reason
from observer_agent.probes._tools import Run
from observer_agent.probes._url import parse_url
from tests import servers
from tests.servers import Authority, Server, answer, make_prober, redirect, scripted


def look(prober, url, **config):
    return prober.look("http", probes.parse("http", {"url": url, "timeout_ms": 2000, **config}))


def ask(*answers, **config):
    with Server(scripted(*answers)) as server:
        return look(make_prober(), server.url, **config)


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


def test_a_body_of_the_definition_goes_out_with_any_method():
    with Server(scripted(answer())) as server:
        for method in ("GET", "PUT"):
            assert look(make_prober(), server.url, method=method, body="grüße").value > 0
    assert [request.split(b" ")[0] for request in server.requests] == [b"GET", b"PUT"]
    for request in server.requests:
        assert request.endswith("\r\n\r\ngrüße".encode())
        assert b"Content-Length: 7\r\n" in request


# -- what is expected of headers and body


@pytest.mark.parametrize(
    ("expected", "met"),
    [
        ({"name": "X-Here"}, True),
        ({"name": "x-here", "match": "present"}, True),
        ({"name": "X-There"}, False),
        ({"name": "X-Here", "match": "exact", "value": "one two"}, True),
        ({"name": "X-Here", "match": "exact", "value": "one"}, False),
        ({"name": "X-Here", "match": "contains", "value": "e t"}, True),
        ({"name": "X-Here", "match": "contains", "value": "E T"}, False),
    ],
)
def test_expected_headers(expected, met):
    reading = ask(answer(X_Here="one two"), expected_headers=[{"name": "Content-Length"}, expected])
    assert (reading.value is not None) is met
    if not met:
        assert (reading.reason, reading.fault) == ("header_mismatch", Fault.TARGET)
        assert reading.detail["header"] == expected["name"]
        assert "one two" not in str(reading)


def test_the_status_is_judged_before_the_headers_and_these_before_the_body():
    wanted = {"expected_headers": [{"name": "X-No"}], "body_match": "no"}
    assert ask(answer(status=500), **wanted).reason == "unexpected_status:500"
    assert ask(answer(), **wanted).reason == "header_mismatch"
    assert ask(answer(X_No=""), **wanted).reason == "body_mismatch"


def test_a_text_that_must_not_be_there():
    assert ask(answer("all is well"), body_absent="error").value > 0
    reading = ask(answer("an error"), body_absent="error")
    assert (reading.reason, reading.fault) == ("body_unexpected", Fault.TARGET)


def test_how_much_of_the_body_is_looked_through():
    body = "x" * 1_048_572 + "here" + "there"
    more = {"body_limit": 1_048_576}
    assert ask(answer(body), body_match="here", **more).value > 0
    assert ask(answer(body), body_match="there", **more).reason == "body_mismatch"
    assert ask(answer(body), body_match="here").reason == "body_mismatch"
    assert ask(answer(body), body_absent="there", **more).value > 0


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_that_breaks_off_is_judged_by_what_has_come(chunked):
    frame = b"Transfer-Encoding: chunked\r\n\r\n7\r\nit is " if chunked else b"Content-Length: 99\r\n\r\nit is "
    cut = b"HTTP/1.1 200 OK\r\n" + frame
    assert ask(cut, body_match="it is").value > 0
    assert ask(cut, body_match="here").reason == "ECONNRESET"
    assert ask(cut, body_absent="here").reason == "ECONNRESET"
    assert ask(cut, body_absent="it is").reason == "body_unexpected"


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_body_is_unpacked_where_the_server_packs_it_all_the_same(coding, pack):
    packed = answer(pack(b"it is here"), Content_Encoding=coding)
    assert ask(packed, body_match="is here").value > 0
    assert ask(packed, body_absent="is here").reason == "body_unexpected"


def test_no_more_of_a_packed_body_is_unpacked_than_may_be_looked_through():
    bomb = gzip.compress(bytes(50_000_000), 1)
    with Server(scripted(answer(bomb, Content_Encoding="gzip"))) as server:
        run = Run(servers.make_tools(), Clock().monotonic() + 5, Reason.HTTP_ERROR)
        with _http.exchange(_http.Request("GET", parse_url(server.url)), run, None) as response:
            assert response.searchable(1_000_000) == (bytes(1_000_000), None)


def test_what_follows_the_limit_of_a_packed_body_is_not_looked_through():
    bomb = answer(gzip.compress(bytes(100_000_000) + b"end", 1), Content_Encoding="gzip")
    assert ask(bomb, body_match="end").reason == "body_mismatch"


# -- browsers' rules for redirects


def test_ten_redirects_where_they_are_allowed():
    hops = [redirect(f"/{n}") for n in range(10)]
    assert ask(*hops, answer(), max_redirects=10).value > 0
    reading = ask(*hops, redirect("/11"), answer(), max_redirects=10)
    assert reading.reason == "too_many_redirects"


@pytest.mark.parametrize(
    ("status", "rules", "method", "body"),
    [
        (302, "browser", b"GET", b""),
        (303, "browser", b"GET", b""),
        (307, "browser", b"POST", b"secret body"),
        (302, "strict", b"POST", b"secret body"),
    ],
)
def test_the_method_and_the_body_behind_a_redirect(status, rules, method, body):
    with Server(scripted(redirect("/there", status), answer())) as server:
        look(make_prober(), server.url, method="POST", body="secret body", redirect_rules=rules)
    head, _, rest = server.requests[1].partition(b"\r\n\r\n")
    assert (head.split(b" ")[0], rest) == (method, body)


@pytest.mark.parametrize("rules", ["strict", "browser"])
def test_w10_neither_body_nor_headers_go_to_another_origin(rules):
    with Server(scripted(answer())) as other, Server(scripted(redirect(f"{other.url_of('other.test')}/", 307))) as home:
        headers = {"X-Mine": "1", "User-Agent": "me"}
        more = {"method": "POST", "body": "secret body", "redirect_rules": rules, "headers": headers}
        assert look(make_prober(), home.url, **more).value > 0
    assert home.requests[0].endswith(b"secret body")
    assert b"secret body" not in other.requests[0] and b"X-Mine" not in other.requests[0]
    assert (b"User-Agent: me\r\n" in other.requests[0]) is (rules == "browser")


def test_from_https_to_http_by_browsers_rules():
    authority = Authority()
    with Server(scripted(answer())) as plain, Server(scripted(redirect(plain.url)), tls=authority.server()) as server:
        more = {"ca_cert_ref": "PROBE_CA", "headers": {"X-Mine": "1"}, "redirect_rules": "browser"}
        reading = look(make_prober({"PROBE_CA": authority.pem}), server.url, **more)
    assert reading.value > 0
    assert b"X-Mine" not in plain.requests[0]


@pytest.mark.parametrize(
    ("first", "then", "lax", "home"),
    [
        ("http://a.test/", "https://a.test/x", True, True),
        ("http://a.test/", "https://a.test/x", False, False),
        ("http://a.test/", "https://www.a.test/", True, False),
        ("http://a.test:8080/", "https://a.test/", True, False),
        ("http://a.test/", "https://a.test:8443/", True, False),
        ("https://a.test/", "http://a.test/", True, False),
        ("http://a.test/", "http://a.test/x", False, True),
    ],
)
def test_what_counts_as_the_first_origin(first, then, lax, home):
    config = probes.parse("http", {"url": first, "redirect_rules": "browser" if lax else "strict"})
    assert Hops(config, (), None, None)._is_home(parse_url(then)) is home


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"expected_headers": {"name": "a"}}, "expected_headers"),
        ({"expected_headers": [{"name": "a"}] * 33}, "expected_headers"),
        ({"expected_headers": ["a"]}, "expected_headers"),
        ({"expected_headers": [{"name": "a b"}]}, "expected_headers[0]"),
        ({"expected_headers": [{"name": "a"}, {}]}, "expected_headers[1]"),
        ({"expected_headers": [{"name": "a", "match": "regex", "value": "x"}]}, "expected_headers[0]"),
        ({"expected_headers": [{"name": "a", "match": "exact"}]}, "expected_headers[0]"),
        ({"expected_headers": [{"name": "a", "value": 7}]}, "expected_headers[0]"),
        ({"expected_headers": [{"name": "a", "more": "x"}]}, "expected_headers[0]"),
        ({"body": 7}, "body"),
        ({"body": "x" * 1_048_577}, "body"),
        ({"body_absent": "x", "method": "HEAD"}, "body_absent"),
        ({"body_limit": 0}, "body_limit"),
        ({"body_limit": 1_048_577}, "body_limit"),
        ({"max_redirects": 11}, "max_redirects"),
        ({"redirect_rules": "lax"}, "redirect_rules"),
    ],
)
def test_fields_of_ours_that_are_refused(config, field):
    with pytest.raises(InvalidConfig) as caught:
        probes.parse("http", {"url": "http://a.test/", **config})
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [field]


def test_tcp_says_and_hears():
    with Server(scripted(b"220 ready\r\n")) as server:
        config = {"host": "127.0.0.1", "port": server.port, "send": "EHLO\r\n\r\n", "expect": "ready"}
        reading = make_prober().look("tcp", probes.parse("tcp", config))
    assert reading.value > 0
    assert list(reading.phases) == ["resolve", "connect", "first_byte"]
    assert server.requests == [b"EHLO\r\n\r\n"]


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


def test_an_unknown_source_type_is_a_reading_too():
    reading = make_prober().look("quic", None)
    assert (reading.value, reading.reason, reading.fault) == (None, "unknown_source_type", Fault.CONFIG)


def test_a_reading_can_be_written_as_json():
    reading = ask(answer(status=500))
    json.dumps([reading.value, reading.reason, reading.phases, reading.detail, reading.fault])
