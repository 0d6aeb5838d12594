"""When host metrics are collected and sent: the operator's leave, the console's order, and what an answer does."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import cramjam
import pytest

from observer_agent.clock import Clock
from observer_agent.hub.remote_format import request_class
from observer_agent.lighthouse.clusterstats import ClusterStats
from observer_agent.lighthouse.figures import Figure, Look
from observer_agent.lighthouse.hostfiles import NAMES, HostFiles
from observer_agent.lighthouse.hostmetrics import HostMetrics, collectors
from observer_agent.lighthouse.kube import KubeError
from observer_agent.lighthouse.mounts import Places
from observer_agent.selfmetrics import SelfMetrics
from observer_agent.worker import Worker
from tests.fakes import FakeClock
from tests.hub_lighthouses import TOKEN, lighthouse_hub

ID = "0b0d4a3e-6f4e-4d8e-9a52-1f6a8f1f2a11"


class Wanted(NamedTuple):
    enabled: bool
    interval: float | None = 30.0


class Console:
    """Takes bodies and answers with the statuses in turn, the last one for ever."""

    def __init__(self, *statuses: int) -> None:
        self._statuses = list(statuses or (204,))
        self.bodies: list[bytes] = []

    def __call__(self, body: bytes) -> int:
        self.bodies.append(body)
        return self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]

    def series(self, at: int = -1) -> list[tuple[dict[str, str], float, int]]:
        """Labels, value and stamp of each series in one of the bodies."""
        request = request_class().FromString(bytes(cramjam.snappy.decompress_raw(self.bodies[at])))
        return [
            ({pair.name: pair.value for pair in one.labels}, one.samples[0].value, one.samples[0].timestamp)
            for one in request.timeseries
        ]

    def names(self, at: int = -1) -> list[str]:
        return [labels["__name__"] for labels, _, _ in self.series(at)]


class Counting:
    """A collector whose figure is the number of the look since the last restart."""

    names = frozenset({"looks", "load1"})

    def __init__(self, *more: Figure, faults: dict[str, str] | None = None) -> None:
        self.n = self.restarts = 0
        self._more = more
        self._faults = faults or {}

    def restart(self) -> None:
        self.restarts += 1
        self.n = 0

    def collect(self) -> Look:
        self.n += 1
        return Look([Figure("looks", float(self.n)), *self._more], {"disk": 2}, self._faults)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


Make = Callable[..., HostMetrics]


@pytest.fixture
def make(clock: FakeClock) -> Make:
    def made(console: Console, collector: Counting | None = None, allowed: bool = True) -> HostMetrics:
        return HostMetrics(console, [collector or Counting()], clock, allowed=allowed, host="vm-1")

    return made


def run(metrics: HostMetrics, clock: FakeClock, seconds: float) -> None:
    """The worker's turns until `seconds` have passed."""
    end = clock.monotonic() + seconds
    while clock.monotonic() < end:
        clock.advance(min(max(metrics.step(), 0.001), end - clock.monotonic()))


def test_the_first_look_is_at_once_and_the_others_on_a_grid(make: Make, clock: FakeClock) -> None:
    console = Console()
    metrics = make(console)
    assert metrics.step() == 60.0 and console.bodies == [], "nothing is ordered yet"
    metrics.registered(ID, Wanted(True, 30.0))
    run(metrics, clock, 95)
    assert len(console.bodies) == 4
    assert [console.series(at)[0][1] for at in range(4)] == [1.0, 2.0, 3.0, 4.0]
    stamps = [console.series(at)[0][2] for at in range(4)]
    assert [later - stamps[0] for later in stamps] == [0, 30_000, 60_000, 90_000]
    assert console.series()[0][0] == {"__name__": "looks", "host": "vm-1", "lighthouse_id": ID}
    assert metrics.tally.sent == 4 and metrics.tally.lost == 0 and metrics.tally.status == 204


def test_the_console_alone_cannot_turn_it_on(make: Make, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    console, collector = Console(), Counting()
    metrics = make(console, collector, allowed=False)
    metrics.registered(ID, Wanted(True))
    for _ in range(3):
        run(metrics, clock, 60)
        metrics.orders(Wanted(True))
    assert console.bodies == [] and collector.n == 0 and metrics.interval is None
    assert caplog.text.count("LIGHTHOUSE_HOST_METRICS=true") == 1


def test_the_operator_alone_cannot_turn_it_on(make: Make, clock: FakeClock) -> None:
    console, collector = Console(), Counting()
    metrics = make(console, collector)
    for order in (None, Wanted(False, 30.0), Wanted(False, 0)):
        metrics.registered(ID, order)
        run(metrics, clock, 120)
    assert console.bodies == [] and collector.n == 0


def test_absent_in_a_heartbeat_changes_nothing_absent_in_a_registration_ends_it(make: Make, clock: FakeClock) -> None:
    console = Console()
    metrics = make(console)
    metrics.orders(None)
    assert metrics.step() == 60.0 and not console.bodies
    metrics.registered(ID, Wanted(True))
    run(metrics, clock, 10)
    metrics.orders(None)
    run(metrics, clock, 30)
    assert len(console.bodies) == 2
    metrics.registered(ID, None)
    run(metrics, clock, 300)
    assert len(console.bodies) == 2
    metrics.orders(Wanted(True))
    run(metrics, clock, 1)
    assert len(console.bodies) == 3, "the same order as long before is a new one now"


def test_the_same_order_again_is_none_another_one_starts_afresh(make: Make, clock: FakeClock) -> None:
    console, collector = Console(), Counting()
    metrics = make(console, collector)
    woken: list[int] = []
    metrics.wake = lambda: woken.append(1)
    metrics.registered(ID, Wanted(True, 30.0))
    run(metrics, clock, 10)
    for order in (Wanted(True, 30.0), Wanted(True, 0), Wanted(True, 30.0)):  # 30 s is what 0 means
        metrics.orders(order)
        run(metrics, clock, 1)
    assert (len(console.bodies), collector.restarts, len(woken)) == (1, 1, 1)
    metrics.orders(Wanted(True, 10.0))
    run(metrics, clock, 11)
    assert (len(console.bodies), collector.restarts, len(woken)) == (3, 2, 2)
    assert [console.series(at)[0][1] for at in range(3)] == [1.0, 1.0, 2.0]
    metrics.orders(Wanted(False, 10.0))
    run(metrics, clock, 100)
    assert len(console.bodies) == 3 and metrics.interval is None


@pytest.mark.parametrize(
    ("wanted", "interval"),
    [(0, 30.0), (-5, 30.0), (None, 30.0), (1, 5.0), (5, 5.0), (7.5, 7.5), (1e9, 86_400.0), (math.nan, 30.0)],
)
def test_the_interval_is_checked(make: Make, wanted: float | None, interval: float) -> None:
    metrics = make(Console())
    metrics.registered(ID, Wanted(True, wanted))
    assert metrics.interval == interval


def test_turns_that_were_missed_are_not_caught_up(make: Make, clock: FakeClock) -> None:
    console = Console()
    metrics = make(console)
    metrics.registered(ID, Wanted(True, 30.0))
    metrics.step()
    clock.advance(1000)
    assert metrics.step() == pytest.approx(20.0)
    assert len(console.bodies) == 2


@pytest.mark.parametrize("status", [200, 202, 204])
def test_these_answers_mean_that_they_were_taken(make: Make, status: int) -> None:
    metrics = make(Console(status))
    metrics.registered(ID, Wanted(True))
    metrics.step()
    assert (metrics.tally.sent, metrics.tally.lost, metrics.tally.status) == (1, 0, status)


@pytest.mark.parametrize("status", [0, 201, 301, 307, 400, 401, 403, 404, 409, 410, 413, 422, 429, 500, 503])
def test_what_is_not_taken_is_lost_and_counted_and_never_sent_again(
    make: Make, clock: FakeClock, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    console = Console(status, 204)
    metrics = make(console)
    metrics.registered(ID, Wanted(True, 30.0))
    run(metrics, clock, 121)
    assert metrics.tally.lost == 1 and metrics.tally.status == 204
    values = [console.series(at)[0][1] for at in range(len(console.bodies))]
    assert values[:2] == [1.0, 2.0]
    assert len([line for line in caplog.messages if f"status {status}" in line]) == 1
    quiet = status in (429, 503)
    assert len(values) == (4 if quiet else 5), "such an answer asks for patience"


def test_after_answers_that_ask_for_patience_ever_fewer_are_sent(make: Make, clock: FakeClock) -> None:
    console = Console(503)
    metrics = make(console)
    metrics.registered(ID, Wanted(True, 30.0))
    run(metrics, clock, 3600)
    assert 12 <= len(console.bodies) <= 15, "at the end one in 5 minutes"
    metrics.orders(Wanted(True, 60.0))
    before = len(console.bodies)
    run(metrics, clock, 1)
    assert len(console.bodies) == before + 1, "another order starts afresh"


def test_an_answer_that_takes_them_ends_the_patience(make: Make, clock: FakeClock) -> None:
    console = Console(503, 503, 204, 503, 204)
    metrics = make(console)
    metrics.registered(ID, Wanted(True, 30.0))
    run(metrics, clock, 181)
    assert len(console.bodies) == 3, "at 0, 60 and 180 s"
    run(metrics, clock, 90)
    assert len(console.bodies) == 5, "refused at 210 s, and no more than one turn is left out again"


def test_what_is_too_large_goes_in_parts(make: Make, clock: FakeClock) -> None:
    class Small(Console):
        def __call__(self, body: bytes) -> int:
            super().__call__(body)
            return 413 if len(self.series()) > 10 else 204

    console = Small()
    more = [Figure("load1", float(n), (("core", str(n)),)) for n in range(34)]
    metrics = make(console, Counting(*more))
    metrics.registered(ID, Wanted(True, 30.0))
    metrics.step()
    sizes = [len(console.series(at)) for at in range(len(console.bodies))]
    assert sizes == [35, 17, 8, 8, 8, 8, 3]
    assert metrics.tally.sent == 35 and metrics.tally.lost == 0
    sent = [labels.get("core") for at in range(2, 7) for labels, _, _ in console.series(at)]
    assert sorted(map(str, sent)) == sorted(["None", *(str(n) for n in range(34))]), "each once"
    clock.advance(30)
    metrics.step()
    assert [len(console.series(at)) for at in range(7, len(console.bodies))] == [8, 8, 8, 8, 3], (
        "the size is remembered"
    )


def test_nothing_leaves_that_is_not_on_the_collectors_list(make: Make) -> None:
    console = Console()
    more = [Figure("password", 1.0), Figure("load1", math.nan), Figure("load1", math.inf, (("core", "0"),))]
    metrics = make(console, Counting(*more))
    metrics.registered(ID, Wanted(True))
    metrics.step()
    assert console.names() == ["looks"]


def test_sections_that_are_missing_are_named_once_and_counts_are_kept(
    make: Make, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = make(Console(), Counting(faults={"cpu": "no such file"}))
    metrics.registered(ID, Wanted(True, 30.0))
    run(metrics, clock, 600)
    assert caplog.text.count("Host metrics lack the section cpu: no such file") == 1
    assert metrics.tally.left_out == {"disk": 2} and metrics.tally.faults == {"cpu": "no such file"}


def test_at_level_debug_every_figure_is_shown_before_it_leaves(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    metrics = make(Console(), Counting(Figure("load1", 0.5, (("core", "3"),))))
    metrics.registered(ID, Wanted(True))
    metrics.step()
    assert 'looks 1; load1{core="3"} 0.5' in caplog.text


def test_an_order_that_ends_it_while_parts_are_sent_ends_it_at_once(clock: FakeClock) -> None:
    sizes: list[int] = []

    def send(body: bytes) -> int:
        sizes.append(len(body))
        if len(sizes) > 1:
            metrics.orders(Wanted(False, 30.0))
        return 413 if len(sizes) == 1 else 204

    more = [Figure("load1", float(n), (("core", str(n)),)) for n in range(9)]
    metrics = HostMetrics(send, [Counting(*more)], clock, allowed=True, host="vm-1")
    metrics.registered(ID, Wanted(True))
    metrics.step()
    assert len(sizes) == 2


def until(what: Callable[[], object]) -> bool:
    clock, pause = Clock(), threading.Event()
    end = clock.monotonic() + 20
    while not what() and clock.monotonic() < end:
        pause.wait(0.02)
    return bool(what())


def test_this_machine_on_a_worker_of_its_own() -> None:
    """The first real request: orders from one thread, figures of this machine on another."""
    clock, console = Clock(), Console()
    metrics = HostMetrics(console, [HostFiles(clock)], clock, allowed=True, host="vm-1")
    worker = Worker("host-metrics", metrics.step, clock)
    metrics.wake = worker.wake
    worker.start()
    try:
        metrics.registered(ID, Wanted(True, 5.0))
        assert until(lambda: console.bodies)
        worker.wake()  # an early wake is no turn
        assert set(console.names(0)) <= NAMES and "load1" in console.names(0)
        labels = [labels for labels, _, _ in console.series(0)]
        assert all(each["host"] == "vm-1" and each["lighthouse_id"] == ID for each in labels)
        metrics.orders(Wanted(True, 6.0))
        assert until(lambda: len(console.bodies) == 2), "a change looks at once"
    finally:
        worker.stop()
        assert worker.join(10)


class NoApi:
    """An API server that refuses."""

    def get(self, path: str, query: Mapping[str, str], seconds: float) -> dict[str, object]:
        raise KubeError(403, "no")

    def pages(self, path: str, seconds: float) -> Iterator[Mapping[str, object]]:
        raise KubeError(403, "no")


@pytest.mark.parametrize(
    ("role", "in_cluster", "api", "kinds"),
    [
        ("central", False, None, [HostFiles]),
        ("central", True, NoApi(), [ClusterStats]),
        ("central", True, None, []),
        ("host_metrics", True, NoApi(), [HostFiles]),
        ("host_metrics", False, None, [HostFiles]),
    ],
)
def test_the_central_pod_looks_at_the_cluster_and_the_others_at_their_machine(
    clock: FakeClock, role: str, in_cluster: bool, api: NoApi | None, kinds: list[type]
) -> None:
    found = collectors(clock, Places(), role=role, in_cluster=in_cluster, api=api)
    assert [type(each) for each in found] == kinds


def test_nothing_to_say_is_not_said(clock: FakeClock) -> None:
    console = Console()
    metrics = HostMetrics(console, [ClusterStats(NoApi(), clock)], clock, allowed=True, host="pod-1")
    metrics.registered(ID, Wanted(True))
    metrics.step()
    assert console.bodies == [] and set(metrics.tally.faults or ()) == {"nodes", "pods", "claims"}


def test_the_agents_own_metrics_count_them(clock: FakeClock) -> None:
    own = SelfMetrics("0")
    metrics = HostMetrics(Console(204, 500), [Counting()], clock, allowed=True, host="vm-1", metrics=own)
    metrics.registered(ID, Wanted(True))
    run(metrics, clock, 31)
    assert own.registry.get_sample_value("observer_agent_host_metrics_sent_total") == 1
    assert own.registry.get_sample_value("observer_agent_host_metrics_lost_total") == 1
    assert own.registry.get_sample_value("observer_agent_host_metrics_left_out", {"kind": "disk"}) == 2


def test_a_hub_takes_what_this_machine_says(tmp_path: Path) -> None:
    """The hub reads the body with the libraries that the agent does without, and shows what the machine said."""
    with lighthouse_hub(tmp_path) as scene:
        scene.manage.change("test", "raspberry", {"host_metrics_enabled": True, "host_metrics_interval_seconds": 20})
        answer = scene.register()
        order = Wanted(answer["host_metrics"]["enabled"], answer["host_metrics"]["interval_seconds"])

        def send(body: bytes) -> int:
            kind = {"Content_Type": "application/x-protobuf", "Content_Encoding": "snappy"}
            return int(scene.call("host-metrics", body, **kind).status_code)

        clock = scene.hub.clock
        metrics = HostMetrics(send, [HostFiles(Clock())], clock, allowed=True, host="vm-7")
        metrics.registered(answer["lighthouse_id"], order)
        assert metrics.step() == 20.0 and metrics.tally.status == 204 and metrics.tally.lost == 0
        shown = scene.look.series("raspberry")
        assert {each["name"] for each in shown} >= {"lighthouse_agent_up", "load1", "mem_used_bytes"}
        assert len(shown) == metrics.tally.sent
        assert TOKEN not in str(shown)
