"""The Lighthouse agent in this process, against a scripted console: what the original does wrong, done right.

The W-numbers are those of the list of weaknesses of the original agent.
"""

from __future__ import annotations

import http.client
import io
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import pytest

from observer_agent import status
from observer_agent.clock import Clock
from observer_agent.clouds._lighthouse_wire import HostMetricsOrder
from observer_agent.config import load
from observer_agent.lighthouse.agent import LighthouseAgent
from observer_agent.lighthouse.extras import Unwanted
from observer_agent.lighthouse.store import Store
from observer_agent.logs import Redactor, configure
from tests.console import Console
from tests.console import check as console_check
from tests.watch import Watch

TOKEN = "lh_token-of-the-test"


class Target:
    """A TCP target that can go away and come back at its port; `held` connections get no answer."""

    def __init__(self) -> None:
        self.taken = 0
        self.held: list[socket.socket] = []
        self.answer: bytes | None = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, args=(self._listener,), daemon=True)
        self._thread.start()

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.place}/"

    def _serve(self, listener) -> None:
        while True:
            try:
                conn, _ = listener.accept()
            except OSError:
                return
            self.taken += 1
            if self.answer is None:
                self.held.append(conn)
                continue
            conn.settimeout(0.05)  # one that only connects says nothing
            try:
                if conn.recv(65536):
                    conn.sendall(self.answer)
            except OSError:
                pass
            conn.close()

    def die(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def rise(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._thread = threading.Thread(target=self._serve, args=(self._listener,), daemon=True)
        self._thread.start()

    def release(self) -> None:
        while self.held:
            self.held.pop().close()

    def close(self) -> None:
        self.release()
        if self._listener.fileno() >= 0:
            self.die()


@pytest.fixture
def target():
    made = Target()
    yield made
    made.close()


@pytest.fixture
def other():
    made = Target()
    yield made
    made.close()


@pytest.fixture
def console():
    made = Console()
    yield made
    for gate in made.gates.values():
        gate.set()
    made.close()


@pytest.fixture
def start(console, tmp_path):
    made = []

    def _start(**env):
        given = {
            "CLOUD_DIALECT": "lighthouse",
            "LIGHTHOUSE_URL": console.url,
            "LIGHTHOUSE_DATA_DIR": str(tmp_path / "data"),
            **env,
        }
        if "LIGHTHOUSE_TOKEN_FILE" not in given:
            given.setdefault("LIGHTHOUSE_TOKEN", TOKEN)
        clock = Clock()
        logs = configure("text", True, clock, Redactor(), io.StringIO())
        agent = LighthouseAgent(load(given), clock, logs, given, reread=lambda: (load(given), given))
        made.append((agent, logs))
        agent.start()
        return agent

    yield _start
    for agent, logs in made:
        agent.stop()
        logs.close()


def until(what, seconds=30.0):
    end, pause = time.monotonic() + seconds, threading.Event()
    while time.monotonic() < end:
        if found := what():
            return found
        pause.wait(0.02)
    raise AssertionError("not in time")


def look(agent, *ids):
    """These checks are looked at now, and not when their interval says."""
    for collector in agent.collectors().values():
        collector.hasten(ids)


def check(name, url, kind="tcp", **more):
    """A check that is looked at when the test says so."""
    return console_check(name, url, kind, **{"interval_seconds": 3600, **more})


def ran(agent, check_id):
    """When a check was last looked at, on the monotonic clock."""
    jobs = [job for each in agent.collectors().values() for job in each.jobs() if job.definition.id == check_id]
    return jobs[0].read_at if jobs else 0.0


def again(agent, check_id):
    """One more look, and its end."""
    before = ran(agent, check_id)
    look(agent, check_id)
    until(lambda: ran(agent, check_id) > before)


# -- the usual way


def test_a_check_is_told_at_the_start_and_when_it_changes_and_the_end_has_its_reason(start, console, target):
    console.checks = [check("a", target.place)]
    agent = start()
    console.until(lambda: console.events())
    target.die()
    look(agent, "a")
    console.until(lambda: len(console.events()) == 2)
    target.rise()
    look(agent, "a")
    console.until(lambda: len(console.events()) == 3)
    assert console.states("a") == [("initial", None, "up"), (None, "up", "down"), (None, "down", "up")]
    assert "refused" in console.events()[1]["error_message"]
    agent.stop_reason = "sigterm"
    agent.stop()
    assert console.requests[-1][0] == "shutdown" and console.requests[-1][2] == {"reason": "sigterm"}


def test_every_request_says_which_instance_calls_and_the_first_is_a_registration(start, console, tmp_path):
    start()
    console.until(lambda: console.bodies("register"))
    endpoint, headers, body = console.requests[0]
    assert (
        endpoint == "register" and body["runtime"] == "bare_metal" and set(body) >= {"agent_version", "agent_hostname"}
    )
    assert headers["X-Lighthouse-Instance-Id"] == (tmp_path / "data" / "instance.id").read_text().strip()
    assert headers["Authorization"] == f"Bearer {TOKEN}" and int(headers["X-Lighthouse-Process-Uptime"]) >= 0


def test_nothing_is_told_while_nothing_changes(start, console, target):
    console.checks = [check("a", target.place)]
    agent = start()
    console.until(lambda: console.events())
    for _ in range(5):
        again(agent, "a")
    assert len(console.events()) == 1


def test_the_heartbeat_tells_the_etag_and_the_latest_latency(start, console, target):
    console.checks = [check("a", target.place)]
    agent = start(NODE_NAME="node-7")
    console.until(lambda: console.events())
    agent.heartbeat.soon()
    beat = console.until(lambda: console.bodies("heartbeat"))[0]
    assert beat["config_etag"] == "etag-1" and set(beat["check_latencies"]) == {"a"} and beat["node_name"] == "node-7"
    agent.heartbeat.soon()
    console.until(lambda: len(console.bodies("heartbeat")) == 2)
    assert "check_latencies" not in console.bodies("heartbeat")[1], "each is told once"


def test_checks_of_a_heartbeat_are_adopted_and_a_new_one_is_told_once(start, console, target, other):
    console.checks = [check("a", target.place), check("gone", target.place)]
    agent = start()
    console.until(lambda: len(console.events()) == 2)
    console.etag = "etag-2"
    console.once = {"checks": [check("a", target.place), check("b", other.place)]}
    agent.heartbeat.soon()
    console.until(lambda: console.events("b"))
    assert console.states("b") == [("new_check", None, "up")] and len(console.states("a")) == 1
    assert {job.definition.id for each in agent.collectors().values() for job in each.jobs()} == {"a", "b"}
    agent.heartbeat.soon()
    console.until(lambda: console.bodies("heartbeat")[-1]["config_etag"] == "etag-2")


def test_a_resync_tells_every_check_and_wins_over_a_new_one(start, console, target):
    console.checks = [check("a", target.place), check("down", "127.0.0.1:1")]
    agent = start()
    console.until(lambda: len(console.events()) == 2)
    console.once = {"request_full_resync": True, "checks": [*console.checks, check("new", target.place)]}
    agent.heartbeat.soon()
    console.until(lambda: len(console.events()) == 5)
    rows = {row["check_id"]: (row["sync_kind"], row["prev_state"], row["new_state"]) for row in console.events()[2:]}
    assert rows == {"a": ("resync", None, "up"), "down": ("resync", None, "down"), "new": ("resync", None, "up")}


def test_flap_protection_holds_a_change_back_until_it_was_seen_often_enough(start, console, target):
    console.more = {"flap_protection_threshold": 3}
    console.checks = [check("a", target.place)]
    agent = start()
    console.until(lambda: console.events())
    target.die()
    again(agent, "a")
    again(agent, "a")
    target.rise()
    again(agent, "a")
    target.die()
    again(agent, "a")
    again(agent, "a")
    assert len(console.events()) == 1
    again(agent, "a")
    console.until(lambda: len(console.events()) == 2)
    assert console.states("a")[1] == (None, "up", "down")


def test_an_unknown_type_and_a_broken_check_are_down_and_the_others_go_on(start, console, target):
    console.checks = [check("a", target.place), check("odd", "x", "pigeon"), check("bad", "127.0.0.1:99999")]
    start()
    console.until(lambda: len(console.events()) == 3)
    rows = {row["check_id"]: (row["new_state"], row.get("error_message", "")) for row in console.events()}
    assert rows["a"][0] == "up" and rows["odd"] == ("down", 'unknown check type "pigeon"')
    assert rows["bad"][0] == "down" and rows["bad"][1].startswith("not checked: ")


def test_another_lighthouse_behind_the_token_is_begun_afresh(start, console, target):
    console.checks = [check("a", target.place)]
    first = start()
    console.until(lambda: console.events())
    first.stop()
    console.registration["lighthouse_id"] = "lh-2"
    console.checks = [check("z", target.place)]
    again_started = start()
    console.until(lambda: console.events("z"))
    assert console.states("z") == [("initial", None, "up")]
    assert again_started.known.lighthouse_id == "lh-2" and set(again_started.watch.tracks()) == {"z"}


def test_the_state_of_the_agent_is_shown_as_in_the_other_dialect(start, console, target):
    console.checks = [check("a", target.place)]
    agent = start()
    console.until(lambda: console.events())
    until(lambda: agent.queue.depth == 0)
    shown = status.state(agent)
    assert shown["cloud"]["delivering"] and shown["cloud"]["dialect"] == "lighthouse" and status.line(agent)
    assert [each["id"] for each in shown["definitions"]] == ["a"] and shown["definitions"][0]["status"] == "healthy"
    assert TOKEN not in str(shown)
    console.always["heartbeat"] = 503
    agent.heartbeat.soon()
    until(lambda: "503" in (status.problem(agent) or ""))


# -- the weaknesses of the original


@pytest.mark.slow
def test_w1_a_look_in_flight_at_the_stop_is_no_result(start, console, target):
    console.checks = [check("a", target.url, "http", timeout_seconds=30)]
    agent = start()
    console.until(lambda: console.events())
    target.answer = None
    look(agent, "a")
    until(lambda: target.held)
    console.gates["shutdown"] = threading.Event()
    begin, watch = time.monotonic(), Watch()
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(agent.stop)
        until(lambda: agent.watch._closed)
        target.release()  # the look ends badly while the agent still says goodbye
        until(lambda: ran(agent, "a") > begin)
        console.gates["shutdown"].set()
        stopping.result(30)
    assert watch.seconds < 8.0
    assert console.states("a") == [("initial", None, "up")] and agent.queue.depth == 0
    assert console.requests[-1][0] == "shutdown"


@pytest.mark.parametrize("change", ["changed", "removed", "paused"])
def test_w1_a_look_in_flight_at_a_check_that_changes_is_no_result(start, console, target, other, change):
    console.checks = [check("a", target.url, "http", timeout_seconds=30)]
    agent = start()
    console.until(lambda: console.events())
    target.answer = None
    look(agent, "a")
    until(lambda: target.held)
    if change == "paused":
        console.more = {"paused": True}
    else:
        console.once = {"checks": [check("a", other.url, "http")] if change == "changed" else []}
    agent.heartbeat.soon()
    console.until(lambda: len(console.bodies("heartbeat")) == 1)
    until(lambda: agent.heartbeat.sent == 2)
    target.release()  # the connection ends without an answer: a failure of the old check
    if change == "changed":
        until(lambda: other.taken)
        again(agent, "a")
    agent.stop()
    assert console.states("a") == [("initial", None, "up")]


def test_w2_slow_targets_delay_nobody_and_are_not_down(start, console, target, other):
    other.answer = None
    slow = [check(f"slow-{n}", other.url, "http", timeout_seconds=60) for n in range(3)]
    console.checks = [*slow, *(check(f"m-{n}", target.place) for n in range(20))]
    agent = start()
    console.until(lambda: len(console.events()) >= 20)
    jobs = [job for each in agent.collectors().values() for job in each.jobs()]
    assert any(job.stamp and job.slots.due == 0 for job in jobs), "nobody waits for its first moment"
    assert {row["new_state"] for row in console.events()} == {"up"}
    assert not any(row["check_id"].startswith("slow") for row in console.events())
    other.answer = Target().answer


def test_w3_w4_what_waits_goes_first_and_in_its_envelope(start, console, target):
    console.always["events"] = 503
    console.checks = [check("a", target.place)]
    agent = start()
    until(lambda: agent.queue.depth == 1)
    for step in (target.die, target.rise, target.die):
        step()
        again(agent, "a")
    until(lambda: agent.queue.depth == 4)
    del console.always["events"]
    agent.heartbeat.soon()  # one that succeeds ends the sender's wait
    console.until(lambda: len(console.events()) == 4)
    assert console.states("a") == [
        ("initial", None, "up"), (None, "up", "down"), (None, "down", "up"), (None, "up", "down")
    ]  # fmt: skip
    assert [len(body["events"]) for body in console.posts()] == [1, 3]
    stamps = [row["agent_observed_at"] for row in console.events()]
    assert stamps == sorted(set(stamps))


def test_w5_an_event_that_is_never_taken_holds_nobody_up(start, console, target):
    console.always["events"] = lambda body: 400 if any(e["check_id"] == "bad" for e in body["events"]) else None
    console.checks = [check(name, target.place) for name in ("a", "b", "bad", "c", "d")]
    agent = start()
    console.until(lambda: len(console.events()) == 4)
    assert {row["check_id"] for row in console.events()} == {"a", "b", "c", "d"}
    until(lambda: agent.queue.depth == 0)
    assert agent.queue.lost() == {"refused": 1}


@pytest.mark.slow
def test_w5_a_batch_that_is_too_large_is_halved_and_a_retry_after_is_kept(start, console, target):
    console.always["events"] = lambda body: 413 if len(body["events"]) > 2 else None
    console.checks = [check(f"m-{n}", target.place) for n in range(8)]
    agent = start()
    console.until(lambda: len(console.events()) == 8, 60)
    assert max(len(body["events"]) for body in console.posts()) <= 2
    console.script["events"] = deque([(429, {"error": "slow down"}, {"Retry-After": "2"})])
    del console.always["events"]
    target.die()
    again(agent, "m-0")
    console.until(lambda: console.bodies("events:429"))
    begin = time.monotonic()
    agent.heartbeat.soon()
    console.until(lambda: len(console.events("m-0")) == 2)
    assert time.monotonic() - begin > 1.0, "a heartbeat that succeeds does not cut a Retry-After short"


@pytest.mark.slow
def test_w7_a_token_that_is_refused_ends_nothing_and_the_next_one_is_read(start, console, target, tmp_path):
    file = tmp_path / "token"
    file.write_text("lh_old")
    console.checks = [check("a", target.place)]
    agent = start(LIGHTHOUSE_TOKEN_FILE=str(file))
    console.until(lambda: console.events())
    console.tokens = {"lh_new"}
    target.die()
    again(agent, "a")
    console.until(lambda: console.bodies("events:401") and console.bodies("heartbeat:401"))
    assert agent._exit_code is None and agent.queue.depth == 1 and ran(agent, "a")
    until(lambda: any("refuses the token" in line["message"] for line in agent.logs.tail()))
    file.write_text("lh_new")
    console.until(lambda: len(console.events()) == 2, 60)
    assert console.states("a")[1] == (None, "up", "down")
    assert "lh_new" not in str(agent.logs.tail()) and "lh_old" not in str(agent.logs.tail())


@pytest.mark.slow
def test_w7_gone_ends_the_agent_with_its_own_code_once_it_was_said_twice(start, console, target):
    console.checks = [check("a", target.place)]
    agent = start()
    console.until(lambda: console.events())
    console.always |= {"heartbeat": 410, "register": 410, "events": 410}
    target.die()
    again(agent, "a")
    until(lambda: agent._exit_code == 78)
    assert console.bodies("register:410") and agent.stop_reason == "deleted"
    agent.stop()
    assert console.bodies("shutdown") == [{"reason": "deleted"}]
    assert Store(agent.queue.file).load_states()["a"].committed == "down", "it waits on disk"


@pytest.mark.slow
def test_w7_gone_to_a_token_that_has_been_replaced_is_not_the_end(start, console, target, tmp_path):
    file = tmp_path / "token"
    file.write_text("lh_old")
    console.checks = [check("a", target.place)]
    agent = start(LIGHTHOUSE_TOKEN_FILE=str(file))
    console.until(lambda: console.events())
    console.gone = {"lh_old"}
    agent.heartbeat.soon()
    console.until(lambda: console.bodies("heartbeat:410"))
    file.write_text("lh_new")
    console.until(lambda: console.requests[-1][1]["Authorization"] == "Bearer lh_new", 60)
    again(agent, "a")
    assert agent._exit_code is None and console.requests[-1][0] in ("register", "heartbeat")


@pytest.mark.slow
def test_w8_checks_of_the_last_configuration_run_while_the_console_is_away(start, console, target):
    console.checks = [check("a", target.place)]
    first = start()
    console.until(lambda: console.events())
    first.stop()
    console.always |= {"register": 503}
    agent = start(LIGHTHOUSE_HEALTH_PORT="0")
    until(lambda: agent.queue.depth == 1)
    target.die()
    again(agent, "a")
    until(lambda: agent.queue.depth == 2)
    assert len(console.events()) == 1, "nothing is sent before the console knows this process"
    console.always.clear()
    console.until(lambda: len(console.events()) == 3, 60)
    assert console.states("a")[1:] == [("initial", None, "up"), (None, "up", "down")]
    assert len(console.bodies("register")) == 2


def test_w8_the_health_endpoints_do_not_depend_on_the_console(start, console, monkeypatch):
    console.always |= {"register": 503, "heartbeat": 503}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    agent = start(LIGHTHOUSE_HEALTH_PORT=str(port), LIGHTHOUSE_HEALTH_HOST="127.0.0.1")

    def ask(path):
        conn = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        conn.request("GET", path, headers={"Host": "10.1.2.3:9093"})
        answer = conn.getresponse()
        found = answer.status, answer.read()
        conn.close()
        return found

    console.until(lambda: console.bodies("register:503"))
    assert ask("/healthz/live") == ask("/healthz/ready") == (200, b"ok\n")
    assert ask("/healthz")[0] == 404
    agent.supervisor.workers["tidy"].stop()
    assert agent.supervisor.workers["tidy"].join(10)
    assert ask("/healthz/live") == ask("/healthz/ready") == (503, b"workers that do not work: tidy\n")


@pytest.mark.parametrize("interval", [0, -5, "soon", None, True, 1e99])
def test_w9_an_interval_that_is_none_leaves_the_fallback(start, console, interval):
    console.registration["heartbeat_interval_seconds"] = interval
    agent = start()
    console.until(lambda: console.bodies("register"))
    until(lambda: agent.heartbeat.sent == 1)
    assert agent.heartbeat.interval == 60.0


def test_w9_fields_that_are_missing_or_wrong_keep_the_last_good_value(start, console, target):
    console.more = {"flap_protection_threshold": 4}
    console.checks = [check("a", target.place, timeout_seconds=7)]
    agent = start()
    until(lambda: agent.heartbeat.sent == 1)
    known = agent.known
    console.always["heartbeat"] = lambda body: (
        200,
        {"paused": 1, "flap_protection_threshold": [], "checks": [check("a", target.place, timeout_seconds={}), 5]},
        {},
    )
    agent.heartbeat.soon()
    until(lambda: agent.heartbeat.sent == 2)
    assert agent.known == known and known.flap_threshold == 4 and known.etag == "etag-1"
    console.always["heartbeat"] = lambda body: (200, {}, {})
    agent.heartbeat.soon()
    until(lambda: agent.heartbeat.sent == 3)
    assert agent.known == known
    console.always["heartbeat"] = lambda body: (200, "no object", {})
    agent.heartbeat.soon()
    console.until(lambda: len(console.bodies("heartbeat")) == 3)
    until(lambda: agent.heartbeat.last_orders and not agent.heartbeat.last_orders.ok)
    assert agent.known == known


def test_w14_a_redirect_is_not_followed(start, console):
    elsewhere = Console()
    try:
        console.always["register"] = (307, {}, {"Location": f"{elsewhere.url}/api/lighthouse/v1/register"})
        agent = start()
        console.until(lambda: console.bodies("register:307"))
        until(lambda: agent.heartbeat.last_orders)
        assert elsewhere.requests == [] and not agent.heartbeat.registered
        until(lambda: any("redirect" in line["message"] for line in agent.logs.tail()))
    finally:
        elsewhere.close()


def test_w14_a_proxy_of_the_environment_is_used(start, console, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", console.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    start(LIGHTHOUSE_URL="http://localhost:1")
    console.until(lambda: console.bodies("register"))
    assert console.requests[0][1]["Host"] == "localhost:1"


def test_w17_a_console_that_hangs_on_events_holds_no_check(start, console, target):
    console.gates["events"] = threading.Event()
    console.checks = [check(f"m-{n}", target.place) for n in range(40)]
    agent = start()
    until(lambda: agent.queue.depth == 40)
    for _ in range(3):
        again(agent, "m-0")
        again(agent, "m-39")
    agent.heartbeat.soon()
    assert len(console.until(lambda: console.bodies("heartbeat"))[0]["check_latencies"]) == 40
    console.gates["events"].set()
    console.until(lambda: len(console.events()) == 40)


def test_w18_an_agent_for_host_metrics_runs_no_check_and_no_sync(start, console, target):
    console.checks = [check("a", target.place)]
    agent = start(LIGHTHOUSE_ROLE="host_metrics")
    until(lambda: agent.heartbeat.sent == 1)
    console.once = {"request_full_resync": True, "checks": [*console.checks, check("b", target.place)]}
    agent.heartbeat.soon()
    until(lambda: agent.heartbeat.sent == 2)
    agent.heartbeat.soon()
    until(lambda: agent.heartbeat.sent == 3)
    assert target.taken == 0 and console.events() == [] and agent.collectors() == {}
    assert console.bodies("heartbeat")[0]["role"] == "host_metrics"


@pytest.mark.slow
def test_the_consoles_word_alone_turns_no_host_metrics_on_and_loads_no_code_for_them(start, console):
    console.more["host_metrics"] = {"enabled": True, "interval_seconds": 5}
    agent = start()
    console.until(lambda: console.bodies("heartbeat"))
    assert not console.bodies("host-metrics") and agent.host_metrics.interval is None
    code = "import sys, observer_agent.lighthouse.agent; print([n for n in sys.modules if 'hostmetrics' in n])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "[]", "45 MB is all that an idle agent may take"


def test_an_order_for_host_metrics_that_are_not_allowed_here_is_named_once(caplog):
    caplog.set_level("INFO")
    unwanted = Unwanted()
    unwanted.registered("lh", None)
    for wanted in (False, True, True):
        unwanted.orders(HostMetricsOrder(wanted, 30.0))
    (line,) = caplog.messages
    assert "none leave unless LIGHTHOUSE_HOST_METRICS=true" in line and unwanted.interval is None


def test_w19_nothing_is_looked_at_while_the_console_pauses_not_even_for_a_sync(start, console, target):
    console.more = {"paused": True}
    console.checks = [check("a", target.place)]
    agent = start()
    until(lambda: agent.heartbeat.sent == 1)
    console.once = {"request_full_resync": True}
    agent.heartbeat.soon()
    until(lambda: agent.heartbeat.sent == 2)
    assert target.taken == 0 and agent.watch.unsettled() == 1
    console.more = {}
    agent.heartbeat.soon()
    console.until(lambda: console.events())
    assert console.states("a") == [("resync", None, "up")], "what was asked for meanwhile is told now"


def test_w19_a_pause_keeps_what_is_believed(start, console, target):
    console.checks = [check("a", target.place)]
    agent = start()
    console.until(lambda: console.events())
    console.more = {"paused": True}
    agent.heartbeat.soon()
    until(lambda: agent.known.paused)
    target.die()
    console.more = {}
    agent.heartbeat.soon()
    console.until(lambda: len(console.events()) == 2)
    assert console.states("a")[1] == (None, "up", "down")


def test_w20_what_a_failed_heartbeat_told_is_told_again(start, console, target):
    console.checks = [check("a", target.place), check("b", target.place)]
    agent = start()
    console.until(lambda: len(console.events()) == 2)
    console.always["heartbeat"] = 503
    agent.heartbeat.soon()
    console.until(lambda: console.bodies("heartbeat:503"))
    again(agent, "b")
    lost = console.bodies("heartbeat:503")[0]["check_latencies"]
    del console.always["heartbeat"]
    agent.heartbeat.soon()
    told = console.until(lambda: console.bodies("heartbeat"))[0]["check_latencies"]
    assert set(lost) == set(told) == {"a", "b"}, "a sync is measured as well"
    assert told["a"] == lost["a"] and told["b"]["last_observed_at"] > lost["b"]["last_observed_at"]


def test_w21_flap_protection_survives_a_restart(start, console, target):
    console.more = {"flap_protection_threshold": 3}
    console.checks = [check("a", target.place)]
    first = start()
    console.until(lambda: console.events())
    target.die()
    again(first, "a")
    first.stop()
    agent = start()
    console.until(lambda: len(console.events()) == 2)
    assert console.states("a")[1] == ("initial", None, "up"), "two of three"
    assert "error_message" not in console.events()[1]
    again(agent, "a")
    console.until(lambda: len(console.events()) == 3)
    assert console.states("a")[2] == (None, "up", "down")


def test_w21_a_change_that_was_told_is_believed_though_a_kill_came_before_it_was_stored(start, console, target):
    console.more = {"flap_protection_threshold": 3}
    console.checks = [check("a", target.place)]
    first = start()
    console.until(lambda: console.events())
    target.die()
    again(first, "a")
    file = first.queue.file.with_name("events.db.states")
    until(lambda: '"down", 1' in file.read_text())
    before = file.read_bytes()
    again(first, "a")
    again(first, "a")
    console.until(lambda: len(console.events()) == 2)
    first.stop()
    file.write_bytes(before)
    start()
    console.until(lambda: len(console.events()) == 3)
    assert console.states("a") == [("initial", None, "up"), (None, "up", "down"), ("initial", None, "down")]


def test_w21_heartbeats_of_a_fleet_do_not_come_together(start, console):
    console.registration["heartbeat_interval_seconds"] = 20
    agent = start()
    until(lambda: agent.heartbeat.sent == 1)
    waits = {agent.heartbeat._taken(agent.heartbeat.last_orders, False) for _ in range(20)}
    assert len(waits) > 10 and 18.0 <= min(waits) <= max(waits) <= 20.0, "never later than the console asked"


@pytest.mark.slow
def test_w25_a_console_that_hangs_does_not_hold_the_stop(start, console, target):
    console.checks = [check("a", target.place)]
    agent = start()
    console.until(lambda: console.events())
    console.gates = {"events": threading.Event(), "shutdown": threading.Event()}
    target.die()
    again(agent, "a")
    watch = Watch()
    agent.stop()
    assert watch.seconds < 9.0


def test_the_checks_secrets_reach_no_log_and_no_event(start, console, target):
    canary = "canary-of-a-header"
    secret = {"request_headers": [{"key": "X-Api-Key", "value": canary}], "request_body": canary}
    console.checks = [check("a", f"http://user:{canary}@127.0.0.1:1/?q={canary}", "http", **secret)]
    agent = start()
    console.until(lambda: console.events())
    assert canary not in str(console.requests) and canary not in str(agent.logs.tail())
    assert canary not in str(status.state(agent))
