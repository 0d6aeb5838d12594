"""The dns probe: questions, records, expected values, servers that fail, and a real one."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from random import Random

import dns.flags
import dns.message
import pytest

from observer_agent import probes
from observer_agent.clock import Clock
from observer_agent.errors import InvalidConfig
from observer_agent.model import Fault
from observer_agent.policy import Policy, Rules
from observer_agent.probes import _dnsask, _reasons
from observer_agent.probes import dns as probe_dns
from observer_agent.probes._dnswords import NotOurs, Question, understand
from observer_agent.probes._reasons import Failed, Reason
from tests import servers
from tests.servers import Server, make_prober, make_tools
from tests.udp import UdpServer, answering, build, over_tcp, silence

TIMEOUT_MS = 600


def look(prober=None, **config):
    config = {"domain": "good.test", "timeout_ms": TIMEOUT_MS, **config}
    return (prober or make_prober()).look("dns", probes.parse("dns", config))


def ask(reply, **config):
    with UdpServer(reply) as server:
        return look(resolver=server.at, **config)


def ask_of(path, *, timeout_ms=TIMEOUT_MS, **config):
    """A look at the servers of a resolv.conf."""
    config = probes.parse("dns", {"domain": "good.test", "timeout_ms": timeout_ms, **config})
    return probe_dns.probe(config, Clock().monotonic() + config.timeout, make_tools(), conf=path)


# -- the configuration


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "domain"),
        ({"domain": ""}, "domain"),
        ({"domain": "a..b"}, "domain"),
        ({"domain": "a b.test"}, "domain"),
        ({"domain": "back\\slash.test"}, "domain"),
        ({"domain": "x" * 64 + ".test"}, "domain"),
        ({"domain": "x." * 127 + "test"}, "domain"),
        ({"domain": "a.test", "record_type": "HINFO"}, "record_type"),
        ({"domain": "a.test", "expected_values": ["203.0.113"]}, "expected_values"),
        ({"domain": "a.test", "expected_values": "203.0.113.1"}, "expected_values"),
        ({"domain": "a.test", "expected_values": [""]}, "expected_values"),
        ({"domain": "a.test", "expected_parts": ["x"] * 101}, "expected_parts"),
        ({"domain": "a.test", "resolver_name": "a b"}, "resolver_name"),
        ({"domain": "a.test", "resolver_name": "dns.test", "resolver": "192.0.2.1"}, "resolver_name"),
        ({"domain": "a.test", "search": "yes"}, "search"),
        ({"domain": "a.test", "record_type": "a"}, "record_type"),
        ({"domain": "a.test", "expected_value": "203.0.113"}, "expected_value"),
        ({"domain": "a.test", "expected_value": "2001:db8::1"}, "expected_value"),
        ({"domain": "a.test", "record_type": "AAAA", "expected_value": "203.0.113.1"}, "expected_value"),
        ({"domain": "a.test", "timeout_ms": 0}, "timeout_ms"),
        ({"domain": "a.test", "timeout_ms": 60_001}, "timeout_ms"),
        ({"domain": "a.test", "resolver": 53}, "resolver"),
        ({"domain": "a.test", "port": 53}, "port"),
    ],
)
def test_configurations_that_are_refused(config, field):
    with pytest.raises(InvalidConfig) as caught:
        probes.parse("dns", config)
    assert [problem.partition(":")[0] for problem in str(caught.value).split("; ")] == [field]


def test_w1_the_defaults():
    config = probes.parse("dns", {"domain": "Good.Test"})
    assert (config.domain, config.record_type, config.expected_value) == ("good.test.", "A", "")
    assert (config.resolver, config.timeout) == (None, 5.0)


@pytest.mark.parametrize(
    ("text", "record_type", "name"),
    [
        ("bücher.example", "A", "xn--bcher-kva.example."),
        (".", "NS", "."),
        ("_sip._tcp.example.com.", "SRV", "_sip._tcp.example.com."),
        ("*.example.com", "A", "*.example.com."),
        ("0/25.2.0.192.in-addr.arpa", "PTR", "0/25.2.0.192.in-addr.arpa."),
        ("203.0.113.5", "PTR", "5.113.0.203.in-addr.arpa."),
        ("2001:db8::1", "PTR", "1." + "0." * 23 + "8.b.d.0.1.0.0.2.ip6.arpa."),
        ("5.113.0.203.in-addr.arpa", "PTR", "5.113.0.203.in-addr.arpa."),
    ],
)
def test_names_as_they_are_asked_for(text, record_type, name):
    config = probes.parse("dns", {"domain": text, "record_type": record_type})
    assert config.domain == name
    assert dns.message.from_wire(Question(name, record_type, 1).render(True)).question[0].name.to_text() == name


@pytest.mark.parametrize("text", ["127.0.0.1", "127.0.0.1:5353", "::1", "[::1]", "[::1]:5353", "fe80::1%1"])
def test_resolvers_that_are_understood(text):
    server = _dnsask.parse_server(text)
    assert server.port == (5353 if "5353" in text else 53)
    assert server.address.host.partition("%")[0] in text


@pytest.mark.parametrize(
    "text",
    ["", "dns.example", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:x", "1:53", "[::1", "1.2.3.4.5"],
)
def test_a_resolver_that_is_no_address(text):
    reading = look(resolver=text)
    assert (reading.reason, reading.fault) == ("dns_resolver_invalid", Fault.CONFIG)


# -- the library

SLOW_IMPORT = """
import sys
from observer_agent import probes
from observer_agent.clock import Clock
from tests.servers import make_prober

assert "dns" not in sys.modules


class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "dns.message":
            Clock().alarm().wait(0.6)


sys.meta_path.insert(0, Slow())
config = probes.parse("dns", {"domain": "good.test", "resolver": sys.argv[1], "timeout_ms": 300})
prober = make_prober()
for _ in range(2):
    reading = prober.look("dns", config)
    print(reading.value is not None, reading.reason, reading.duration_ms < 300)
"""


def test_the_first_look_has_its_whole_time_however_long_the_library_takes_to_load():
    root = Path(__file__).parent.parent
    with UdpServer(answering("{} 60 IN A 203.0.113.1")) as server:
        command = [sys.executable, "-c", SLOW_IMPORT, server.at]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=root)
    assert (done.stdout, done.stderr) == ("True None True\n" * 2, "")


# -- what goes out


def test_the_question_as_it_goes_out():
    with UdpServer(answering("{} 60 IN A 203.0.113.1")) as server:
        for _ in range(4):
            look(resolver=server.at)
    messages = [dns.message.from_wire(question) for question in server.questions]
    first = messages[0]
    assert first.question[0].to_text() == "good.test. IN A"
    assert first.flags == dns.flags.RD
    assert (first.edns, first.payload) == (0, 1232)
    assert len({message.id for message in messages}) > 1


# -- records and expected values


RECORDS = {
    "A": ("203.0.113.1", ["203.0.113.1"]),
    "AAAA": ("2001:db8:0:0::1", ["2001:db8::1"]),
    "CNAME": ("Target.Example.", ["target.example"]),
    "MX": ("10 Mail.Example.", ["mail.example"]),
    "TXT": ('"v=spf1 include" ":a.example -all"', ["v=spf1 include:a.example -all"]),
    "NS": ("ns1.example.", ["ns1.example"]),
    "SRV": ("10 60 5060 sip.example.", ["10 60 5060 sip.example"]),
    "CAA": ('0 issue "letsencrypt.org"', ["issue letsencrypt.org"]),
    "PTR": ("host.example.", ["host.example"]),
    "SOA": ("ns.example. admin.example. 7 3600 600 86400 60", ["ns.example admin.example 7"]),
}


@pytest.mark.parametrize("record_type", RECORDS)
def test_every_record_type(record_type):
    data, shown = RECORDS[record_type]
    reading = ask(answering(f"{{}} 60 IN {record_type} {data}"), record_type=record_type)
    assert 0 < reading.value < TIMEOUT_MS
    assert reading.detail["records"] == shown
    assert (reading.detail["ttl"], reading.detail["rcode"], reading.detail["asked"]) == (60, "NOERROR", 1)
    assert list(reading.phases) == ["first_byte"]


@pytest.mark.parametrize(
    ("record_type", "expected", "found"),
    [
        ("A", "203.0.113.1", True),
        ("A", "203.0.113.10", False),
        ("A", "", True),
        ("AAAA", "2001:DB8:0000::1", True),
        ("AAAA", "2001:db8::11", False),
        ("CNAME", "TARGET.example.", True),
        ("CNAME", "get.example", False),
        ("MX", "mail.example", True),
        ("MX", "10 mail.example.", True),
        ("MX", "10", False),
        ("TXT", "include:a.example", True),
        ("TXT", "include:b.example", False),
        ("NS", "ns1.example", True),
        ("NS", "s1.example", False),
        ("SRV", "sip.example", True),
        ("SRV", "sip.example:5060", True),
        ("SRV", "10 60 5060 sip.example.", True),
        ("SRV", "5060", False),
        ("SRV", "60", False),
        ("CAA", "letsencrypt", True),
        ("CAA", "issue letsencrypt.org", True),
        ("CAA", "0", False),
        ("PTR", "host.example", True),
        ("PTR", "host", False),
        ("SOA", "ns.example. admin.example. 7", True),
        ("SOA", "admin.example", False),
    ],
)
def test_w23_expected_values(record_type, expected, found):
    data, _ = RECORDS[record_type]
    reading = ask(answering(f"{{}} 60 IN {record_type} {data}"), record_type=record_type, expected_value=expected)
    assert reading.reason == (None if found else "expected_value_mismatch")
    assert reading.fault is (None if found else Fault.TARGET)
    assert reading.detail["records"]


@pytest.mark.parametrize(
    ("record_type", "config", "missing"),
    [
        ("A", {"expected_values": ["203.0.113.1"]}, []),
        ("A", {"expected_values": ["203.0.113.1", "203.0.113.2"]}, ["203.0.113.2"]),
        ("A", {"expected_parts": ["203.0.113."]}, []),
        ("A", {"expected_parts": ["203.0.114"], "expected_values": ["203.0.113.1"]}, ["203.0.114"]),
        ("AAAA", {"expected_values": ["2001:DB8::1"]}, []),
        ("MX", {"expected_values": ["Mail.Example. (priority 10)"]}, []),
        ("MX", {"expected_values": ["mail.example. (priority 1)"]}, ["mail.example (priority 1)"]),
        ("SRV", {"expected_values": ["sip.example.:5060 (priority 10, weight 60)", "sip.example"]}, []),
        ("TXT", {"expected_values": ["v=spf1 include:a.example -all"]}, []),
        ("TXT", {"expected_values": ["v=spf1"]}, ["v=spf1"]),
        ("TXT", {"expected_parts": ["V=SPF1", "-all"]}, []),
        ("CAA", {"expected_values": ["0 issue letsencrypt.org", "issue letsencrypt.org", "letsencrypt.org"]}, []),
        ("CAA", {"expected_values": ["letsencrypt"]}, ["letsencrypt"]),
        ("SOA", {"expected_values": ["ns.example"]}, []),
    ],
)
def test_several_expected_values(record_type, config, missing):
    data, _ = RECORDS[record_type]
    reading = ask(answering(f"{{}} 60 IN {record_type} {data}"), record_type=record_type, **config)
    assert reading.reason == ("expected_value_mismatch" if missing else None)
    assert reading.detail.get("missing", []) == missing


def test_w23_an_address_is_not_found_in_a_longer_one():
    reading = ask(answering("{} 60 IN A 203.0.113.10"), expected_value="203.0.113.1")
    assert reading.reason == "expected_value_mismatch"


def test_w23_a_text_in_chunks_is_one_text():
    chunks = " ".join(f'"{"x" * 250}"' for _ in range(3))
    reading = ask(answering(f'{{}} 60 IN TXT {chunks} "the end"'), record_type="TXT", expected_value="xthe end")
    assert reading.value > 0
    assert len(reading.detail["records"][0]) == 256


def test_the_detail_is_bounded():
    records = [f"{{}} 60 IN A 203.0.113.{n}" for n in range(50)]
    reading = ask(answering(*records), expected_value="203.0.113.49")
    assert reading.value > 0
    assert (len(reading.detail["records"]), reading.detail["record_count"]) == (20, 50)


# -- aliases


def test_a_chain_of_aliases_is_followed_to_its_end():
    reply = answering(
        "{} 60 IN CNAME a.test.",
        "stray.test. 60 IN A 203.0.113.9",
        "b.test. 20 IN A 203.0.113.1",
        "a.test. 30 IN CNAME b.test.",
    )
    reading = ask(reply)
    assert reading.detail["records"] == ["203.0.113.1"]
    assert reading.detail["aliases"] == ["a.test", "b.test"]
    assert reading.detail["ttl"] == 20


def test_an_alias_that_leads_nowhere():
    reading = ask(answering("{} 60 IN CNAME a.test."))
    assert (reading.reason, reading.fault) == ("ENODATA", Fault.TARGET)
    assert reading.detail["aliases"] == ["a.test"]


def test_no_answer_of_a_resolver_stands_in_a_text_that_is_logged():
    reading = ask(answering("{} 60 IN CNAME a.test."))
    assert "aliases" in reading.detail["error"] and "a.test" not in reading.detail["error"]


def test_aliases_in_a_circle_end():
    reading = ask(answering("{} 60 IN CNAME a.test.", "a.test. 60 IN CNAME {}"))
    assert (reading.reason, reading.fault) == ("EBADRESP", Fault.TARGET)


def test_an_alias_to_a_name_that_does_not_exist():
    reading = ask(answering("{} 60 IN CNAME a.test.", code="NXDOMAIN"))
    assert reading.reason == "ENOTFOUND"


# -- failures


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("NXDOMAIN", "ENOTFOUND"),
        ("NOERROR", "ENODATA"),
        ("SERVFAIL", "ESERVFAIL"),
        ("REFUSED", "EREFUSED"),
        ("FORMERR", "EFORMERR"),
        ("NOTIMP", "ENOTIMP"),
        ("YXDOMAIN", "dns_error"),
    ],
)
def test_each_code_has_its_reason(code, reason, tmp_path):
    reading = ask(answering(code=code))
    assert (reading.reason, reading.fault) == (reason, Fault.TARGET)
    assert reading.detail["rcode"] == code
    assert reading.duration_ms < TIMEOUT_MS


@pytest.mark.parametrize(
    ("reason", "fault"),
    [
        (Reason.NOT_FOUND, Fault.TARGET),
        (Reason.DNS_NODATA, Fault.TARGET),
        (Reason.DNS_SERVFAIL, Fault.RESOLVER),
        (Reason.DNS_REFUSED, Fault.RESOLVER),
        (Reason.DNS_ERROR, Fault.RESOLVER),
    ],
)
def test_whose_fault_it_is_when_the_system_s_servers_are_asked(reason, fault):
    assert _reasons.fault_of(reason) is fault


def test_a_server_without_edns_is_asked_without():
    def reply(question):
        plain = dns.message.from_wire(question).edns < 0
        return answering("{} 60 IN A 203.0.113.1")(question) if plain else answering(code="FORMERR")(question)

    reading = ask(reply)
    assert reading.detail["records"] == ["203.0.113.1"]
    assert reading.detail["asked"] == 2


def test_w23_the_timeout_is_for_everything_and_a_lost_question_is_asked_again():
    with UdpServer(silence) as server:
        reading = look(resolver=server.at)
        assert len(server.questions) == 3
    assert (reading.reason, reading.fault) == ("ETIMEDOUT", Fault.TARGET)
    assert TIMEOUT_MS <= reading.duration_ms < TIMEOUT_MS + 50
    heard = []

    def third(question):
        heard.append(question)
        return answering("{} 60 IN A 203.0.113.1")(question) if len(heard) == 3 else []

    reading = ask(third)
    assert reading.detail["asked"] == 3
    assert reading.value > TIMEOUT_MS / 2


def test_a_refused_port():
    with servers.refused_port() as port:
        reading = look(resolver=f"127.0.0.1:{port}")
    assert (reading.reason, reading.fault) == ("ECONNREFUSED", Fault.TARGET)
    assert reading.duration_ms < TIMEOUT_MS


@pytest.mark.skipif(not servers.has_ipv6(), reason="this machine has no ::1")
def test_ipv6():
    with UdpServer(answering("{} 60 IN A 203.0.113.1"), host="::1") as server:
        assert look(resolver=server.at).value > 0


def test_w12_a_metadata_address_is_not_asked():
    for text in ("169.254.169.254", "[::ffff:169.254.169.254]:53", "fd00:ec2::254"):
        reading = look(resolver=text)
        assert (reading.reason, reading.fault) == ("policy_denied", Fault.POLICY)


# -- answers that are none


def other_id(question):
    return bytes((question[0] ^ 1,)) + question[1:]


def other_name(question):
    return question.replace(b"\x04good", b"\x04evil")


def other_kind(question):
    return question.replace(b"\x04test\x00\x00\x01", b"\x04test\x00\x00\x1c")


@pytest.mark.parametrize("change", [other_id, other_name, other_kind])
def test_w23_an_answer_to_another_question_is_passed_over(change):
    def reply(question):
        return [build(change(question)), build(question, "{} 60 IN A 203.0.113.1")]

    reading = ask(reply)
    assert reading.detail["records"] == ["203.0.113.1"]


def test_a_question_that_comes_back_is_no_answer():
    reading = ask(lambda question: [question])
    assert reading.reason == "ETIMEDOUT"


def test_a_malformed_answer_to_our_question():
    reading = ask(lambda question: [build(question, "{} 60 IN A 203.0.113.1")[:-20]])
    assert (reading.reason, reading.fault) == ("EBADRESP", Fault.TARGET)
    assert reading.duration_ms < TIMEOUT_MS


@pytest.mark.slow
def test_ten_thousand_damaged_answers_raise_nothing_else():
    random = Random(7)
    question = Question("good.test.", "TXT", 4660)
    records = ('{} 60 IN TXT "hello" "world"', "{} 60 IN CNAME a.test.", "a.test. 60 IN CAA 0 issue x")
    whole = build(question.render(True), *records)
    outcomes = set()
    for _ in range(10_000):
        data = bytearray(whole)
        for _ in range(random.randint(1, 6)):
            data[random.randrange(3, len(data))] = random.randrange(256)
        try:
            outcomes.add(understand(question, bytes(data[: random.randint(12, len(data))])).code)
        except (NotOurs, Failed) as error:
            outcomes.add(str(error))
    assert "NOERROR" in outcomes and "" in outcomes


# -- TCP


@contextlib.contextmanager
def both(handler):
    """A TCP server, and a UDP one on the same port whose answers are cut off."""
    with Server(handler) as server, UdpServer(answering(flags=dns.flags.TC), port=server.port) as twin:
        yield twin


def test_an_answer_that_is_cut_off_is_fetched_over_tcp():
    records = [f"{{}} 60 IN TXT {'x' * 200}{n}" for n in range(40)]
    with both(over_tcp(*records)) as server:
        reading = look(resolver=server.at, record_type="TXT", expected_value="x39")
    assert reading.value > 0
    assert (reading.detail["transport"], reading.detail["asked"]) == ("tcp", 2)
    assert set(reading.phases) == {"first_byte", "connect"}


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (servers.tarpit, "ETIMEDOUT"),
        (servers.hang_up, "ECONNRESET"),
        (servers.says(b"\x00\x20garbage garbage garbage garbage "), "EBADRESP"),
        (servers.says(b"\xff\xffhalf"), "ETIMEDOUT"),
        (over_tcp(flags=dns.flags.TC), "EBADRESP"),
        (over_tcp(code="NXDOMAIN"), "ENOTFOUND"),
    ],
)
def test_tcp_that_fails(handler, reason):
    with both(handler) as server:
        reading = look(resolver=server.at)
    assert (reading.reason, reading.fault) == (reason, Fault.TARGET)


def test_a_drip_over_tcp_ends_at_the_deadline():
    def drip(conn, server):
        conn.sendall(b"\x10\x00")
        while not server.stopping.wait(0.01):
            conn.sendall(b"x")

    with both(drip) as server:
        reading = look(resolver=server.at)
    assert reading.reason == "ETIMEDOUT"
    assert TIMEOUT_MS <= reading.duration_ms < TIMEOUT_MS + 50


def test_tcp_closed_where_udp_is_cut_off():
    with UdpServer(answering(flags=dns.flags.TC)) as server:
        assert look(resolver=server.at).reason == "ECONNREFUSED"


def test_one_look_counts_once_against_the_rate_of_the_policy():
    prober = make_prober(policy=Policy(Rules(rate=1.0)))
    with both(over_tcp("{} 60 IN A 203.0.113.1")) as server:
        assert look(prober, resolver=server.at).value > 0
        assert look(prober, resolver=server.at).reason == "policy_denied"


# -- the system's servers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nameserver 192.0.2.1\n", ["192.0.2.1:53"]),
        (
            "; a comment\nsearch x\nnameserver\t192.0.2.1 # here\nnameserver fe80::1%1\n",
            ["192.0.2.1:53", "[fe80::1]:53"],
        ),
        (
            "nameserver 192.0.2.1\n" * 2 + "".join(f"nameserver 192.0.2.{n}\n" for n in range(2, 9)),
            ["192.0.2.1:53", "192.0.2.2:53", "192.0.2.3:53"],
        ),
        ("nameserver dns.example\nnameserver\n", ["127.0.0.1:53"]),
        ("", ["127.0.0.1:53"]),
    ],
)
def test_a_resolv_conf(text, expected, tmp_path):
    conf = tmp_path / "resolv.conf"
    conf.write_text(text)
    assert [str(server) for server in _dnsask.system_servers(conf)] == expected


def test_without_a_resolv_conf_this_machine_is_asked(tmp_path):
    assert [str(server) for server in _dnsask.system_servers(tmp_path / "none")] == ["127.0.0.1:53"]


@contextlib.contextmanager
def system(tmp_path, *replies):
    """Servers on port 53 of addresses of loopback, and the resolv.conf that names them."""
    with contextlib.ExitStack() as stack:
        hosts = [f"127.{Random().randint(2, 254)}.{Random().randint(1, 254)}.{n + 1}" for n in range(len(replies))]
        try:
            for host, reply in zip(hosts, replies, strict=True):
                if reply:
                    stack.enter_context(UdpServer(reply, host=host, port=53))
        except PermissionError:
            pytest.skip("this user may not listen on port 53")
        conf = tmp_path / "resolv.conf"
        conf.write_text("".join(f"nameserver {host}\n" for host in hosts))
        yield conf


GOOD = answering("{} 60 IN A 203.0.113.1")


@pytest.mark.parametrize("first", [None, silence, answering(code="SERVFAIL"), answering(code="REFUSED")])
def test_the_next_server_is_asked(first, tmp_path):
    with system(tmp_path, first, GOOD) as conf:
        reading = ask_of(conf)
    assert reading.value > 0
    assert reading.detail["asked"] == 2


def test_a_late_answer_of_the_first_server_counts(tmp_path):
    asked, release = [], threading.Event()

    def slow(question):
        asked.append(question)
        release.wait(5)
        return GOOD(asked[0])

    def second(question):
        release.set()
        return []

    with system(tmp_path, slow, second) as conf:
        reading = ask_of(conf)
    assert reading.value > 0
    assert (reading.detail["asked"], len(asked)) == (2, 1)


@pytest.mark.parametrize(
    ("reply", "reason", "fault"),
    [
        (answering(code="SERVFAIL"), "ESERVFAIL", Fault.RESOLVER),
        (answering(code="REFUSED"), "EREFUSED", Fault.RESOLVER),
        (answering(code="NXDOMAIN"), "ENOTFOUND", Fault.TARGET),
        (answering(), "ENODATA", Fault.TARGET),
        (silence, "ETIMEDOUT", Fault.RESOLVER),
        (None, "ECONNREFUSED", Fault.RESOLVER),
        (lambda question: [question[:2] + b"\x80\x00" + b"garbage" * 4], "EBADRESP", Fault.RESOLVER),
    ],
)
def test_the_system_s_servers_and_whose_fault_it_is(reply, reason, fault, tmp_path):
    with system(tmp_path, reply) as conf:
        reading = ask_of(conf)
    assert (reading.reason, reading.fault) == (reason, fault)


def test_an_operating_system_s_error_without_a_name(tmp_path):
    # Linux refuses to connect UDP to port 53 of a multicast address without a route with an error of its own.
    assert _reasons.from_os_error(OSError(95, "not supported"), "x", Reason.DNS_ERROR).reason == "dns_error"


# -- a server by name, and names that are completed


def test_a_server_by_name():
    with UdpServer(answering("{} 60 IN A 203.0.113.1")) as server:
        reading = look(resolver_name=f"good.test:{server.port}")
        assert 0 < reading.value <= reading.phases["first_byte"] + 1
        assert reading.phases["resolve"] > 0
    reading = look(resolver_name="nowhere.test")
    assert (reading.reason, list(reading.phases)) == ("ENOTFOUND", ["resolve"])


def test_w12_the_policy_is_asked_for_a_server_by_name_and_by_address():
    for rules in (Rules(deny_hosts=("good.test",)), Rules(deny_ports=((1, 65_535),))):
        with UdpServer(answering("{} 60 IN A 203.0.113.1")) as server:
            reading = look(make_prober(policy=Policy(rules)), resolver_name=f"good.test:{server.port}")
            assert (reading.reason, reading.fault) == ("policy_denied", Fault.POLICY)
            assert server.questions == []


@pytest.mark.parametrize(
    ("text", "name", "names"),
    [
        ("", "a.", ["a."]),
        ("search x.test y.test.", "a.", ["a.x.test.", "a.y.test.", "a."]),
        ("search x.test", "a.b.", ["a.b.", "a.b.x.test."]),
        ("search x.test\noptions timeout:1 ndots:2", "a.b.", ["a.b.x.test.", "a.b."]),
        ("search x.test\noptions ndots:2", "a.b.c.", ["a.b.c.", "a.b.c.x.test."]),
        ("search x.test\ndomain y.test", "a.", ["a.y.test.", "a."]),
        ("search . X.Test", "a.", ["a.x.test.", "a."]),
        ("options ndots:x\nsearch", "a.", ["a."]),
        (f"search {' '.join(f's{n}' for n in range(9))}", "a.", [*(f"a.s{n}." for n in range(6)), "a."]),
    ],
)
def test_names_are_completed_as_the_c_library_does(text, name, names, tmp_path):
    (tmp_path / "resolv.conf").write_text(text)
    assert list(_dnsask.suffixes(tmp_path / "resolv.conf", name)) == names


def test_names_without_a_resolv_conf(tmp_path):
    assert _dnsask.suffixes(tmp_path / "none", "a.") == ("a.",)


def test_a_name_is_completed_where_the_definition_says_so(tmp_path):
    conf = tmp_path / "resolv.conf"
    conf.write_text("search first.test second.test")

    def reply(question):
        name = dns.message.from_wire(question).question[0].name.to_text()
        code = "NOERROR" if name == "db.second.test." else "NXDOMAIN"
        return answering(*(["{} 60 IN A 203.0.113.1"] if code == "NOERROR" else []), code=code)(question)

    def names(**config):
        with UdpServer(reply) as server:
            typed = probes.parse("dns", {"resolver": server.at, "timeout_ms": TIMEOUT_MS, **config})
            reading = probe_dns.probe(typed, Clock().monotonic() + typed.timeout, make_tools(), conf=conf)
        return reading.reason, [dns.message.from_wire(q).question[0].name.to_text() for q in server.questions]

    assert names(domain="db", search=True) == (None, ["db.first.test.", "db.second.test."])
    assert names(domain="x", search=True) == ("ENOTFOUND", ["x.first.test.", "x.second.test.", "x."])
    assert names(domain="db.", search=True) == ("ENOTFOUND", ["db."])
    assert names(domain="db") == ("ENOTFOUND", ["db."])


# -- the real thing


ZONE = """$TTL 300
@ IN SOA ns.good.test. admin.good.test. 1 3600 600 86400 60
@ IN NS ns.good.test.
@ IN A 203.0.113.1
@ IN AAAA 2001:db8::1
@ IN MX 10 mail.good.test.
@ IN CAA 0 issue "letsencrypt.org"
ns IN A 127.0.0.1
one IN CNAME two
two IN CNAME three
three IN A 203.0.113.3
text IN TXT "{long}" "tail"
_sip._tcp IN SRV 1 2 5060 mail.good.test.
7 IN PTR host.good.test.
{many}
"""


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """BIND with a zone of ours; its own directory and port."""
    program = shutil.which("named", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if not program:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("BIND is not here: apt-get install bind9")
    folder = tmp_path_factory.mktemp("named")
    with servers.refused_port() as port:
        pass
    many = "\n".join(f'many IN TXT "{n:03}{"y" * 100}"' for n in range(60))
    (folder / "zone").write_text(ZONE.format(long="x" * 250, many=many))
    (folder / "named.conf").write_text(
        f"""options {{ directory "{folder}"; pid-file none;
        listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
        recursion no; session-keyfile none; allow-query {{ any; }}; dnssec-validation no; }};
        controls {{ }}; zone "good.test" {{ type primary; file "zone"; }};"""
    )
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [program, "-g", "-c", str(folder / "named.conf"), "-p", str(port)], stdout=log, stderr=log, cwd=folder
    )
    try:
        clock = Clock()
        until, pause = clock.monotonic() + 30, clock.alarm()
        while look(resolver=f"127.0.0.1:{port}", timeout_ms=200).value is None:
            assert process.poll() is None and clock.monotonic() < until, (folder / "log").read_text()
            pause.wait(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
        log.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("record_type", "domain", "expected"),
    [
        ("A", "good.test", "203.0.113.1"),
        ("AAAA", "good.test", "2001:db8::1"),
        ("MX", "good.test", "mail.good.test"),
        ("NS", "good.test", "ns.good.test"),
        ("CAA", "good.test", "letsencrypt.org"),
        ("CNAME", "one.good.test", "two.good.test"),
        ("A", "one.good.test", "203.0.113.3"),
        ("TXT", "text.good.test", "xxtail"),
        ("SRV", "_sip._tcp.good.test", "mail.good.test:5060"),
        ("PTR", "7.good.test", "host.good.test"),
        ("TXT", "many.good.test", "059yyy"),
        ("SOA", "good.test", "ns.good.test. admin.good.test. 1"),
    ],
)
def test_bind_answers(record_type, domain, expected, named):
    reading = look(resolver=named, domain=domain, record_type=record_type, expected_value=expected)
    assert reading.value > 0, reading
    assert reading.detail["authoritative"] is True
    assert reading.detail["transport"] == ("tcp" if domain.startswith("many") else "udp")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("domain", "record_type", "reason"),
    [
        ("none.good.test", "A", "ENOTFOUND"),
        ("ns.good.test", "AAAA", "ENODATA"),
        ("other.example", "A", "EREFUSED"),
    ],
)
def test_bind_has_no_answer(domain, record_type, reason, named):
    reading = look(resolver=named, domain=domain, record_type=record_type)
    assert reading.reason == reason
