"""What systemd is told, over a real datagram socket."""

from __future__ import annotations

import os
import socket

import pytest

from observer_agent.notify import STATUS_EVERY, Notifier
from tests.fakes import FakeClock


@pytest.fixture
def manager(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        yield sock


def env(manager, **more):
    return {"NOTIFY_SOCKET": manager.getsockname(), **more}


def test_the_life_of_a_service(manager):
    clock = FakeClock()
    notifier = Notifier(env(manager), clock)
    notifier.ready()
    notifier.reloading()
    notifier.ready()
    notifier.stopping()
    said = [manager.recv(1000).decode() for _ in range(4)]
    assert said[0] == said[2] == "READY=1"
    assert said[1] == "RELOADING=1\nMONOTONIC_USEC=1000000000"
    assert said[3].startswith("STOPPING=1\n")


def test_the_status_is_told_when_it_changes_and_not_too_often(manager):
    clock = FakeClock()
    notifier = Notifier(env(manager), clock)
    notifier.status("1 waits\nREADY=1")
    assert manager.recv(1000) == b"STATUS=1 waits READY=1", "one field, whatever the text holds"
    notifier.status("2 wait")
    clock.advance(STATUS_EVERY)
    notifier.status("3 wait")
    notifier.status("3 wait")
    notifier.ready()
    assert [manager.recv(1000) for _ in range(2)] == [b"STATUS=3 wait", b"READY=1"]


@pytest.mark.parametrize(
    ("more", "fed"),
    [
        ({}, False),
        ({"WATCHDOG_USEC": "60000000"}, True),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, True),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, False),
    ],
)
def test_the_watchdog_is_fed_where_there_is_one(manager, more, fed):
    notifier = Notifier(env(manager, **more), FakeClock())
    notifier.alive()
    notifier.ready()
    assert manager.recv(1000) == (b"WATCHDOG=1" if fed else b"READY=1")


def test_an_abstract_socket():
    name = f"@observer-agent-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name[1:])
        Notifier({"NOTIFY_SOCKET": name}, FakeClock()).ready()
        assert sock.recv(100) == b"READY=1"


def test_nobody_listens(tmp_path, caught):
    Notifier({}, FakeClock()).ready()
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}, FakeClock()).ready()
    assert "systemd was not told READY" in caught.text
