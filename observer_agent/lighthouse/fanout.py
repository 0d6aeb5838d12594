"""What of a cluster's object could be watched. Pure: an object of the API in, `Discovered` items out.

Only these fields are read. Ingress: namespace, name, `spec.tls[].hosts`, `spec.rules[].host`, the paths' `path` and
`pathType`. Service: namespace, name, `spec.type`, `spec.clusterIP`, the ports' `name`, `port`, `protocol`. HTTPRoute:
namespace, name, `spec.hostnames`, `spec.rules[].matches[].path`. What is missing or of another type yields no item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from observer_agent.clouds._lighthouse_wire import Discovered

HIDDEN_NAMESPACES: Final = frozenset({"kube-system", "kube-public", "kube-node-lease"})
Thing = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of object: what the console calls it, where its lists are, and what it turns into."""

    name: str
    group: str
    resource: str
    fan: Callable[[Thing], Iterator[Discovered]]

    def path(self, namespace: str) -> str:
        """The path of its list in one namespace, or in all for an empty one."""
        return f"{self.group}/namespaces/{namespace}/{self.resource}" if namespace else f"{self.group}/{self.resource}"


def name_of(thing: Thing) -> tuple[str, str]:
    """Namespace and name of an object; empty where it has none."""
    found = _mapping(thing.get("metadata"))
    return _text(found.get("namespace")), _text(found.get("name"))


def items_of(kind: Kind, thing: Thing) -> tuple[Discovered, ...]:
    """What an object offers, each thing once."""
    namespace, name = name_of(thing)
    if not namespace or not name or namespace in HIDDEN_NAMESPACES:
        return ()
    return tuple(dict.fromkeys(kind.fan(thing)))


def order(item: Discovered) -> tuple[str, str, str, str, int, str, str]:
    """The key of a total order: two items that differ never compare as equal."""
    where = (item.kind, item.namespace, item.host, item.path or "", item.port or 0)
    return (*where, item.resource_name, item.protocol)


def ingress(thing: Thing) -> Iterator[Discovered]:
    """One item for each host and path; https where a TLS block names exactly this host."""
    namespace, name = name_of(thing)
    spec = _mapping(thing.get("spec"))
    secured = {host for block in _mappings(spec.get("tls")) for host in _texts(block.get("hosts"))}
    for rule in _mappings(spec.get("rules")):
        host = _text(rule.get("host"))
        for path in _mappings(_mapping(rule.get("http")).get("paths")):
            value = _text(path.get("path"))
            if host and value and path.get("pathType") != "ImplementationSpecific":
                yield Discovered(
                    "ingress", namespace, name, host, path=value, protocol="https" if host in secured else "http"
                )


def service(thing: Thing) -> Iterator[Discovered]:
    """One item for each port that can be reached from outside the cluster."""
    namespace, name = name_of(thing)
    spec = _mapping(thing.get("spec"))
    if spec.get("type") not in ("NodePort", "LoadBalancer") or spec.get("clusterIP") == "None":
        return
    for port in _mappings(spec.get("ports")):
        number = port.get("port")
        if isinstance(number, int) and 0 < number < 65_536 and (protocol := _protocol(port, number)):
            host = f"{name}.{namespace}.svc.cluster.local"
            yield Discovered("service", namespace, name, host, port=number, protocol=protocol)


def httproute(thing: Thing) -> Iterator[Discovered]:
    """One item for each host name and match; the gateway is taken to end TLS."""
    namespace, name = name_of(thing)
    spec = _mapping(thing.get("spec"))
    hosts = [host for host in _texts(spec.get("hostnames")) if host and not host.startswith("*")]
    rules = _mappings(spec.get("rules")) or [{}]
    matches = [match for rule in rules for match in _mappings(rule.get("matches")) or [{}]]
    for host in hosts:
        for match in matches:
            path = _mapping(match.get("path"))
            value = path.get("value", "/")
            if path.get("type") != "RegularExpression" and isinstance(value, str) and value:
                yield Discovered("httproute", namespace, name, host, path=value, protocol="https")


KINDS: Final = (
    Kind("ingress", "/apis/networking.k8s.io/v1", "ingresses", ingress),
    Kind("service", "/api/v1", "services", service),
    Kind("httproute", "/apis/gateway.networking.k8s.io/v1", "httproutes", httproute),
)


def _protocol(port: Thing, number: int) -> str | None:
    """What a service's port speaks, as far as its name and number tell; None where no check of ours could."""
    transport = port.get("protocol", "TCP")
    if transport == "UDP":
        return "udp"
    if transport != "TCP":
        return None
    name = port.get("name")
    if name in ("http", "https"):
        return cast("str", name)
    return {80: "http", 443: "https"}.get(number, "tcp")


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _texts(value: object) -> list[str]:
    return [item for item in _list(value) if isinstance(item, str)]


def _mapping(value: object) -> Thing:
    return value if isinstance(value, dict) else {}


def _mappings(value: object) -> list[Thing]:
    return [item for item in _list(value) if isinstance(item, dict)]


def _list(value: object) -> Iterable[object]:
    return value if isinstance(value, list) else ()
