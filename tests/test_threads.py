"""How many threads an agent may have, each bound measured on the real thing: together they stay below 200.

The unit allows 256 tasks (`TasksMax`). A bound that is added to the agent belongs into `test_the_bounds_add_up`.
"""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack

import pytest

from observer_agent import dashboard, probes
from observer_agent.clock import Clock
from observer_agent.clouds import _access
from observer_agent.collector import POOL_MAX
from observer_agent.demo.stage import free_port
from observer_agent.pools import BROKEN, KINDS, THREADS_MAX, Pools
from observer_agent.probes import _disks, _otlpserver
from observer_agent.probes._otlp import Receiver
from observer_agent.probes._otlpstore import Want
from observer_agent.probes._slots import THREADS as HELPERS
from observer_agent.probes._slots import Late, NoThread, Slots
from observer_agent.relaydoor import HANDLERS, Door
from observer_agent.resolver import THREADS as LOOKUPS
from observer_agent.resolver import ResolveError, Resolver
from observer_agent.worker import GIVEN_UP_MAX, Supervisor
from tests.test_agent import cloud, definition, start  # noqa: F401  fixtures

MOST = 200
MAIN = 1
EVERYTHING = {"BROADCAST_LOGS": "true", "HEARTBEAT_RELAY_ENABLED": "true", "HEARTBEAT_RELAY_PORT": "0"}


def named(*prefixes):
    return [each for each in threading.enumerate() if each.name.startswith(prefixes)]


@pytest.fixture
def hang():
    """A job that hangs until the end of the test, and then is waited for."""
    release, before = threading.Event(), set(threading.enumerate())
    yield lambda *ignored: release.wait(60)
    release.set()
    for each in set(threading.enumerate()) - before:
        each.join(10)


# -- each bound, on the real thing


class Idle:
    """A collector that has nothing to do."""

    def apply(self, group):
        return len(group), 0, 0

    def step(self, idle):
        return 60.0

    def stop(self):
        """There is nothing to end."""


def test_all_pools_together():
    supervisor, grow = Supervisor(), {}
    made = Pools(supervisor, Clock(), lambda more: grow.setdefault(len(grow), more) and Idle())
    names = [*probes.SOURCES, BROKEN]
    assert len(names) == KINDS
    try:
        for name in names:  # each as greedy as it can be, before the next one comes
            made._collector(name)
            while grow[len(grow) - 1]():
                pass
        for more in grow.values():
            while more():
                pass
        sizes = {name: len(workers) for name, workers in made.workers().items()}
        assert sum(sizes.values()) == THREADS_MAX == len(supervisor.workers)
        assert min(sizes.values()) >= 1 and max(sizes.values()) == POOL_MAX
    finally:
        for worker in supervisor.workers.values():
            worker.stop()
        assert all([worker.join(10) for worker in supervisor.workers.values()])


def test_lookups(hang):
    resolver = Resolver(Clock(), hang)
    for n in range(LOOKUPS + 10):
        with pytest.raises(ResolveError):
            resolver.resolve(f"name-{n}.test", 0.0)
    assert len(named("resolve-")) == LOOKUPS - LOOKUPS // 4  # the others are for names that were found


def test_helpers_of_custom_probes(hang):
    slots, clock = Slots(Clock()), Clock()
    for n in range(HELPERS):
        with pytest.raises(Late):
            slots.run(f"probe-{n}", hang, clock.monotonic())
    for n in range(40):
        with pytest.raises(NoThread):
            slots.run(f"more-{n}", hang, clock.monotonic() + 0.001)
    assert len(named("custom-")) == HELPERS


def test_who_finds_no_helper_waits_for_one():
    slots, clock, first, began = Slots(Clock(), threads=1), Clock(), threading.Event(), threading.Event()
    until, seen = clock.monotonic() + 20, []

    def job():
        began.set()
        first.wait(20)

    others = [
        threading.Thread(target=lambda n=n: seen.append(slots.run(f"b{n}", lambda: n, until).value)) for n in (1, 2)
    ]
    holder = threading.Thread(target=slots.run, args=("a", job, until))
    holder.start()
    began.wait(20)
    for each in others:
        each.start()
    first.set()
    for each in (holder, *others):
        each.join(20)
    assert sorted(seen) == [1, 2]


def test_file_systems_stay_bounded_over_reloads(start, tmp_path):  # noqa: F811
    agent = start()
    disks = agent.looking._prober._tools.disks
    agent.reload()
    assert agent.looking._prober._tools.disks is disks


def flooded(stack, place, clients):
    """Clients that connect and say nothing."""
    for _ in range(clients):
        stack.enter_context(socket.create_connection(place, 5))


def reached(name, wanted):
    """How many threads of a name there are, once there are as many as there may be."""
    pause = threading.Event()
    for _ in range(200):
        if len(named(name)) >= wanted:
            break
        pause.wait(0.02)
    pause.wait(0.1)
    return len(named(name))


class OtlpSettings:
    """What the receiver reads."""

    observer_otlp_disable = False
    observer_otlp_listen_addr = "127.0.0.1:0"
    observer_otlp_bearer_token = None
    observer_otlp_max_body_bytes = observer_otlp_max_buffer_points = 1000


def test_each_listener_has_so_many_handlers_and_no_more():
    clock, otlp = Clock(), Receiver(OtlpSettings(), Clock())
    door = Door(("127.0.0.1", 0), lambda *_: 202, lambda _: None, clock)
    page = dashboard.Server("127.0.0.1", 0, {}, None)
    with ExitStack() as stack:
        otlp.want([Want("m")])
        stack.callback(otlp.stop)
        for each in (door, page):
            each.start()
            stack.callback(each.stop)
        for each in (door, page, otlp._server):
            flooded(stack, each.server_address, 20)
        for name, most in (("relay-door", HANDLERS), ("otlp", _otlpserver.HANDLERS), ("dashboard", dashboard.HANDLERS)):
            assert reached(f"{name}-request", most) == most


# -- the sum


def test_the_bounds_add_up(start, cloud):  # noqa: F811
    cloud.definitions = [definition("otlp", 1, source_type="otlp", source_config={"metric_name": "m"})]
    before = set(threading.enumerate())
    agent = start(OBSERVER_OTLP_LISTEN_ADDR="127.0.0.1:0", DEBUG_DASHBOARD_PORT=str(free_port()), **EVERYTHING)
    page = dashboard.serve(agent)
    try:
        cloud.until(lambda: any(row["reason"] == "otlp_no_samples" for row in cloud.rows))
        reached("relay-door", 1)
        workers = {name for name in agent.supervisor.workers if not name.startswith("probe-")}
        names = {each.name for each in set(threading.enumerate()) - before if each.name.isascii()}
    finally:
        page.stop()
    answer = {"dashboard": dashboard.HANDLERS, "otlp": _otlpserver.HANDLERS, "relay-door": HANDLERS}
    helpers = {"resolve-": LOOKUPS + _access.THREADS, "disk-": _disks.THREADS, "custom-": HELPERS}
    known = (*helpers, "probe-", "Thread-")  # the last are those of the test's own cloud
    assert {name for name in names - workers - set(answer) if not name.startswith(known)} == set()
    probing = THREADS_MAX + GIVEN_UP_MAX
    assert MAIN + probing + len(workers) + sum(helpers.values()) + len(answer) + sum(answer.values()) < MOST
