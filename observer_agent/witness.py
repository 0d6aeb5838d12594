"""Witnesses: addresses that answered a little while ago, asked again when a target says nothing.

If none of them answers either, it is this machine that is cut off. Asking is one TCP connection to each, at once, with
nothing sent; a refusal is an answer as well. Loopback bears witness for loopback alone. Safe from any thread.
"""

from __future__ import annotations

import errno
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from enum import StrEnum
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple

from observer_agent.clock import Clock
from observer_agent.resolver import Address, ResolveError, Resolver, parse_literal

FRESH = 300.0  # seconds for which an address that answered is a witness
KEPT = 256
ASKED = 3
SECONDS = 1.5
SAME = 1.0  # a finding is good for what was seen this long before it
_ANSWERS = (0, errno.ECONNREFUSED, errno.ECONNRESET)
_NO_FILES = (errno.EMFILE, errno.ENFILE)

Cloud = Callable[[], tuple[str, int] | None]


class Kind(StrEnum):
    """What the witnesses are asked about."""

    NEAR = "loopback"
    FAR = "network"
    NAMES = "resolver"


class Finding(NamedTuple):
    """What the witnesses say: one `answered`; or none did, and `blind` names them. Neither: there was nobody to ask."""

    at: float
    answered: bool
    blind: str | None = None
    no_files: bool = False


class Witnesses:
    """See the module. `cloud` gives the host and port of the cloud while it answers and no proxy stands before it."""

    def __init__(self, clock: Clock, resolver: Resolver, cloud: Cloud = lambda: None) -> None:
        self._clock = clock
        self._resolver = resolver
        self._cloud = cloud
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._good: dict[str, float] = {}  # when each answered last
        self._answers: dict[bool, deque[float]] = {True: deque(maxlen=512), False: deque(maxlen=512)}
        self._findings: dict[Kind, Finding] = {}

    def note(self, address: str) -> None:
        """An address (`host:port`, or a host where no TCP was spoken) has answered just now.

        The lock is for new ones: every look comes by here, and who waits for a lock waits for the interpreter as well.
        """
        now = self._clock.monotonic()
        self._answers[is_near(address)].append(now)
        if address in self._good:
            self._good[address] = now
        elif _split(address)[1]:
            with self._lock:
                self._good[address] = now
                if len(self._good) > KEPT:
                    del self._good[min(self._good.copy().items(), key=itemgetter(1))[0]]

    def covered(self, address: str, begin: float, end: float) -> bool:
        """Whether other answers came all through the time from `begin` to `end`: the network worked, then."""
        times = [moment for moment in self._answers[is_near(address)].copy() if begin <= moment <= end]
        most = max(0.05, (end - begin) / 4)
        return bool(times) and all(b - a <= most for a, b in pairwise([begin, *times, end]))

    def ask(self, kind: Kind, address: str) -> Finding:
        """What the witnesses for `address` say now."""
        wanted = self._clock.monotonic() - SAME
        with self._asking:
            known = self._findings.get(kind)
            if known is None or known.at < wanted:
                known = self._names() if kind is Kind.NAMES else self._addresses(address)
                self._findings[kind] = known
            return known

    def found_names(self, since: float) -> bool:
        """Whether the resolver has found a name since a moment."""
        return bool(self._resolver.found_since(since))

    def _addresses(self, address: str) -> Finding:
        at = self._clock.monotonic()
        chosen = self._chosen(address)
        asked = list(chosen)
        try:
            answered = _any_answers([*chosen.values(), *self._cloud_address(asked, near=is_near(address))])
        except OSError as error:
            if error.errno in _NO_FILES:
                return Finding(at, False, "no file descriptor is left", no_files=True)
            answered = False
        text = f"none of these answers any more: {', '.join(asked)}"
        return Finding(at, answered, text if asked and not answered else None)

    def _chosen(self, address: str) -> dict[str, tuple[Address, int]]:
        """The last few good addresses on other machines (on loopback: other ports)."""
        near, host = is_near(address), _split(address)[0]
        after = self._clock.monotonic() - FRESH
        out: dict[str, tuple[Address, int]] = {}
        latest = sorted(self._good.copy().items(), key=itemgetter(1), reverse=True)
        for each in [known for known, when in latest if when >= after]:
            other, port = _split(each)
            literal = parse_literal(other)
            apart = each != address if near else other != host
            if literal and apart and is_near(each) == near and len(out) < ASKED:
                out[each] = (literal, port)
        return out

    def _cloud_address(self, asked: list[str], near: bool) -> list[tuple[Address, int]]:
        place = self._cloud()
        if place is None:
            return []
        try:
            found = self._resolver.resolve(place[0], self._clock.monotonic() + SECONDS)
        except ResolveError:
            found = ()
        if found and is_near(found[0].host) != near:
            return []
        asked.append(f"the cloud ({place[0]})")
        return [(each, place[1]) for each in found[:2]]

    def _names(self) -> Finding:
        at = self._clock.monotonic()
        names = self._resolver.found_since(at - FRESH)[:ASKED]
        for name in names:
            try:
                self._resolver.resolve(name, at + SECONDS)
                return Finding(at, True)
            except ResolveError:
                continue
        text = f"the resolver finds none of the names that it knew: {', '.join(names)}"
        return Finding(at, False, text if names else None)


def _any_answers(places: list[tuple[Address, int]]) -> bool:
    """Whether one of these answers a connection in time; raises OSError where no socket is to be had."""
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for address, port in places:
            sock = stack.enter_context(socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            at = (address.host, port, 0, address.scope) if address.scope else (address.host, port)
            code = sock.connect_ex(at)
            if code in _ANSWERS:
                return True
            if code == errno.EINPROGRESS:
                selector.register(sock, selectors.EVENT_WRITE)
        while selector.get_map():
            ready = selector.select(SECONDS)
            for key, _ in ready:
                selector.unregister(key.fileobj)
                if key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in _ANSWERS:  # type: ignore[union-attr]
                    return True
            if not ready:
                return False
    return False


def kind_of(address: str) -> Kind:
    """Which witnesses there are for an address; none at all is a name that did not resolve."""
    return Kind.NAMES if not address else Kind.NEAR if is_near(address) else Kind.FAR


def is_near(address: str) -> bool:
    """Whether an address is loopback."""
    return address.startswith(("127.", "[::1]:")) or address == "::1"


def _split(address: str) -> tuple[str, int]:
    """`1.2.3.4:80` or `[::1]:80` as host and port; port 0 where there is none."""
    if address.startswith("["):
        host, _, port = address[1:].partition("]:")
        return host, int(port or 0)
    host, colon, port = address.rpartition(":")
    return (host, int(port)) if colon and ":" not in host else (address, 0)
