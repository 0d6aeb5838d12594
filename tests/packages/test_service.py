"""The installed unit under real systemd: what it runs as, what brings it back, what it says of itself."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.packages.fixtures import bookworm
from tests.packages.machine import UNIT, throughout
from tests.packages.scene import CONF, KEY
from tests.site import metric
from tests.watch import Watch

pytestmark = pytest.mark.slow

SYSTEMD = Path(__file__).parents[2] / "systemd"
DROP_INS = f"/etc/systemd/system/{UNIT}.d"
SHOWN = {
    "Type": "notify",
    "NotifyAccess": "main",
    "Restart": "always",
    "RestartPreventExitStatus": "78",
    "StartLimitIntervalUSec": "0",
    "WatchdogUSec": "1min",
    "User": "observer-agent",
    "Group": "observer-agent",
    "StateDirectory": "observer-agent",
    "StateDirectoryMode": "0700",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateUsers": "yes",
    "PrivateDevices": "yes",
    "MemoryDenyWriteExecute": "yes",
    "TasksMax": "256",
    "MemoryMax": "268435456",
}


@pytest.fixture
def watch(scene):
    """Three definitions, one of each source type that looks at something here."""
    port, page = scene.site.listen(), scene.site.page
    return [
        metric("tcp", "tcp", {"host": "127.0.0.1", "port": port}),
        metric("http", "http", {"url": f"http://127.0.0.1:{page}/healthz"}),
        metric(
            "own",
            "prometheus",
            {"scrape_url": f"http://127.0.0.1:{page}/metrics", "metric": "observer_agent_queue_depth"},
        ),
    ]


def read(machine, pid, name):
    return machine.ask("cat", f"/proc/{pid}/{name}")


def test_a_start_delivers_heartbeats_and_verdicts_and_says_so(scene, watch):
    machine = scene.machine
    scene.open_hub(watch)
    scene.configure()
    machine.run("observer-agent", "check")
    began = time.monotonic()
    pid = scene.start()
    scene.until(scene.pushes, "the first verdict is at the hub")
    print(f"start to first verdict: {time.monotonic() - began:.1f} s")
    scene.until(lambda: {m["status"] for m in scene.metrics().values()} == {"healthy"}, "every verdict is healthy")
    assert scene.agents()["demo"]["state"] == "online"
    scene.until(lambda: re.search(r"^\d+ of 10000 wait, last push \S*\d", scene.status()), "the line of status")
    assert machine.main_pid() == pid and machine.show("NRestarts") == "0"
    said = machine.run("observer-agent", "status")
    assert said.stdout.startswith("Delivering.") and "3 healthy" in said.stdout
    assert scene.stop_and_count() > 0


def test_what_runs_is_confined_and_holds_no_key_that_others_may_see(scene, watch):
    machine = scene.machine
    pid = scene.deliver(watch)
    assert {name: machine.show(name) for name in SHOWN} == SHOWN
    assert machine.ask("stat", "-c", "%U", f"/proc/{pid}") == "observer-agent"
    assert re.search(r"(?m)^CapEff:\s*0+$", read(machine, pid, "status"))
    assert re.search(r"(?m)^NoNewPrivs:\s*1$", read(machine, pid, "status"))
    assert re.search(r"(?m)^Seccomp:\s*2$", read(machine, pid, "status"))
    key = scene.site.key
    assert key not in read(machine, pid, "environ") and key not in read(machine, pid, "cmdline")
    assert key not in machine.ask("systemctl", "show", UNIT) + machine.journal() + machine.ask("ps", "axewww")
    assert machine.ask("stat", "-c", "%U %a", KEY) == "root 600"
    refused = machine.run("setpriv", "--reuid=observer-agent", "--clear-groups", "cat", KEY, check=False)
    assert refused.returncode != 0, "the service's user reads root's file"
    assert machine.ask("stat", "-c", "%U %a", "/var/lib/observer-agent") == "observer-agent 700"


@bookworm
def test_its_threads_stay_under_200_while_everything_hangs(scene):
    port = scene.site.listen()  # takes connections and never answers
    url = f"http://127.0.0.1:{port}/"
    hang = [metric(f"h{n}", "http", {"url": url, "timeout_ms": 60000}) for n in range(80)]
    hang += [metric(f"p{n}", "prometheus", {"scrape_url": url, "metric": "up"}) for n in range(80)]
    hang += [metric(f"r{n}", "tcp", {"host": f"name-{n}.invalid", "port": 1}) for n in range(80)]
    scene.open_hub(hang)
    scene.configure()
    pid = scene.start()
    threads = []

    def count():
        threads.append(len(scene.machine.ask("ls", f"/proc/{pid}/task").split()))
        return threads[-1] > 60

    scene.until(count, "many threads hang")
    throughout(lambda: count() is not None and threads[-1] <= 200, "at most 200 threads", 5.0)
    print("threads at most:", max(threads))
    assert scene.machine.show("ActiveState") == "active"


def test_kill_9_is_recovered_and_nothing_is_lost(scene, watch):
    machine = scene.machine
    before = scene.deliver(watch)
    machine.signal("KILL")
    scene.until(lambda: machine.show("ActiveState") == "active" and int(machine.show("MainPID")) > 1, "it is back")
    assert machine.main_pid() != before and machine.show("NRestarts") == "1"
    had = len(scene.pushes())
    scene.until(lambda: len(scene.pushes()) > had + 3, "the hub hears again")
    scene.stop_and_count()


def test_a_process_that_does_nothing_any_more_is_replaced_by_the_watchdog(scene, watch):
    machine = scene.machine
    machine.write(f"{DROP_INS}/watchdog.conf", "[Service]\nWatchdogSec=3\n")
    machine.systemctl("daemon-reload")
    before = scene.deliver(watch)
    throughout(lambda: machine.show("NRestarts") == "0", "the watchdog is content with an agent that works", 4.0)
    machine.signal("STOP")
    scene.until(lambda: machine.show("NRestarts") == "1", "the watchdog has ended it", 40.0)
    scene.until(lambda: machine.show("ActiveState") == "active", "it is back")
    assert machine.main_pid() != before
    assert "Watchdog timeout" in machine.journal("-u", UNIT)
    had = len(scene.pushes())
    scene.until(lambda: len(scene.pushes()) > had + 3, "the hub hears again")
    scene.stop_and_count()


@bookworm
def test_a_wrong_setting_is_a_failure_without_a_loop_of_restarts(scene, watch):
    machine = scene.machine
    scene.open_hub(watch)
    scene.configure(BUFFER_MAX_ROWS="many")
    assert machine.systemctl("start", UNIT, check=False).returncode != 0
    assert (machine.show("ActiveState"), machine.show("ExecMainStatus")) == ("failed", "78")
    assert f"{UNIT} loaded failed" in machine.failed(), "a failed unit is seen by those tests that want none"
    throughout(lambda: machine.show("ActiveState") == "failed", "failed", 3.0)  # RestartSec is 2
    assert machine.show("NRestarts") == "0"
    assert "BUFFER_MAX_ROWS" in machine.journal("-u", UNIT)
    scene.configure(BUFFER_MAX_ROWS=500)
    scene.start()
    scene.until(lambda: scene.state().get("queue", {}).get("capacity") == 500, "the mended setting counts")


@bookworm
def test_a_stop_is_quick_and_leaves_nothing_behind(scene, watch):
    machine = scene.machine
    scene.deliver(watch)
    stopwatch = Watch()
    machine.systemctl("stop", UNIT)
    assert stopwatch.seconds < 5.0
    assert (machine.show("ActiveState"), machine.show("Result")) == ("inactive", "success")
    assert machine.run("pgrep", "-u", "observer-agent", check=False).stdout == ""
    assert not machine.has("/run/observer-agent") and not machine.has(f"/run/credentials/{UNIT}")


@bookworm
@pytest.mark.parametrize("example", ["ping.conf", "host-metrics.conf"])
def test_the_examples_of_drop_ins_work(scene, watch, example):
    machine = scene.machine
    machine.write(f"{DROP_INS}/{example}", (SYSTEMD / "examples" / example).read_text())
    machine.systemctl("daemon-reload")
    checked = machine.run("systemd-analyze", "--man=no", "verify", f"/lib/systemd/system/{UNIT}", check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    pid = scene.deliver(watch)
    capabilities = int(re.search(r"(?m)^CapEff:\s*(\w+)$", read(machine, pid, "status"))[1], 16)
    assert capabilities == (1 << 13 if example == "ping.conf" else 0), "13 is CAP_NET_RAW"
    assert machine.show("ProtectProc") == ("default" if example == "host-metrics.conf" else "invisible")


@bookworm
def test_an_environment_file_alone_is_enough(scene, watch):
    machine = scene.machine
    scene.open_hub(watch)
    settings = {**scene.settings, "AGENT_KEY": scene.site.key}
    machine.write(f"{CONF}/agent.env", "".join(f"{name}={value}\n" for name, value in settings.items()), mode=0o600)
    pid = scene.start()
    scene.until(scene.pushes, "the first verdict is at the hub")
    assert machine.has("/var/lib/observer-agent/buffer.db")
    assert scene.site.key not in read(machine, pid, "cmdline")
