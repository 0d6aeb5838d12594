"""ICMP echo over sockets of our own: a datagram socket where the kernel gives one to everybody, else a raw one.

Enters: an admitted address and a plan; leaves: how many packets went and the round trips of those that came back in
time. An answer counts when its sender, kind, identifier, sequence and token are right.
Runs on the probe's thread.
"""

from __future__ import annotations

import errno
import secrets
import socket
from typing import Final, NamedTuple

from observer_agent.clock import to_ms
from observer_agent.probes._direct import sockaddr
from observer_agent.probes._reasons import Reason
from observer_agent.probes._tools import Run
from observer_agent.resolver import Address

SPACING: Final = 0.2  # seconds from packet to packet
_DENIED: Final = frozenset((errno.EACCES, errno.EPERM, errno.EPROTONOSUPPORT))
_REQUEST: Final[dict[int, int]] = {socket.AF_INET: 8, socket.AF_INET6: 128}
_REPLY: Final[dict[int, int]] = {socket.AF_INET: 0, socket.AF_INET6: 129}
_RECVERR: Final[dict[int, tuple[int, int]]] = {
    socket.AF_INET: (socket.IPPROTO_IP, 11),  # IP_RECVERR and IPV6_RECVERR, which the socket module does not name
    socket.AF_INET6: (socket.IPPROTO_IPV6, 25),
}
_MEANT: Final[dict[str, str]] = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where the kernel sends what is for "any"
_NO_WAY: Final = (Reason.NET_UNREACHABLE, Reason.FORBIDDEN)  # said while sending: nothing gets out at all
_HEAD: Final = 8
_TOKEN: Final = 16
_PADDING: Final = bytes(40)  # makes 56 bytes of it, as everybody's ping


class Denied(Exception):
    """This process may open no ICMP socket."""


class Plan(NamedTuple):
    """How many packets, and how many seconds each one's answer may take."""

    packets: int
    wait: float


class Echoes(NamedTuple):
    """What came of it; round trips are milliseconds. `errors` are the names of what routers or the system said."""

    method: str
    sent: int
    trips: tuple[float, ...]
    errors: tuple[str, ...] = ()


def exchange(address: Address, plan: Plan, run: Run) -> Echoes:
    """Sends and collects; raises Denied, or Failed where nothing can be sent there."""
    sock, method = _open(address, run)
    try:
        try:
            sock.setsockopt(*_RECVERR[address.family], 1)
            sock.connect(sockaddr(address, 0))
        except OSError as error:
            raise run.explain(error) from None
        return _Series(sock, method, address, plan, run).go()
    finally:
        sock.close()


def _open(address: Address, run: Run) -> tuple[socket.socket, str]:
    protocol = socket.IPPROTO_ICMPV6 if address.family == socket.AF_INET6 else socket.IPPROTO_ICMP
    for kind, method in ((socket.SOCK_DGRAM, "datagram"), (socket.SOCK_RAW, "raw")):
        try:
            return socket.socket(address.family, kind, protocol), method
        except OSError as error:
            if error.errno not in _DENIED:
                raise run.explain(error) from None
    raise Denied


class _Series:
    """The packets of one look. A packet's answer is late when it takes longer than the plan's wait."""

    def __init__(self, sock: socket.socket, method: str, address: Address, plan: Plan, run: Run) -> None:
        self._sock = sock
        self._method = method
        self._family = family = address.family
        self._plan = plan
        self._run = run
        self._monotonic = run.tools.clock.monotonic
        self._token = secrets.token_bytes(_TOKEN)
        # A datagram socket's identifier is its port: the kernel chooses it and gives us no other answers.
        own = sock.getsockname()[1] if method == "datagram" else 0
        self._id = own or secrets.randbelow(65_535) + 1
        # Not getpeername(), which knows no peer without a port.
        self._peer = _packed(family, _MEANT.get(address.host, address.host))
        self._left_at: dict[int, float] = {}
        self._trips: dict[int, float] = {}
        self._errors: list[str] = []

    def go(self) -> Echoes:
        """The whole series: to the last answer, or as long as the last packet may take."""
        start = self._monotonic()
        for seq in range(self._plan.packets):
            self._listen(start + seq * SPACING, everything=False)
            if self._monotonic() >= self._run.deadline:
                break
            self._send(seq)
        self._listen(self._monotonic() + self._plan.wait, everything=True)
        errors = tuple(dict.fromkeys(self._errors))
        return Echoes(self._method, len(self._left_at), tuple(self._trips.values()), errors)

    def _send(self, seq: int) -> None:
        head = bytes((_REQUEST[self._family], 0)), self._id.to_bytes(2) + seq.to_bytes(2) + self._token + _PADDING
        packet = head[0] + _checksum(head[0] + bytes(2) + head[1]) + head[1]
        self._left_at[seq] = self._monotonic()
        try:
            self._sock.settimeout(self._run.left())
            self._sock.send(packet)
        except OSError as error:
            failure = self._run.explain(error)
            if failure.reason in _NO_WAY and not self._trips:
                raise failure from None
            self._note(error)

    def _listen(self, until: float, everything: bool) -> None:
        """Takes answers until a moment; with `everything` not after the last one has come."""
        until = min(until, self._run.deadline)
        while (left := until - self._monotonic()) > 0:
            if everything and len(self._trips) == len(self._left_at):
                return
            self._sock.settimeout(left)
            try:
                # Connecting is not enough: Linux gives a datagram socket the answers of others too.
                data, sender = self._sock.recvfrom(2_048)
            except TimeoutError as error:
                if error.errno is None:
                    return
                self._note(error)
            except OSError as error:
                self._note(error)
            else:
                if _packed(self._family, sender[0]) == self._peer:
                    self._take(data, self._monotonic())

    def _note(self, error: OSError) -> None:
        """A packet lost with a reason, such as a router's word that the host is not there."""
        self._errors.append(errno.errorcode.get(error.errno or 0, type(error).__name__))

    def _take(self, data: bytes, now: float) -> None:
        if self._method == "raw" and self._family == socket.AF_INET:
            data = data[(data[0] & 15) * 4 :] if data else data  # the IP header comes along
        if len(data) < _HEAD + _TOKEN or data[0] != _REPLY[self._family] or data[1] != 0:
            return
        ours = int.from_bytes(data[4:6]) == self._id and data[_HEAD : _HEAD + _TOKEN] == self._token
        seq = int.from_bytes(data[6:8])
        if not ours or seq not in self._left_at or seq in self._trips:
            return
        trip = now - self._left_at[seq]
        if trip <= self._plan.wait:
            self._trips[seq] = to_ms(trip)


def _packed(family: int, host: str) -> bytes:
    return socket.inet_pton(family, host.partition("%")[0])


def _checksum(data: bytes) -> bytes:
    """RFC 1071. The kernel computes it itself where it wants another (IPv6)."""
    total = sum(int.from_bytes(data[n : n + 2]) for n in range(0, len(data), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2)
