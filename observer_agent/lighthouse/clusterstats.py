"""What the API server and the kubelets say of a cluster, as metrics for a Lighthouse console.

Lists of nodes, pods and claims and each node's summary in, figures out. A list that fails leaves out its section alone.
Runs on the worker `host-metrics`; kubelets are asked through the API server by up to 8 threads that end by themselves.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Protocol
from urllib.parse import quote

from observer_agent.clock import Clock
from observer_agent.lighthouse import clusterwords as words
from observer_agent.lighthouse.clusterwords import Node, Usage
from observer_agent.lighthouse.figures import Figure, Look
from observer_agent.lighthouse.kube import KubeError
from observer_agent.logs import Throttle
from observer_agent.worker import spawn

log = logging.getLogger(__name__)

BUDGET: Final = 60.0
WARN_PART: Final = 0.7  # of the budget
CALL_SECONDS: Final = 15.0
KUBELET_SECONDS: Final = 5.0
THREADS: Final = 8
WARN: Final = 3_600.0


class Api(Protocol):
    """What is asked of the API server; both raise KubeError. `get` is called from several threads at once."""

    def get(self, path: str, query: Mapping[str, str], seconds: float, /) -> Mapping[str, Any]:
        """One answer, a JSON object."""

    def pages(self, path: str, seconds: float, /) -> Iterator[Mapping[str, Any]]:
        """Every object of a list, a page at a time, each within `seconds`."""


class ClusterStats:
    """See the module; one thread calls."""

    names = words.NAMES

    def __init__(self, api: Api, clock: Clock, budget: float = BUDGET) -> None:
        self._api = api
        self._clock = clock
        self._budget = budget
        self._warn = Throttle(clock, WARN)
        self._until = 0.0
        self._nodes: dict[str, Node] = {}
        self._left_out: dict[str, int] = {}
        self._faults: dict[str, str] = {}

    def restart(self) -> None:
        """Nothing is kept between two looks."""

    def collect(self) -> Look:
        """One look, within a minute."""
        begun = self._clock.monotonic()
        self._until, self._nodes = begun + self._budget, {}
        self._left_out, self._faults = {}, {}
        sections: Mapping[str, Callable[[], Iterable[Figure]]] = {
            "nodes": self._count_nodes,
            "pods": self._count_pods,
            "claims": self._count_claims,
            "kubelets": self._usage,
        }
        figures = [figure for name, section in sections.items() for figure in self._tried(name, section)]
        self._watch(self._clock.monotonic() - begun)
        return Look(figures, self._left_out, self._faults)

    def _tried(self, name: str, section: Callable[[], Iterable[Figure]]) -> Iterable[Figure]:
        try:
            return section()
        except KubeError as error:
            self._faults[name] = text_of(error)
            return ()

    def _count_nodes(self) -> list[Figure]:
        nodes = [words.node(thing) for thing in self._list("/api/v1/nodes")]
        self._nodes = {node.name: node for node in nodes if node.name}
        return words.node_counts(nodes)

    def _count_pods(self) -> list[Figure]:
        figures, self._left_out["namespace"] = words.pod_counts(self._list("/api/v1/pods"))
        return figures

    def _count_claims(self) -> list[Figure]:
        return [Figure("k8s_pvc_count", sum(1 for _ in self._list("/api/v1/persistentvolumeclaims")))]

    def _usage(self) -> list[Figure]:
        usages, fault = Kubelets(self._api, self._clock, self._nodes).ask(self._until)
        self._left_out["node"] = len(self._nodes) - len(usages)
        if len(usages) < len(self._nodes):
            self._faults["kubelets"] = f"{self._left_out['node']} of {len(self._nodes)} nodes gave none ({fault})"
        found = [figure for name in usages for figure in words.node_usage(self._nodes[name], usages[name])]
        found += words.cluster_usage(self._nodes, usages)
        claims, self._left_out["claim"] = words.claim_usage(usages.values())
        return found + claims

    def _list(self, path: str) -> Iterator[Mapping[str, Any]]:
        for thing in self._api.pages(path, CALL_SECONDS):
            if self._clock.monotonic() > self._until:
                raise KubeError(0, f"not read to its end within {self._budget:.0f} s")
            yield thing

    def _watch(self, took: float) -> None:
        if took > WARN_PART * self._budget and self._warn.ready():
            log.warning("Looking at the cluster took %.0f s, and may take %.0f s at most", took, self._budget)


class Kubelets:
    """The summaries of nodes, asked for by several threads; those that are late are not waited for."""

    def __init__(self, api: Api, clock: Clock, names: Iterable[str]) -> None:
        self._api = api
        self._clock = clock
        self._waiting = sorted(names, reverse=True)
        self._lock = threading.Lock()
        self._done = clock.alarm()
        self._threads = 0
        self._usages: dict[str, Usage] = {}
        self._fault = "no time was left"

    def ask(self, until: float) -> tuple[dict[str, Usage], str]:
        """What was answered by then, in the order of the names, and why the last one that failed did."""
        if until > self._clock.monotonic():
            self._threads = min(THREADS, len(self._waiting))
            for n in range(self._threads):
                spawn(f"kubelet-{n + 1}", self._run)
        while self._threads and (left := until - self._clock.monotonic()) > 0:
            self._done.wait(left)
        with self._lock:
            self._waiting.clear()
            return dict(sorted(self._usages.items())), self._fault

    def _run(self) -> None:
        try:
            while (name := self._next()) is not None:
                self._ask(name)
        finally:
            with self._lock:
                self._threads -= 1
            self._done.ring()

    def _next(self) -> str | None:
        with self._lock:
            return self._waiting.pop() if self._waiting else None

    def _ask(self, name: str) -> None:
        path = f"/api/v1/nodes/{quote(name, safe='')}/proxy/stats/summary"
        try:
            found = words.usage(self._api.get(path, {}, KUBELET_SECONDS))
        except KubeError as error:
            self._fault = text_of(error)
            return
        with self._lock:
            self._usages[name] = found


def text_of(error: KubeError) -> str:
    """What the API server said, for a person."""
    return f"status {error.status}: {error}" if error.status else str(error)
