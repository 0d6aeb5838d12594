"""How often one may come: requests by key, refusals by address. In the memory of one process, and bounded.

A `Buckets` gives each name a bucket of tokens that fills again at a steady rate; who finds his empty is told how long
to wait. What was not seen for long is forgotten first. `peer` says whose address a request comes from, behind
proxies too.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from observer_agent.clock import Clock

Network = IPv4Network | IPv6Network
NAMES_MAX = 20_000
HOPS_MAX = 20
KEY_LEAST = 600.0  # a minute, of one process: an agent keeps its connection and so meets one process alone


@dataclass(frozen=True, slots=True)
class Rate:
    """`per_minute` in the long run, `burst` at once."""

    per_minute: float
    burst: int

    def shared(self, processes: int, least: float = 1.0) -> Rate:
        """The part of one of several processes, at least `least` a minute unless the whole is less."""
        part = max(self.per_minute / processes, min(least, self.per_minute))
        return Rate(part, max(1, math.ceil(self.burst * part / self.per_minute)))


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a hub: requests of a key, refused keys and tokens of an address; None is no limit."""

    by_key: Rate | None = Rate(6000.0, 3000)
    refused: Rate | None = Rate(20.0, 20)
    trusted: Sequence[Network] = ()

    def shared(self, processes: int) -> Limits:
        """The limits of one of several processes, each of which counts by itself."""
        key, refused = self.by_key, self.refused
        return Limits(
            by_key=key.shared(processes, KEY_LEAST) if key else None,
            refused=refused.shared(processes) if refused else None,
            trusted=self.trusted,
        )


class Buckets:
    """Token buckets by name; any thread may use them."""

    def __init__(self, rate: Rate | None, clock: Clock, names_max: int = NAMES_MAX) -> None:
        self._rate = rate
        self._clock = clock
        self._names_max = names_max
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens left, at which moment

    def __len__(self) -> int:
        return len(self._known)

    def wait(self, name: str) -> int:
        """Whole seconds until there is a token for `name`; 0 is now. Takes none."""
        if self._rate is None:
            return 0
        with self._lock:
            return self._seconds(self._left(name, self._rate))

    def take(self, name: str) -> int:
        """Takes a token for `name` and returns 0; where there is none, the whole seconds until there will be."""
        rate = self._rate
        if rate is None:
            return 0
        with self._lock:
            left = self._left(name, rate)
            if left >= 1.0:
                self._known[name] = left - 1.0, self._clock.monotonic()
                self._known.move_to_end(name)
                if len(self._known) > self._names_max:
                    self._known.popitem(last=False)
            return self._seconds(left)

    def _left(self, name: str, rate: Rate) -> float:
        left, at = self._known.get(name, (float(rate.burst), self._clock.monotonic()))
        return min(float(rate.burst), left + (self._clock.monotonic() - at) * rate.per_minute / 60.0)

    def _seconds(self, left: float) -> int:
        if left >= 1.0 or self._rate is None:
            return 0
        return max(1, math.ceil((1.0 - left) * 60.0 / self._rate.per_minute))


def peer(remote: str | None, forwarded: str, trusted: Sequence[Network]) -> str:
    """Whose address counts: that of the connection, or the last one that no proxy we trust has.

    `forwarded` is X-Forwarded-For. Read from the right, because everything left of the first stranger is his own word.
    """
    found = _address(remote or "")
    if found is None:
        return "unknown"
    for part in reversed(forwarded.split(",")[-HOPS_MAX:]):
        before = _address(part)
        if before is None or not any(found in network for network in trusted):
            break
        found = before
    return str(found)


def household(address: str | None) -> str:
    """Under which name an address is counted: an IPv6 one as its /64, which is what one subscriber has."""
    found = _address(address or "")
    if isinstance(found, IPv6Address):
        return str(ip_network((found, 64), strict=False))
    return str(found) if found else "unknown"


class BehindProxies:
    """WSGI: puts the address of the client in place of that of a proxy, before anybody looks at it."""

    def __init__(self, inner: Any, trusted: Sequence[Network]) -> None:
        self._inner = inner
        self._trusted = trusted

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        """One request."""
        forwarded = environ.get("HTTP_X_FORWARDED_FOR", "")
        environ["REMOTE_ADDR"] = peer(environ.get("REMOTE_ADDR"), forwarded, self._trusted)
        return self._inner(environ, start_response)


def networks(text: str) -> tuple[Network, ...]:
    """A list of networks or addresses, separated by commas or blanks; raises ValueError."""
    return tuple(ip_network(each) for each in text.replace(",", " ").split())


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        found = ip_address(text.strip().strip("[]"))
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, IPv6Address) else found
