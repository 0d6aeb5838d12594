"""The source type `udp`, ours: whether a port takes datagrams, and how long its answer takes, in milliseconds.

Rules: docs/probes/udp.md. UDP has no connection: what counts is an answer, or, where the definition takes silence for
well, that nobody refuses. Runs on a probe thread.
"""

from __future__ import annotations

import selectors
import socket
from dataclasses import dataclass
from typing import Final

from observer_agent.model import Fault, Reading
from observer_agent.probes import _direct
from observer_agent.probes._config import Fields, host_name
from observer_agent.probes._net import admit, resolve
from observer_agent.probes._payload import READ, parse_expect, parse_send
from observer_agent.probes._reasons import Failed, Reason, timed_out
from observer_agent.probes._tools import Run, Tools
from observer_agent.resolver import Address

NOTHING: Final = b"\0"  # what is sent where the definition names nothing
ATTEMPTS: Final = 3  # datagrams get lost


@dataclass(frozen=True, slots=True)
class UdpConfig:
    """Where to send what, how often at most, and what to hear; `timeout` is seconds for everything."""

    host: str
    port: int
    timeout: float
    send: bytes = NOTHING
    expect: bytes = b""
    silence_ok: bool = False
    attempts: int = ATTEMPTS


def parse(raw: object) -> UdpConfig:
    """The typed configuration; raises InvalidConfig."""
    fields = Fields(raw)
    config = UdpConfig(
        host=fields.parsed("host", host_name, required=True) or "",
        port=fields.whole("port", 1, 65_535, None),
        timeout=fields.timeout(2_000),
        send=parse_send(fields) or NOTHING,
        expect=parse_expect(fields),
        silence_ok=fields.flag("silence_ok", False),
        attempts=fields.whole("attempts", 1, 5, ATTEMPTS),
    )
    if config.silence_ok and config.expect:
        fields.problem("silence_ok", "cannot be used together with expect")
    fields.done()
    return config


def probe(config: UdpConfig, deadline: float, tools: Tools) -> Reading:
    """Datagrams to the first address that does not refuse; value is milliseconds from the start to the answer."""
    run = Run(tools, deadline, Reason.UDP_ERROR)
    try:
        answered = _ask(config, run)
    except Failed as failure:
        return run.failed(failure)
    run.silent = not answered  # silence that is well says nothing about the network
    return run.gave(run.ms(), answered=answered)


def _ask(config: UdpConfig, run: Run) -> bool:
    """Whether an answer has come; raises Failed, the target's own failure rather than another."""
    failures: list[Failed] = []
    addresses = resolve(config.host, run)
    for n, address in enumerate(addresses):
        run.enter("first_byte")
        try:
            admit(config.host, address, config.port, run)
            share = 1 if config.silence_ok else len(addresses) - n
            return _exchange(config, address, run.left() / share, run)
        except Failed as failure:
            failures.append(failure)
            run.evidence.setdefault("tried", []).append((address.host, failure.reason))
    raise next((failure for failure in failures if failure.fault is Fault.TARGET), failures[-1])


def _exchange(config: UdpConfig, address: Address, seconds: float, run: Run) -> bool:
    sock = _direct.udp(address, config.port, run)
    try:
        if sock.getsockname()[:2] == (address.host, config.port):
            raise Failed(Reason.REFUSED, "nothing listens there; the socket had met itself")
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ)
            return _converse(config, sock, selector, seconds, run)
    except OSError as error:
        raise run.explain(error) from None
    finally:
        sock.close()


def _converse(
    config: UdpConfig, sock: socket.socket, selector: selectors.BaseSelector, seconds: float, run: Run
) -> bool:
    monotonic = run.tools.clock.monotonic
    began, heard = monotonic(), False
    for n in range(1, config.attempts + 1):
        _send(sock, config.send)
        until = began + seconds * n / config.attempts
        while (left := until - monotonic()) > 0:
            data = _received(sock) if selector.select(left) else None
            if data is not None and config.expect in data:
                return True
            heard = heard or data is not None
    if heard:
        raise Failed(Reason.REPLY_MISMATCH, "no answer holds the expected text")
    if config.silence_ok:
        return False
    run.silent = True
    raise timed_out(run.doing)


def _send(sock: socket.socket, data: bytes) -> None:
    try:
        sock.send(data)
    except BlockingIOError:
        pass  # as good as lost on the way


def _received(sock: socket.socket) -> bytes | None:
    try:
        return sock.recv(65_535)[:READ]
    except BlockingIOError:
        return None
