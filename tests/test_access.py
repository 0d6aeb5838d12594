"""A key and a file of CAs that change under a running agent, over real sockets and real TLS."""

from __future__ import annotations

import pytest

from observer_agent.clock import Clock
from observer_agent.clouds import DIALECTS, observer_place
from observer_agent.clouds._access import Access, Line
from observer_agent.config import load
from observer_agent.errors import ConfigError
from observer_agent.logs import Redactor
from tests.fakes import FakeClock
from tests.servers import Authority, Server, answer, read_request, tarpit
from tests.watch import Watch

OLD, NEW = "obs_live_old", "obs_live_new"


@pytest.fixture
def gate():
    """A cloud that knows one key and answers 401 to others; remembers the keys that it saw."""
    known, seen = [NEW], []

    def handler(conn, server):
        while request := read_request(conn):
            head = request.decode().lower().split("\r\n")
            key = next(line.partition(": ")[2] for line in head if line.startswith("agent-key"))
            seen.append(key)
            conn.sendall(answer("[]", 200 if key in known else 401))

    with Server(handler) as server:
        yield server, known, seen


def dialect(url, clock, read_key=None, redact=None):
    settings = load({"AGENT_KEY": OLD, "CLOUD_SERVER_URL": url})
    made = DIALECTS["observer"](settings, None, "1", clock=clock, redact=redact or Redactor(), read_key=read_key)
    return made, settings


def close(*links):
    for link in links:
        link.leave()


def test_a_rotated_key_is_used_in_the_same_call_and_by_every_connection(gate, caught):
    server, _, seen = gate
    redact = Redactor()
    made, _ = dialect(server.url, Clock(), lambda: NEW, redact)
    first, second = made.connect(), made.connect()
    assert first.definitions().status == 200
    assert second.definitions().status == 200
    assert seen == [OLD, NEW, NEW]
    assert caught.text.count("has taken its place") == 1
    assert NEW not in redact(f"the key is {NEW}")
    close(first, second)


def test_a_key_that_has_not_changed_costs_one_request_and_one_look_in_five_seconds(gate):
    server, known, seen = gate
    known.clear()
    looks, clock = [], FakeClock()
    made, _ = dialect(server.url, clock, lambda: looks.append(1) or OLD)
    link = made.connect()
    for _ in range(3):
        assert link.definitions().status == 401
    assert (len(seen), len(looks)) == (3, 1)
    clock.advance(6)
    link.definitions()
    assert len(looks) == 2
    close(link)


def test_a_key_that_cannot_be_read_is_said_once(gate, caught):
    server, *_ = gate

    def unreadable():
        raise ConfigError("AGENT_KEY_FILE", "/etc/key", "cannot be read: Permission denied")

    clock = FakeClock()
    made, _ = dialect(server.url, clock, unreadable)
    link = made.connect()
    for _ in range(3):
        assert link.definitions().status == 401
        clock.advance(10)
    assert caught.text.count("no other can be read: AGENT_KEY_FILE") == 1
    close(link)


def test_a_file_of_cas_that_has_changed_counts_at_once(tmp_path, monkeypatch):
    old, new = Authority(), Authority()
    bundle = tmp_path / "ca.pem"
    bundle.write_text(old.pem)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))

    def handler(conn, server):
        while read_request(conn):
            conn.sendall(answer("[]"))

    with Server(handler, tls=new.server("127.0.0.1", "localhost")) as server:
        made, settings = dialect(server.url, Clock())
        link = made.connect()
        assert "certificate not verified" in link.definitions().text
        bundle.write_text(old.pem + new.pem)
        made.renew(settings)
        assert link.definitions().status == 200
        close(link)


def test_the_second_call_after_a_401_has_what_is_left_of_the_time():
    """The first answer takes 4 of the 5 s, and the next one never comes: the call ends all the same."""
    clock, asked = FakeClock(), []

    def handler(conn, server):
        while request := read_request(conn):
            asked.append(request)
            if len(asked) > 1:
                tarpit(conn, server)
                return
            clock.advance(4.0)
            conn.sendall(answer("{}", 401))

    with Server(handler) as server:
        settings = load({"AGENT_KEY": OLD, "CLOUD_SERVER_URL": server.url})
        access = Access(
            observer_place(settings),
            lambda key: {"agent-key": key},
            clock=clock,
            redact=Redactor(),
            read_key=lambda: NEW,
        )
        line = Line(access, clock)
        watch = Watch()
        reply = line.call("GET", "/x", seconds=5.0)
        assert watch.seconds < 3
        line.close()
    assert len(asked) == 2
    assert reply.status == 0
