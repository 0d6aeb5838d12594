"""The whole agent in this process, against a small real cloud."""

from __future__ import annotations

import io
import socket
import threading

import pytest

from observer_agent import status
from observer_agent.agent import Agent
from observer_agent.clock import Clock
from observer_agent.collector import POOL_MAX
from observer_agent.config import load
from observer_agent.logs import Redactor, configure
from observer_agent.verdict import first_delay
from tests.cloud import LocalCloud


def early(name):
    """A metric id that begins with `name` and is due within a second of being learnt."""
    return next(made for n in range(10_000) if first_delay(made := f"{name}-{n}") < 0.6)


def plain(metric_id):
    return metric_id.rpartition("-")[0]


def definition(name, port, **changes):
    rules = {"healthy_operation": "under", "healthy_value": 500, "unhealthy_operation": "over", "unhealthy_value": 900}
    config = {"host": "127.0.0.1", "port": port}
    return {"id": early(name), "source_type": "tcp", "source_config": config, "interval": 1 / 60, **rules, **changes}


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
def start(cloud, tmp_path):
    made = []

    def _start(**env):
        settings = load({
            "AGENT_KEY": "key-of-the-test", "CLOUD_SERVER_URL": cloud.url, "BUFFER_PATH": str(tmp_path / "b.db"), **env
        })  # fmt: skip
        clock = Clock()
        logs = configure("text", True, clock, Redactor(), io.StringIO())
        agent = Agent(settings, clock, logs, {})
        made.append((agent, logs))
        agent.start()
        return agent

    yield _start
    for agent, logs in made:
        agent.stop()
        logs.close()


def test_a_heartbeat_comes_first_then_rows(start, cloud, target):
    cloud.definitions = [definition("m", target)]
    start()
    cloud.until(lambda: cloud.beats)
    assert cloud.rows == []
    assert cloud.beats[0]["source_types_active"] == []
    (row, *_) = cloud.until(lambda: list(cloud.rows))
    assert (plain(row["metric_id"]), row["status"]) == ("m", "healthy")
    assert set(row) == {"metric_id", "value", "timestamp", "status"}


def test_definitions_are_applied_as_added_changed_removed(start, cloud, target):
    cloud.definitions = [definition("keep", target), definition("change", target), definition("go", target)]
    agent = start()
    cloud.until(lambda: {plain(row["metric_id"]) for row in cloud.rows} == {"keep", "change", "go"})
    kept = next(job for job in agent.collectors()["tcp"].jobs() if plain(job.definition.id) == "keep")
    cloud.definitions = [definition("keep", target), definition("change", target, interval=0.02)]
    cloud.definitions.append(definition("new", target))
    cloud.version = "v2"
    count = len(cloud.rows)
    agent.definitions.refresh()
    cloud.until(lambda: {plain(row["metric_id"]) for row in cloud.rows[count:]} == {"change", "new"})
    jobs = {plain(job.definition.id): job for job in agent.collectors()["tcp"].jobs()}
    assert set(jobs) == {"keep", "change", "new"} and jobs["keep"] is kept


def test_a_broken_definition_disables_itself_alone(start, cloud, target):
    cloud.definitions = [
        definition("good", target),
        definition("config", target, source_config={"host": "h"}),
        definition("type", target, source_type="pigeon"),
        definition("rule", target, healthy_value=None),
    ]
    agent = start()
    cloud.until(lambda: len({plain(row["metric_id"]) for row in cloud.rows}) == 4)
    found = {plain(row["metric_id"]): (row["status"], row.get("reason")) for row in cloud.rows}
    assert found == {
        "good": ("healthy", None),
        "config": ("no_data", "invalid_config"),
        "type": ("no_data", "unknown_source_type"),
        "rule": ("no_data", "invalid_config"),
    }
    shown = {plain(each["id"]): each for each in status.state(agent)["definitions"]}
    assert "port" in shown["config"]["problem"] and shown["good"]["problem"] is None
    assert agent.health().source_types_active == ("tcp",)


def test_manual_metrics_and_heartbeats_are_left_to_the_cloud_with_one_quiet_word(start, cloud, target):
    cloud.definitions = [
        definition("good", target),
        definition("by-hand", target, source_type="manual", source_config={}),
        definition("cron", target, source_type="heartbeat", source_config={"period_seconds": 60}),
    ]
    agent = start()
    cloud.until(lambda: cloud.rows)
    cloud.definitions.append(definition("more", target))
    agent.definitions.refresh()
    cloud.until(lambda: len({plain(row["metric_id"]) for row in cloud.rows}) > 1)
    assert {plain(row["metric_id"]) for row in cloud.rows} == {"good", "more"}
    assert {plain(each["id"]) for each in status.state(agent)["definitions"]} == {"good", "more"}
    said = [line for line in agent.logs.tail() if "the cloud evaluates" in line["message"]]
    assert len(said) == 1 and "2 definitions" in said[0]["message"]


@pytest.mark.slow
def test_every_worker_that_is_crashed_on_purpose_comes_back_and_is_counted(start, cloud, target):
    cloud.definitions = [definition("m", target)]
    agent = start(BROADCAST_LOGS="true")
    cloud.until(lambda: cloud.rows)
    workers = dict(agent.supervisor.workers)
    assert {"send", "beat", "definitions", "log"} <= set(workers) and "probe-tcp-0" in workers
    for name, worker in workers.items():
        good, crashes = worker._step, []

        def crash_once(good=good, crashes=crashes):
            if not crashes:
                crashes.append(True)
                raise RuntimeError("on purpose")
            return good()

        turns = worker.turns
        worker._step = crash_once
        worker.wake()
        while worker.restarts == 0:
            cloud.changed.acquire()
            cloud.changed.wait(0.02)
            cloud.changed.release()
        assert worker.turns >= turns
        metric = agent.metrics.registry.get_sample_value
        assert metric("observer_agent_worker_restarts_total", {"worker": name}) == 1
        worker.wake()
    beats, rows = len(cloud.beats), len(cloud.rows)
    agent.heartbeat._grid.due = 0.0
    workers["beat"].wake()
    cloud.until(lambda: len(cloud.beats) > beats)
    cloud.definitions = [definition("m", target, interval=0.02)]
    agent.definitions.refresh()
    cloud.until(lambda: len(cloud.rows) > rows)
    assert status.dead_workers(agent) == []


def test_a_crowd_of_due_probes_never_exceeds_the_pool_and_every_thread_is_in_care(start, cloud, target):
    cloud.definitions = [definition(f"m{n}", target) for n in range(60)]
    agent = start()
    cloud.until(lambda: len({row["metric_id"] for row in cloud.rows}) == 60)
    pool = agent.pools.workers()["tcp"]
    names = {name for name in agent.supervisor.workers if name.startswith("probe-tcp-")}
    running = {t.name for t in threading.enumerate() if t.name.startswith("probe-tcp-")}
    assert len(pool) <= POOL_MAX and {worker.name for worker in pool} == names == running


def test_a_stop_closes_the_queue_whatever_else_fails(start, cloud):
    agent = start()
    agent.sender.flush = lambda deadline: 1 / 0
    agent.stop()
    assert any("The last push failed" in line["message"] for line in agent.logs.tail())
    assert agent.queue._lock_file.closed


def test_why_it_does_not_deliver_is_one_line(start, cloud, target):
    cloud.failing = True
    agent = start()
    cloud.definitions = []
    while agent.heartbeat.last_orders is None:
        cloud.changed.acquire()
        cloud.changed.wait(0.02)
        cloud.changed.release()
    assert "503" in (status.problem(agent) or "")
    cloud.failing = False
    agent.heartbeat.beat()
    assert status.problem(agent) is None


def test_the_log_goes_to_the_cloud_without_secrets(start, cloud):
    agent = start(BROADCAST_LOGS="true", LOG_BROADCAST_LEVEL="INFO")
    cloud.definitions = [{"id": "x", "source_type": "http", "source_config": {"url": "http://u:canary@h/"}}]
    agent.definitions.refresh()
    cloud.until(lambda: any("1 definitions" in line["message"] for line in cloud.lines))
    assert {frozenset(line) for line in cloud.lines} == {frozenset({"level", "message", "timestamp"})}
    assert "canary" not in str(cloud.lines) and "key-of-the-test" not in str(cloud.lines)


def test_a_stop_flushes_and_says_a_last_word(start, cloud, target):
    cloud.definitions = [definition("m", target)]
    agent = start()
    cloud.until(lambda: cloud.rows)
    beats = len(cloud.beats)
    agent.stop()
    assert len(cloud.beats) == beats + 1
    assert cloud.beats[-1]["queue_depth"] == 0
    agent.stop()


def test_the_started_at_of_the_heartbeat_is_the_one_of_the_header_and_fixed(start, cloud):
    agent = start()
    cloud.until(lambda: cloud.beats)
    agent.heartbeat.beat()
    assert {beat["agent_started_at"] for beat in cloud.beats} == {agent.started_at}
