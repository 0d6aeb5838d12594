"""Which addresses a webhook may reach: public ones over TLS, others where the operator has allowed them.

`check_url` looks at a URL when a webhook is made; `Guard.addresses` looks at what the name means at the moment of the
connection, and whoever connects uses one of the addresses that it returns, so that no name can lead elsewhere in
between. An IPv4 address inside an IPv6 one (mapped, NAT64, 6to4) counts as that IPv4 address. Any thread may ask.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple
from urllib.parse import urlsplit

from observer_agent.clock import Clock
from observer_agent.errors import ConfigError, UsageError
from observer_agent.hub.access import is_loopback
from observer_agent.worker import spawn

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Lookup = Callable[[str], Iterable[str]]

SETTING = "OBSERVER_HUB_WEBHOOK_ALLOW"
URL_MAX = 2048
LOOKUPS_MAX = 16  # lookups that may hang at the same time
_HOST_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?")

_PRIVATE_4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 "
        "192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4"
    ).split()
)
_PUBLIC_6 = IPv6Network("2000::/3")
_PRIVATE_6 = tuple(IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "3fff::/20"))
_METADATA = frozenset(
    ip_address(text)
    for text in (
        "169.254.169.254 169.254.170.2 169.254.170.23 100.100.100.200 192.0.0.192 168.63.129.16 "
        "fd00:ec2::254 fd00:ec2::23 fd20:ce::254"
    ).split()
)
_EMBEDDING = tuple(IPv6Network(text) for text in ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96"))
_SIX_TO_FOUR = IPv6Network("2002::/16")


class Refused(Exception):
    """A name or an address may not be reached, or cannot be; the text says why."""


class Target(NamedTuple):
    """A webhook's URL in parts; `path` is what the request line names."""

    scheme: str
    host: str
    port: int
    path: str


@dataclass(frozen=True, slots=True)
class Allow:
    """What the operator has allowed besides public addresses: names of hosts, and networks."""

    names: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    def names_host(self, host: str) -> bool:
        """Whether a host, as a URL names it, is allowed by its name or as an address."""
        address = _literal(host)
        return host in self.names if address is None else self.holds(address)

    def holds(self, address: Address) -> bool:
        """Whether an address, or the IPv4 address inside it, lies in an allowed network."""
        return any(each in network for each in {address, plain(address)} for network in self.networks)


NOTHING_MORE = Allow()


def parse_allow(text: str) -> Allow:
    """Reads the setting: host names, addresses and CIDR networks, separated by commas; raises ConfigError."""
    names, networks = set(), []
    for word in filter(None, (each.strip().lower() for each in text.split(","))):
        try:
            networks.append(ip_network(word.strip("[]")))
            continue
        except ValueError:
            pass
        if not _HOST_NAME.fullmatch(word) or re.fullmatch(r"[0-9.]+", word):
            fix = "must be host names, addresses or networks such as 10.0.0.0/8, separated by commas"
            raise ConfigError(SETTING, repr(word[:80]), fix)
        names.add(word.removesuffix("."))
    return Allow(frozenset(names), tuple(networks))


def check_url(url: str, allow: Allow = NOTHING_MORE) -> Target:
    """The parts of a webhook's URL; raises UsageError where it can never be reached. The URL is not repeated."""
    target = _split(url)
    address = _literal(target.host)
    if address is not None and not _permitted(address, target.host, allow):
        raise UsageError(f"the webhook's address is not a public one: name it in {SETTING} if that is meant")
    if target.scheme == "http" and not is_loopback(target.host) and not allow.names_host(target.host):
        raise UsageError(f"the webhook's URL must begin with https://, or its host must be named in {SETTING}")
    return target


def _split(url: str) -> Target:
    if len(url) > URL_MAX or not re.fullmatch(r"[!-~]+", url) or set(url) & set('\\"<>^`{|}'):
        raise UsageError(f"the webhook's URL must be at most {URL_MAX} printable ASCII characters without blanks")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UsageError("the webhook's URL cannot be read") from None
    host = (parts.hostname or "").removesuffix(".")
    if parts.scheme not in ("http", "https") or not (_HOST_NAME.fullmatch(host) or _literal(host)):
        raise UsageError("the webhook's URL must look like https://host/path")
    if "@" in parts.netloc:
        raise UsageError("the webhook's URL must not hold credentials")
    if parts.fragment or port == 0:
        raise UsageError("the webhook's URL must hold neither a fragment nor the port 0")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port or (443 if parts.scheme == "https" else 80), path)


def plain(address: Address) -> Address:
    """The address that is reached in the end: the IPv4 address inside an IPv6 one, else itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in _SIX_TO_FOUR:
        return IPv4Address(address.packed[2:6])
    if any(address in network for network in _EMBEDDING) and int(address) > 1:
        return IPv4Address(address.packed[12:])
    return address


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet and to no cloud's metadata service."""
    inner = plain(address)
    if inner in _METADATA:
        return False
    if isinstance(inner, IPv4Address):
        return not any(inner in network for network in _PRIVATE_4)
    return inner in _PUBLIC_6 and not any(inner in network for network in _PRIVATE_6)


def _permitted(address: Address, host: str, allow: Allow) -> bool:
    """Loopback only where the URL itself says so; metadata only where a network names it, never by a host's name."""
    if is_public(address) or allow.holds(address):
        return True
    if address.is_loopback and is_loopback(host):
        return True
    return host in allow.names and plain(address) not in _METADATA


def _literal(host: str) -> Address | None:
    try:
        return None if "%" in host else ip_address(host)
    except ValueError:
        return None


def system_lookup(name: str) -> list[str]:
    """The system's own resolver, hosts file included; raises OSError or UnicodeError."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(at[0]) for _, _, _, _, at in found))


class Guard:
    """Names to addresses that may be reached, within a deadline; `lookup` is getaddrinfo unless handed in."""

    def __init__(self, allow: Allow, clock: Clock, lookup: Lookup = system_lookup) -> None:
        self.allow = allow
        self._clock = clock
        self._lookup = lookup
        self._room = threading.BoundedSemaphore(LOOKUPS_MAX)

    def addresses(self, host: str, deadline: float) -> list[Address]:
        """The addresses of `host` that may be reached, at least one; raises Refused.

        `deadline` is a moment of the monotonic clock.
        """
        literal = _literal(host)
        found = [literal] if literal else self._resolve(host, deadline)
        good = [address for address in found if _permitted(address, host, self.allow)]
        if not good:
            raise Refused(f"the address is not a public one ({SETTING} would allow it)")
        return good

    def _resolve(self, host: str, deadline: float) -> list[Address]:
        """getaddrinfo cannot be cancelled: it runs on a thread that is left behind when the time is over."""
        if not self._room.acquire(blocking=False):
            raise Refused("too many name lookups hang")
        alarm, outcome = self._clock.alarm(), list[list[Address] | str]()

        def job() -> None:
            try:
                outcome.append([ip_address(text.partition("%")[0]) for text in self._lookup(host)])
            except (OSError, UnicodeError, ValueError):
                outcome.append("the name is not resolved")
            finally:
                self._room.release()
                alarm.ring()

        self._spawn(job)
        alarm.wait(deadline - self._clock.monotonic())
        result = outcome[0] if outcome else "the name was not resolved in time"
        if isinstance(result, str):
            raise Refused(result)
        return result

    def _spawn(self, job: Callable[[], None]) -> None:
        try:
            spawn("webhook-lookup", job)
        except RuntimeError:
            self._room.release()
            raise Refused("no thread could be started to look the name up") from None
