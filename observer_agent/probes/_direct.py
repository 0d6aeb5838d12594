"""Sockets to an address that `_net.admit` has let pass already: UDP, and a further TCP connection of the same look.

Enters: an admitted address; leaves: a connected socket, so that the kernel drops whatever comes from somewhere else,
or Failed. Runs on the probe's thread.
"""

from __future__ import annotations

import socket
from typing import Any

from observer_agent.probes._net import Stream
from observer_agent.probes._tools import Run
from observer_agent.resolver import Address


def sockaddr(address: Address, port: int) -> tuple[Any, ...]:
    """What the socket functions want for an address and a port."""
    return (address.host, port, 0, address.scope) if address.family == socket.AF_INET6 else (address.host, port)


def udp(address: Address, port: int, run: Run) -> socket.socket:
    """A connected UDP socket that never blocks; raises Failed."""
    sock = None
    try:
        sock = socket.socket(address.family, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect(sockaddr(address, port))
    except OSError as error:
        if sock:
            sock.close()
        raise run.explain(error) from None
    return sock


def tcp(address: Address, port: int, run: Run) -> Stream:
    """A connection; raises Failed."""
    sock = None
    try:
        sock = socket.socket(address.family, socket.SOCK_STREAM)
        sock.settimeout(run.left())
        sock.connect(sockaddr(address, port))
    except OSError as error:
        if sock:
            sock.close()
        raise run.explain(error) from None
    return Stream(sock, run)
