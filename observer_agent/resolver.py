"""Names to addresses within a deadline, though `getaddrinfo` cannot be cancelled.

IP literals are answered inline. A name is looked up by one of at most 36 daemon threads, made when they are needed;
everybody who asks for the same name meanwhile shares that lookup. A quarter of them is kept for names whose last
lookup succeeded, so that hanging names cannot starve the good ones. When no thread is to be had the answer is
`dns_overloaded`, at once.
"""

from __future__ import annotations

import errno
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from observer_agent.clock import Alarm, Clock
from observer_agent.worker import spawn

THREADS = 36
GOOD_NAMES = 4096
FOUND_NAMES = 64


class Address(NamedTuple):
    """One address of a name: the socket family and the address text without a port."""

    family: int
    host: str
    scope: int = 0


class ResolveError(Exception):
    """A name has no addresses (yet): `reason` is ENOTFOUND, EAI_AGAIN, ETIMEDOUT, EMFILE or dns_overloaded."""

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(text or reason)
        self.reason = reason


class _Lookup:
    """One lookup in progress and everybody who waits for it."""

    def __init__(self) -> None:
        self.waiting: list[Alarm] = []
        self.outcome: tuple[Address, ...] | ResolveError | None = None


class Resolver:
    """Safe from any thread. `lookup` is getaddrinfo unless a test hands in another."""

    def __init__(
        self, clock: Clock, lookup: Callable[[str], tuple[Address, ...]] | None = None, *, threads: int = THREADS
    ) -> None:
        self._clock = clock
        self._lookup = lookup or system_lookup
        self._threads, self._reserved = threads, threads // 4
        self._literals: dict[str, tuple[Address, ...]] = {}
        self._lock = threading.Lock()
        self._running: dict[str, _Lookup] = {}
        self._good: OrderedDict[str, None] = OrderedDict()
        self._found: OrderedDict[str, float] = OrderedDict()  # names that need a server, and when they were last found

    def resolve(self, name: str, deadline: float) -> tuple[Address, ...]:
        """The addresses of `name` in the system's order; at least one.

        `deadline` is a moment of the monotonic clock. Raises ResolveError.
        """
        literal = self._literals.get(name) or self._literal(name)
        if literal:
            return literal
        alarm = self._clock.alarm()
        lookup = self._join(name, alarm)
        while lookup.outcome is None:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                self._leave(lookup, alarm)
                raise ResolveError("ETIMEDOUT", "the name was not resolved in time")
            alarm.wait(left)
        if isinstance(lookup.outcome, ResolveError):
            raise ResolveError(lookup.outcome.reason, str(lookup.outcome))
        return lookup.outcome

    def found_since(self, moment: float) -> list[str]:
        """The names that were found since a moment of the monotonic clock, the last one first.

        Those without a dot do not count: they need no server.
        """
        with self._lock:
            return [name for name, when in reversed(self._found.items()) if when >= moment]

    def _literal(self, name: str) -> tuple[Address, ...]:
        """An IP literal as an address, kept: the same ones are asked for again and again. Zones may change."""
        literal = parse_literal(name)
        if literal is None:
            return ()
        if "%" not in name:
            if len(self._literals) >= GOOD_NAMES:
                self._literals.clear()
            self._literals[name] = (literal,)
        return (literal,)

    def _join(self, name: str, alarm: Alarm) -> _Lookup:
        with self._lock:
            lookup = self._running.get(name)
            if lookup is None:
                free = self._threads - len(self._running) - (0 if name in self._good else self._reserved)
                if free <= 0:
                    raise ResolveError("dns_overloaded", "too many lookups hang")
                lookup = self._running[name] = _Lookup()
                self._spawn(name, lookup)
            lookup.waiting.append(alarm)
            return lookup

    def _spawn(self, name: str, lookup: _Lookup) -> None:
        try:
            spawn(f"resolve-{len(self._running)}", lambda: self._run(name, lookup))
        except RuntimeError:
            # The machine gives no more threads; a lookup that nobody runs must not be waited for.
            del self._running[name]
            raise ResolveError("dns_overloaded", "no thread could be started") from None

    def _remember(self, name: str) -> None:
        if not _needs_server(name):
            return
        self._found[name] = self._clock.monotonic()
        self._found.move_to_end(name)
        if len(self._found) > FOUND_NAMES:
            self._found.popitem(last=False)

    def _leave(self, lookup: _Lookup, alarm: Alarm) -> None:
        with self._lock:
            if alarm in lookup.waiting:
                lookup.waiting.remove(alarm)

    def _run(self, name: str, lookup: _Lookup) -> None:
        outcome: tuple[Address, ...] | ResolveError
        try:
            outcome = self._lookup(name)
        except ResolveError as error:
            outcome = error
        good = not isinstance(outcome, ResolveError)
        with self._lock:
            lookup.outcome = outcome
            del self._running[name]
            self._good.pop(name, None)
            if good:
                self._good[name] = None
                self._remember(name)
                if len(self._good) > GOOD_NAMES:
                    self._good.popitem(last=False)
            # A copy: whoever leaves now takes itself off the list.
            waiting = tuple(lookup.waiting)
        for alarm in waiting:
            alarm.ring()


def _needs_server(name: str) -> bool:
    return "." in name.rstrip(".") and not name.rstrip(".").endswith("localhost")


def parse_literal(text: str) -> Address | None:
    """An IP literal (IPv6 with or without brackets, with or without a zone) as an address; None for a name."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    host, _, zone = bare.partition("%")
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return Address(family, host, _scope(zone)) if family == socket.AF_INET6 or not zone else None
    return None


def _scope(zone: str) -> int:
    if not zone:
        return 0
    try:
        return int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
    except OSError:
        return 0


def system_lookup(name: str) -> tuple[Address, ...]:
    """The system's own resolver, hosts file included; raises ResolveError."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        again = error.errno == socket.EAI_AGAIN
        raise ResolveError("EAI_AGAIN" if again else "ENOTFOUND", str(error)) from None
    except (UnicodeError, OSError) as error:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
            raise ResolveError("EMFILE", str(error)) from None
        raise ResolveError("ENOTFOUND", str(error)) from None
    out = (Address(f, str(at[0]), int(at[3]) if len(at) == 4 else 0) for f, _, _, _, at in found)
    return tuple(dict.fromkeys(out))
