"""What every source type promises: a reading by the deadline, a reason and a fault, nothing left behind."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from observer_agent import probes
from observer_agent.clock import Clock
from observer_agent.model import Fault
from observer_agent.probes import _reasons
from observer_agent.resolver import Address, ResolveError, parse_literal
from tests import servers, udp
from tests.servers import Authority, Server, answer, make_prober, redirect, refused_port, scripted
from tests.watch import Watch, contended

GRACE = 0.05
TIMEOUT_MS = 5000  # of looks that should end long before it, on a busy machine too
HURRY_MS = 300  # of looks that end by it


def tcp(server_url, **more):
    host, _, port = server_url.partition("://")[2].partition("/")[0].rpartition(":")
    return "tcp", {"host": host, "port": int(port), "timeout_ms": TIMEOUT_MS}


def http(server_url, **more):
    return "http", {"url": server_url, "timeout_ms": TIMEOUT_MS, **more}


def matching(server_url, **more):
    return http(server_url, body_match="never there", **more)


def picking(server_url, **more):
    return http(server_url, json_path="$.a", **more)


def query(server_url, **more):
    return "prometheus", {"query": "up", "prometheus_url": server_url, "timeout_ms": TIMEOUT_MS}


def scrape(server_url, **more):
    more.pop("ca_cert_ref", None)
    return "prometheus", {"scrape_url": server_url, "metric": "up", "timeout_ms": TIMEOUT_MS, **more}


def grpc(server_url, **more):
    return "grpc", {**tcp(server_url)[1], **more}


def websocket(server_url, **more):
    return "websocket", {"url": server_url.replace("http", "ws", 1), "timeout_ms": TIMEOUT_MS, **more}


def tls_cert(server_url, **more):
    return "tls_cert", tcp(server_url)[1]


def icmp(server_url, **more):
    return "icmp", {"host": tcp(server_url)[1]["host"], "count": 1, "timeout_ms": TIMEOUT_MS}


def dns(server_url, **more):
    return "dns", {"domain": "good.test", "resolver": server_url.partition("://")[2], "timeout_ms": TIMEOUT_MS}


def datagram(server_url, **more):
    return "udp", {**tcp(server_url)[1], **more}


def expecting(server_url, **more):
    return "tcp", {**tcp(server_url)[1], "send": "hello", "expect": "never there", **more}


def loki(server_url, **more):
    return "loki", {"base_url": server_url, "query": 'count_over_time({a="b"}[5m])', "timeout_ms": TIMEOUT_MS}


def elasticsearch(server_url, **more):
    search = {"index": "i", "agg_name": "a", "query": {"aggs": {"a": {"max": {"field": "b"}}}}}
    return "elasticsearch", {"base_url": server_url, "timeout_ms": TIMEOUT_MS, **search}


def hurried(kind):
    """The same source type with a short timeout."""

    def ask_for(server_url, **more):
        source_type, config = kind(server_url, **more)
        return source_type, {**config, "timeout_ms": HURRY_MS}

    return ask_for


ALL = [tcp, http, matching, picking, query, scrape, loki, elasticsearch]
OVER_HTTP = ALL[1:]
BODY_READERS = ALL[2:]
ALL += [grpc, websocket, tls_cert, expecting]
OVER_TLS = [*OVER_HTTP, tls_cert]
BY_NAME = [*ALL, icmp, datagram]

_GRPC = dict.fromkeys(("ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN"), "grpc_unavailable")
_BACKEND = {
    **dict.fromkeys(("ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN"), "unreachable"),
    **dict.fromkeys(("ECONNRESET", "http_error"), "error"),
    "ETIMEDOUT": "timeout",
}
OWN_NAMES = {  # source types that have names of their own for what others call by the common ones
    query: {"ENOTFOUND": "DNS", "EAI_AGAIN": "DNS", "http_error": "prom_bad_response"},
    scrape: {"ENOTFOUND": "DNS", "EAI_AGAIN": "DNS", "http_error": "prom_bad_response"},
    loki: {code: f"loki_{name}" for code, name in _BACKEND.items()},
    elasticsearch: {code: f"es_{name}" for code, name in _BACKEND.items()},
    grpc: {**_GRPC, "ETIMEDOUT": "grpc_timeout"},
    icmp: dict.fromkeys(("ENOTFOUND", "EAI_AGAIN"), "icmp_dns_failed"),
    websocket: {**dict.fromkeys(_GRPC, "ws_open_failed"), "ETIMEDOUT": "ws_handshake_timeout"},
}


def own(kind, code):
    """What a source type calls a failure."""
    return OWN_NAMES.get(kind, {}).get(code, code)


@pytest.fixture(scope="module")
def authority():
    return Authority()


@contextmanager
def nothing_left():
    """Fails where a socket or a thread outlives the block; the resolver's pool is excepted."""
    fds, threads = set(os.listdir("/proc/self/fd")), set(threading.enumerate())
    yield
    left = [t.name for t in set(threading.enumerate()) - threads if not t.name.startswith("resolve-")]
    assert left == []
    assert len(os.listdir("/proc/self/fd")) <= len(fds)  # one of the test before may be closed meanwhile


def look(prober, source_type, config):
    """One look, held against what every reading must fulfil."""
    typed = probes.parse(source_type, config)
    watch = Watch()
    reading = prober.look(source_type, typed)
    assert watch.seconds <= typed.timeout + GRACE
    assert reading.duration_ms == round(reading.duration_ms, 3) > 0
    assert all(ms == round(ms, 3) >= 0 for ms in reading.phases.values())
    if reading.value is None:
        assert _reasons.is_known(reading.reason), reading.reason
        assert isinstance(reading.fault, Fault)
    json.dumps(reading.detail)
    return reading


def ask(kind, server, prober=None, **more):
    return look(prober or make_prober(), *kind(server.url, **more))


@pytest.mark.parametrize("kind", [*ALL, dns, datagram])
def test_a_refused_port(kind):
    with nothing_left(), refused_port() as port:
        reading = look(make_prober(), *kind(f"http://127.0.0.1:{port}"))
    assert (reading.reason, reading.fault) == (own(kind, "ECONNREFUSED"), Fault.TARGET)


@pytest.mark.parametrize("kind", OVER_HTTP)
@pytest.mark.parametrize("handler", [servers.tarpit, servers.drip])
def test_a_tarpit_and_a_slow_drip_of_headers(kind, handler):
    with nothing_left(), Server(handler) as server:
        reading = ask(hurried(kind), server)
    assert (reading.reason, reading.fault) == (own(kind, "ETIMEDOUT"), Fault.TARGET)
    assert reading.phases["first_byte"] > HURRY_MS / 2


@pytest.mark.parametrize("handler", [servers.tarpit, servers.drip, servers.hang_up, servers.endless])
def test_tcp_is_content_with_a_connection(handler):
    with nothing_left(), Server(handler) as server:
        reading = ask(tcp, server)
    assert 0 < reading.value < TIMEOUT_MS
    assert set(reading.phases) == {"resolve", "connect"}


@pytest.mark.parametrize(
    ("handler", "reasons"),
    [
        (servers.tarpit, {"ETIMEDOUT"}),
        (servers.drip_body, {"ETIMEDOUT"}),
        (servers.hang_up, {"reply_mismatch", "ECONNRESET"}),
        (servers.says(b"something else" * 1000), {"reply_mismatch"}),
    ],
)
def test_tcp_that_waits_for_a_text_keeps_its_deadline(handler, reasons):
    with nothing_left(), Server(handler) as server:
        reading = ask(hurried(expecting), server)
    assert reading.reason in reasons
    assert reading.fault is Fault.TARGET
    assert "something" not in str(reading)


@pytest.mark.parametrize("kind", OVER_HTTP)
@pytest.mark.parametrize("handler", [servers.half_close, servers.hang_up])
def test_a_server_that_closes_without_an_answer(kind, handler):
    with nothing_left(), Server(handler) as server:
        reading = ask(kind, server)
    assert (reading.reason, reading.fault) == (own(kind, "ECONNRESET"), Fault.TARGET)


@pytest.mark.parametrize("kind", BODY_READERS)
def test_a_slow_drip_of_the_body(kind):
    with nothing_left(), Server(servers.drip_body) as server:
        reading = ask(hurried(kind), server)
    assert (reading.reason, reading.fault) == (own(kind, "ETIMEDOUT"), Fault.TARGET)


@pytest.mark.parametrize("handler", [servers.drip_body, servers.endless])
def test_http_alone_does_not_wait_for_the_body(handler):
    with nothing_left(), Server(handler) as server:
        reading = ask(http, server)
    assert reading.value < TIMEOUT_MS / 2
    assert reading.duration_ms < TIMEOUT_MS


@pytest.mark.parametrize(
    ("kind", "reasons"),
    [
        (matching, {"body_mismatch"}),
        (picking, {"json_body_too_large", "ETIMEDOUT"}),
        (query, {"body_too_large", "ETIMEDOUT"}),
        (scrape, {"body_too_large", "ETIMEDOUT"}),
        (loki, {"body_too_large", "loki_timeout"}),
        (elasticsearch, {"body_too_large", "es_timeout"}),
    ],
)
def test_w14_an_endless_body(kind, reasons):
    with nothing_left(), Server(servers.endless) as server:
        reading = ask(kind, server)
    assert reading.reason in reasons


@pytest.mark.parametrize("kind", OVER_HTTP)
def test_endless_headers(kind):
    with nothing_left(), Server(servers.endless_headers) as server:
        reading = ask(kind, server)
    assert reading.reason == own(kind, "http_error")
    assert reading.fault is Fault.TARGET


@pytest.mark.parametrize("kind", OVER_HTTP)
@pytest.mark.parametrize("garbage", [b"SSH-2.0-OpenSSH_9\r\n", b"\x00\xff" * 50, b"HTTP/9 nope\r\n\r\n", b"\r\n\r\n"])
def test_garbage(kind, garbage):
    with nothing_left(), Server(servers.says(garbage)) as server:
        reading = ask(kind, server)
    assert reading.reason == own(kind, "http_error")
    assert reading.duration_ms < TIMEOUT_MS


# -- TLS


@pytest.mark.parametrize("kind", OVER_TLS)
def test_bad_tls(kind):
    with nothing_left(), Server(servers.says(b"this is no TLS, it is a greeting\r\n")) as server:
        reading = look(make_prober(), *kind(server.url.replace("http", "https", 1)))
    assert (reading.reason, reading.fault) == ("tls_handshake_failed", Fault.TARGET)


@pytest.mark.parametrize("kind", OVER_TLS)
def test_a_tarpit_in_the_handshake(kind):
    with nothing_left(), Server(servers.tarpit) as server:
        reading = look(make_prober(), *hurried(kind)(server.url.replace("http", "https", 1)))
    assert (reading.reason, reading.fault) == (own(kind, "ETIMEDOUT"), Fault.TARGET)
    assert "tls" in reading.phases


@pytest.mark.parametrize("kind", OVER_HTTP)
def test_an_unknown_authority(kind, authority):
    with nothing_left(), Server(scripted(answer()), tls=authority.server()) as server:
        reading = ask(kind, server)
    assert (reading.reason, reading.fault) == ("tls_verify_failed", Fault.TARGET)


@pytest.mark.parametrize(
    ("fault", "word"), [("expired", "expired"), ("self_signed", "self-signed"), ("wrong_host", "mismatch")]
)
def test_certificates_that_do_not_hold(fault, word, authority, tmp_path):
    contexts = {
        "expired": authority.expired,
        "self_signed": lambda: servers.self_signed(tmp_path),
        "wrong_host": lambda: authority.server("other.example"),
    }
    prober = make_prober({"PROBE_CA": authority.pem})
    with nothing_left(), Server(scripted(answer()), tls=contexts[fault]()) as server:
        url = server.url_of("localhost")
        reading = look(prober, *http(url, ca_cert_ref="PROBE_CA"))
        careless = look(prober, *http(url, verify_tls=False))
    assert (reading.reason, reading.fault) == ("tls_verify_failed", Fault.TARGET)
    assert word in reading.detail["error"]
    assert careless.value > 0


def test_an_address_in_the_certificate_and_in_the_url(authority):
    prober = make_prober({"PROBE_CA": authority.pem})
    with nothing_left(), Server(scripted(answer()), tls=authority.server("127.0.0.1")) as server:
        reading = ask(http, server, prober, ca_cert_ref="PROBE_CA")
    assert reading.value > 0
    assert set(reading.phases) == {"resolve", "connect", "tls", "first_byte", "body"}


# -- redirects


def test_w10_a_redirect_loop():
    with nothing_left(), Server(scripted(redirect("/again"))) as server:
        reading = ask(http, server)
    assert (reading.reason, reading.fault) == ("too_many_redirects", Fault.TARGET)
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("file:///etc/passwd", "invalid_url_scheme"),
        ("ftp://good.test/", "invalid_url_scheme"),
        ("http://user:secret@good.test/", "invalid_url"),
        ("http://[::1", "invalid_url"),
        ("http://good.test:99999/", "invalid_url"),
        ("http://a b/", "invalid_url"),
    ],
)
def test_w10_redirects_that_are_not_followed(location, reason):
    with nothing_left(), Server(scripted(redirect(location))) as server:
        reading = ask(http, server)
    assert reading.reason == reason
    assert location not in str(reading)


def test_w10_no_secret_leaves_its_origin_not_even_after_coming_back():
    prober = make_prober({"PROBE_TOKEN": "very-secret-value"})
    with nothing_left(), Server(scripted(answer())) as other:
        back: list[bytes] = [redirect(f"{other.url_of('other.test')}/x"), answer()]
        with Server(scripted(*back)) as home:
            other._handler = scripted(redirect(f"{home.url}/home-again"))
            more = {"headers": {"X-Mine": "1"}, "header_refs": {"Authorization": "PROBE_TOKEN"}}
            reading = ask(http, home, prober, **more)
    assert reading.value > 0
    first, again = home.requests
    assert b"very-secret-value" in first and b"X-Mine" in first
    for request in (again, *other.requests):
        assert b"very-secret-value" not in request and b"X-Mine" not in request


def test_w10_secrets_stay_on_a_redirect_within_the_origin():
    prober = make_prober({"PROBE_TOKEN": "very-secret-value"})
    with nothing_left(), Server(scripted(redirect("/there"), answer())) as server:
        ask(http, server, prober, header_refs={"Authorization": "PROBE_TOKEN"})
    assert all(b"Authorization: very-secret-value" in request for request in server.requests)
    assert server.requests[1].startswith(b"GET /there ")


@pytest.mark.parametrize("kind", [query, scrape])
def test_w11_prometheus_follows_no_redirect(kind):
    with nothing_left(), Server(scripted(answer())) as other, Server(scripted(redirect(other.url))) as server:
        reading = ask(kind, server)
    assert reading.reason == "prom_redirect"
    assert other.connections == 0


def test_w10_no_downgrade_from_https(authority):
    prober = make_prober({"PROBE_CA": authority.pem})
    with nothing_left(), Server(scripted(answer())) as plain:
        with Server(scripted(redirect(plain.url)), tls=authority.server()) as server:
            reading = ask(http, server, prober, ca_cert_ref="PROBE_CA")
    assert reading.reason == "redirect_downgrade"
    assert plain.connections == 0


# -- names and addresses


@pytest.mark.parametrize("kind", BY_NAME)
def test_a_name_that_does_not_exist(kind):
    with nothing_left():
        reading = look(make_prober(), *kind("http://nowhere.test:80"))
    assert reading.reason == own(kind, "ENOTFOUND")
    assert reading.fault is Fault.TARGET


@pytest.mark.parametrize("kind", BY_NAME)
def test_a_resolver_that_says_try_again(kind):
    def find(name):
        raise ResolveError("EAI_AGAIN", "Temporary failure in name resolution")

    reading = look(make_prober(find=find), *kind("http://nowhere.test:80"))
    assert reading.reason == own(kind, "EAI_AGAIN")
    assert reading.fault is Fault.RESOLVER


@pytest.mark.parametrize("kind", BY_NAME)
def test_a_resolver_that_hangs(kind):
    release = threading.Event()

    def find(name):
        release.wait()
        raise ResolveError("EAI_AGAIN")

    with nothing_left():
        try:
            reading = look(make_prober(find=find), *hurried(kind)("http://hangs.test:80"))
        finally:
            release.set()
    assert (reading.reason, reading.fault) == (own(kind, "ETIMEDOUT"), Fault.RESOLVER)
    assert list(reading.phases) == ["resolve"]


@pytest.mark.skipif(not servers.has_ipv6(), reason="this machine has no ::1")
def test_ipv6():
    with nothing_left(), Server(scripted(answer()), host="::1") as server:
        assert ask(http, server).value > 0
        assert ask(tcp, server).value > 0
    assert f"Host: [::1]:{server.port}\r\n".encode() in server.requests[0]


def test_the_next_address_has_its_turn():
    def find(name):
        return tuple(Address(*parse_literal(text)) for text in ("::1", "127.0.0.1"))

    with nothing_left(), Server(scripted(answer())) as server:
        reading = look(make_prober(find=find), *http(server.url_of("both.test")))
    assert reading.value > 0


@pytest.mark.parametrize("kind", BY_NAME)
@pytest.mark.parametrize(
    "address", ["169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254", "64:ff9b::a9fe:a9fe"]
)
def test_w12_metadata_addresses_are_denied_by_address_and_by_name(kind, address):
    prober = make_prober(find=lambda name: (parse_literal(address),))
    literal = f"[{address}]" if ":" in address else address
    for host in (literal, "innocent.test"):
        reading = look(prober, *kind(f"http://{host}:80"))
        assert (reading.reason, reading.fault) == ("policy_denied", Fault.POLICY)


def test_w12_a_redirect_to_a_metadata_address_is_denied():
    with nothing_left(), Server(scripted(redirect("http://169.254.169.254/latest/meta-data/"))) as server:
        reading = ask(http, server)
    assert (reading.reason, reading.fault) == ("policy_denied", Fault.POLICY)


# -- UDP: what is not an answer to our question is passed over, and the deadline is kept


def to_another_question(question):
    return [bytes((question[0] ^ 1,)) + udp.build(question, "{} 60 IN A 203.0.113.1")[1:]]


def garbage(question):
    return [b"", b"x", b"SSH-2.0-OpenSSH_9\r\n", os.urandom(1) * 2000, bytes((question[0] ^ 1,)) + question[1:] * 3]


@pytest.mark.parametrize("reply", [udp.silence, garbage, to_another_question, lambda question: [question]])
def test_udp_that_does_not_answer(reply):
    with nothing_left(), udp.UdpServer(reply) as server:
        reading = look(make_prober(), *hurried(dns)(f"udp://{server.at}"))
    assert (reading.reason, reading.fault) == ("ETIMEDOUT", Fault.TARGET)
    assert reading.duration_ms >= HURRY_MS


def test_udp_from_a_spoofed_source():
    good = udp.answering("{} 60 IN A 203.0.113.1")
    with nothing_left(), udp.UdpServer(good, strange=True) as server:
        reading = look(make_prober(), *hurried(dns)(f"udp://{server.at}"))
    assert (reading.reason, reading.fault) == ("ETIMEDOUT", Fault.TARGET)


def test_udp_that_floods_does_not_keep_a_look_from_ending():
    with nothing_left(), udp.UdpServer(lambda question: to_another_question(question) * 20_000) as server:
        reading = look(make_prober(), *hurried(dns)(f"udp://{server.at}"))
    assert reading.reason == "ETIMEDOUT"


@pytest.mark.parametrize("silence_ok", [True, False])
def test_datagrams_that_nobody_answers_keep_the_deadline(silence_ok):
    with nothing_left(), udp.UdpServer(udp.silence) as server:
        reading = look(make_prober(), *hurried(datagram)(f"udp://{server.at}", silence_ok=silence_ok))
    assert (reading.value is not None, reading.reason) == (silence_ok, None if silence_ok else "ETIMEDOUT")
    assert reading.silent


# -- many at once


@pytest.mark.slow
@pytest.mark.parametrize("kind", [http, scrape])
def test_two_hundred_hung_probes_each_end_by_their_deadline(kind):
    with nothing_left(), Server(servers.tarpit) as server, ThreadPoolExecutor(200) as pool:
        prober = make_prober()
        source_type, config = kind(server.url)
        typed = probes.parse(source_type, {**config, "timeout_ms": 1500})

        def one(_):
            started = Clock().monotonic()
            reading = prober.look(source_type, typed)
            return reading.reason, Clock().monotonic() - started - typed.timeout

        busy = contended()
        ended = list(pool.map(one, range(200)))
        kept = contended() - busy
    assert {reason for reason, _ in ended} == {"ETIMEDOUT"}
    assert max(late for _, late in ended) <= GRACE + kept
    assert min(late for _, late in ended) >= -0.005
