"""Up or down: checks of the console against real servers, and what the console is told of each."""

from __future__ import annotations

import gzip
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from observer_agent import policy
from observer_agent.clouds._lighthouse_wire import CheckDef, ExpectedHeader, HeaderDef, State
from observer_agent.lighthouse import checks
from observer_agent.lighthouse.opinion import Opinion, opinion
from observer_agent.lighthouse.plain import plain
from observer_agent.logs import Redactor
from observer_agent.lookout import Lookout
from observer_agent.model import Definition, Fault, Problem, Reading
from observer_agent.policy import Policy
from observer_agent.probes import Prober, Reason
from observer_agent.pulse import Pulse
from observer_agent.resolver import ResolveError, parse_literal
from observer_agent.witness import Witnesses
from tests import servers
from tests.servers import Authority, Server, answer, make_prober, make_tools, redirect, refused_port, scripted
from tests.udp import UdpServer, answering, silence

UP, DOWN = State.UP, State.DOWN


def look(type, url, prober=None, redact=None, **fields):
    """One check's outcome, all the way."""
    fields.setdefault("timeout_seconds", 2)
    definition = checks.definition(CheckDef(id="c1", type=type, url=url, **fields))
    if definition.problem:
        reading = Reading(None, definition.problem.reason, Fault.CONFIG)
    else:
        reading = (prober or make_prober()).look(definition.source_type, definition.config)
    found = opinion(definition, reading, redact)
    assert found.error_message is None or (found.state is DOWN and 0 < len(found.error_message) <= 200)
    assert (found.state is DOWN) == (found.error_message is not None)
    return found


def ask(*answers, **fields):
    with Server(scripted(*answers)) as server:
        return look("http", server.url, **fields)


# -- http


def test_up():
    found = ask(answer("hello"))
    assert (found.state, found.status_code, found.error_message) == (UP, 200, None)
    assert isinstance(found.response_time_ms, int) and 0 <= found.response_time_ms < 2000


def test_the_latency_is_whole_milliseconds_cut_off():
    slow = threading.Event()

    def handler(conn, server):
        servers.read_request(conn)
        slow.wait(0.05)
        conn.sendall(answer())

    with Server(handler) as server:
        assert 50 <= look("http", server.url).response_time_ms < 2000


def test_the_body_is_no_part_of_the_latency():
    slow = threading.Event()

    def handler(conn, server):
        servers.read_request(conn)
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        slow.wait(0.6)
        conn.sendall(b"ab")

    with Server(handler) as server:
        for keyword, state in (("ab", UP), ("c", DOWN)):
            found = look("http", server.url, keyword_check=keyword, keyword_present=True)
            assert found.state is state
            assert found.response_time_ms < 550


@pytest.mark.parametrize(
    ("said", "fields", "message"),
    [
        (answer(status=503), {}, "status 503, want 200"),
        (answer(), {"expected_status_code": 204}, "status 200, want 204"),
        (answer(), {"expected_headers": (("X-A", "", ""),)}, 'response missing header "X-A"'),
        (answer(), {"expected_headers": (("X-A", "v", "contains"),)}, 'response missing header "X-A"'),
        (answer(X_A="ab"), {"expected_headers": (("X-A", "a", "exact"),)}, 'header "X-A" is not the expected text'),
        (
            answer(X_A="ab"),
            {"expected_headers": (("X-A", "c", "contains"),)},
            'header "X-A" does not contain the expected text',
        ),
        (answer("ab"), {"keyword_check": "c", "keyword_present": True}, 'keyword "c" not found in body'),
        (answer("ab"), {"keyword_check": "b"}, 'keyword "b" unexpectedly present'),
        (answer("ab"), {"keyword_check": "B", "keyword_present": True}, 'keyword "B" not found in body'),
    ],
)
def test_assertions_that_fail(said, fields, message):
    if "expected_headers" in fields:
        fields = {"expected_headers": tuple(ExpectedHeader(*row) for row in fields["expected_headers"])}
    found = ask(said, **fields)
    assert (found.state, found.error_message) == (DOWN, message)
    assert found.status_code == int(said.split()[1])
    assert found.response_time_ms is not None


@pytest.mark.parametrize(
    ("said", "fields"),
    [
        (answer(status=404), {"expected_status_code": 404}),
        (answer(X_A="ab"), {"expected_headers": (ExpectedHeader("x-a", "ab", "exact"),)}),
        (answer(X_A="ab"), {"expected_headers": (ExpectedHeader("X-A", "b", "CONTAINS"),)}),
        (answer("ab"), {"keyword_check": "b", "keyword_present": True}),
        (answer("ab"), {"keyword_check": "c"}),
        (answer("x" * 1_048_574 + "ab"), {"keyword_check": "ab", "keyword_present": True}),
        (answer("x" * 1_048_576 + "ab"), {"keyword_check": "ab"}),
        (answer(gzip.compress(b"ab"), Content_Encoding="gzip"), {"keyword_check": "ab", "keyword_present": True}),
    ],
)
def test_assertions_that_hold(said, fields):
    assert ask(said, **fields).state is UP


def test_status_before_headers_before_keyword():
    fields = {
        "expected_headers": (ExpectedHeader("X-A", "", "present"),),
        "keyword_check": "z",
        "keyword_present": True,
    }
    assert ask(answer(status=500), **fields).error_message.startswith("status 500")
    assert ask(answer(), **fields).error_message.startswith("response missing")
    assert ask(answer(X_A="1"), **fields).error_message.startswith("keyword")


def test_w16_host_and_user_agent_of_the_check_go_out():
    headers = (HeaderDef("Host", "virtual.example"), HeaderDef("User-Agent", "mine"))
    with Server(scripted(answer())) as server:
        look("http", server.url, request_headers=headers, request_body="x=1", method="DELETE")
    request = server.requests[0]
    assert request.startswith(b"DELETE / HTTP/1.1\r\nHost: virtual.example\r\nUser-Agent: mine\r\n")
    assert request.endswith(b"\r\n\r\nx=1")


def test_ten_redirects_are_followed_and_the_final_answer_judged():
    hops = [redirect(f"/{n}") for n in range(10)]
    assert ask(*hops, answer("found"), keyword_check="found", keyword_present=True).state is UP
    found = ask(*hops, redirect("/11"), answer())
    assert (found.state, found.error_message) == (DOWN, "request failed: too many redirects")


def test_w15_no_socket_is_left_behind():
    from tests.contracts.test_probe import nothing_left

    with nothing_left(), Server(scripted(answer())) as server:
        prober = make_prober()
        for _ in range(20):
            assert look("http", server.url, prober).state is UP


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (servers.tarpit, "request failed: timed out while waiting for the answer"),
        (servers.hang_up, "request failed: connection closed by the other side"),
        (servers.says(b"SSH-2.0-secret\r\n"), "request failed: the answer is not HTTP/1"),
    ],
)
def test_requests_that_fail(handler, message):
    with Server(handler) as server:
        found = look("http", server.url, timeout_seconds=1)
    assert found == Opinion(DOWN, None, None, message)


def test_a_refused_port_says_so_without_an_address():
    with refused_port() as port:
        found = look("http", f"http://127.0.0.1:{port}/path?token=secret")
    assert found.error_message == "request failed: connection refused"


def test_a_name_that_does_not_exist():
    assert look("http", "http://nowhere.test/").error_message == "request failed: no such host"


@pytest.mark.parametrize("kind", ["expired", "foreign", "other"])
def test_certificates_that_are_not_trusted(kind):
    authority = Authority()
    contexts = {"expired": authority.expired, "foreign": authority.server, "other": authority.server}
    with Server(scripted(answer()), tls=contexts[kind]()) as server:
        found = look("https", server.url)
        careless = look("https", server.url, skip_tls_verify=True)
    assert found.state is DOWN
    assert found.error_message.startswith("request failed: the certificate is not trusted")
    assert careless.state is UP


def test_https_against_plain_text():
    with Server(servers.says(b"plain text, no TLS\r\n")) as server:
        found = look("https", server.url.replace("http", "https"))
    assert found.error_message.startswith("request failed: TLS handshake failed")


# -- tcp and udp


def test_tcp():
    with Server(servers.tarpit) as server:
        found = look("tcp", f"127.0.0.1:{server.port}")
    assert (found.state, found.status_code) == (UP, None)
    with refused_port() as port:
        found = look("tcp", f"tcp://127.0.0.1:{port}")
    assert found == Opinion(DOWN, error_message=f"dial tcp 127.0.0.1:{port}: connection refused")


def test_w16_tcp_with_a_payload():
    with Server(scripted(b"secret greeting")) as server:
        talk = {"request_body": "hello\r\n\r\n", "keyword_present": True}
        assert look("tcp", f"127.0.0.1:{server.port}", keyword_check="greeting", **talk).state is UP
        found = look("tcp", f"127.0.0.1:{server.port}", keyword_check="goodbye", **talk)
    assert found.error_message == f"read tcp 127.0.0.1:{server.port}: the answer does not hold the expected text"


def test_udp_answers():
    with UdpServer(lambda data: [data]) as server:
        found = look("udp", server.at)
    assert found.state is UP and found.response_time_ms is not None


def test_w20_silent_udp_is_up_without_a_latency():
    with UdpServer(silence) as server:
        found = look("udp", server.at, timeout_seconds=1)
    assert found == Opinion(UP)


@pytest.mark.slow
def test_silent_udp_is_doubted_once_and_then_known():
    """Silence may be this machine's own: the lookout asks and looks again, the first time alone."""
    tools = make_tools()
    prober, clock = Prober(tools), tools.clock
    witnesses = Witnesses(clock, tools.resolver, lambda: None)
    pulse, stop = Pulse(clock), threading.Event()
    lookout = Lookout(lambda each: prober.look(each.source_type, each.config), witnesses, pulse, clock)
    with UdpServer(silence) as server, Server(servers.tarpit) as witness, ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: all(not stop.wait(pulse.step()) for _ in range(10_000)))
        witnesses.note(f"127.0.0.1:{witness.port}")
        definition = checks.definition(CheckDef(id="c1", type="udp", url=server.at, timeout_seconds=1))
        try:
            for sent in (2, 3):
                assert opinion(definition, lookout.look(definition)) == Opinion(UP)
                assert len(server.questions) == sent
        finally:
            stop.set()


def test_udp_that_is_refused():
    with refused_port() as port:
        found = look("udp", f"127.0.0.1:{port}")
    assert found == Opinion(DOWN, error_message="udp read: connection refused")


# -- ssl


@pytest.mark.parametrize(("left", "days"), [(40, 39), (0.5, 0)])
def test_a_certificate_that_lives(left, days):
    context = Authority().server(not_before=servers.days(-10), not_after=servers.days(left))
    with Server(servers.tarpit, tls=context) as server:
        found = look("ssl", f"127.0.0.1:{server.port}")
    assert (found.state, found.days_to_expiry) == (UP, days)
    assert found.response_time_ms is not None
    assert server.connections == 1


def test_a_certificate_that_has_ended():
    with Server(servers.tarpit, tls=Authority().expired()) as server:
        found = look("ssl", f"127.0.0.1:{server.port}")
    assert (found.state, found.days_to_expiry, found.error_message) == (DOWN, -2, "certificate expired 2 days ago")


def test_ssl_that_fails():
    with refused_port() as port:
        assert look("ssl", f"127.0.0.1:{port}").error_message == f"tls dial 127.0.0.1:{port}: connection refused"
    with Server(servers.says(b"plain text, no TLS\r\n")) as server:
        found = look("ssl", f"127.0.0.1:{server.port}")
    assert found.error_message.startswith(f"tls 127.0.0.1:{server.port}: TLS handshake failed")


# -- dns


def resolve(reply, **fields):
    with UdpServer(reply) as server:
        return look("dns", "good.test", dns_resolver=server.at, timeout_seconds=1, **fields)


A = answering("{} 60 IN A 203.0.113.10")


def test_dns_is_up_with_any_answer():
    found = resolve(A)
    assert (found.state, found.status_code) == (UP, None)
    assert found.response_time_ms is not None


@pytest.mark.parametrize(
    ("reply", "fields", "message"),
    [
        (A, {"dns_expected_ips": ("203.0.113.1",)}, "Expected A record(s) 203.0.113.1 not found"),
        (A, {"dns_expected_ips": ("203.0.113.10", "203.0.113.7")}, "Expected A record(s) 203.0.113.7 not found"),
        (answering(), {}, "No A records found"),
        (answering(code="NXDOMAIN"), {}, "DNS A lookup failed: NXDOMAIN"),
        (answering(code="SERVFAIL"), {}, "DNS A lookup failed: server returned SERVFAIL"),
        (answering(code="YXDOMAIN"), {}, "DNS A lookup failed: the server answers YXDOMAIN"),
        (silence, {}, "DNS A lookup failed: timed out while waiting for the answer"),
    ],
)
def test_dns_is_down(reply, fields, message):
    found = resolve(reply, **fields)
    assert (found.state, found.error_message) == (DOWN, message)


def test_w16_dns_matches_exactly_unless_asked_otherwise():
    assert resolve(A, dns_expected_ips=("203.0.113.10",)).state is UP
    assert resolve(A, dns_expected_ips=("203.0.113.1",)).state is DOWN
    assert resolve(A, dns_expected_ips=("contains:203.0.113.",)).state is UP
    text = answering('{} 60 IN TXT "v=spf1 -all"')
    assert resolve(text, dns_record_type="TXT", dns_expected_ips=("v=spf1 -all",)).state is UP
    assert resolve(text, dns_record_type="TXT", dns_expected_ips=("spf1",)).state is DOWN
    assert resolve(text, dns_record_type="TXT", dns_expected_ips=("contains:spf1",)).state is UP


def test_w16_aaaa_means_aaaa():
    def reply(question):
        # A server of a name that has an A record alone: no data for any other question.
        return A(question) if b"\x00\x01\x00\x01" in question[-20:] else answering()(question)

    assert resolve(reply, dns_record_type="AAAA").error_message == "No AAAA records found"


def test_a_resolver_by_name():
    with UdpServer(A) as server:
        found = look("dns", "good.test", dns_resolver=f"localhost:{server.port}")
    assert found.state is UP
    found = look("dns", "good.test", dns_resolver="nowhere.test")
    assert found.error_message == "DNS A lookup failed: the resolver cannot be reached: no such host"


# -- what says nothing, and what is not checked


HTTP = checks.definition(CheckDef(id="c1", type="http", url="http://good.test/"))


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("type", ["http", "tcp", "udp", "ssl", "dns"])
def test_w1_the_agents_own_trouble_is_no_result_and_everything_else_is_down(type, fault):
    definition = checks.definition(CheckDef(id="c1", type=type, url="http://good.test:80/"))
    found = opinion(definition, Reading(None, Reason.TIMED_OUT, fault))
    assert found.state is (None if fault is Fault.AGENT else DOWN)
    assert (found == Opinion(None)) is (fault is Fault.AGENT)


@pytest.mark.parametrize("reason", ["agent_network", "agent_stalled", "source_threw", "EMFILE", "dns_overloaded"])
def test_w1_by_name(reason):
    fault = Fault.RESOLVER if reason == "dns_overloaded" else Fault.AGENT
    assert opinion(HTTP, Reading(None, reason, fault)) == Opinion(None)


def test_a_probe_that_breaks_is_no_result():
    prober = make_prober()
    reading = prober.look("http", "no configuration at all")
    assert reading.fault is Fault.AGENT
    assert opinion(HTTP, reading).state is None


@pytest.mark.parametrize(
    ("rules", "rule"),
    [
        ("[networks]\ndeny = ['127.0.0.0/8']", "networks.deny"),
        ("[hosts]\ndeny = ['good.test']", "hosts.deny"),
        ("[ports]\nallow = [1]", "ports.allow"),
        ("[source_types]\ndeny = ['tcp']", "source_types.deny"),
    ],
)
def test_what_the_operator_forbids_is_down_and_names_the_rule(rules, rule):
    prober = make_prober(policy=Policy(policy.parse(rules)))
    found = look("tcp", "good.test:80", prober)
    assert found == Opinion(DOWN, error_message=f"not checked: the agent's policy does not allow it ({rule})")


def test_metadata_addresses_are_not_checked():
    prober = make_prober(find=lambda name: (parse_literal("169.254.169.254"),))
    found = look("http", "http://innocent.test/", prober)
    assert found.error_message == "not checked: the agent's policy does not allow it (metadata service)"


def test_a_redirect_to_a_forbidden_host_does_not_name_it():
    with Server(scripted(redirect("http://other.test/"))) as server:
        prober = make_prober(policy=Policy(policy.parse("[hosts]\ndeny = ['other.test']")))
        found = look("http", server.url, prober)
    assert found.error_message == "not checked: the agent's policy does not allow it (hosts.deny)"


def test_the_operators_limit_on_looks_is_no_result():
    prober = make_prober(policy=Policy(policy.parse("[limits]\nrate_per_target = 0.001")))
    with Server(servers.tarpit) as server:
        assert look("tcp", f"127.0.0.1:{server.port}", prober).state is UP
        assert look("tcp", f"127.0.0.1:{server.port}", prober) == Opinion(None)


def test_problems_are_down_and_say_what_to_write():
    found = look("http", "http://good.test/", expected_headers=(ExpectedHeader("A", "secret", "regex"),))
    text = "expected_headers[0].match: is not known: write one of present, exact, contains"
    assert found == Opinion(DOWN, error_message=f"not checked: {text}")
    assert look("quic", "good.test:1").error_message == 'unknown check type "quic"'
    over = Definition("c1", "tcp", 60, 60, "f", problem=Problem("policy_denied", "201 definitions are more than ..."))
    assert "limits.definitions" in opinion(over, Reading(None)).error_message


def test_a_resolver_that_does_not_answer():
    def find(name):
        raise ResolveError("EAI_AGAIN", "secret words of the resolver at 192.0.2.53")

    found = look("tcp", "good.test:80", make_prober(find=find))
    assert found.error_message == "dial tcp good.test:80: the resolver does not answer"


# -- W13: what leaves


CANARY = "c4n4ry-{}"


@pytest.mark.parametrize("type", ["http", "https"])
@pytest.mark.parametrize(
    "said",
    [
        answer(CANARY.format("body"), X_A=CANARY.format("header")),
        answer(CANARY.format("body"), 500, X_A=CANARY.format("header")),
        redirect(f"http://{CANARY.format('host')}.test/{CANARY.format('path')}?{CANARY.format('query')}"),
        redirect(f"ftp://{CANARY.format('host')}.test/"),
        redirect(f"http://user:{CANARY.format('password')}@good.test/"),
        f"HTTP/1.1 200 {CANARY.format('phrase')}\r\n{CANARY.format('line')}\r\n\r\n".encode(),
        f"{CANARY.format('garbage')}\r\n\r\n".encode(),
    ],
)
def test_w13_nothing_of_the_target_or_of_the_check_leaves_in_a_message(type, said):
    tls = Authority().server() if type == "https" else None
    check = {
        "request_headers": (HeaderDef("Authorization", CANARY.format("auth")), HeaderDef("X", CANARY.format("x"))),
        "request_body": CANARY.format("sent"),
        "method": "POST",
        "expected_headers": (ExpectedHeader("X-A", CANARY.format("wanted"), "exact"),),
        "skip_tls_verify": True,
    }
    with Server(scripted(said), tls=tls) as server:
        where = server.url.replace("://", f"://me:{CANARY.format('userinfo')}@")
        found = look(type, f"{where}/{CANARY.format('urlpath')}?q={CANARY.format('urlquery')}", **check)
    assert found.state is DOWN
    assert "c4n4ry" not in json.dumps(found), found


@pytest.mark.parametrize(
    ("kind", "record"),
    [("A", "203.0.113.10"), ("TXT", '"c4n4ry"'), ("MX", "10 c4n4ry.test."), ("CNAME", "c4n4ry.test.")],
)
def test_w13_no_dns_answer_and_no_resolver_leaves(kind, record):
    wanted = {"A": "203.0.113.1"}.get(kind, "something.test")
    with UdpServer(answering(f"{{}} 60 IN {kind} {record}")) as server:
        found = look("dns", "good.test", dns_resolver=server.at, dns_record_type=kind, dns_expected_ips=(wanted,))
    assert found.error_message == f"Expected {kind} record(s) {wanted} not found"


def test_w13_a_long_message_ends_at_200_characters():
    found = resolve(A, dns_expected_ips=tuple(f"203.0.113.{n}" for n in range(20, 90)))
    assert len(found.error_message) == 200
    assert found.error_message.endswith("…")


def test_w13_a_keyword_that_looks_like_a_secret_or_is_known_for_one_is_hidden():
    found = ask(answer("password=hunter22"), keyword_check="password=hunter22")
    assert "hunter22" not in found.error_message
    tools = make_tools()
    tools.redact.add("tell-nobody")
    found = ask(answer("tell-nobody"), keyword_check="tell-nobody", redact=tools.redact)
    assert found.error_message == 'keyword "[redacted]" unexpectedly present'


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("GET http://a.test/x?token=secret failed", "GET http://a.test/x?[redacted] failed"),
        ("dial https://me:secret@a.test/", "dial https://[redacted]@a.test/"),
        ("one\r\ntwo\x00\x1b[31m", "one  two  [31m"),
        ("Authorization: Bearer secretsecret", "Authorization: [redacted]"),
        ("right to left \u202e here", "right to left   here"),
    ],
)
def test_w13_plain(text, left):
    assert plain(text) == left
    assert plain(text, Redactor()) == left
