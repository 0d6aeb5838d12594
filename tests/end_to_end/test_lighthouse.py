"""The Lighthouse agent as a process, against a scripted console: what is killed, stopped and started again.

`truth` is what the test did to the target; the console's history of the check must equal it.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from observer_agent.demo.stage import clean_env, end_process, free_port
from tests.console import Console, check
from tests.test_lighthouse_agent import Target, until
from tests.watch import Watch

pytestmark = pytest.mark.slow


class Scene:
    """A console, a target and an agent process."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.console = Console()
        self.target = Target()
        self.agent = None

    def start(self, **env) -> None:
        given = {
            "CLOUD_DIALECT": "lighthouse",
            "LIGHTHOUSE_TOKEN": "lh_token",
            "LIGHTHOUSE_URL": self.console.url,
            "LIGHTHOUSE_DATA_DIR": str(self.folder / "data"),
            "LOG_FORMAT": "text",
            **env,
        }
        with (self.folder / "agent.log").open("ab") as log:
            command = [sys.executable, "-X", "dev", "-m", "observer_agent", "run"]
            self.agent = subprocess.Popen(command, env=clean_env(given), stderr=log, start_new_session=True)

    def stop(self, number=signal.SIGTERM) -> int:
        self.agent.send_signal(number)
        return self.agent.wait(30)

    @property
    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    def close(self) -> None:
        if self.agent:
            end_process(self.agent)
        self.console.close()
        self.target.close()


@pytest.fixture
def scene(tmp_path):
    made = Scene(tmp_path)
    yield made
    made.close()


def plain(rows):
    """The states in order, each once: what a history shows."""
    states = [row["new_state"] for row in rows]
    return [state for n, state in enumerate(states) if n == 0 or states[n - 1] != state]


def test_outage_kill_and_restart_leave_the_truth_in_order_and_nothing_twice(scene):
    console, target = scene.console, scene.target
    console.checks = [check("a", target.place), check("b", "127.0.0.1:1")]
    scene.start()
    console.until(lambda: len(console.events()) == 2)
    console.always |= {"events": 503, "heartbeat": 503, "register": 503}
    target.die()
    console.until(lambda: console.bodies("events:503"))  # it knows, and may not say so
    scene.agent.kill()
    scene.agent.wait()
    scene.start()
    until(lambda: scene.log.count("observer-agent 0.1.0 started") == 2)
    console.until(lambda: len(console.bodies("register:503")) >= 2, 60)
    target.rise()
    until(lambda: (scene.folder / "data" / "events.db.states").read_text().count('"up"') == 1)
    console.always.clear()
    console.until(lambda: plain(console.events("a")) == ["up", "down", "up"], 60)
    console.until(lambda: len(console.events("b")) == 2, 60)
    assert scene.stop() == 0
    rows = console.events()
    assert len({(row["check_id"], row["agent_observed_at"]) for row in rows}) == len(rows)
    assert plain(console.events("b")) == ["down"] and console.bodies("shutdown") == [{"reason": "sigterm"}]
    stamps = [row["agent_observed_at"] for row in console.events("a")]
    assert stamps == sorted(stamps)


def test_w1_sigterm_with_looks_in_flight_tells_no_down(scene):
    console, target = scene.console, scene.target
    console.checks = [check(f"m-{n}", target.url, "http", timeout_seconds=30) for n in range(5)]
    scene.start()
    console.until(lambda: len(console.events()) == 5)
    target.answer = None
    until(lambda: target.held, 30)
    watch = Watch()
    assert scene.stop() == 0 and watch.seconds < 12.0
    assert {row["new_state"] for row in console.events()} == {"up"} and len(console.events()) == 5


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGTERM, "sigterm"), (signal.SIGINT, "sigint")])
def test_w25_the_reason_of_the_end_is_the_true_one(scene, number, reason):
    scene.start()
    scene.console.until(lambda: scene.console.bodies("heartbeat"))
    assert scene.stop(number) == 0
    assert scene.console.bodies("shutdown") == [{"reason": reason}]


def test_w25_a_second_signal_ends_the_process_at_once(scene):
    console, target = scene.console, scene.target
    console.checks = [check("a", target.url, "http", timeout_seconds=30)]
    scene.start()
    console.until(lambda: console.events())
    target.answer = None
    until(lambda: target.held, 30)
    scene.agent.send_signal(signal.SIGTERM)
    target.die()  # the stop waits for the look; whoever stops it does not
    until(lambda: "observer-agent stops" in scene.log)  # two signals at once would be one
    watch = Watch()
    scene.agent.send_signal(signal.SIGTERM)
    assert scene.agent.wait(30) == 128 + signal.SIGTERM
    assert watch.seconds < 3.0


def waiting(scene):
    """The events that stand in the queue's file, as another process sees them."""
    with closing(sqlite3.connect(f"file:{scene.folder / 'data' / 'events.db'}?mode=ro", uri=True)) as file:
        return [json.loads(data)["event"] for (data,) in file.execute("SELECT data FROM queue_default ORDER BY _id")]


def test_w6_nothing_leaves_the_queues_file_before_it_is_acknowledged(scene):
    console, gate = scene.console, threading.Event()
    console.checks = [check(f"m-{n}", scene.target.place, interval_seconds=3600) for n in range(3)]
    console.gates["events"] = gate
    scene.start()
    console.until(lambda: [name for name, _ in console.raw if name == "events"])  # it has arrived, unanswered
    until(lambda: len(waiting(scene)) == 3)
    held = waiting(scene)
    assert {event["check_id"] for event in held} == {"m-0", "m-1", "m-2"}
    scene.agent.kill()
    scene.agent.wait()
    assert waiting(scene) == held, "the kill has lost what nobody had acknowledged"
    console.always["events"] = 503
    gate.set()
    scene.start()
    console.until(lambda: len(console.bodies("events:503")) >= 2)  # that of before the kill, and the one after it
    assert waiting(scene)[:3] == held, "a refusal for now is no acknowledgement"
    console.always.clear()
    until(lambda: not waiting(scene), 60)
    assert scene.stop() == 0
    told = {(row["check_id"], row["agent_observed_at"]) for row in console.events()}
    assert told >= {(event["check_id"], event["agent_observed_at"]) for event in held}, "what was in flight is told"


def test_w26_the_packaged_unit_is_unprivileged():
    text = (Path(__file__).parents[2] / "systemd" / "observer-agent.service").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    wanted = ["User=observer-agent", "NoNewPrivileges=yes", "CapabilityBoundingSet=", "AmbientCapabilities="]
    wanted += ["ProtectSystem=strict", "PrivateUsers=yes", "RestartPreventExitStatus=78"]
    assert [line for line in wanted if line not in lines] == []
    assert "LoadCredential=lighthouse_token:/etc/observer-agent/lighthouse_token" in lines


def test_w26_every_body_is_printed_before_it_leaves_and_the_record_proves_what_left(scene):
    console, gate = scene.console, threading.Event()
    console.checks = [check("a", scene.target.place)]
    console.gates["register"] = gate
    scene.start(LIGHTHOUSE_LOG_LEVEL="debug")
    console.until(lambda: console.raw)
    assert f"POST /api/lighthouse/v1/register: {console.raw[0][1].decode()}" in scene.log, "it left unprinted"
    gate.set()
    console.until(lambda: console.events() and console.bodies("heartbeat"))
    assert scene.stop() == 0
    arrived = [(f"POST /api/lighthouse/v1/{name}", hashlib.sha256(raw).hexdigest()) for name, raw in console.raw]
    env = clean_env({"CLOUD_DIALECT": "lighthouse", "LIGHTHOUSE_DATA_DIR": str(scene.folder / "data")})
    command = [sys.executable, "-m", "observer_agent", "sent", "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
    recorded = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted((each["request"], each["sha256"]) for each in recorded) == sorted(arrived)
    printed = [line for line in scene.log.splitlines() if " POST /api/lighthouse/v1/" in line]
    assert len(printed) == len(arrived) and "lh_token" not in done.stdout + scene.log


def test_w7_a_lighthouse_that_was_deleted_ends_with_78_and_keeps_its_events(scene):
    console, target = scene.console, scene.target
    console.checks = [check("a", target.place)]
    scene.start()
    console.until(lambda: console.events())
    console.always |= {"heartbeat": 410, "register": 410, "events": 410}
    assert scene.agent.wait(60) == 78
    assert console.bodies("shutdown") == [{"reason": "deleted"}] and "was deleted" in scene.log


def test_w8_a_console_that_is_away_at_boot_and_a_port_that_opens_later(scene):
    port = free_port()
    scene.start(LIGHTHOUSE_URL=f"http://127.0.0.1:{port}")
    until(lambda: "did not take the registration" in scene.log)
    late = Console(port)
    try:
        late.checks = [check("a", scene.target.place)]
        late.until(lambda: late.events(), 60)
        assert late.states("a") == [("initial", None, "up")] and scene.stop() == 0
    finally:
        late.close()


def test_nothing_listens_and_a_wrong_setting_is_named(scene):
    scene.start()
    scene.console.until(lambda: scene.console.bodies("register"))
    links = {os.readlink(fd) for fd in Path("/proc", str(scene.agent.pid), "fd").iterdir() if fd.is_symlink()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    listening = {row[9] for row in rows if row[3] == "0A"}
    assert not {f"socket:[{inode}]" for inode in listening} & links
    assert scene.stop() == 0
    scene.start(LIGHTHOUSE_TOKEN="", LIGHTHOUSE_URL="http://console.example.com")
    assert scene.agent.wait(30) == 78 and "LIGHTHOUSE_URL" in scene.log


def test_status_is_answered_without_a_port(scene, tmp_path):
    console = scene.console
    console.checks = [check("a", scene.target.place)]
    scene.start()
    console.until(lambda: console.events())
    env = clean_env({"CLOUD_DIALECT": "lighthouse", "LIGHTHOUSE_DATA_DIR": str(tmp_path / "data")})
    command = [sys.executable, "-m", "observer_agent", "status", "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
    assert '"dialect": "lighthouse"' in done.stdout and done.returncode == 0, done
    assert scene.stop() == 0 and not (tmp_path / "data" / "events.db.socket").exists()
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 3, done
