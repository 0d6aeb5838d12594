"""The operator's policy: what probes may reach and use, whatever the definitions say.

A TOML file that only root can write in, a `Policy` out; without a file everything is allowed but clouds' metadata
services. It is asked for the address that is about to be connected to, so that no name, redirect or notation leads
round it. Safe from any thread.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import threading
import tomllib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Final

from observer_agent.clock import Clock
from observer_agent.config import FOLDER
from observer_agent.errors import ConfigError
from observer_agent.model import Definition, Problem
from observer_agent.resolver import Address, parse_literal

USUAL: Final = FOLDER / "policy.toml"
DENIED: Final = "policy_denied"
KEPT: Final = 4096  # verdicts on addresses, and targets whose rate is counted

Network = IPv4Network | IPv6Network

METADATA: Final = tuple(
    ip_network(text)
    for text in (
        "169.254.169.254",  # AWS, Azure, GCP, OpenStack, DigitalOcean, Hetzner
        "169.254.170.2",  # AWS ECS task credentials
        "169.254.170.23",  # AWS EKS pod identity
        "100.100.100.200",  # Alibaba
        "192.0.0.192",  # Oracle
        "168.63.129.16",  # Azure wire server
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
    )
)
WORDS: Final[Mapping[str, tuple[Network, ...]]] = {
    "loopback": (ip_network("127.0.0.0/8"), ip_network("::1")),
    "link-local": (ip_network("169.254.0.0/16"), ip_network("fe80::/10")),
    "private": tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))),
}
_MAPPED: Final = socket.inet_pton(socket.AF_INET6, "::ffff:0:0")[:12]
_EMBEDDED: Final = tuple(  # IPv4 inside IPv6: compatible, translated, NAT64
    socket.inet_pton(socket.AF_INET6, text)[:12] for text in ("::", "::ffff:0:0:0", "64:ff9b::")
)
_NAT64_LOCAL: Final = socket.inet_pton(socket.AF_INET6, "64:ff9b:1::")[:6]
_SIX_TO_FOUR: Final = b"\x20\x02"
_TEREDO: Final = b"\x20\x01\x00\x00"
_ISATAP: Final = (b"\x00\x00\x5e\xfe", b"\x02\x00\x5e\xfe")
_ANY: Final = {4: (bytes(4), bytes((127, 0, 0, 1))), 16: (bytes(16), bytes(15) + b"\x01")}


@dataclass(frozen=True, slots=True)
class Rules:
    """What the file says. An empty `allow` allows everything that is not denied; deny wins."""

    allow_networks: tuple[Network, ...] = ()
    deny_networks: tuple[Network, ...] = ()
    allow_metadata: bool = False
    allow_ports: tuple[tuple[int, int], ...] = ()
    deny_ports: tuple[tuple[int, int], ...] = ()
    allow_hosts: tuple[str, ...] = ()
    deny_hosts: tuple[str, ...] = ()
    allow_types: tuple[str, ...] = ()
    deny_types: tuple[str, ...] = ()
    env_prefix: str = "PROBE_"
    env_allow: tuple[str, ...] = ()
    definitions: int | None = None
    rate: float | None = None  # looks a second at one address and port
    file: Path | None = field(default=None, compare=False)


class Policy:
    """See the module. A complaint is a text that names the rule; None means that it may be."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        self._seen: dict[tuple[Address, int | None], str] = {}
        self._buckets: OrderedDict[tuple[bytes, int | None], tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def of_host(self, host: str) -> str | None:
        """The complaint about a host as it is written in a definition or a redirect."""
        rules = self.rules
        if not (rules.allow_hosts or rules.deny_hosts):
            return None
        name = plain_host(host)
        if any(_matches(name, pattern) for pattern in rules.deny_hosts):
            return f"the host {name[:100]!r} is denied (hosts.deny)"
        if rules.allow_hosts and not any(_matches(name, pattern) for pattern in rules.allow_hosts):
            return f"the host {name[:100]!r} is not allowed (hosts.allow)"
        return None

    def of_address(self, address: Address, port: int | None) -> str | None:
        """The complaint about an address and a port; `port` is None where there is none."""
        known = self._seen.get((address, port))
        if known is None:
            packed = socket.inet_pton(address.family, address.host.partition("%")[0])
            known = self._judged(packed, port) or ""
            if len(self._seen) >= KEPT:
                self._seen.clear()
            self._seen[address, port] = known
        return known or None

    def of_type(self, source_type: str) -> str | None:
        """The complaint about a source type."""
        rules = self.rules
        if source_type in rules.deny_types:
            return f"the source type {source_type} is denied (source_types.deny)"
        if rules.allow_types and source_type not in rules.allow_types:
            return f"the source type {source_type} is not allowed (source_types.allow)"
        return None

    def of_rate(self, address: Address, port: int | None, clock: Clock) -> str | None:
        """Counts one look at an address and port; the complaint where there were too many in the last second."""
        rate = self.rules.rate
        if rate is None:
            return None
        key = (socket.inet_pton(address.family, address.host.partition("%")[0]), port)
        most, now = max(1.0, rate), clock.monotonic()
        with self._lock:
            tokens, since = self._buckets.pop(key, (most, now))
            tokens = min(most, tokens + (now - since) * rate)
            self._buckets[key] = (tokens - 1 if tokens >= 1 else tokens, now)
            if len(self._buckets) > KEPT:
                self._buckets.popitem(last=False)
        return None if tokens >= 1 else f"more than {rate:g} looks a second at one target (limits.rate_per_target)"

    def restricted(self, found: Sequence[Definition]) -> list[Definition]:
        """The definitions, those above the highest number with a problem instead of their look."""
        most = self.rules.definitions
        if most is None or len(found) <= most:
            return list(found)
        text = f"{len(found)} definitions are more than the policy allows (limits.definitions = {most})"
        problem = Problem(DENIED, text)
        return [*found[:most], *(replace(definition, problem=problem) for definition in found[most:])]

    def _judged(self, packed: bytes, port: int | None) -> str | None:
        rules = self.rules
        own = packed[12:] if packed[:12] == _MAPPED else packed
        forms = [(len(way), int.from_bytes(way)) for way in (own, *_embedded(own))]
        if not rules.allow_metadata and _among(forms, METADATA):
            return "the address belongs to a cloud's metadata service"
        if _among(forms, rules.deny_networks):
            return "the address is denied (networks.deny)"
        if rules.allow_networks and not _among(forms[:1], rules.allow_networks):
            return "the address is not allowed (networks.allow)"
        if port is None:
            return None
        if any(low <= port <= high for low, high in rules.deny_ports):
            return f"port {port} is denied (ports.deny)"
        if rules.allow_ports and not any(low <= port <= high for low, high in rules.allow_ports):
            return f"port {port} is not allowed (ports.allow)"
        return None


def plain_host(host: str) -> str:
    """A host as rules are held against it: lower case, no dot at the end, an address in its one short form."""
    literal = parse_literal(host)
    if literal:
        return socket.inet_ntop(literal.family, socket.inet_pton(literal.family, literal.host.partition("%")[0]))
    return host.lower().rstrip(".")


def _matches(name: str, pattern: str) -> bool:
    return name.endswith(pattern[1:]) if pattern.startswith("*.") else name == pattern


def _among(forms: Iterable[tuple[int, int]], networks: Iterable[Network]) -> bool:
    return any(
        size * 8 == network.max_prefixlen and way & int(network.netmask) == int(network.network_address)
        for network in networks
        for size, way in forms
    )


def _embedded(packed: bytes) -> tuple[bytes, ...]:
    """The further addresses that one leads to: IPv4 inside IPv6, and loopback behind "any"."""
    nothing, loopback = _ANY[len(packed)]
    if packed == nothing:
        return (loopback,)
    if len(packed) == 4:
        return ()
    if packed[:2] == _SIX_TO_FOUR:
        return (packed[2:6],)
    if packed[:4] == _TEREDO:
        return (packed[4:8], bytes(255 - byte for byte in packed[12:]))
    if packed[:12] in _EMBEDDED or packed[:6] == _NAT64_LOCAL or packed[8:12] in _ISATAP:
        return (packed[12:],)
    return ()


# -- the file


def load(file: str | None, usual: Path = USUAL) -> Policy:
    """The policy of POLICY_FILE, or of the usual file where there is one; raises ConfigError."""
    path = Path(file) if file else usual
    if not file and not os.path.lexists(path):
        return Policy()
    return Policy(replace(parse(_read(path), path), file=path))


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as handle:
            facts = os.fstat(handle.fileno())
            _check_owner(path, facts)
            return handle.read()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "is not UTF-8"
        raise ConfigError("POLICY_FILE", str(path), f"cannot be read: {why}") from None


def _check_owner(path: Path, facts: os.stat_result) -> None:
    if facts.st_uid not in (0, os.geteuid()):
        raise ConfigError("POLICY_FILE", str(path), "must belong to root: chown root it")
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError("POLICY_FILE", str(path), "must not be writable by others: chmod go-w it")


def parse(text: str, path: Path = USUAL) -> Rules:
    """The rules of a file's text; raises ConfigError, which names the key."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("POLICY_FILE", str(path), f"is not TOML: {error}") from None
    tables = _Tables(content, path)
    networks, hosts = tables.take("networks"), tables.take("hosts")
    deny_hosts = hosts.lists("deny", _host)
    rules = Rules(
        allow_networks=tuple(n for group in networks.lists("allow", _network) for n in group),
        deny_networks=tuple(n for group in networks.lists("deny", _network) for n in group) + _literals(deny_hosts),
        allow_metadata=networks.flag("allow_metadata"),
        allow_hosts=hosts.lists("allow", _host),
        deny_hosts=deny_hosts,
        allow_ports=(ports := tables.take("ports")).lists("allow", _ports),
        deny_ports=ports.lists("deny", _ports),
        allow_types=(types := tables.take("source_types")).lists("allow", _word),
        deny_types=types.lists("deny", _word),
        env_prefix=(env := tables.take("env")).text("prefix", "PROBE_"),
        env_allow=env.lists("allow", _env_name),
        definitions=(limits := tables.take("limits")).number("definitions", whole=True),
        rate=limits.number("rate_per_target"),
    )
    tables.done()
    return rules


class _Tables:
    """The tables of the file, and the keys of one of them; what nobody takes is a mistake."""

    def __init__(self, content: Mapping[str, Any], path: Path, name: str = "") -> None:
        self._content = dict(content)
        self._path = path
        self._name = name
        self._taken: list[_Tables] = []

    def take(self, name: str) -> _Tables:
        value = self._content.pop(name, {})
        if not isinstance(value, dict):
            raise self._wrong(name, "must be a table")
        table = _Tables(value, self._path, f"{name}.")
        self._taken.append(table)
        return table

    def lists(self, key: str, rule: Callable[[Any], Any]) -> tuple[Any, ...]:
        value = self._content.pop(key, [])
        if not isinstance(value, list):
            raise self._wrong(key, "must be a list")
        out = []
        for item in value:
            try:
                out.append(rule(item))
            except (ValueError, TypeError) as error:
                raise self._wrong(key, f"{ascii(item)[:60]} {error}") from None
        return tuple(out)

    def flag(self, key: str) -> bool:
        value = self._content.pop(key, False)
        if not isinstance(value, bool):
            raise self._wrong(key, "must be true or false")
        return value

    def text(self, key: str, default: str) -> str:
        value = self._content.pop(key, default)
        if not isinstance(value, str) or not re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", value):
            raise self._wrong(key, "must be the beginning of names, such as PROBE_")
        return value

    def number(self, key: str, whole: bool = False) -> Any:
        value = self._content.pop(key, None)
        if value is None:
            return None
        right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not right or not 0 < value < 1_000_000:
            raise self._wrong(key, f"must be a positive {'whole ' if whole else ''}number")
        return value

    def done(self) -> None:
        for table in (self, *self._taken):
            for key in table._content:
                raise table._wrong(key, "is not known: mend its name or remove it")

    def _wrong(self, key: str, text: str) -> ConfigError:
        return ConfigError("POLICY_FILE", str(self._path), f"{self._name}{key}: {text}")


def _network(item: Any) -> tuple[Network, ...]:
    if not isinstance(item, str):
        raise TypeError("must be a text")
    if item in WORDS:
        return WORDS[item]
    try:
        return (ip_network(item),)
    except ValueError:
        raise ValueError(f"must be a network such as 10.0.0.0/8, or one of {', '.join(WORDS)}") from None


def _literals(hosts: Iterable[str]) -> tuple[Network, ...]:
    """Addresses among denied hosts are denied however they are written."""
    return tuple(ip_network(host) for host in hosts if parse_literal(host))


def _host(item: Any) -> str:
    if not isinstance(item, str) or not re.fullmatch(r"(\*\.)?[A-Za-z0-9_.:-]{1,253}", item):
        raise ValueError("must be a host's name, *.name or an address")
    return plain_host(item)


def _ports(item: Any) -> tuple[int, int]:
    low, dash, high = str(item).partition("-")
    if isinstance(item, bool) or not low.isdecimal() or not (high.isdecimal() or not dash):
        raise ValueError("must be a port such as 443, or a range such as 8000-8999")
    first, last = int(low), int(high or low)
    if not 1 <= first <= last <= 65535:
        raise ValueError("must lie in 1 to 65535")
    return first, last


def _word(item: Any) -> str:
    if not isinstance(item, str) or not re.fullmatch(r"[a-z_]{1,64}", item):
        raise ValueError("must be the name of a source type")
    return item


def _env_name(item: Any) -> str:
    if not isinstance(item, str) or not re.fullmatch(r"[A-Z][A-Z0-9_]{0,255}", item):
        raise ValueError("must be the name of an environment variable")
    return item
