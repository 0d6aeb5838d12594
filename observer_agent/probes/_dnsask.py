"""Asking DNS servers: UDP with repetitions, TCP where the answer is cut off, all under the run's one deadline.

Enters: a question and the servers; leaves: an `Answer` and who gave it, or Failed. One connected socket for each
server stays open to the end, so that a late answer counts and one from elsewhere does not. Runs on the probe's thread.
"""

from __future__ import annotations

import selectors
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from observer_agent.model import Fault
from observer_agent.probes import _direct
from observer_agent.probes._dnswords import Answer, NotOurs, Question, understand
from observer_agent.probes._net import Stream, admit
from observer_agent.probes._reasons import Failed, Reason, timed_out
from observer_agent.probes._tools import Run
from observer_agent.resolver import Address, parse_literal

ROUNDS: Final = 3  # each server is asked so often, evenly over the time that there is
MOST: Final = 3  # servers, as in the C library
MOST_SUFFIXES: Final = 6
PORT: Final = 53
_FINAL: Final = frozenset(("NOERROR", "NXDOMAIN"))
_NO_EDNS: Final = frozenset(("FORMERR", "NOTIMP"))


class Server(NamedTuple):
    """Where to ask."""

    address: Address
    port: int = PORT

    def __str__(self) -> str:
        host = self.address.host
        return f"[{host}]:{self.port}" if self.address.family == socket.AF_INET6 else f"{host}:{self.port}"


class Told(NamedTuple):
    """An answer, the server that gave it, how many questions went out, and whether it took TCP."""

    answer: Answer
    server: Server
    asked: int
    over_tcp: bool


def parse_server(text: str) -> Server:
    """`ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`; raises ValueError."""
    host, colon, port = text.rpartition(":")
    literal = parse_literal(text)
    if literal is None and colon and port.isdecimal() and port.isascii() and 0 < int(port[:6]) < 65_536:
        literal = parse_literal(host) if ":" not in host or host.startswith("[") else None
        return _server(literal, int(port))
    return _server(literal, PORT)


def _server(literal: Address | None, port: int) -> Server:
    if literal is None:
        raise ValueError("must be an address, with or without a port: 192.0.2.1, 192.0.2.1:53 or [2001:db8::1]:53")
    return Server(literal, port)


def system_servers(conf: Path) -> tuple[Server, ...]:
    """The servers that a resolv.conf names, at most three; without any, the one of this machine, as the C library."""
    try:
        lines = conf.read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    words = [line.split() for line in lines]
    found = [parse_literal(word[1]) for word in words if len(word) > 1 and word[0] == "nameserver"]
    servers = tuple(dict.fromkeys(Server(address) for address in found if address))[:MOST]
    return servers or (Server(Address(socket.AF_INET, "127.0.0.1")),)


def suffixes(conf: Path, name: str) -> tuple[str, ...]:
    """The names to ask for in turn, as the C library completes one: `search`, `domain` and `ndots` of a resolv.conf."""
    try:
        words = [line.split() for line in conf.read_text("utf-8", "replace").splitlines()]
    except OSError:
        words = []
    found: list[str] = []
    ndots = 1
    for word in words:
        if word and word[0] in ("search", "domain"):
            found = word[1:]
        for option in word[1:] if word and word[0] == "options" else ():
            number = option.removeprefix("ndots:")
            ndots = int(number) if number != option and number.isascii() and number.isdecimal() else ndots
    longer = tuple(f"{name}{suffix.rstrip('.')}.".lower() for suffix in found[:MOST_SUFFIXES] if suffix.rstrip("."))
    whole = name.count(".") - 1 >= ndots
    return tuple(dict.fromkeys((name, *longer) if whole else (*longer, name)))


class Asking:
    """One look's questions to some servers. `faults_of` is who is to blame for a server that does not answer."""

    def __init__(self, question: Question, servers: tuple[Server, ...], run: Run, faults_of: Fault) -> None:
        self._question = question
        self._run = run
        self._monotonic = run.tools.clock.monotonic
        self._fault = faults_of
        self._failures: list[Failed] = []
        self._servers = servers
        self._sockets: dict[Server, socket.socket] = {}
        self._edns = dict.fromkeys(servers, True)
        self._asked = 0
        self._last: Told | None = None

    def ask(self) -> Told:
        """The first answer that says something; raises Failed. An error of one server has the next one asked."""
        run = self._run
        run.enter("first_byte")
        with ExitStack() as stack, selectors.DefaultSelector() as selector:
            for server in self._servers:
                self._open(server, stack, selector)
            turns = [*self._servers] * ROUNDS
            while turns := [server for server in turns if server in self._sockets]:
                now = self._monotonic()
                told = self._turn(turns.pop(0), now + (run.deadline - now) / (len(turns) + 1), selector)
                if told:
                    return told
        return self._leftover()

    def _open(self, server: Server, stack: ExitStack, selector: selectors.BaseSelector) -> None:
        try:
            admit(server.address.host, server.address, server.port, self._run)
            sock = stack.enter_context(_direct.udp(server.address, server.port, self._run))
        except Failed as failure:
            self._failures.append(failure)
            return
        self._sockets[server] = sock
        selector.register(sock, selectors.EVENT_READ, server)

    def _turn(self, server: Server, until: float, selector: selectors.BaseSelector) -> Told | None:
        """Asks one server, and listens to all of them until the next one's turn."""
        self._send(server, selector)
        while self._sockets and server in self._sockets and (left := until - self._monotonic()) > 0:
            for key, _ in selector.select(left):
                told = self._take(key.data, selector)
                if told:
                    return told
        return None

    def _send(self, server: Server, selector: selectors.BaseSelector) -> None:
        self._asked += 1
        try:
            self._sockets[server].send(self._question.render(self._edns[server]))
        except BlockingIOError:
            pass  # as good as lost on the way
        except OSError as error:
            self._drop(server, self._run.explain(error), selector)

    def _take(self, server: Server, selector: selectors.BaseSelector) -> Told | None:
        """What one server has sent: an answer that counts, or None."""
        try:
            data = self._sockets[server].recv(65_535)
            answer = understand(self._question, data)
            if answer.truncated:
                return self._over_tcp(server)
        except (NotOurs, BlockingIOError):
            return None
        except OSError as error:
            self._drop(server, self._run.explain(error), selector)
            return None
        except Failed as failure:
            self._drop(server, failure, selector)
            return None
        if answer.code in _NO_EDNS and self._edns[server]:
            self._edns[server] = False
            self._send(server, selector)
            return None
        told = Told(answer, server, self._asked, over_tcp=False)
        if answer.code in _FINAL:
            return told
        self._last = self._last or told
        self._drop(server, None, selector)
        return None

    def _drop(self, server: Server, failure: Failed | None, selector: selectors.BaseSelector) -> None:
        """Asks a server no more: what it said will not change."""
        selector.unregister(self._sockets.pop(server))
        if failure:
            self._failures.append(failure)

    def _over_tcp(self, server: Server) -> Told:
        run = self._run
        run.enter("connect")
        stream = _direct.tcp(server.address, server.port, run)
        try:
            run.enter("first_byte")
            self._asked += 1
            message = self._question.render(self._edns[server])
            stream.send(len(message).to_bytes(2) + message)
            answer = understand(self._question, _framed(stream))
        except NotOurs:
            raise Failed(Reason.DNS_BADRESP, "the answer over TCP belongs to another question") from None
        finally:
            stream.close()
        if answer.truncated:
            raise Failed(Reason.DNS_BADRESP, "the answer is cut off over TCP too")
        return Told(answer, server, self._asked, over_tcp=True)

    def _leftover(self) -> Told:
        """What remains when nobody gave an answer that counts: the first error, or that time is up."""
        if self._last:
            return self._last
        if self._sockets or not self._failures:
            raise timed_out(self._run.doing, self._fault)
        failure = next((f for f in self._failures if f.fault is not Fault.POLICY), self._failures[0])
        if failure.fault in (Fault.TARGET, Fault.RESOLVER):
            failure.fault = self._fault
        raise failure


def _framed(stream: Stream) -> bytes:
    """One message behind its length."""
    data = b""
    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2]):
        more = stream.receive()
        if not more:
            raise Failed(Reason.RESET, "the connection was closed before the whole answer came")
        data += more
    return data[2 : 2 + int.from_bytes(data[:2])]
