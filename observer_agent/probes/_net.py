"""From a host and a port to a connected socket, and reading and writing it, all under one deadline.

Enters: a `Run` with the deadline; leaves: a `Stream`, or Failed with a reason. The operator's policy is asked for the
address that is connected to, so that no name can point at another (docs/policy.md, W12). Runs on the probe's thread.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable

from observer_agent.model import Fault
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tools import Run
from observer_agent.resolver import Address, ResolveError

CHUNK = 65_536
SLACK = 0.01  # seconds by which an operation may end before or after the deadline


class Stream:
    """A connected socket whose every operation ends at the run's deadline. Failures are raised as Failed.

    `explain` tells what an error means; TLS replaces it, and the socket, with its own.
    """

    __slots__ = ("explain", "run", "sock")

    def __init__(self, sock: socket.socket, run: Run) -> None:
        self.sock = sock
        self.run = run
        self.explain: Callable[[OSError], Failed] = run.explain

    def send(self, data: bytes) -> None:
        """Sends everything, or as much as the other side takes: one that hangs up may have said why."""
        try:
            self._arm()
            sent = self.sock.send(data) if data else 0
            while sent < len(data):
                # Not sendall: over TLS that one gives every piece the whole of the time that is left.
                self._arm()
                sent += self.sock.send(memoryview(data)[sent:])
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            return
        except OSError as error:
            raise self.explain(error) from None

    def receive(self) -> bytes:
        """The next bytes, at most CHUNK; empty at the end."""
        try:
            self._arm()
            data = self.sock.recv(CHUNK)
            self.run.silent = False
            return data
        except OSError as error:
            raise self.explain(error) from None

    def _arm(self) -> None:
        """Has the next operation end at the deadline; what is set already may do, and setting it is a system call."""
        left = self.run.left()
        if abs((self.sock.gettimeout() or -1.0) - left) > SLACK:
            self.sock.settimeout(left)

    def close(self) -> None:
        """Closes the socket; a second time does nothing."""
        self.sock.close()


def connect(host: str, port: int, run: Run) -> Stream:
    """A connection to the first address that takes it; raises Failed.

    An address that does not answer may use its share of the time that is left, so that the next one has its turn.
    """
    addresses = resolve(host, run)
    run.enter("connect")
    failures: list[Failed] = []
    for n, address in enumerate(addresses):
        try:
            admit(host, address, port, run)
            stream = Stream(_open(address, port, run, run.left() / (len(addresses) - n)), run)
            run.silent = False
            run.address = _written(address, port)
            return stream
        except Failed as failure:
            failures.append(failure)
            run.evidence.setdefault("tried", []).append((_written(address, port), failure.reason))
    raise next((failure for failure in failures if failure.fault is Fault.TARGET), failures[-1])


def resolve(host: str, run: Run) -> tuple[Address, ...]:
    """The addresses of a host; raises Failed. Each one needs `admit` before anything is sent to it."""
    run.enter("resolve")
    try:
        return run.tools.resolver.resolve(host, run.deadline)
    except ResolveError as error:
        fault = Fault.RESOLVER if error.reason == Reason.TIMED_OUT else None
        run.silent = True
        raise Failed(error.reason, str(error), fault) from None


def admit(host: str, address: Address, port: int | None, run: Run) -> None:
    """Raises Failed (`policy_denied`) where nothing may be sent to this address; `port` is None where there is none.

    Every probe asks for the address that it is about to use, each time and on each hop.
    """
    policy = run.tools.policy
    complaint = policy.of_host(host) or policy.of_address(address, port)
    if complaint is None and policy.rules.rate is not None:
        complaint = _too_often(address, port, run)
    if complaint:
        raise Failed(Reason.POLICY_DENIED, complaint)
    run.address = address.host


def _too_often(address: Address, port: int | None, run: Run) -> str | None:
    """The rate counts looks: a target that one look meets again, behind a redirect for one, counts once."""
    target = address, port
    if target in run.counted:
        return None
    complaint = run.tools.policy.of_rate(address, port, run.tools.clock)
    if complaint is None:
        run.counted += (target,)
    return complaint


def _written(address: Address, port: int) -> str:
    return f"[{address.host}]:{port}" if ":" in address.host else f"{address.host}:{port}"


def _open(address: Address, port: int, run: Run, seconds: float) -> socket.socket:
    sock = None
    try:
        sock = socket.socket(address.family, socket.SOCK_STREAM)
        sock.settimeout(seconds)
        sock.connect((address.host, port, 0, address.scope) if address.scope else (address.host, port))
        if sock.getsockname()[:2] == (address.host, port):
            # Linux joins a connect to a free local port in the ephemeral range to itself, now and then.
            raise Failed(Reason.REFUSED, "nothing listens there; the socket had met itself")
    except (OSError, Failed) as error:
        if sock:
            sock.close()
        raise error if isinstance(error, Failed) else run.explain(error) from None
    return sock
