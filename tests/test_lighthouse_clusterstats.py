"""Cluster metrics for a Lighthouse console, from an API server of the test's own making."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme

from observer_agent.clock import Clock
from observer_agent.lighthouse.clusterstats import ClusterStats
from observer_agent.lighthouse.clusterwords import NAMES, quantity
from observer_agent.lighthouse.figures import Figure
from observer_agent.lighthouse.kube import Account, Kube, KubeError
from observer_agent.resolver import Resolver
from tests.fakes import FakeClock

GI = 1024**3
Thing = dict[str, Any]


def node(name: str, *, ready: str = "True", cpu: object = "4", memory: object = "8Gi") -> Thing:
    conditions = [{"type": "DiskPressure", "status": "True"}, {"type": "Ready", "status": ready}]
    status = {"conditions": conditions, "allocatable": {"cpu": cpu, "memory": memory}}
    return {"metadata": {"name": name}, "status": status}


def pod(namespace: str, phase: str, *restarts: object) -> Thing:
    containers = [{"restartCount": n} for n in restarts]
    return {"metadata": {"namespace": namespace}, "status": {"phase": phase, "containerStatuses": containers}}


def volume(namespace: str, name: str, used: object, whole: object = 100) -> Thing:
    return {"pvcRef": {"namespace": namespace, "name": name}, "usedBytes": used, "capacityBytes": whole}


def summary(nanos: object = 1_000_000_000, memory: object = 2 * GI, *volumes: Thing) -> Thing:
    about = {
        "cpu": {"usageNanoCores": nanos},
        "memory": {"workingSetBytes": memory, "usageBytes": 7 * GI},
        "fs": {"usedBytes": 30, "capacityBytes": 120},
        "runtime": {"imageFs": {"usedBytes": 1, "capacityBytes": 2}},
        "network": {"rxBytes": 1_000, "txBytes": 2_000},
    }
    return {"node": about, "pods": [{"volume": [{"name": "tmp", "usedBytes": 1, "capacityBytes": 2}, *volumes]}]}


class Api:
    """Lists and summaries as they were handed in; an exception among them is raised."""

    def __init__(self, **summaries: Thing | Exception) -> None:
        self.nodes: list[Thing] | Exception = [node(name) for name in summaries]
        self.pods: list[Thing] | Exception = [pod("default", "Running", 1)]
        self.claims: list[Thing] | Exception = [{}, {}]
        self.summaries: Mapping[str, Thing | Exception] = summaries
        self.asked: list[tuple[str, float]] = []

    def pages(self, path: str, seconds: float) -> Iterator[Thing]:
        self.asked.append((path, seconds))
        found = {"nodes": self.nodes, "pods": self.pods, "persistentvolumeclaims": self.claims}[path.rpartition("/")[2]]
        if isinstance(found, Exception):
            raise found
        yield from found

    def get(self, path: str, query: Mapping[str, str], seconds: float) -> Thing:
        self.asked.append((path, seconds))
        name = path.removeprefix("/api/v1/nodes/").removesuffix("/proxy/stats/summary")
        found = self.summaries[name]
        if isinstance(found, Exception):
            raise found
        return found


def table(figures: list[Figure]) -> dict[str, float]:
    return {" ".join((figure.name, *(value for _, value in figure.labels))): figure.value for figure in figures}


def test_every_name_and_no_other() -> None:
    api = Api(a=summary(1_000_000_000, 2 * GI, volume("db", "data", 25)), b=summary(3_000_000_000, 6 * GI))
    look = ClusterStats(api, Clock()).collect()
    assert {figure.name for figure in look.figures} == NAMES
    assert look.faults == {} and look.left_out == {"namespace": 0, "node": 0, "claim": 0}
    assert table(look.figures) == {
        "k8s_node_count": 2,
        "k8s_nodes_ready": 2,
        "k8s_nodes_not_ready": 0,
        "k8s_pvc_count": 2,
        "k8s_pods_running default": 1,
        "k8s_pods_pending default": 0,
        "k8s_pods_failed default": 0,
        "k8s_pods_restarts_total default": 1,
        "k8s_node_cpu_used_percent a": 25.0,
        "k8s_node_cpu_used_percent b": 75.0,
        "k8s_node_memory_used_percent a": 25.0,
        "k8s_node_memory_used_percent b": 75.0,
        **{f"k8s_node_imagefs_used_percent {name}": 25.0 for name in "ab"},
        **{f"k8s_node_net_rx_bytes_total {name}": 1_000 for name in "ab"},
        **{f"k8s_node_net_tx_bytes_total {name}": 2_000 for name in "ab"},
        "k8s_cluster_cpu_used_percent": 50.0,
        "k8s_cluster_memory_used_percent": 50.0,
        "k8s_pvc_used_percent db data": 25.0,
    }
    assert {figure.labels for figure in look.figures if figure.name == "k8s_pvc_used_percent"} == {
        (("namespace", "db"), ("persistentvolumeclaim", "data"))
    }
    assert {seconds for path, seconds in api.asked if "proxy" in path} == {5.0}
    assert {seconds for path, seconds in api.asked if "proxy" not in path} == {15.0}


def test_nodes_that_are_not_ready_or_do_not_say_so() -> None:
    api = Api()
    api.nodes = [node("a"), node("b", ready="False"), node("c", ready="Unknown"), {"metadata": {"name": "d"}}, {}]
    api.summaries = {name: KubeError(503, "no kubelet") for name in "abcd"}
    look = ClusterStats(api, Clock()).collect()
    found = table(look.figures)
    assert (found["k8s_node_count"], found["k8s_nodes_ready"], found["k8s_nodes_not_ready"]) == (5, 1, 4)
    assert look.faults["kubelets"] == "4 of 4 nodes gave none (status 503: no kubelet)" and look.left_out["node"] == 4


def test_pods_by_phase_and_namespace() -> None:
    api = Api()
    api.pods = [
        pod("a", "Running", 2, 3),
        pod("a", "Pending"),
        pod("a", "Succeeded", 4),
        pod("b", "Failed", "many", -1, True),
        {"metadata": {"namespace": "b"}, "status": {"phase": ["odd"], "containerStatuses": "odd"}},
        {"metadata": None, "status": None},
    ]
    found = table(ClusterStats(api, Clock()).collect().figures)
    assert found["k8s_pods_running a"] == 1 and found["k8s_pods_pending a"] == 1 and found["k8s_pods_failed a"] == 0
    assert found["k8s_pods_restarts_total a"] == 9
    assert found["k8s_pods_failed b"] == 1 and found["k8s_pods_restarts_total b"] == 0


def test_w23_namespaces_and_claims_over_the_cap_are_counted() -> None:
    api = Api(a=summary(1, 1, *(volume("db", f"c{n:03}", 50) for n in reversed(range(130)))))
    api.pods = [pod(f"n{n:02}", "Running") for n in reversed(range(70))]
    look = ClusterStats(api, Clock()).collect()
    spaces = [figure.labels[0][1] for figure in look.figures if figure.name == "k8s_pods_running"]
    claims = [figure.labels[1][1] for figure in look.figures if figure.name == "k8s_pvc_used_percent"]
    assert spaces == [f"n{n:02}" for n in range(64)] and claims == [f"c{n:03}" for n in range(128)]
    assert look.left_out == {"namespace": 6, "node": 0, "claim": 2}


@pytest.mark.parametrize("zero", [0, None, "1", -5, True, float("nan"), float("inf"), {}])
def test_a_usage_that_is_not_known_is_no_figure(zero: object) -> None:
    api = Api(a=summary(zero, zero, volume("db", "data", zero), volume("db", "more", 1, zero)), b=summary())
    found = table(ClusterStats(api, Clock()).collect().figures)
    assert not [name for name in found if name.endswith(("cpu_used_percent a", "memory_used_percent a"))]
    assert not [name for name in found if name.startswith("k8s_pvc_used")]
    assert found["k8s_cluster_cpu_used_percent"] == 25.0, "of the nodes that answered"
    assert found["k8s_node_imagefs_used_percent a"] == 25.0


@pytest.mark.parametrize(
    "answer", [{}, {"node": None, "pods": {}}, {"node": {"cpu": []}, "pods": [None, {"volume": 7}]}]
)
def test_a_summary_of_another_shape_gives_no_figures(answer: Thing) -> None:
    look = ClusterStats(Api(a=answer), Clock()).collect()
    assert not [figure for figure in look.figures if figure.labels and figure.labels[0][0] == "node"]


def test_traffic_of_zero_is_not_known() -> None:
    answer = summary()
    answer["node"]["network"] = {"rxBytes": 0, "txBytes": 5}
    found = table(ClusterStats(Api(a=answer), Clock()).collect().figures)
    assert "k8s_node_net_rx_bytes_total a" not in found and found["k8s_node_net_tx_bytes_total a"] == 5


def test_a_claim_that_several_pods_mount_counts_once() -> None:
    shared = volume("db", "data", 40)
    found = ClusterStats(Api(a=summary(1, 1, shared, shared), b=summary(1, 1, shared)), Clock()).collect().figures
    assert [figure.value for figure in found if figure.name == "k8s_pvc_used_percent"] == [40.0]


@pytest.mark.parametrize(
    ("broken", "missing"),
    [
        ("nodes", {"k8s_node_", "k8s_nodes_", "k8s_cluster_", "k8s_pvc_used"}),
        ("pods", {"k8s_pods_"}),
        ("claims", {"k8s_pvc_count"}),
    ],
)
def test_a_list_that_fails_leaves_out_its_section_alone(broken: str, missing: set[str]) -> None:
    api = Api(a=summary(1, 1, volume("db", "data", 1)))
    setattr(api, broken, KubeError(403, "nodes is forbidden"))
    look = ClusterStats(api, Clock()).collect()
    assert {figure.name for figure in look.figures} == {name for name in NAMES if not name.startswith(tuple(missing))}
    assert look.faults == {broken: "status 403: nodes is forbidden"}


def test_one_kubelet_that_fails_does_not_hide_the_others() -> None:
    api = Api(a=summary(), b=KubeError(0, "timed out"), c=summary())
    look = ClusterStats(api, Clock()).collect()
    seen = [figure.labels[0][1] for figure in look.figures if figure.name == "k8s_node_cpu_used_percent"]
    assert seen == ["a", "c"] and look.left_out["node"] == 1
    assert look.faults == {"kubelets": "1 of 3 nodes gave none (timed out)"}


def test_names_of_nodes_are_quoted() -> None:
    api = Api()
    api.nodes = [node("../../x?y")]
    api.summaries = {"..%2F..%2Fx%3Fy": summary()}
    assert ClusterStats(api, Clock()).collect().left_out["node"] == 0


def test_kubelets_are_asked_by_eight_at_a_time() -> None:
    gate = threading.Barrier(8)

    class Together(Api):
        def get(self, path: str, query: Mapping[str, str], seconds: float) -> Thing:
            gate.wait(20)  # passes only while exactly eight ask
            return super().get(path, query, seconds)

    look = ClusterStats(Together(**{f"n{n:02}": summary() for n in range(24)}), Clock()).collect()
    assert look.left_out["node"] == 0 and look.faults == {}


def test_kubelets_that_hang_are_not_waited_for() -> None:
    release = threading.Event()

    class Hanging(Api):
        def get(self, path: str, query: Mapping[str, str], seconds: float) -> Thing:
            if "/bad" in path:
                assert release.wait(30)
            return super().get(path, query, seconds)

    clock = Clock()
    api = Hanging(**{f"bad{n}": summary() for n in range(3)}, good=summary())
    begun = clock.monotonic()
    try:
        look = ClusterStats(api, clock, budget=0.5).collect()
    finally:
        release.set()
    assert clock.monotonic() - begun < 10
    assert [figure.labels[0][1] for figure in look.figures if figure.name == "k8s_node_cpu_used_percent"] == ["good"]
    assert look.left_out["node"] == 3


def test_after_its_time_no_kubelet_is_asked_any_more() -> None:
    release = threading.Event()

    class Hanging(Api):
        def get(self, path: str, query: Mapping[str, str], seconds: float) -> Thing:
            found = super().get(path, query, seconds)
            assert release.wait(30)
            return found

    def asking() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("kubelet-")]

    api = Hanging(**{f"n{n:02}": summary() for n in range(20)})
    before = asking()
    look = ClusterStats(api, Clock(), budget=0.5).collect()
    release.set()
    for thread in asking():
        if thread not in before:
            thread.join(20)
    assert look.left_out["node"] == 20 and "20 of 20 nodes gave none (no time was left)" in look.faults["kubelets"]
    assert len([path for path, _ in api.asked if "proxy" in path]) == 8


def test_lists_that_take_too_long_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()

    class Slow(Api):
        def pages(self, path: str, seconds: float) -> Iterator[Thing]:
            for thing in super().pages(path, seconds):
                clock.advance(20)
                yield thing

    api = Slow()
    api.pods = [pod("a", "Running")] * 10
    look = ClusterStats(api, clock).collect()
    assert look.faults["pods"] == "not read to its end within 60 s" and len(look.figures) == 3
    assert "Looking at the cluster took 100 s, and may take 60 s at most" in caplog.text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4.0),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1500m", 1.5),
        ("250u", 0.00025),
        ("8Gi", 8 * GI),
        ("1Ei", 1024.0**6),
        ("32761316Ki", 32761316 * 1024.0),
        ("2k", 2_000.0),
        ("2K", 2_000.0),
        ("3M", 3e6),
        ("1E", 1e18),
        ("1e3", 1_000.0),
        ("12E2", 1_200.0),
        (" 7 ", 7.0),
        ("-1", None),
        ("", None),
        ("Gi", None),
        ("1Zi", None),
        ("1 Gi", None),
        ("1e999", None),
        ("0x10", None),
        ("1_000", None),
        ("٣", None),
        ("9" * 400, None),
        (4, None),
        (None, None),
    ],
)
def test_quantities(text: object, value: float | None) -> None:
    found = quantity(text)
    assert found is None if value is None else found == pytest.approx(value)


class Handler(BaseHTTPRequestHandler):
    """As much of an API server as the cluster's metrics ask: lists in pages, and the proxy to kubelets."""

    protocol_version = "HTTP/1.1"
    asked: list[str]
    lists: Mapping[str, list[Thing]]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.asked.append(self.path)
        name = url.path.rpartition("/")[2]
        if self.headers["Authorization"] != "Bearer token-one":
            self._answer(401, {"message": "who are you"})
        elif name == "persistentvolumeclaims":
            self._answer(403, {"kind": "Status", "message": "persistentvolumeclaims is forbidden"})
        elif name == "summary":
            self._answer(200, summary())
        else:
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            start, limit = int(query.get("continue", 0)), int(query["limit"])
            rest = str(start + limit) if start + limit < len(self.lists[name]) else ""
            self._answer(200, {"metadata": {"continue": rest}, "items": self.lists[name][start : start + limit]})

    def _answer(self, status: int, found: Thing) -> None:
        data = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Says nothing."""


@contextmanager
def api_server(folder: Path, **lists: list[Thing]) -> Iterator[tuple[Kube, list[str]]]:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    (folder / "token").write_text("token-one")
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Mine", (Handler,), {"asked": asked, "lists": lists}))
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    clock = Clock()
    try:
        yield Kube(Account("127.0.0.1", server.server_address[1], folder), clock=clock, resolver=Resolver(clock)), asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.mark.slow
def test_w24_a_real_api_server_in_pages_and_many_kubelets_at_once(tmp_path: Path) -> None:
    nodes = [node(f"n{n:02}") for n in range(20)]
    pods = [pod(f"space{n % 3}", "Running", 1) for n in range(1_200)]
    with api_server(tmp_path, nodes=nodes, pods=pods) as (kube, asked):
        look = ClusterStats(kube, Clock()).collect()
        found = table(look.figures)
        assert found["k8s_node_count"] == 20
        assert [found[f"k8s_pods_running space{n}"] for n in range(3)] == [400] * 3
        assert look.faults == {"claims": "status 403: persistentvolumeclaims is forbidden"}
        assert look.left_out["node"] == 0 and found["k8s_cluster_cpu_used_percent"] == 25.0
        assert len([path for path in asked if path.startswith("/api/v1/pods")]) == 3
        (tmp_path / "token").write_text("token-two")
        look = ClusterStats(kube, Clock()).collect()
        assert look.figures == [] and look.faults["nodes"] == "status 401: who are you", "the token is read each time"
