"""The Lighthouse agent and the hub, both as processes: the hub's history of every check is held against the truth.

The truth is written down by the test's own hand: the target notes every answer that it gives, and `must` of a check
holds each state that it was in for long enough to be seen. `Scene.judge` compares: the same states in the same order,
no row for what no look saw, nothing twice. Situations are one test each, and then all of them in a random sequence.
"""

from __future__ import annotations

import http.client
import json
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import uuid
from collections import Counter
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby, pairwise

import pytest

from observer_agent import queuefile
from observer_agent.clock import Clock, parse_iso
from observer_agent.demo.stage import Hub, clean_env, end_process
from tests.test_lighthouse_agent import until

pytestmark = pytest.mark.slow

CLOCK = Clock()
PATIENCE = 60.0
SEED = 7
UP, DOWN = "up", "down"


class Targets(ThreadingHTTPServer):
    """A path is a target: 200 while it is up, 503 while it is down; `answers` is what was said, and when.

    While `gate` is cleared, requests wait, and are answered by what is true after it.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Target)
        self.states: dict[str, str] = {}
        self.answers: dict[str, list[tuple[float, str]]] = {}
        self.lock = threading.Lock()
        self.gate = threading.Event()
        self.gate.set()
        self.waiting: set[str] = set()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def put(self, name: str, state: str) -> None:
        with self.lock:
            self.states[name] = state
            self.answers.setdefault(name, [])

    def count(self, name: str) -> int:
        """How many of the last answers were the same."""
        with self.lock:
            said = [state for _, state in self.answers[name]]
        return len(list(next(groupby(reversed(said)))[1])) if said else 0

    def close(self) -> None:
        self.gate.set()
        self.shutdown()
        self.server_close()


class _Target(BaseHTTPRequestHandler):
    server: Targets

    def do_GET(self) -> None:
        name, server = self.path.strip("/"), self.server
        if not server.gate.is_set():
            server.waiting.add(name)
            server.gate.wait(PATIENCE)
        with server.lock:
            state = server.states[name]
            server.answers[name].append((CLOCK.now(), state))
        try:
            self.send_response(200 if state == UP else 503)
            self.send_header("Content-Length", "0")
            self.end_headers()
        except OSError:
            pass  # whoever asked is gone

    def log_message(self, format, *args) -> None:
        pass


class Scene:
    """A lighthouse of its own at the hub of the module, targets, and an agent process."""

    def __init__(self, folder, hub, names, flap=1) -> None:
        self.folder, self.hub = folder, hub
        self.name = uuid.uuid4().hex[:8]
        self.flaps = [(0.0, flap)]  # since when so many looks in a row make a change, for certain
        self.targets = Targets()
        self.ids: dict[str, str] = {}
        self.must: dict[str, list[str]] = {}
        self.starts = 0
        self.agent = None
        settings = {"name": self.name, "heartbeat_interval_seconds": 5, "flap_protection_threshold": flap}
        self.token_file = folder / "token"
        self.token_file.write_text(self.call("POST", "", settings)["token"])
        self._closed = socket.socket()
        self._closed.bind(("127.0.0.1", 0))  # bound and not listening: refused, and nobody else's
        for name in names:
            self.add(name)
        self.dead = self.create("dead", "tcp", f"127.0.0.1:{self._closed.getsockname()[1]}")

    # -- the hub

    def call(self, method, path, body=None):
        """What the hub says to its operator; path is below that of all lighthouses."""
        conn = http.client.HTTPConnection("127.0.0.1", self.hub.port, timeout=20)
        with closing(conn):
            data = None if body is None else json.dumps(body)
            conn.request(method, f"/api/lighthouses{path}", data, {"Content-Type": "application/json"})
            answer = conn.getresponse()
            said = answer.read()
        assert answer.status < 300, (answer.status, said)
        return json.loads(said)

    def mine(self, path="", method="GET", body=None):
        return self.call(method, f"/{self.name}{path}", body)

    def create(self, name, kind, url) -> str:
        wanted = {"name": name, "type": kind, "url": url, "interval_seconds": 5, "timeout_seconds": 30}
        return self.mine("/checks", "POST", wanted)["id"]

    def add(self, name, state=UP) -> None:
        self.targets.put(name, state)
        self.ids[name] = self.create(name, "http", f"http://127.0.0.1:{self.targets.server_port}/{name}")
        self.must[name] = []

    def outage(self) -> None:
        self.hub.kill()

    def back(self) -> None:
        self.hub.start(lambda seconds: None)

    def long_ago(self) -> None:
        """The hub that is away has been away for two minutes: what it heard last is that old."""
        with closing(sqlite3.connect(self.hub.folder / "hub.db")) as conn, conn:
            change = "UPDATE lighthouses SET last_heartbeat_at = last_heartbeat_at - 120 WHERE name = ?"
            assert conn.execute(change, (self.name,)).rowcount == 1

    def rows(self, name=None):
        """The history as it arrived, oldest first."""
        found = self.mine("/events?limit=10000")["events"][::-1]
        return [row for row in found if name is None or row["check_id"] == self.ids[name]]

    def kinds(self, name):
        return Counter(row["sync_kind"] for row in self.rows(name))

    # -- the agent

    def start(self) -> None:
        given = {
            "CLOUD_DIALECT": "lighthouse",
            "LIGHTHOUSE_TOKEN_FILE": str(self.token_file),
            "LIGHTHOUSE_URL": f"http://127.0.0.1:{self.hub.port}",
            "LIGHTHOUSE_DATA_DIR": str(self.folder / "data"),
            "LOG_FORMAT": "text",
        }
        with (self.folder / "agent.log").open("ab") as log:
            command = [sys.executable, "-X", "dev", "-m", "observer_agent", "run"]
            self.agent = subprocess.Popen(command, env=clean_env(given), stderr=log, start_new_session=True)
        self.starts += 1

    def kill(self) -> None:
        self.agent.kill()
        self.agent.wait()

    def stop(self) -> None:
        self.agent.send_signal(signal.SIGTERM)
        assert self.agent.wait(30) == 0, self.log

    @property
    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    def stored(self, what):
        """The agent's own file: `states` or `console`."""
        try:
            return json.loads((self.folder / "data" / f"events.db.{what}").read_bytes())
        except FileNotFoundError:
            return {}

    def wait(self, what, seconds=PATIENCE):
        try:
            return until(what, seconds)
        except AssertionError:
            raise AssertionError(f"not in time; the agent's log ends: {self.log[-3000:]}") from None

    # -- the truth

    def flip(self, *names) -> None:
        for name in names:
            self.targets.put(name, DOWN if self.targets.states[name] == UP else UP)

    def seen(self) -> None:
        """Every target stays as it is until the agent believes it: so it must be in the history."""
        wanted = dict(self.targets.states)

        def believed() -> bool:
            found = self.stored("states").get("checks", {})
            return all(found.get(self.ids[name], [None])[0] == state for name, state in wanted.items())

        self.wait(believed)
        for name, state in wanted.items():
            if self.must[name][-1:] != [state]:
                self.must[name].append(state)

    def told(self) -> None:
        """All of it has come to the hub, and what that holds of every check is how its target is."""
        self.wait(lambda: self.log.count("Registered with the console") >= self.starts)  # else a start may be under way
        self.seen()

        def same() -> bool:
            found = {each["id"]: each["state"] for each in self.mine("/checks")["checks"]}
            return all(found[self.ids[name]] == state for name, state in self.targets.states.items())

        self.wait(same)
        self.wait(lambda: self.depth() == 0)

    def depth(self) -> int:
        return queuefile.read_stats(self.folder / "data" / "events.db", CLOCK.now(), 0)["depth"]

    def threshold(self, flap) -> None:
        now = CLOCK.now()
        self.mine("", "PATCH", {"flap_protection_threshold": flap})
        self.wait(lambda: self.stored("console")["flap_threshold"] == flap)
        self.flaps.append((now if flap < self.flaps[-1][1] else CLOCK.now(), flap))

    def pause(self, paused) -> None:
        self.mine("", "PATCH", {"paused": paused})
        self.wait(lambda: self.stored("console")["paused"] is paused)

    def judge(self, twice=0) -> None:
        """The history of every check is the truth. `twice` is how often a row may have been sent again."""
        for name in self.ids:
            self._judge(name, self.rows(name))
        dead = [row for row in self.rows() if row["check_id"] == self.dead]
        assert dead and {(row["new_state"], row["prev_state"]) for row in dead} == {(DOWN, None)}
        assert self.mine()["duplicates"] <= twice and self.depth() == 0
        assert "Traceback" not in self.log

    def _judge(self, name, rows) -> None:
        story = "\n".join(str(row) for row in rows)
        stamps = [row["agent_observed_at"] for row in rows]
        assert stamps == sorted(set(stamps)), f"{name}: not in order, or twice\n{story}"
        assert [state for state, _ in groupby(row["new_state"] for row in rows)] == self.must[name], f"{name}\n{story}"
        assert rows[0]["sync_kind"] in ("initial", "new_check"), f"{name}\n{story}"
        assert self.kinds(name)["initial"] <= self.starts, f"{name}\n{story}"
        for before, row in pairwise([None, *rows]):
            self._judge_row(name, before, row)

    def _judge_row(self, name, before, row) -> None:
        at = parse_iso(row["agent_observed_at"])
        said = [state for when, state in self.targets.answers[name] if when <= at]
        flap = [n for since, n in self.flaps if since <= at][-1]
        if row["sync_kind"] is None:
            assert row["prev_state"] == before["new_state"] != row["new_state"], (name, before, row)
            assert set(said[-flap:]) == {row["new_state"]} and len(said) >= flap, (name, row, said[-5:])
            return
        held = row["sync_kind"] == "initial" and flap > 1 and before  # believed until the threshold
        assert row["prev_state"] is None, (name, row)
        assert row["new_state"] in {said[-1], *([before["new_state"]] if held else ())}, (name, row, said[-5:])

    def close(self) -> None:
        self.targets.gate.set()
        if self.agent:
            end_process(self.agent)
        self.targets.close()
        self._closed.close()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    (folder / "observer.yaml").write_text('{"apiVersion": "observer/v1", "metrics": []}')
    made = Hub(folder, folder / "observer.yaml", CLOCK)
    yield made
    made.end()


@pytest.fixture
def stage(tmp_path, hub):
    made = []

    def _stage(*names, flap=1):
        if not hub.running:
            hub.start(lambda seconds: None)
        made.append(Scene(tmp_path, hub, names, flap))
        return made[-1]

    yield _stage
    for scene in made:
        scene.close()


# -- situations: each leaves the scene with agent and hub running, and every state seen


def through_an_outage(scene, some) -> None:
    scene.outage()
    for _ in range(2):
        scene.flip(*some)
        scene.seen()
    scene.back()


def through_a_kill(scene, some) -> None:
    """Nobody knows whether it has seen the flip: the target stays so, and the history holds it once."""
    answers = {name: len(scene.targets.answers[name]) for name in some}
    scene.flip(*some)
    scene.wait(lambda: len(scene.targets.answers[some[0]]) > answers[some[0]])
    scene.kill()
    scene.start()


def through_a_kill_in_an_outage(scene, some) -> None:
    """What was seen waits on disk, and what the next process sees comes after it."""
    scene.outage()
    scene.flip(*some)
    scene.seen()
    scene.kill()
    scene.flip(*some)
    scene.start()
    scene.seen()
    scene.back()


def through_a_stop(scene, some) -> None:
    """SIGTERM with looks in flight, which the target lets wait until the agent has gone."""
    scene.targets.gate.clear()
    scene.wait(lambda: len(scene.targets.waiting) == len(scene.ids))
    scene.stop()
    assert scene.mine()["state"] == "stopped" and scene.mine()["stop_reason"] == "sigterm"
    scene.targets.waiting.clear()
    scene.flip(*some)
    scene.targets.gate.set()
    scene.start()


def through_a_resync(scene, some) -> None:
    before = {name: scene.kinds(name)["resync"] for name in scene.ids}
    scene.outage()
    scene.flip(*some)
    scene.seen()
    scene.long_ago()
    scene.back()
    scene.wait(lambda: all(scene.kinds(name)["resync"] == before[name] + 1 for name in scene.ids))


def through_a_new_check(scene, some) -> None:
    name = f"new-{len(scene.ids)}"
    scene.add(name, DOWN if len(scene.ids) % 2 else UP)
    scene.wait(lambda: scene.kinds(name)["new_check"])


def through_a_pause(scene, some) -> None:
    scene.pause(True)
    counts = {name: len(scene.rows(name)) for name in scene.ids}
    scene.flip(*some)
    heard = scene.mine()["last_heartbeat_at"]
    scene.wait(lambda: scene.mine()["last_heartbeat_at"] != heard)
    assert counts == {name: len(scene.rows(name)) for name in scene.ids}
    scene.pause(False)


def through_flap_protection(scene, some) -> None:
    """Two looks that differ are none, three are a change."""
    scene.threshold(3)
    scene.flip(*some)
    scene.wait(lambda: all(scene.targets.count(name) == 2 for name in some[:1]))
    scene.flip(*some)
    scene.wait(lambda: all(scene.targets.states[n] == scene.targets.answers[n][-1][1] for n in some))
    scene.flip(*some)
    scene.seen()
    assert all(scene.targets.count(name) >= 3 for name in some)
    scene.threshold(1)


def through_a_rotation(scene, some) -> None:
    token = scene.mine("/rotate", "POST", {})["token"]
    scene.flip(*some)
    scene.seen()
    scene.wait(lambda: scene.depth() >= len(some))
    scene.token_file.write_text(token)


def through_a_boot_without_console(scene, some) -> None:
    scene.stop()
    scene.outage()
    scene.start()
    scene.flip(*some)
    scene.seen()
    scene.back()


SITUATIONS = {
    through_an_outage: {"initial": 1},
    through_a_kill: {"initial": 2},
    through_a_stop: {"initial": 2},
    through_a_resync: {"initial": 1, "resync": 1},
    through_a_new_check: {"initial": 1},
    through_a_pause: {"initial": 1},
    through_flap_protection: {"initial": 1},
    through_a_rotation: {"initial": 1},
    through_a_boot_without_console: {"initial": 2},
}


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda each: each.__name__)
def test_the_history_of_every_check_is_the_truth(stage, situation):
    scene = stage("steady", "one", "two")
    scene.start()
    scene.told()
    situation(scene, ["one", "two"])
    scene.told()
    scene.judge(twice=10 if situation is through_a_kill else 0)
    kinds = {kind: n for kind, n in scene.kinds("steady").items() if kind}
    assert kinds == SITUATIONS[situation], scene.rows("steady")
    for name in scene.ids.keys() - {"steady", "one", "two"}:
        assert scene.kinds(name) == {"new_check": 1}


def test_through_all_of_it_in_a_random_sequence(stage):
    chance = random.Random(SEED)
    scene = stage("steady", *(f"flip-{n}" for n in range(5)))
    scene.start()
    scene.told()
    all_of_them = [*SITUATIONS, through_a_kill_in_an_outage]
    for situation in chance.sample(all_of_them, len(all_of_them)):
        some = chance.sample([name for name in scene.ids if name != "steady"], 3)
        print(f"{CLOCK.now():.1f} {situation.__name__} {some}")
        situation(scene, some)
        scene.told()
    scene.stop()
    scene.judge(twice=20)
    assert set(scene.must["steady"]) == {UP}
