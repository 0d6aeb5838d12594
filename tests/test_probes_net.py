"""Addresses: which are denied, which one is tried when, and what it costs when one does not answer."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from observer_agent import probes
from observer_agent.clock import Clock
from observer_agent.model import Fault
from observer_agent.policy import Policy
from observer_agent.resolver import THREADS, ResolveError, Resolver, parse_literal
from tests import servers
from tests.servers import Server, make_prober

METADATA = "169.254.169.254 169.254.170.2 169.254.170.23 100.100.100.200 192.0.0.192 168.63.129.16".split()


@pytest.mark.parametrize("address", METADATA)
@pytest.mark.parametrize("form", ["{}", "::ffff:{}", "::{}", "::ffff:0:{}", "64:ff9b::{}", "64:ff9b:1::{}"])
def test_w12_metadata_addresses_in_every_form(address, form):
    assert Policy().of_address(parse_literal(form.format(address)), 80)


@pytest.mark.parametrize("address", ["fd00:ec2::254", "fd20:ce::254", "2002:a9fe:a9fe::1", "fd20:00ce:0::0254"])
def test_w12_metadata_addresses_of_ipv6(address):
    assert Policy().of_address(parse_literal(address), 80)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::1", "::", "10.0.0.1", "169.254.169.253", "fe80::1", "2002:7f00:1::"]
)
def test_other_addresses_are_not_denied(address):
    assert Policy().of_address(parse_literal(address), 80) is None


@contextlib.contextmanager
def silent():
    """A port of 127.0.0.1 that lets connections hang: its backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect(listener.getsockname())
        yield listener.getsockname()[1]


def tcp(prober, host, port, timeout_ms=400):
    return prober.look("tcp", probes.parse("tcp", {"host": host, "port": port, "timeout_ms": timeout_ms}))


def test_a_connection_that_hangs_ends_at_the_deadline():
    with silent() as port:
        reading = tcp(make_prober(), "127.0.0.1", port)
    assert (reading.reason, reading.fault) == ("ETIMEDOUT", Fault.TARGET)
    assert 400 <= reading.duration_ms <= 450


def test_an_address_that_hangs_leaves_time_for_the_next():
    def find(name):
        return (parse_literal("127.0.0.1"), parse_literal("127.0.0.2"))

    with silent() as port, socket.create_server(("127.0.0.2", port)):
        reading = tcp(make_prober(find=find), "two.test", port)
    assert 200 <= reading.value < 300


def test_the_target_s_own_fault_is_told_before_the_path_s():
    def find(name):
        return (parse_literal("127.0.0.1"), parse_literal("255.255.255.255"))

    with servers.refused_port() as port:
        reading = tcp(make_prober(find=find), "two.test", port)
    assert (reading.reason, reading.fault) == ("ECONNREFUSED", Fault.TARGET)
    reading = tcp(make_prober(), "255.255.255.255", 9)
    assert reading.fault is Fault.PATH


def test_a_denied_address_beside_a_good_one_is_passed_over():
    def find(name):
        return (parse_literal("169.254.169.254"), parse_literal("127.0.0.1"))

    with Server(servers.tarpit) as server:
        assert tcp(make_prober(find=find), "two.test", server.port).value > 0


def test_an_overloaded_resolver_says_so():
    release = threading.Event()

    def find(name):
        release.wait()
        raise ResolveError("EAI_AGAIN")

    prober = make_prober(find=find)
    try:
        readings = [tcp(prober, f"hangs-{n}.test", 9, timeout_ms=5) for n in range(THREADS - THREADS // 4 + 1)]
    finally:
        release.set()
    assert {reading.reason for reading in readings[:-1]} == {"ETIMEDOUT"}
    assert (readings[-1].reason, readings[-1].fault) == ("dns_overloaded", Fault.RESOLVER)


def test_everybody_who_waits_for_a_name_is_told():
    entered, release = threading.Event(), threading.Event()

    def find(name):
        entered.set()
        release.wait()
        return (parse_literal("127.0.0.1"),)

    resolver = Resolver(Clock(), find)
    found = []
    deadline = Clock().monotonic() + 20
    threads = [threading.Thread(target=lambda: found.append(resolver.resolve("a", deadline))) for _ in range(20)]
    for thread in threads:
        thread.start()
    assert entered.wait(5)
    release.set()
    for thread in threads:
        thread.join(5)
    assert len(found) == 20
