"""The icmp probe: loopback, hosts that are silent, strangers' answers, each way to send, and the system's ping."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest

from observer_agent import probes
from observer_agent.clock import Clock
from observer_agent.errors import InvalidConfig
from observer_agent.model import Fault
from observer_agent.policy import Policy, Rules
from observer_agent.probes import _echo, _ping
from observer_agent.probes._echo import Plan
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tools import Run
from observer_agent.resolver import ResolveError, parse_literal
from tests import servers
from tests.servers import make_prober, make_tools
from tests.watch import Watch


def look(host="127.0.0.1", prober=None, **config):
    return (prober or make_prober()).look("icmp", probes.parse("icmp", {"host": host, **config}))


@pytest.fixture(scope="module")
def able():
    """Skips where this process can send no ICMP at all."""
    reading = look(count=1)
    if reading.reason in ("icmp_privilege_denied", "icmp_unavailable"):
        fail = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        fail("this process may open no ICMP socket, and there is no ping: apt-get install iputils-ping")


# -- the configuration


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "host"),
        ({"host": ""}, "host"),
        ({"host": "-f"}, "host"),
        ({"host": "a b"}, "host"),
        ({"host": "a;b"}, "host"),
        ({"host": "x." * 127 + "test"}, "host"),
        ({"host": "h", "count": 0}, "count"),
        ({"host": "h", "count": 11}, "count"),
        ({"host": "h", "timeout_ms": 99}, "timeout_ms"),
        ({"host": "h", "timeout_ms": 5001}, "timeout_ms"),
        ({"host": "h", "interpretation": "jitter"}, "interpretation"),
        ({"host": "h", "port": 1}, "port"),
    ],
)
def test_configurations_that_are_refused(config, field):
    with pytest.raises(InvalidConfig) as caught:
        probes.parse("icmp", config)
    assert str(caught.value).startswith(f"{field}: ")


def test_w1_the_defaults():
    config = probes.parse("icmp", {"host": "Good.Test"})
    assert (config.host, config.count, config.wait, config.interpretation) == ("good.test", 3, 1.0, "latency")
    assert config.timeout == 5.0


def test_w22_ipv6_is_a_host():
    assert probes.parse("icmp", {"host": "[::1]"}).host == "::1"


# -- loopback


@pytest.mark.parametrize(
    ("interpretation", "low", "high"),
    [("latency", 0.001, 100.0), ("packet_loss", 0.0, 0.0), ("reachability", 1.0, 1.0)],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "good.test", "0.0.0.0"])
def test_loopback_answers(host, interpretation, low, high, able):
    if host == "::1" and not servers.has_ipv6():
        pytest.skip("this machine has no ::1")
    reading = look(host, interpretation=interpretation, count=2)
    assert low <= reading.value <= high
    assert (reading.detail["transmitted"], reading.detail["received"]) == (2, 2)
    assert reading.detail["min_rtt_ms"] <= reading.detail["avg_rtt_ms"] <= reading.detail["max_rtt_ms"]
    assert set(reading.phases) == {"resolve", "first_byte"}


def test_the_next_address_has_its_turn(able):
    def find(name):
        return (parse_literal("169.254.169.254"), parse_literal("127.0.0.1"))

    reading = look("two.test", make_prober(find=find), count=1)
    assert (reading.detail["address"], reading.detail["received"]) == ("127.0.0.1", 1)


# -- names and policy


@pytest.mark.parametrize(("reason", "fault"), [("ENOTFOUND", Fault.TARGET), ("EAI_AGAIN", Fault.RESOLVER)])
def test_w22_every_failure_of_a_name_is_icmp_dns_failed(reason, fault):
    def find(name):
        raise ResolveError(reason, "Temporary failure in name resolution")

    reading = look("nowhere.test", make_prober(find=find))
    assert (reading.reason, reading.fault) == ("icmp_dns_failed", fault)
    assert reading.detail["error"]


@pytest.mark.parametrize("host", ["169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254"])
def test_w12_a_metadata_address_gets_no_packet(host):
    reading = look(host)
    assert (reading.reason, reading.fault) == ("policy_denied", Fault.POLICY)


def test_the_policy_s_rate_counts_looks_and_not_packets(able):
    prober = make_prober(policy=Policy(Rules(rate=1.0)))
    assert look(prober=prober, count=3).detail["received"] == 3
    assert look(prober=prober, count=1).reason == "policy_denied"


def test_no_way_there():
    reading = look("255.255.255.255", count=1)
    assert (reading.reason, reading.fault) in (("EACCES", Fault.PATH), ("icmp_error", Fault.PATH))


def test_the_checksum():
    packet = bytes.fromhex("0800 f7fd 0001 0001".replace(" ", ""))
    assert _echo._checksum(packet[:2] + bytes(2) + packet[4:]) == packet[2:4]


# -- the system's ping


IPUTILS = """PING 127.0.0.1 (127.0.0.1) 56(84) bytes of data.
64 bytes from 127.0.0.1: icmp_seq=1 ttl=64 time=0.040 ms
64 bytes from 127.0.0.1: icmp_seq=1 ttl=64 time=0.041 ms (DUP!)
64 bytes from 127.0.0.1: icmp_seq=2 ttl=64 time=1500 ms

--- 127.0.0.1 ping statistics ---
3 packets transmitted, 2 received, +1 duplicates, 33.3333% packet loss, time 2040ms
rtt min/avg/max/mdev = 0.040/0.046/0.052/0.006 ms
"""
BUSYBOX = """PING 127.0.0.1 (127.0.0.1): 56 data bytes
64 bytes from 127.0.0.1: seq=0 ttl=64 time=0.080 ms
64 bytes from 127.0.0.1: seq=1 ttl=64 time=0.120 ms

--- 127.0.0.1 ping statistics ---
2 packets transmitted, 2 packets received, 0% packet loss
round-trip min/avg/max = 0.080/0.100/0.120 ms
"""
SILENT = """PING 192.0.2.1 (192.0.2.1) 56(84) bytes of data.

--- 192.0.2.1 ping statistics ---
3 packets transmitted, 0 received, 100% packet loss, time 2040ms
"""


@pytest.mark.parametrize(
    ("text", "sent", "trips"),
    [
        (IPUTILS, 3, (0.040,)),
        (BUSYBOX, 2, (0.080, 0.120)),
        (SILENT, 3, ()),
        (IPUTILS.partition("\n\n")[0], 3, (0.040,)),
        (SILENT.partition("\n")[0], 3, ()),
    ],
)
def test_w22_what_ping_prints(text, sent, trips):
    echoes = _ping.understand(text.encode(), b"", Plan(3, 1.0))
    assert (echoes.sent, echoes.trips) == (sent, trips)


@pytest.mark.parametrize(
    ("words", "reason", "fault"),
    [
        ("ping: socktype: SOCK_RAW\nping: socket: Operation not permitted", "icmp_privilege_denied", Fault.AGENT),
        ("ping: permission denied (are you root?)", "icmp_privilege_denied", Fault.AGENT),
        ("ping: connect: Network is unreachable", "icmp_error", Fault.PATH),
        ("", "icmp_error", Fault.PATH),
    ],
)
def test_ping_that_gives_up(words, reason, fault):
    with pytest.raises(Failed) as caught:
        _ping.understand(b"", words.encode(), Plan(3, 1.0))
    assert (caught.value.reason, caught.value.fault) == (reason, fault)


def run_ping(tmp_path, script, plan=Plan(2, 0.2), seconds=0.5):  # noqa: B008
    """Has a program of ours be the system's ping."""
    if script is not None:
        program = tmp_path / "ping"
        program.write_text(f"#!{sys.executable}\n{textwrap.dedent(script)}")
        program.chmod(0o755)
    run = Run(make_tools({"PATH": str(tmp_path)}), Clock().monotonic() + seconds, Reason.ICMP_ERROR)
    return _ping.exchange(parse_literal("127.0.0.1"), plan, run)


def test_w22_ping_is_called_with_an_address_and_in_the_c_locale(tmp_path, monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    script = """
    import json, os, sys
    json.dump([sys.argv[1:], dict(os.environ)], open(sys.argv[0] + ".called", "w"))
    print("PING x")
    """
    run_ping(tmp_path, script, Plan(4, 0.2), seconds=20)
    words, env = json.loads((tmp_path / "ping.called").read_text())
    assert words == ["-n", "-c", "4", "-W", "1", "127.0.0.1"]
    assert (env["LC_ALL"], set(env) - {"LC_ALL", "PATH", "LC_CTYPE"}) == ("C", set())


def test_a_ping_that_hangs_is_killed_and_what_it_said_counts(tmp_path):
    script = """
    import signal
    print("PING x\\n64 bytes from 127.0.0.1: icmp_seq=1 ttl=64 time=0.5 ms", flush=True)
    signal.pause()
    """
    (tmp_path / "ping").write_text(f"#!{sys.executable}\n{textwrap.dedent(script)}")
    (tmp_path / "ping").chmod(0o755)
    run = Run(make_tools({"PATH": str(tmp_path)}), Clock().monotonic() + 1.5, Reason.ICMP_ERROR)
    watch = Watch()
    echoes = _ping.exchange(parse_literal("127.0.0.1"), Plan(2, 0.2), run)
    assert run.deadline <= Clock().monotonic() and watch.seconds < 1.55
    assert (echoes.sent, echoes.trips) == (2, (0.5,))


def test_no_ping_at_all(tmp_path):
    with pytest.raises(Failed) as caught:
        run_ping(tmp_path, None)
    assert (caught.value.reason, caught.value.fault) == ("icmp_unavailable", Fault.AGENT)


def test_a_ping_that_may_not_be_started(tmp_path):
    (tmp_path / "ping").write_text("")
    with pytest.raises(Failed) as caught:
        run_ping(tmp_path, None)
    assert (caught.value.reason, caught.value.fault) == ("icmp_privilege_denied", Fault.AGENT)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "timeout_ms"), [(10, 700), (5, 400), (4, 200), (3, 100)])
def test_w21_ping_is_given_the_time_that_it_takes(count, timeout_ms):
    if not shutil.which("ping"):
        fail = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        fail("ping is not here: apt-get install iputils-ping")
    config = probes.parse("icmp", {"host": "127.0.0.1", "count": count, "timeout_ms": timeout_ms})
    run = Run(make_tools(os.environ), Clock().monotonic() + config.timeout, Reason.ICMP_ERROR)
    echoes = _ping.exchange(parse_literal("127.0.0.1"), Plan(config.count, config.wait), run)
    assert (echoes.sent, len(echoes.trips)) == (count, count)


# -- a network of our own


WORLD = r"""
import json, socket, struct, sys, threading
from observer_agent import probes
from observer_agent.probes import _echo
from tests.servers import make_prober

def forge(how, sock, strange, stop):
    while True:
        data, peer = sock.recvfrom(2048)
        data = data[20:]
        if stop.is_set():
            return
        if data[0] != 8:
            continue
        ident, seq, body = data[4:6], data[6:8], data[8:]
        if how == "id": ident = bytes((ident[0] ^ 1, ident[1]))
        if how == "seq": seq = b"\x00\x63"
        if how == "token": body = bytes(len(body))
        if how == "short": body = body[:4]
        if how == "late": stop.wait(0.15)
        kind = {"request": 8, "unreachable": 3}.get(how, 0)
        packet = bytes((kind, 0)) + b"\0\0" + ident + seq + body
        packet = packet[:2] + _echo._checksum(packet) + packet[4:]
        (strange if how == "source" else sock).sendto(packet, peer)
        if how == "twice":
            stop.wait(0.1)
            sock.sendto(packet, peer)

how, env, *configs = json.loads(sys.argv[1])
stop, thread = threading.Event(), None
if how:
    socks = [socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) for _ in range(2)]
    for sock, host in zip(socks, ("127.0.0.1", "127.0.0.2")):
        sock.bind((host, 0))
    thread = threading.Thread(target=forge, args=(how, *socks, stop), daemon=True)
    thread.start()
for config in configs:
    reading = make_prober(env).look("icmp", probes.parse("icmp", config))
    print(json.dumps([reading.value, reading.reason, reading.fault, reading.duration_ms, dict(reading.detail)]))
"""
DATAGRAM = "echo '0 2147483647' > /proc/sys/net/ipv4/ping_group_range"
NOBODY_MAY = "echo '1 0' > /proc/sys/net/ipv4/ping_group_range"
IGNORE = "echo 1 > /proc/sys/net/ipv4/icmp_echo_ignore_all"
NOBODY = "setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps -all"


def world(*configs, setup=(), user="", forge=None, env=None):
    """Readings from a process in a network namespace of its own, where `setup` has been done."""
    words = " && ".join(("ip link set lo up", *setup, f'exec {user} "$0" -c "$1" "$2"'))
    given = json.dumps([forge, env or {}, *({"count": 2, "timeout_ms": 200, **config} for config in configs)])
    command = ["unshare", "--net", "sh", "-c", words, sys.executable, WORLD, given]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60, stdin=subprocess.DEVNULL)
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"the kernel gives us no network of our own: {done.stderr.strip()[:200]}")
    assert done.returncode == 0, done.stderr
    readings = [json.loads(line) for line in done.stdout.splitlines()]
    return readings if len(configs) > 1 else readings[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setup", "user", "method"),
    [
        (DATAGRAM, "", "datagram"),
        (DATAGRAM, NOBODY, "datagram"),
        (NOBODY_MAY, "", "raw"),
        (NOBODY_MAY, f"{NOBODY.replace('-all', '+net_raw')} --ambient-caps +net_raw", "raw"),
        (NOBODY_MAY, NOBODY, "ping"),
    ],
)
def test_each_way_to_send(setup, user, method):
    readings = world(
        {"host": "127.0.0.1"}, {"host": "::1"}, {"host": "127.0.0.1", "interpretation": "reachability"},
        setup=[setup], user=user, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    for value, reason, _, _, detail in readings:
        assert value > 0, reason
        assert (detail["method"], detail["transmitted"], detail["received"]) == (method, 2, 2)


@pytest.mark.slow
def test_no_right_to_send():
    user = f"{NOBODY} --bounding-set -net_raw"
    bare, denied = (
        world({"host": "127.0.0.1"}, setup=[NOBODY_MAY], user=user, env={"PATH": path})
        for path in ("/nowhere", os.environ["PATH"])
    )
    assert bare[1:3] == ["icmp_unavailable", "agent"]
    assert denied[1:3] == ["icmp_privilege_denied", "agent"]


@pytest.mark.slow
@pytest.mark.parametrize("way", [DATAGRAM, NOBODY_MAY])
def test_a_host_that_swallows_everything(way):
    latency, loss, reach = world(
        *({"host": "127.0.0.1", "interpretation": name} for name in ("latency", "packet_loss", "reachability")),
        setup=[way, IGNORE],
    )
    assert latency[:3] == [None, "icmp_all_timeout", "target"]
    assert (loss[0], reach[0]) == (100.0, 0.0)
    assert 400 <= latency[3] < 450  # one spacing, and the last packet's wait
    assert (latency[4]["transmitted"], latency[4]["avg_rtt_ms"]) == (2, None)


@pytest.mark.slow
@pytest.mark.parametrize("way", [DATAGRAM, NOBODY_MAY])
@pytest.mark.parametrize("how", ["id", "seq", "token", "short", "source", "request"])
def test_answers_of_strangers_are_passed_over(way, how):
    reading = world({"host": "127.0.0.1"}, setup=[way, IGNORE], forge=how)
    assert reading[1] == "icmp_all_timeout"


@pytest.mark.slow
@pytest.mark.parametrize("way", [DATAGRAM, NOBODY_MAY])
def test_answers_that_count_and_the_late_ones_that_do_not(way):
    honest = world({"host": "127.0.0.1"}, setup=[way, IGNORE], forge="honest")
    assert honest[4]["received"] == 2
    doubled = world({"host": "127.0.0.1"}, setup=[way, IGNORE], forge="twice")
    assert doubled[4]["received"] == 2
    assert doubled[4]["max_rtt_ms"] < 80
    patient, hasty = world(
        {"host": "127.0.0.1", "timeout_ms": 400, "count": 1}, {"host": "127.0.0.1", "timeout_ms": 100, "count": 1},
        setup=[way, IGNORE], forge="late",
    )  # fmt: skip
    assert 150 <= patient[0] < 250
    assert hasty[1] == "icmp_all_timeout"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "reason", "fault"),
    [
        (None, "ENETUNREACH", "path"),
        ("unreachable", "EHOSTUNREACH", "path"),
        ("prohibit", "EACCES", "path"),
        ("blackhole", "icmp_error", "path"),
        ("local-hole", "icmp_all_timeout", "target"),
    ],
)
def test_routes_that_lead_nowhere(kind, reason, fault):
    route = "ip route add 192.0.2.0/24 dev lo" if kind == "local-hole" else f"ip route add {kind} 192.0.2.0/24"
    reading = world({"host": "192.0.2.1"}, setup=[route] if kind else [])
    assert reading[1:3] == [reason, fault]


@pytest.mark.slow
def test_a_router_s_word_that_the_host_is_not_there_is_told():
    setup = [
        "ip link add near type veth peer name far",
        "ip link set near up",
        "ip link set far up",
        "ip addr add 192.0.2.2/24 dev near",
    ]
    try:
        reading = world({"host": "192.0.2.1", "timeout_ms": 4000, "count": 1}, setup=setup)
    except AssertionError as error:
        if "evice type" in str(error):
            pytest.skip("this kernel has no veth")
        raise
    assert reading[1:3] == ["icmp_all_timeout", "target"]
    assert reading[4]["icmp_errors"] == ["EHOSTUNREACH"]
