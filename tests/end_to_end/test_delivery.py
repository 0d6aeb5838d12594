"""The real agent against a real hub, both as processes: nothing lost, nothing twice, whatever is killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import threading

import pytest

from observer_agent.demo.stage import end_process, free_port, get
from observer_agent.demo.targets import start_prometheus
from tests.site import Site, metric

pytestmark = pytest.mark.slow


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    made.close()


def held(site):
    """The hub's rows as (queue id, row id), asserted to be there once each."""
    rows = [(row["queue_id"], row["row_id"]) for row in site.pushes()]
    assert len(rows) == len(set(rows)), "a row is there twice"
    return set(rows)


def check_complete(site):
    """What the hub holds and what waits on disk is exactly what was committed."""
    hub, waiting = held(site), site.waiting()
    assert not hub & waiting or hub & waiting <= hub  # a row may wait though the answer to it was lost
    assert {row_id for _, row_id in hub | waiting} == set(range(1, site.given() + 1))


def test_verdicts_of_all_three_source_types_arrive_in_order(site):
    port = site.listen()
    site.open_hub(
        [
            metric("tcp", "tcp", {"host": "127.0.0.1", "port": port}),
            metric("closed", "tcp", {"host": "127.0.0.1", "port": free_port()}),
            metric("page", "http", {"url": f"http://127.0.0.1:{site.page}/healthz"}),
            metric(
                "depth",
                "prometheus",
                {"scrape_url": f"http://127.0.0.1:{site.page}/metrics", "metric": "observer_agent_queue_depth"},
            ),
        ]
    )
    site.start_agent()
    site.until(lambda: len(site.pushes()) >= 12 and len({r["metric_id"] for r in site.pushes()}) == 4)
    agent = site.hub_agent()
    assert agent["state"] == "online"
    state = site.state()
    assert state["cloud"]["delivering"]
    assert set(state) >= {"process", "cloud", "queue", "workers", "definitions", "losses"}
    assert site.stop_agent()[0] == 0
    check_complete(site)
    by_title = {m["key"]: m for m in get(site.hub.port, "/api/v1/metrics")["metrics"]}
    assert by_title["tcp"]["status"] == "healthy" and by_title["page"]["status"] == "healthy"
    assert (by_title["closed"]["status"], by_title["closed"]["reason"]) == ("no_data", "ECONNREFUSED")
    for key in by_title:
        rows = [r for r in site.pushes() if r["metric_id"] == by_title[key]["id"]]
        stamps = [r["timestamp"] for r in sorted(rows, key=lambda r: r["row_id"])]
        assert stamps == sorted(stamps) and len(stamps) == len(set(stamps))
    assert set(site.hub_agent()["source_types_active"]) == {"tcp", "http", "prometheus"}


def test_kill_9_of_the_agent_at_twenty_random_moments(site):
    seed = int(os.environ.get("SEED") or random.randrange(2**32))
    print(f"SEED={seed}")
    chance = random.Random(seed)
    port = site.listen()
    site.open_hub([metric(f"m{n}", "tcp", {"host": "127.0.0.1", "port": port}) for n in range(400)])
    pause = threading.Event()
    for _ in range(20):
        before = site.given() if site.buffer.exists() else 0
        site.start_agent()
        site.until(lambda before=before: site.state() and site.given() > before)
        pause.wait(chance.uniform(0.0, 0.8))
        site.kill_agent()
    site.start_agent()
    site.until(lambda: (site.state() or {}).get("queue", {}).get("accepted", 0) > 0)
    assert site.stop_agent()[0] == 0
    assert site.given() > 100
    assert {i for _, i in held(site) | site.waiting()} == set(range(1, site.given() + 1)), f"SEED={seed}"
    assert site.waiting() == set()


def test_an_outage_of_the_hub_loses_nothing_and_the_first_push_comes_within_five_seconds(site):
    port = site.listen()
    site.open_hub([metric(f"m{n}", "tcp", {"host": "127.0.0.1", "port": port}) for n in range(5)])
    site.start_agent()
    site.until(lambda: len(site.pushes()) >= 5)
    site.hub.kill()
    site.until(lambda: site.state()["queue"]["depth"] >= 30)
    assert not site.state()["cloud"]["delivering"]
    site.open_hub([metric(f"m{n}", "tcp", {"host": "127.0.0.1", "port": port}) for n in range(5)])
    before = site.hub_agent()["taken"]
    site.until(lambda: site.hub_agent()["taken"] > before, seconds=5.0)
    assert site.stop_agent()[0] == 0
    check_complete(site)
    assert site.state() is None


def test_against_a_real_prometheus(site, tmp_path):
    program = shutil.which("prometheus")
    if not program:
        if os.environ.get("CI") == "true":
            pytest.fail("CI installs prometheus, and it is not there")
        pytest.skip("prometheus is not on the PATH (Debian: apt-get install prometheus)")
    port = free_port()
    server = start_prometheus(program, tmp_path, port, site.page)
    try:
        base = {"prometheus_url": f"http://127.0.0.1:{port}"}
        site.open_hub(
            [
                metric("up", "prometheus", {"query": 'up{job="agent"}', **base}),
                metric("scalar", "prometheus", {"query": "scalar(vector(7))", **base}),
                metric("several", "prometheus", {"query": "observer_agent_samples_lost_total", **base}),
                metric("none", "prometheus", {"query": "no_such_metric", **base}),
                metric("broken", "prometheus", {"query": "sum(", **base}),
                metric("nan", "prometheus", {"query": "vector(0) / 0", **base}),
            ]
        )
        site.start_agent(PROMETHEUS_SERVER_URL="http://127.0.0.1:1")
        found = site.until(lambda: _settled(site), seconds=40)
    finally:
        end_process(server)
    assert found["up"] == ("healthy", None, 1)
    assert found["scalar"] == ("healthy", None, 7)
    assert found["several"][:2] == ("no_data", "prom_multiple_series")
    assert found["none"][:2] == ("no_data", "no_data_for_query")
    assert found["broken"][:2] == ("no_data", "BadQuery")
    assert found["nan"][:2] == ("no_data", "no_data_for_query")


def _settled(site):
    metrics = get(site.hub.port, "/api/v1/metrics")["metrics"]
    found = {m["key"]: (m["status"], m["reason"], m["value"]) for m in metrics}
    wanted = found.get("up") == ("healthy", None, 1) and found.get("several", ("",) * 2)[1] == "prom_multiple_series"
    return found if wanted and None not in {status for status, _, _ in found.values()} else None


def test_stop_while_a_probe_hangs_the_hub_hangs_and_the_queue_is_full(site):
    port = site.listen()  # accepts and never answers
    document = [metric(f"m{n}", "tcp", {"host": "127.0.0.1", "port": port}) for n in range(8)]
    document.append(metric("hang", "http", {"url": f"http://127.0.0.1:{port}/", "timeout_ms": 60000}))
    site.open_hub(document)
    site.start_agent(BUFFER_MAX_ROWS="20")
    site.until(lambda: len(site.pushes()) >= 8)
    os.kill(site.hub._process.pid, signal.SIGSTOP)
    try:
        site.until(lambda: site.state()["queue"]["depth"] == 20 and site.state()["losses"].get("cap"), seconds=60)
        code, took = site.stop_agent()
    finally:
        os.kill(site.hub._process.pid, signal.SIGCONT)
    assert code == 0
    assert took < 9.0
    assert len(site.waiting()) == 20


def test_a_second_agent_on_the_same_file_is_refused_and_the_first_goes_on(site):
    site.open_hub([])
    site.start_agent()
    site.until(site.state)
    first = site.agent
    site.start_agent(DEBUG_DASHBOARD_PORT=str(free_port()))
    assert site.agent.wait(30) == 78
    assert "BUFFER_PATH=" in site.log and "another observer-agent" in site.log
    site.agent = first
    assert first.poll() is None


def test_two_processes_with_one_key_the_newer_one_owns_it(site, tmp_path):
    port = site.listen()
    site.open_hub([metric("m", "tcp", {"host": "127.0.0.1", "port": port})])
    site.start_agent()
    site.until(lambda: site.pushes())
    older = site.agent
    site.start_agent(BUFFER_PATH=str(tmp_path / "other.db"), DEBUG_DASHBOARD_PORT=str(free_port()))
    try:
        fenced = site.until(lambda: site.state()["losses"].get("fenced"), seconds=40)
        assert fenced >= 1 and older.poll() is None
        assert "uses this agent's key" in site.state()["cloud"]["problem"]
        assert site.log.count("uses this agent's key;") == 1
    finally:
        end_process(site.agent)
        site.agent = older


def test_an_agent_that_starts_while_the_hub_is_away_goes_on_probing(site):
    port = site.listen()
    site.open_hub([metric("m", "tcp", {"host": "127.0.0.1", "port": port})])
    site.start_agent()
    site.until(lambda: site.pushes())
    site.stop_agent()
    site.hub.kill()
    before = site.given()
    site.start_agent()
    site.until(lambda: site.given() > before + 2)
    assert site.state()["definitions"][0]["status"] == "healthy"
    site.open_hub([metric("m", "tcp", {"host": "127.0.0.1", "port": port})])
    site.until(lambda: site.state()["queue"]["depth"] == 0)
    site.stop_agent()
    check_complete(site)


def test_definitions_from_a_local_document_are_read_again_when_they_change(site, tmp_path):
    import json

    port = site.listen()
    site.open_hub([])
    file = tmp_path / "local.yaml"
    file.write_text(json.dumps({"apiVersion": "observer/v1", "metrics": [
        metric("a", "tcp", {"host": "127.0.0.1", "port": port})]}))  # fmt: skip
    site.start_agent(DEFINITIONS_FILE=str(file))
    site.until(lambda: len(site.pushes()) >= 1)
    file.write_text(json.dumps({"apiVersion": "observer/v1", "metrics": [
        metric("b", "tcp", {"host": "127.0.0.1", "port": port})]}))  # fmt: skip
    site.until(lambda: len({row["metric_id"] for row in site.pushes()}) == 2)
    (only,) = site.state()["definitions"]
    assert only["problem"] is None


def test_a_wrong_document_stops_the_start(site, tmp_path):
    site.open_hub([])
    (tmp_path / "bad.yaml").write_text("metrics: [")
    site.start_agent(DEFINITIONS_FILE=str(tmp_path / "bad.yaml"))
    assert site.agent.wait(30) == 78
    assert "DEFINITIONS_FILE=" in site.log
    assert site.hub_agent()["last_heartbeat_at"] is None, "a start that fails claims no key"


def test_nothing_leaves_but_to_the_cloud_and_no_log_line_holds_the_key(site):
    port = site.listen()
    site.open_hub([metric("m", "tcp", {"host": "127.0.0.1", "port": port})])
    site.start_agent(VERBOSE="true", BROADCAST_LOGS="true", LOG_BROADCAST_LEVEL="DEBUG")
    site.until(lambda: site.pushes())
    with open(f"/proc/{site.agent.pid}/cmdline", "rb") as handle:
        assert site.key.encode() not in handle.read()
    site.stop_agent()
    assert site.key not in site.log
    assert site.key not in (site.folder / "hub.log").read_text()
    assert site.key.encode() not in site.buffer.read_bytes()


def test_a_port_that_is_taken_costs_only_the_local_page(site):
    site.open_hub([])
    with socket.create_server(("127.0.0.1", site.page)):
        site.start_agent()
        site.until(lambda: "cannot listen" in site.log)
        site.until(lambda: site.hub_agent()["state"] == "online")
    assert site.stop_agent()[0] == 0


def test_the_hub_goes_first_and_the_agent_still_stops_in_time(site):
    site.open_hub([])
    site.start_agent()
    site.until(site.state)
    site.hub.kill()
    code, took = site.stop_agent()
    assert code == 0 and took < 9.0


def test_status_and_queue_stats_of_a_running_agent(site):
    import json
    import sys

    from observer_agent.demo.stage import clean_env

    def command(*words):
        env = clean_env({"DEBUG_DASHBOARD_PORT": str(site.page), "BUFFER_PATH": str(site.buffer)})
        done = subprocess.run(
            [sys.executable, "-m", "observer_agent", *words], env=env, capture_output=True, text=True, timeout=30
        )
        return done.returncode, done.stdout

    port = site.listen()
    site.open_hub([metric("m", "tcp", {"host": "127.0.0.1", "port": port})])
    assert command("status", "--json")[0] == 3
    site.start_agent()
    site.until(lambda: site.pushes())
    code, text = command("status", "--json")
    assert code == 0 and json.loads(text)["cloud"]["delivering"] is True
    code, text = command("queue", "stats", "--json")
    stats = json.loads(text)
    assert code == 0 and set(stats) == {
        "path", "depth", "capacity", "bytes", "oldest_age_seconds", "queue_id", "next_row_id", "accepted", "lost",
        "rejected",
    }  # fmt: skip
    assert stats["next_row_id"] >= 2 and stats["lost"] == {}
    site.hub.kill()
    site.until(lambda: not site.state()["cloud"]["delivering"])
    assert command("status")[0] == 1
