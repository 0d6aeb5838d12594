"""Whose trouble it is: the lookout with scripted looks, witnesses with real sockets, the pulse on a fake clock."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack, contextmanager

import pytest

from observer_agent.clock import Clock
from observer_agent.lookout import Lookout
from observer_agent.model import Definition, Fault, Operation, Reading, Thresholds
from observer_agent.pulse import Pulse
from observer_agent.resolver import ResolveError, Resolver, parse_literal
from observer_agent.witness import Kind, Witnesses, kind_of
from tests.fakes import FakeClock
from tests.servers import Server, answer, refused_port, scripted

RULES = Thresholds(Operation.UNDER, 10, Operation.OVER, 20)
SILENT = Reading(None, "ETIMEDOUT", Fault.TARGET, address="127.0.0.1:9", silent=True)
WELL = Reading(1.0, address="127.0.0.1:9")


def definition(name="m"):
    return Definition(name, "tcp", 1.0, 300.0, "1", config=None, thresholds=RULES)


class Stage:
    """A lookout whose looks take from a script and whose clock is moved by hand."""

    def __init__(self, *readings, clock=None, find=None, cloud=lambda: None):
        self.clock = clock or FakeClock()
        self.script = list(readings)
        self.looks = 0
        self.takes = 0.4
        self.resolver = Resolver(self.clock, find)
        self.witnesses = Witnesses(self.clock, self.resolver, cloud)
        self.pulse = Pulse(self.clock)
        self.lookout = Lookout(self._look, self.witnesses, self.pulse, self.clock)

    def _look(self, each):
        self.looks += 1
        if isinstance(self.clock, FakeClock):
            self.clock.advance(self.takes)
            self.pulse.step()
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def look(self, name="m"):
        self.pulse.step()
        return self.lookout.look(definition(name))


@pytest.fixture
def servers():
    with Server(scripted(answer("ok"))) as first, Server(scripted(answer("ok"))) as second:
        yield first, second


def at(server):
    return f"127.0.0.1:{server.port}"


# -- silence


def test_good_news_is_never_doubted():
    stage = Stage(WELL)
    assert stage.look() == WELL and stage.looks == 1


def test_an_active_answer_is_believed_at_once():
    refused = Reading(None, "ECONNREFUSED", Fault.TARGET, address="127.0.0.1:9")
    stage = Stage(refused)
    assert stage.look() == refused and stage.looks == 1


def test_silence_is_looked_at_again_once_and_then_believed():
    stage = Stage(SILENT)
    assert stage.look() == SILENT
    assert stage.looks == 2
    assert stage.look() == SILENT
    assert stage.looks == 3  # it is known now


def test_a_second_look_that_was_not_let_run_blames_nobody():
    """The first one met a real gap of the network; the second had no processor, so that neither says anything."""
    stage = Stage(SILENT)

    def look(each):
        stage.looks += 1
        stage.clock.advance(0.1)
        stage.pulse.step()
        if stage.looks == 2:
            stage.clock.advance(3.0)
            stage.pulse.step()
        return SILENT

    stage.lookout = Lookout(look, stage.witnesses, stage.pulse, stage.clock)
    reading = stage.look()
    assert stage.looks == 2
    assert (reading.value, reading.reason, reading.fault) == (None, "agent_stalled", Fault.AGENT)


def test_silence_that_ends_with_the_second_look_was_ours():
    stage = Stage(SILENT, WELL)
    assert stage.look() == WELL and stage.looks == 2


def test_answers_of_others_all_through_the_look_make_a_second_one_needless():
    stage = Stage(SILENT)
    inner = stage._look

    def look(each):
        begin = stage.clock.monotonic()
        while stage.clock.monotonic() < begin + 0.38:
            stage.clock.advance(0.04)
            stage.pulse.step()
            stage.witnesses.note("127.0.0.1:10")
        stage.takes = 0.02
        return inner(each)

    stage.lookout = Lookout(look, stage.witnesses, stage.pulse, stage.clock)
    assert stage.look() == SILENT and stage.looks == 1


@contextmanager
def full():
    """A listener that answers no connection, and its port; a refusal comes from there when it is closed."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = listener.getsockname()[1]
        for each in [stack.enter_context(socket.socket()) for _ in range(3)]:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        yield port


@pytest.mark.slow
def test_a_second_look_that_began_before_the_network_was_back_is_not_the_last():
    stage = Stage(SILENT, clock=Clock())
    with full() as port:
        stage.witnesses.note(f"127.0.0.1:{port}")
        assert stage.look().reason == "agent_network"
    stage.clock.alarm().wait(1.05)  # what the witnesses said a moment ago is good for a second
    stage.script, stage.looks = [SILENT, SILENT, WELL], 0
    assert stage.look("n") == WELL and stage.looks == 3
    stage.script, stage.looks = [SILENT], 0
    assert stage.look("o") == SILENT and stage.looks == 2, "all is well since: the target is dead"


@pytest.mark.slow
def test_no_witness_that_answers_is_our_own_blindness(caught):
    with refused_port() as port:
        stage = Stage(SILENT, clock=Clock())
        stage.witnesses.note(f"127.0.0.1:{port}")
        assert stage.look() == SILENT  # a refusal is an answer: the network works

    with full() as port:
        stage = Stage(SILENT, clock=Clock())
        stage.witnesses.note(f"127.0.0.1:{port}")
        for name in ("m", "n"):
            reading = stage.look(name)
            assert (reading.reason, reading.fault) == ("agent_network", Fault.AGENT)
            assert f"127.0.0.1:{port}" in reading.detail["error"] and reading.detail["seen"] == "ETIMEDOUT"
        assert "this machine sees nothing since" in stage.lookout.blindness()
        assert caught.text.count("This machine sees nothing") == 1
    stage.script = [WELL]
    assert stage.look() == WELL
    assert stage.lookout.blindness() is None
    assert caught.text.count("This machine sees again") == 1


def test_the_target_itself_is_no_witness_and_loopback_none_for_other_machines(servers):
    first, _ = servers
    stage = Stage(SILENT, clock=Clock())
    stage.witnesses.note(at(first))
    assert stage.witnesses.ask(Kind.NEAR, at(first)).answered is False
    stage = Stage(SILENT, clock=Clock())
    stage.witnesses.note(at(first))
    assert stage.witnesses.ask(Kind.FAR, "192.0.2.1:80") == stage.witnesses.ask(Kind.FAR, "192.0.2.1:80")
    assert stage.witnesses.ask(Kind.FAR, "192.0.2.1:80")[1:3] == (False, None)


def test_the_cloud_is_a_witness(servers):
    first, _ = servers
    stage = Stage(SILENT, clock=Clock(), cloud=lambda: ("127.0.0.1", first.port))
    assert stage.witnesses.ask(Kind.NEAR, "127.0.0.1:9").answered


def test_witnesses_are_asked_once_for_many(servers):
    first, _ = servers
    stage = Stage(SILENT, clock=Clock())
    stage.witnesses.note(at(first))
    threads = [threading.Thread(target=stage.witnesses.ask, args=(Kind.NEAR, "127.0.0.1:9")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert first.connections <= 1


@pytest.mark.parametrize(
    ("address", "kind"),
    [("", Kind.NAMES), ("127.0.0.1:80", Kind.NEAR), ("[::1]:80", Kind.NEAR), ("192.0.2.1", Kind.FAR)],
)
def test_kinds_of_addresses(address, kind):
    assert kind_of(address) is kind


# -- names


def test_a_resolver_that_finds_nothing_any_more_is_ours_and_one_that_does_is_not():
    known = {"a.test", "b.test"}

    def find(name):
        if name in known:
            return (parse_literal("127.0.0.1"),)
        raise ResolveError("EAI_AGAIN", name)

    unresolved = SILENT._replace(reason="EAI_AGAIN", address="")
    stage = Stage(unresolved, clock=Clock(), find=find)
    stage.resolver.resolve("a.test", stage.clock.monotonic() + 5)
    assert stage.look().reason == "EAI_AGAIN"
    known.clear()
    stage.clock.alarm().wait(1.05)  # what was found a moment ago is good for a second
    assert stage.look("n").reason == "agent_network"
    known.add("c.test")
    stage.resolver.resolve("c.test", stage.clock.monotonic() + 5)
    stage.script = [WELL]
    stage.look("o")
    assert stage.lookout.blindness() is None


# -- standing still


def test_a_look_across_a_standstill_is_taken_again():
    slow = Reading(5000.0, address="127.0.0.1:9")
    stage = Stage(slow, WELL)
    stage.takes = 5.0
    inner = stage._look

    def look(each):
        reading = inner(each)
        stage.takes = 0.01
        return reading

    stage.lookout = Lookout(look, stage.witnesses, stage.pulse, stage.clock)
    assert stage.look() == WELL and stage.looks == 2


def test_one_that_goes_on_is_the_agent_s_own_fault():
    slow = Reading(5000.0, address="127.0.0.1:9")
    stage = Stage(slow)
    stage.takes = 5.0
    reading = stage.look()
    assert (reading.value, reading.reason, reading.fault) == (None, "agent_stalled", Fault.AGENT)
    assert "was not let run for 4.8 s" in reading.detail["error"] and reading.detail["seen"] == 5000.0


def test_threads_that_wait_for_a_processor_are_seen(tmp_path):
    clock, waits = FakeClock(), {}
    for task in ("1", "2", "3"):
        (tmp_path / task).mkdir()

    def wait(task, seconds):
        waits[task] = waits.get(task, 0) + int(seconds * 1e9)
        (tmp_path / task / "schedstat").write_text(f"1 {waits[task]} 1\n")

    for task in ("1", "2", "3"):
        wait(task, 7.0)
    pulse = Pulse(clock, tmp_path)
    begin = clock.monotonic()
    clock.advance(1.0)
    assert pulse.starved(begin) == 0.0
    for task in ("1", "2", "3"):
        wait(task, 0.9)
    clock.advance(1.0)
    assert pulse.starved(begin + 1.0) == pytest.approx(2.7)
    assert pulse.starved(begin) == pytest.approx(1.35)


def test_the_agent_s_own_faults_and_definitions_that_are_gone():
    files = Reading(None, "EMFILE", Fault.AGENT)
    stage = Stage(files)
    assert stage.look() == files and stage.looks == 1
    stage = Stage(SILENT)
    stage.look()
    stage.lookout.forget([])
    stage.look()
    assert stage.looks == 4
