"""What the state says of a whole agent: each problem in one line, nothing secret, quick."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
import time

import pytest

from observer_agent import dashboard, show, status
from observer_agent.agent import Agent
from observer_agent.clock import Clock
from observer_agent.config import VARIABLES, load
from observer_agent.demo.stage import free_port
from observer_agent.errors import DiskFull
from observer_agent.logs import Redactor, configure
from observer_agent.model import Answer, Fate, Orders, Reading, Sample, Status, Verdict
from observer_agent.probes._otlpstore import Want
from observer_agent.worker import Worker
from tests.cloud import LocalCloud
from tests.fakes import FakeClock

SECRETS = {
    "AGENT_KEY": "obs_live_canarykey",
    "PROMETHEUS_PASSWORD": "canary-password",
    "PROMETHEUS_BEARER_TOKEN": "canary-bearer",
    "PROMETHEUS_HEADERS": "X-Canary: canary-header",
    "DEBUG_DASHBOARD_TOKEN": "canary-dashboard",
    "OBSERVER_OTLP_BEARER_TOKEN": "canary-otlp",
    "PROMETHEUS_SERVER_URL": "http://user:canary-url@prometheus.example/?q=canary-query",
}


@pytest.fixture
def make(tmp_path):
    """An agent that is not started, on a clock that stands still."""
    made = []

    def _make(clock=None, **env):
        nowhere = f"http://127.0.0.1:{free_port()}"
        settings = load({"AGENT_KEY": "k", "CLOUD_SERVER_URL": nowhere, "BUFFER_PATH": str(tmp_path / "b.db"), **env})
        clock, redact = clock or FakeClock(), Redactor()
        redact.add(*SECRETS.values())
        logs = configure("text", True, clock, redact, io.StringIO())
        made.append((Agent(settings, clock, logs, {}), logs))
        return made[-1][0]

    yield _make
    for agent, logs in made:
        for collector in agent.collectors().values():
            collector.stop()
        workers = list(agent.supervisor.workers.values())
        for worker in workers:
            worker.stop()
        assert all([worker.join(10) for worker in workers])
        agent.queue.close()
        logs.close()


@pytest.fixture
def agent(make):
    """One that has nothing to complain about."""
    made = make()
    heard(made)
    return made


def heard(agent, **changes):
    agent.heartbeat.last_orders = Orders(**{"ok": True, "status": 200, **changes})
    agent.heartbeat.heard_at = agent.clock.monotonic()


class NoCloud:
    """A cloud that takes no batch."""

    batch_limit = 100

    def cut(self, batch):
        return batch

    def deliver(self, batch):
        return Answer(Fate.LATER, 503, "down for canary-password")

    def hurry(self, seconds):
        pass


def sample(n=0):
    return Sample(f"m-{n}", 1.0, "2030-01-01T00:00:00.000Z", Status.HEALTHY)


# -- problems


def test_a_well_agent_has_no_problem(agent):
    assert status.problem(agent) is None
    assert status.state(agent)["summary"] == "Delivering. 0 definitions."


def test_before_the_first_heartbeat(make):
    assert status.problem(make()) == "no heartbeat has been answered yet"


@pytest.mark.parametrize(
    ("orders", "line"),
    [
        ({"ok": False, "status": 401, "text": "unknown"}, "the cloud does not take this key (status 401: unknown)"),
        ({"ok": False, "status": 500, "text": "oops"}, "the cloud does not take heartbeats (status 500: oops)"),
        ({"ok": False, "status": 0, "text": "refused"}, "the cloud does not take heartbeats (refused)"),
        ({"ok": False, "status": 0}, "the cloud does not take heartbeats (no answer)"),
    ],
)
def test_heartbeats_that_fail(agent, orders, line):
    heard(agent, **orders)
    assert status.problem(agent) == line


def test_heartbeats_that_stay_away(agent):
    agent.clock.advance(90)
    assert status.problem(agent) is None
    agent.clock.advance(1)
    assert status.problem(agent) == "no heartbeat has been answered for 91 s"


def test_another_process_with_the_same_key(agent):
    agent.sender.fenced_by = "2030-01-01T00:00:00.000Z"
    assert status.problem(agent) == "another process, started at 2030-01-01T00:00:00.000Z, uses this agent's key"


def test_a_cloud_that_takes_no_samples(agent):
    agent.queue.put([sample()])
    agent.sender._cloud = NoCloud()
    agent.sender.step()
    assert status.problem(agent) == "the cloud does not take samples (status 503: down for [redacted])"
    assert status.state(agent)["summary"].startswith("NOT delivering: the cloud does not take samples")


def test_samples_that_wait_too_long(agent):
    agent.queue.put([sample(n) for n in range(3)])
    agent.clock.advance(300)
    heard(agent)
    assert status.problem(agent) is None
    agent.clock.advance(1)
    assert status.problem(agent) == "3 samples wait, the oldest for 301 s"


def test_a_file_that_takes_no_verdicts(agent):
    def refuse(samples, missed=0):
        raise DiskFull("no room")

    agent.keeper._queue = type("Full", (), {"put": staticmethod(refuse)})()
    agent.keeper.put([sample(1)])
    agent.keeper.put([sample(2)])
    assert status.problem(agent) == "the queue file takes no verdicts; the newest of 2 definitions wait in memory"
    assert "2 verdicts, because the queue file takes none" in show.status(status.state(agent))


# -- what else comes in


def test_nothing_is_said_of_what_is_not_in_use(agent):
    said = status.state(agent)
    assert (said["otlp"], said["relay"], said["custom_probes"]) == (None, None, {"names": [], "refused": []})
    assert not {"otlp", "relay", "custom"} & {line.split(" ")[0] for line in show.status(said).splitlines()}


def test_the_otlp_receiver(make):
    agent = make(OBSERVER_OTLP_LISTEN_ADDR="127.0.0.1:0")
    agent.looking.otlp.want([Want("jobs")])
    said = status.state(agent)["otlp"]
    assert said["listens_on"].startswith("127.0.0.1:") and (said["problem"], said["definitions"]) == (None, 1)
    line = f"otlp       on {said['listens_on']}: 0 points for 1 definitions, 0 requests, 0 refused"
    assert line in show.status(status.state(agent)).splitlines()
    agent.looking.otlp.stop()
    assert status.state(agent)["otlp"] is None


def test_an_otlp_receiver_that_cannot_listen(make):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        agent = make(OBSERVER_OTLP_LISTEN_ADDR=f"127.0.0.1:{taken.getsockname()[1]}")
        agent.looking.otlp.want([Want("jobs")])
        said = status.state(agent)
        assert (said["otlp"]["listens_on"], said["otlp"]["problem"]) == (None, "Address already in use")
        assert "does NOT listen; Address already in use" in show.status(said)
    off = make(OBSERVER_OTLP_DISABLE="true", BUFFER_PATH=f"{agent.settings.buffer_path}2")
    off.looking.otlp.want([Want("jobs")])
    assert status.state(off)["otlp"]["problem"] == "OBSERVER_OTLP_DISABLE is set"


def test_custom_probes_that_are_refused(make, tmp_path):
    (tmp_path / "probes").mkdir()
    (tmp_path / "probes" / "bad.py").write_text("1 / 0")
    agent = make(Clock(), PROBE_CUSTOM_DIR=str(tmp_path / "probes"), BUFFER_PATH=str(tmp_path / "b.db"))
    agent.looking.custom.load(agent.settings.probe_custom_dir)
    said = status.state(agent)
    (refused,) = said["custom_probes"]["refused"]
    assert refused["origin"].endswith("bad.py") and "ZeroDivisionError in line 1" in refused["problem"]
    assert f"0 loaded; REFUSED: {refused['origin']}: {refused['problem']}" in show.status(said)


# -- secrets


def test_no_secret_is_in_the_state(make):
    agent = make(Clock(), **SECRETS)
    agent.logs.redact.add(*SECRETS.values())
    detail = {"url": "http://u:canary-url@h/?q=canary-query", "header": "Bearer canary-bearer"}
    rows = [{"id": "a", "title": "canary-password https://u:canary-url@h/?q=canary-query", "source_type": "tcp",
             "source_config": {"host": "canary-header", "prot": 1}}]  # fmt: skip
    agent._apply(tuple(rows))
    (job,) = [job for each in agent.collectors().values() for job in each.jobs()]
    job.reading = Reading(None, "x", detail=detail)
    heard(agent, ok=False, status=500, text="http://u:canary-url@h/?q=canary-query obs_live_canarykey")
    text = json.dumps(status.state(agent))
    text += show.status(status.state(agent), verbose=True, everything=True)
    assert "canary" not in text


def test_the_configuration_is_masked_by_an_allow_list(make, tmp_path):
    shown = status.configuration(make(**SECRETS, BUFFER_MAX_ROWS="123456789", PROMETHEUS_USERNAME="somebody").settings)
    assert shown["BUFFER_MAX_ROWS"] == "1234…6789"
    assert shown["LOG_FORMAT"] == "****" and shown["DEFINITIONS_FILE"] == "(unset)"
    assert shown["AGENT_KEY"] == "(set)" and shown["PROMETHEUS_PASSWORD"] == "(set)"
    assert "PROMETHEUS_USERNAME" not in shown and "PROMETHEUS_TENANT_ID" not in shown
    secret = {name for name, row in VARIABLES.items() if row.secret}
    assert not secret & set(status.SHOWN) and set(shown) == secret | set(status.SHOWN)


@pytest.mark.parametrize(
    ("value", "shown"), [("", "(unset)"), ("1", "****"), ("12345678", "****"), ("123456789", "1234…6789")]
)
def test_masking(value, shown):
    assert status.mask(value) == shown


# -- a running agent


@pytest.fixture
def running(tmp_path):
    cloud = LocalCloud()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = load({
        "AGENT_KEY": "k", "CLOUD_SERVER_URL": cloud.url, "BUFFER_PATH": str(tmp_path / "b.db"),
        "DEBUG_DASHBOARD_PORT": str(port),
    })  # fmt: skip
    logs = configure("text", True, Clock(), Redactor(), io.StringIO())
    agent = Agent(settings, Clock(), logs, {})
    page = dashboard.serve(agent)
    agent.start()
    yield agent, page
    agent.stop()
    page.stop()
    cloud.close()
    logs.close()


def fetch(page, path):
    conn = http.client.HTTPConnection("127.0.0.1", page.server_port, timeout=10)
    try:
        conn.request("GET", path)
        answer = conn.getresponse()
        return answer.status, answer.read().decode()
    finally:
        conn.close()


def until(what):
    pause = threading.Event()
    for _ in range(400):
        if found := what():
            return found
        pause.wait(0.05)
    raise AssertionError("not within twenty seconds")


def test_the_probes_of_a_running_agent(running):
    agent, page = running
    until(lambda: fetch(page, "/readyz") == (200, "ok\n"))
    assert fetch(page, "/healthz") == (200, "ok\n")
    state = until(lambda: (s := json.loads(fetch(page, "/api/state")[1]))["history"]["depth"] and s)
    assert {"summary", "counts", "log", "configuration", "history"} <= set(state)
    assert state["log"][0]["message"].startswith("dashboard: The local page listens on")
    agent.heartbeat.last_orders = Orders(ok=False, status=401, text="no")
    assert fetch(page, "/readyz") == (503, "the cloud does not take this key (status 401: no)\n")


def test_every_metric_has_its_help(running):
    text = fetch(running[1], "/metrics")[1]
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    helped = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP") and len(line.split()) > 3}
    assert names == helped and len(names) > 10


def test_a_worker_that_ended_is_unwell(running):
    agent, page = running
    worker = agent.supervisor.workers["tidy"]
    worker.stop()
    assert worker.join(10)
    assert fetch(page, "/healthz") == (503, "workers that do not run: tidy\n")
    state = status.state(agent)
    assert "tidy is DEAD" in show.status(state)


def test_a_worker_that_hangs_is_unwell(make):
    agent = make()
    clock = agent.clock
    gate, inside = threading.Event(), threading.Event()
    worker = agent.supervisor.add(Worker("stuck", lambda: inside.set() or gate.wait(20) or 0.0, clock))
    assert inside.wait(10)
    assert status.unwell(agent) is None
    clock.advance(10_000)
    try:
        assert status.unwell(agent) == "workers that hang: stuck"
        assert status.state(agent)["workers"][0]["hung"] is True
    finally:
        worker.stop()
        gate.set()
        worker.join(10)


def test_3500_definitions_are_told_quickly(make):
    agent = make(Clock())
    rows = [
        {"id": f"m-{n}", "title": f"Definition {n}", "source_type": "tcp", "interval": 1,
         "source_config": {"host": "127.0.0.1", "port": 1}, "healthy_operation": "over", "healthy_value": 1,
         "unhealthy_operation": "under", "unhealthy_value": 0} for n in range(3500)
    ]  # fmt: skip
    agent._apply(tuple(rows))
    for each in agent.collectors().values():
        for job in each.jobs():
            job.reading = Reading(1.0, phases={"resolve": 0.1, "connect": 0.2}, detail={"address": "127.0.0.1"})
    begin = time.perf_counter()
    text = json.dumps(status.state(agent))
    took = time.perf_counter() - begin
    print(f"3,500 definitions: {took * 1000:.0f} ms, {len(text) / 1e6:.1f} MB")
    assert len(json.loads(text)["definitions"]) == 3500
    assert took < 2.0  # it is about a tenth of that; the bound is for slow machines


# -- as text


def test_the_text_is_bounded_the_worst_first_and_steers_no_terminal(make):
    agent = make(Clock())
    heard(agent)
    agent._apply(tuple({"id": f"m-{n:03}", "title": f"T{n:03}\x1b[2J\u202e", "source_type": "tcp",
                        "source_config": {"host": "h", "port": 1}, "healthy_operation": "over", "healthy_value": 1,
                        "unhealthy_operation": "under", "unhealthy_value": 0} for n in range(60)))  # fmt: skip
    (collector,) = agent.collectors().values()
    jobs = collector.jobs()
    for job in jobs:
        job.verdict = Verdict(Status.HEALTHY, 1.0, None)
    jobs[59].verdict = Verdict(Status.UNHEALTHY, 1.0, None)
    text = show.status(status.state(agent))
    lines = text.splitlines()
    assert lines[0] == "Delivering. 60 definitions: 1 unhealthy, 59 healthy."
    assert lines[lines.index("", 2) + 1].startswith("!! T059")
    assert lines[-1] == "... and 10 more: --all"
    assert "\x1b" not in text and "\u202e" not in text
    assert all(len(line) <= 80 for line in lines if line[:2] in ("!!", "ok"))
    assert len(show.status(status.state(agent), everything=True).splitlines()) == len(lines) + 9


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.25, "250 ms"), (59.9, "59 s"), (60, "1 min"), (200, "3 min 20 s"), (187_200, "2 d 4 h")],
)
def test_spans(seconds, text):
    assert show.span(seconds) == text
