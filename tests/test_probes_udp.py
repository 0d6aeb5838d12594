"""The udp probe, against real sockets: answers, silence, refusals, payloads, repetitions."""

from __future__ import annotations

import contextlib
import itertools
import socket

import pytest

from observer_agent import policy, probes
from observer_agent.errors import InvalidConfig
from observer_agent.model import Fault
from observer_agent.policy import Policy
from observer_agent.resolver import Address, parse_literal
from tests import servers
from tests.servers import make_prober
from tests.udp import UdpServer, silence
from tests.watch import Watch

TIMEOUT_MS = 300
AMPLE_MS = 5000  # for an answer that comes, on a busy machine too


def look(server=None, prober=None, **config):
    known = {"host": "127.0.0.1", "timeout_ms": TIMEOUT_MS, **({"port": server.port} if server else {})}
    return (prober or make_prober()).look("udp", probes.parse("udp", {**known, **config}))


def echo(data):
    return [data]


@contextlib.contextmanager
def unused_port():
    """A UDP port on which nobody listens: taken once and let go, so that the kernel refuses what comes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    yield port


def late(number):
    """Answers the datagram of this number, and none before."""
    count = itertools.count(1)
    return lambda data: [data] if next(count) == number else []


def test_an_answer_is_timed():
    with UdpServer(echo) as server:
        reading = look(server, timeout_ms=AMPLE_MS)
    assert 0 < reading.value < AMPLE_MS
    assert reading.detail == {"answered": True}
    assert not reading.silent
    assert set(reading.phases) == {"resolve", "first_byte"}
    assert server.questions == [b"\0"]


@pytest.mark.parametrize(
    ("config", "sent"),
    [({"send": "ping\r\n"}, b"ping\r\n"), ({"send": "ü"}, "ü".encode()), ({"send_hex": "00 ff10"}, b"\x00\xff\x10")],
)
def test_what_is_sent(config, sent):
    with UdpServer(echo) as server:
        assert look(server, timeout_ms=AMPLE_MS, **config).value > 0
    assert server.questions == [sent]


def test_an_empty_datagram_is_an_answer():
    with UdpServer(lambda data: [b""]) as server:
        assert look(server, timeout_ms=AMPLE_MS).value > 0


def test_silence_is_no_answer():
    with UdpServer(silence) as server:
        watch = Watch()
        reading = look(server)
        assert watch.seconds < (TIMEOUT_MS + 50) / 1000
    assert (reading.value, reading.reason, reading.fault) == (None, "ETIMEDOUT", Fault.TARGET)
    assert reading.silent
    assert reading.duration_ms >= TIMEOUT_MS
    assert len(server.questions) == 3


def test_w20_silence_that_is_well_says_that_nothing_answered():
    with UdpServer(silence) as server:
        reading = look(server, silence_ok=True, attempts=1)
    assert reading.value >= TIMEOUT_MS - 1
    assert reading.detail == {"answered": False}
    assert reading.silent
    assert len(server.questions) == 1


def test_an_answer_where_silence_is_well():
    with UdpServer(echo) as server:
        reading = look(server, silence_ok=True, timeout_ms=AMPLE_MS)
    assert reading.detail == {"answered": True}
    assert reading.value < AMPLE_MS
    assert not reading.silent


@pytest.mark.parametrize("silence_ok", [True, False])
def test_a_refused_port(silence_ok):
    with unused_port() as port:
        reading = look(port=port, silence_ok=silence_ok, timeout_ms=AMPLE_MS)
    assert (reading.reason, reading.fault) == ("ECONNREFUSED", Fault.TARGET)
    assert reading.duration_ms < AMPLE_MS
    assert not reading.silent


def test_a_lost_datagram_is_sent_again():
    with UdpServer(late(3)) as server:
        reading = look(server, timeout_ms=1200)
    assert 600 < reading.value < 1200
    assert len(server.questions) == 3


def test_one_attempt_is_one_datagram():
    with UdpServer(late(2)) as server:
        assert look(server, attempts=1).reason == "ETIMEDOUT"
    assert len(server.questions) == 1


def test_what_is_expected():
    with UdpServer(lambda data: [b"noise", b"pong 42"]) as server:
        assert look(server, expect="pong").value > 0


def test_an_answer_that_is_not_the_expected_one():
    with UdpServer(lambda data: [b"secret noise"]) as server:
        reading = look(server, expect="pong")
    assert (reading.reason, reading.fault) == ("reply_mismatch", Fault.TARGET)
    assert "secret" not in str(reading)


def test_what_comes_from_somewhere_else_is_no_answer():
    with UdpServer(echo, strange=True) as server:
        assert look(server).reason == "ETIMEDOUT"


def test_a_flood_does_not_keep_a_look_from_ending():
    with UdpServer(lambda data: [b"x"] * 20_000) as server:
        watch = Watch()
        assert look(server, expect="y").reason == "reply_mismatch"
        assert watch.seconds < (TIMEOUT_MS + 50) / 1000


@pytest.mark.skipif(not servers.has_ipv6(), reason="this machine has no ::1")
def test_ipv6_and_the_next_address():
    with UdpServer(echo, host="::1") as server:
        assert look(server, host="[::1]").value > 0

    def find(name):
        return tuple(Address(*parse_literal(text)) for text in ("::1", "127.0.0.1"))

    with UdpServer(echo) as server:
        reading = look(server, make_prober(find=find), host="both.test")
    assert reading.value > 0
    assert reading.address == "127.0.0.1"


def test_the_policy_is_asked_before_anything_is_sent():
    denied = Policy(policy.parse("[networks]\ndeny = ['127.0.0.0/8']"))
    with UdpServer(echo) as server:
        reading = look(server, make_prober(policy=denied))
        named = look(server, make_prober(policy=denied), host="good.test")
    for each in (reading, named):
        assert (each.reason, each.fault) == ("policy_denied", Fault.POLICY)
    assert server.questions == []


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "host"),
        ({"host": "a b", "port": 1}, "host"),
        ({"host": "a.test"}, "port"),
        ({"host": "a.test", "port": 0}, "port"),
        ({"host": "a.test", "port": True}, "port"),
        ({"host": "a.test", "port": 1, "timeout_ms": 60_001}, "timeout_ms"),
        ({"host": "a.test", "port": 1, "send": 7}, "send"),
        ({"host": "a.test", "port": 1, "send": "x" * 4_097}, "send"),
        ({"host": "a.test", "port": 1, "send": "ü" * 4_000}, "send"),
        ({"host": "a.test", "port": 1, "send_hex": "0g"}, "send_hex"),
        ({"host": "a.test", "port": 1, "send": "a", "send_hex": "00"}, "send_hex"),
        ({"host": "a.test", "port": 1, "silence_ok": "yes"}, "silence_ok"),
        ({"host": "a.test", "port": 1, "silence_ok": True, "expect": "x"}, "silence_ok"),
        ({"host": "a.test", "port": 1, "attempts": 6}, "attempts"),
        ({"host": "a.test", "port": 1, "payload": "x"}, "payload"),
    ],
)
def test_configurations_that_are_refused(config, field):
    with pytest.raises(InvalidConfig) as caught:
        probes.parse("udp", config)
    assert [problem.partition(":")[0] for problem in caught.value.problems][:1] == [field]


def test_defaults():
    config = probes.parse("udp", {"host": "Good.Test", "port": 53})
    assert (config.host, config.timeout, config.send, config.expect) == ("good.test", 2.0, b"\0", b"")
    assert (config.silence_ok, config.attempts) == (False, 3)
