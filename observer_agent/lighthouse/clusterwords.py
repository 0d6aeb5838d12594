"""Objects of the Kubernetes API and summaries of kubelets to figures: pure, and wary of every field.

A usage of zero means that the kubelet does not know (yet): there is no figure of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from observer_agent.lighthouse.figures import Figure, percent

NAMESPACES_MAX: Final = 64
CLAIMS_MAX: Final = 128

NAMES: Final = frozenset(
    """
    k8s_node_count k8s_nodes_ready k8s_nodes_not_ready k8s_pvc_count
    k8s_pods_running k8s_pods_pending k8s_pods_failed k8s_pods_restarts_total
    k8s_node_cpu_used_percent k8s_node_memory_used_percent k8s_node_imagefs_used_percent
    k8s_node_net_rx_bytes_total k8s_node_net_tx_bytes_total
    k8s_cluster_cpu_used_percent k8s_cluster_memory_used_percent k8s_pvc_used_percent
    """.split()
)
_PHASES: Final = {"Running": "k8s_pods_running", "Pending": "k8s_pods_pending", "Failed": "k8s_pods_failed"}
_RESTARTS: Final = "k8s_pods_restarts_total"

_QUANTITY: Final = re.compile(
    r"(\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})([eE][+-]?\d{1,3}|[KMGTPE]i|[numkKMGTPE])?", re.ASCII
)
_SUFFIXES: Final[Mapping[str, float]] = {
    "n": 1e-9,
    "u": 1e-6,
    "m": 1e-3,
    "k": 1e3,
    **{letter: 1000.0**n for n, letter in enumerate("KMGTPE", 1)},
    **{f"{letter}i": 1024.0**n for n, letter in enumerate("KMGTPE", 1)},
}


class Node(NamedTuple):
    """A node: processors and bytes that pods may have; None where it does not say."""

    name: str
    ready: bool
    cpu: float | None
    memory: float | None


class Claim(NamedTuple):
    """A persistent volume claim."""

    namespace: str
    name: str


class Usage(NamedTuple):
    """What a kubelet says of its node; None where it does not know. `claims` are percentages."""

    cpu: float | None
    memory: float | None
    disk: float | None
    received: float | None
    sent: float | None
    claims: Mapping[Claim, float]


def quantity(text: object) -> float | None:
    """A quantity of Kubernetes as a number; None for one that is negative, infinite or none at all."""
    found = _QUANTITY.fullmatch(text.strip()) if isinstance(text, str) else None
    if not found:
        return None
    digits, suffix = found[1], found[2] or ""
    value = float(digits) * _SUFFIXES[suffix] if suffix in _SUFFIXES else float(digits + suffix)
    return value if math.isfinite(value) else None


def node(thing: Mapping[str, Any]) -> Node:
    """A node of the API's list."""
    status = _object(thing, "status")
    conditions = _objects(status, "conditions")
    ready = any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)
    room = _object(status, "allocatable")
    return Node(_text(thing, "metadata", "name"), ready, quantity(room.get("cpu")), quantity(room.get("memory")))


def node_counts(nodes: Iterable[Node]) -> list[Figure]:
    """How many nodes there are, and how many of them are ready."""
    ready = [node.ready for node in nodes]
    return [
        Figure("k8s_node_count", len(ready)),
        Figure("k8s_nodes_ready", sum(ready)),
        Figure("k8s_nodes_not_ready", len(ready) - sum(ready)),
    ]


def pod_counts(pods: Iterable[Mapping[str, Any]]) -> tuple[list[Figure], int]:
    """Pods by phase and restarts of their containers for each namespace, and how many namespaces were left out."""
    found: dict[str, dict[str, float]] = {}
    for pod in pods:
        counts = found.setdefault(_text(pod, "metadata", "namespace"), dict.fromkeys((*_PHASES.values(), _RESTARTS), 0))
        status = _object(pod, "status")
        phase = _PHASES.get(str(status.get("phase")))
        if phase:
            counts[phase] += 1
        counts[_RESTARTS] += sum(_number(each, "restartCount") or 0 for each in _objects(status, "containerStatuses"))
    shown = sorted(found)[:NAMESPACES_MAX]
    figures = [Figure(name, value, (("namespace", space),)) for space in shown for name, value in found[space].items()]
    return figures, len(found) - len(shown)


def usage(answer: Mapping[str, Any]) -> Usage:
    """A kubelet's summary."""
    about = _object(answer, "node")
    disk, net = _object(about, "fs"), _object(about, "network")
    nanos = _number(_object(about, "cpu"), "usageNanoCores")
    return Usage(
        cpu=nanos / 1e9 if nanos else None,
        memory=_number(_object(about, "memory"), "workingSetBytes"),
        disk=_part(disk),
        received=_number(net, "rxBytes"),
        sent=_number(net, "txBytes"),
        claims=dict(_claims(answer)),
    )


def _claims(answer: Mapping[str, Any]) -> Iterator[tuple[Claim, float]]:
    for pod in _objects(answer, "pods"):
        for volume in _objects(pod, "volume"):
            claim = Claim(_text(volume, "pvcRef", "namespace"), _text(volume, "pvcRef", "name"))
            part = _part(volume)
            if all(claim) and part is not None:
                yield claim, part


def _part(thing: Mapping[str, Any]) -> float | None:
    used, whole = _number(thing, "usedBytes"), _number(thing, "capacityBytes")
    return percent(used, whole) if used and whole else None


def node_usage(node: Node, usage: Usage) -> Iterator[Figure]:
    """How much of what it may give to pods a node uses, and its traffic. What is called imagefs is the node's disk."""
    values = {
        "k8s_node_cpu_used_percent": percent(usage.cpu, node.cpu) if usage.cpu and node.cpu else None,
        "k8s_node_memory_used_percent": percent(usage.memory, node.memory) if usage.memory and node.memory else None,
        "k8s_node_imagefs_used_percent": usage.disk,
        "k8s_node_net_rx_bytes_total": usage.received,
        "k8s_node_net_tx_bytes_total": usage.sent,
    }
    labels = (("node", node.name),)
    yield from (Figure(name, value, labels) for name, value in values.items() if value is not None)


def cluster_usage(nodes: Mapping[str, Node], usages: Mapping[str, Usage]) -> Iterator[Figure]:
    """Of all nodes that answered together."""
    pairs = [(usage, nodes[name]) for name, usage in usages.items()]
    resources = {
        "k8s_cluster_cpu_used_percent": [(usage.cpu, node.cpu) for usage, node in pairs],
        "k8s_cluster_memory_used_percent": [(usage.memory, node.memory) for usage, node in pairs],
    }
    for name, both in resources.items():
        known = [(used, whole) for used, whole in both if used and whole]
        if known:
            yield Figure(name, percent(sum(used for used, _ in known), sum(whole for _, whole in known)))


def claim_usage(usages: Iterable[Usage]) -> tuple[list[Figure], int]:
    """How full each claim is, once, whichever pods mount it, and how many were left out."""
    found = {claim: part for usage in usages for claim, part in usage.claims.items()}
    shown = sorted(found)[:CLAIMS_MAX]
    figures = [
        Figure(
            "k8s_pvc_used_percent",
            found[claim],
            (("namespace", claim.namespace), ("persistentvolumeclaim", claim.name)),
        )
        for claim in shown
    ]
    return figures, len(found) - len(shown)


def _object(thing: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = thing.get(name)
    return found if isinstance(found, dict) else {}


def _objects(thing: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = thing.get(name)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _text(thing: Mapping[str, Any], place: str, name: str) -> str:
    found = _object(thing, place).get(name)
    return found if isinstance(found, str) else ""


def _number(thing: Mapping[str, Any], name: str) -> float | None:
    """A number above zero; None for zero, which stands for not known, and for anything else."""
    found = thing.get(name)
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < 1e300:
        return None
    return float(found)
