"""Workers that hang, not die: another thread takes the work over, the old one does no harm when it wakes."""

from __future__ import annotations

import io
import socket
import threading
from dataclasses import replace

import pytest

from observer_agent.agent import Agent
from observer_agent.clock import Clock
from observer_agent.config import load
from observer_agent.logs import Redactor, configure
from observer_agent.worker import GIVEN_UP_MAX, IN_VAIN, Care, Supervisor, Worker
from tests.cloud import LocalCloud
from tests.test_agent import definition, plain

LONG = 20.0
SHORT = 0.2


class Hang:
    """A call that hangs the first time, until it is let go."""

    def __init__(self, good):
        self._good = good
        self.entered = threading.Event()
        self.release = threading.Event()
        self.left = threading.Event()

    def __call__(self, *args, **kwargs):
        if not self.entered.is_set():
            self.entered.set()
            assert self.release.wait(LONG)
        try:
            return self._good(*args, **kwargs)
        finally:
            self.left.set()


@pytest.fixture
def target():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def cloud():
    made = LocalCloud()
    yield made
    made.close()


@pytest.fixture
def agent(cloud, tmp_path):
    settings = load({"AGENT_KEY": "k", "CLOUD_SERVER_URL": cloud.url, "BUFFER_PATH": str(tmp_path / "b.db")})
    clock = Clock()
    logs = configure("text", True, clock, Redactor(), io.StringIO())
    made = Agent(settings, clock, logs, {})
    yield made
    made.stop()
    logs.close()


def until(what):
    end, pause = Clock().monotonic() + LONG, threading.Event()
    while not (found := what()):
        assert Clock().monotonic() < end, "it did not happen"
        pause.wait(0.01)
    return found


def rescue(agent, name):
    """Waits until the worker counts as hung, and lets the supervisor act."""
    worker = agent.supervisor.workers[name]
    worker.care = replace(worker.care, longest=SHORT)
    old = worker._life.thread
    until(lambda: worker.hung)
    assert agent.supervisor.check()
    worker.care = replace(worker.care, longest=LONG)
    assert worker._life.thread is not old and worker.restarts == 1
    return old


def test_a_hung_sender_is_replaced_and_no_row_is_lost_or_doubled(agent, cloud, target):
    cloud.definitions = [definition("m", target)]
    hang = agent.sender._cloud.deliver = Hang(agent.sender._cloud.deliver)
    agent.start()
    assert hang.entered.wait(LONG)
    old = rescue(agent, "send")
    cloud.until(lambda: len(cloud.rows) >= 1)
    hang.release.set()
    assert hang.left.wait(LONG)
    old.join(LONG)
    assert not old.is_alive(), "it ends when it wakes"
    ledgers = agent.queue.ledgers()
    assert sum(each.given for each in ledgers) == sum(each.accepted + each.pending for each in ledgers)
    assert agent.queue.lost() == {}


def test_a_hung_heartbeat_is_replaced(agent, cloud):
    hang = agent.heartbeat._cloud.beat = Hang(agent.heartbeat._cloud.beat)
    agent.start()
    assert hang.entered.wait(LONG)
    old = rescue(agent, "beat")
    cloud.until(lambda: cloud.beats)
    hang.release.set()
    old.join(LONG)
    assert not old.is_alive()
    assert agent.heartbeat.last_orders.ok


@pytest.mark.slow
def test_a_definition_whose_probe_hangs_says_so_and_holds_one_thread(agent, cloud, target):
    cloud.definitions = [definition("stuck", target), definition("well", target)]
    release, looks = threading.Event(), []
    look = agent.looking._look

    def hang_on_one(found):
        if plain(found.id) == "stuck":
            looks.append(found.id)
            if len(looks) == 1:
                assert release.wait(LONG)
        return look(found)

    agent.looking._look = hang_on_one
    agent.start()
    cloud.until(lambda: looks)
    (name,) = until(lambda: [n for n, w in agent.supervisor.workers.items() if n.startswith("probe") and w.busy_since])
    old = rescue(agent, name)
    rows = cloud.until(lambda: [row for row in cloud.rows if plain(row["metric_id"]) == "stuck"])
    assert (rows[0]["status"], rows[0]["reason"]) == ("no_data", "source_threw")
    first = job(agent, "stuck").stamp
    until(lambda: job(agent, "stuck").stamp > first)
    assert len(looks) == 1, "while the old look hangs there is no other"
    release.set()
    old.join(LONG)
    assert not old.is_alive()
    cloud.until(lambda: any(plain(r["metric_id"]) == "stuck" and r["status"] == "healthy" for r in cloud.rows))


def job(agent, name):
    return next(job for job in agent.collectors()["tcp"].jobs() if plain(job.definition.id) == name)


def hung_worker(renew=None, name="send"):
    release = threading.Event()
    entered = threading.Semaphore(0)

    def step():
        entered.release()
        release.wait(LONG)
        return LONG

    worker = Worker(name, step, Clock(), care=Care(0.01, renew(step) if renew else None))
    return worker, entered, release


def wait_hung(worker):
    until(lambda: worker.hung)


def test_a_worker_that_nobody_can_renew_is_left_to_the_watchdog():
    worker, _, release = hung_worker()
    supervisor = Supervisor()
    supervisor.add(worker)
    wait_hung(worker)
    assert not supervisor.check() and worker.restarts == 0
    release.set()
    worker.stop()
    assert worker.join(LONG)
    assert supervisor.check()


def test_replacing_in_vain_ends(caught):
    worker, entered, release = hung_worker(lambda step: lambda thread: step)
    supervisor = Supervisor()
    supervisor.add(worker)
    for _ in range(IN_VAIN):
        assert entered.acquire(timeout=LONG)
        wait_hung(worker)
        assert supervisor.check()
    wait_hung(worker)
    assert not supervisor.check() and worker.restarts == IN_VAIN
    assert "hung for" in caught.text
    release.set()
    worker.stop()
    assert worker.join(LONG)


def test_only_so_many_threads_are_left_behind():
    supervisor, made = Supervisor(), []
    for n in range(GIVEN_UP_MAX + 1):
        made.append(hung_worker(lambda step: lambda thread: lambda: LONG, f"probe-tcp-{n}"))
        supervisor.add(made[-1][0])
        wait_hung(made[-1][0])
    assert not supervisor.check()
    assert sum(worker.restarts for worker, _, _ in made) == GIVEN_UP_MAX
    for worker, _, release in made:
        release.set()
        worker.stop()
        assert worker.join(LONG)


def test_waiting_for_work_is_no_turn():
    entered, release = threading.Event(), threading.Event()

    def step():
        with worker.idle():
            entered.set()
            release.wait(LONG)
        return LONG

    worker = Worker("probe-tcp-0", step, Clock(), care=Care(0.0))
    worker.start()
    assert entered.wait(LONG)
    assert not worker.hung and worker.busy_since is None
    release.set()
    worker.stop()
    assert worker.join(LONG)
