"""`systemctl reload`, keys that change and keys that are wrong, under real systemd."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing

import pytest

from observer_agent.hub.store import digest
from tests.packages.fixtures import bookworm
from tests.packages.machine import UNIT
from tests.packages.scene import KEY, SETTINGS
from tests.site import metric

pytestmark = pytest.mark.slow

PERIOD = 7.0


@pytest.fixture
def watch(scene):
    """A definition each second, one of a longer interval, one that needs a setting."""
    port = scene.site.listen()
    return [
        metric("fast", "tcp", {"host": "127.0.0.1", "port": port}),
        metric("grid", "tcp", {"host": "127.0.0.1", "port": port}, interval="7s", push="7s"),
        metric("query", "prometheus", {"query": "up"}),
    ]


def reload(scene):
    """A reload that must succeed and keep the process."""
    pid = scene.machine.main_pid()
    scene.machine.systemctl("reload", UNIT)
    assert scene.machine.main_pid() == pid and scene.machine.show("ActiveState") == "active"


def job(scene, key):
    """The agent's line about a definition, known by its title."""
    return next((each for each in scene.state().get("definitions", []) if each["title"] == key), None)


def phase(scene):
    """When `grid` is due, on the host's clock, modulo its interval."""
    asked = time.monotonic()
    left = job(scene, "grid")["next_run_in_seconds"]
    return ((asked + time.monotonic()) / 2 + left) % PERIOD


def apart(one, other):
    return min((one - other) % PERIOD, (other - one) % PERIOD)


def second_key(scene):
    """One more key of the same agent, as a hub that can rotate keys makes it."""
    key = "obs_rotated-0123456789abcdef"
    with closing(sqlite3.connect(scene.site.folder / "hub.db")) as conn, conn:
        conn.execute(
            "INSERT INTO keys (digest, agent_id, created_at) SELECT ?, id, ? FROM agents", (digest(key), time.time())
        )
    return key


def revoke(scene, key):
    with closing(sqlite3.connect(scene.site.folder / "hub.db")) as conn, conn:
        assert conn.execute("UPDATE keys SET expires_at = 1 WHERE digest = ?", (digest(key),)).rowcount == 1


def test_a_reload_uses_new_settings_and_keeps_process_and_phases(scene, watch):
    machine = scene.machine
    scene.deliver(watch)
    scene.until(lambda: (job(scene, "query") or {}).get("reason"), "the query has been tried")
    assert job(scene, "query")["reason"] != "ECONNREFUSED"
    # Half an interval after the start: a job that began anew now would be due at another time.
    scene.until(lambda: 2.5 <= scene.state()["process"]["uptime_seconds"] % PERIOD <= 4.5, "the middle")
    before = phase(scene)
    scene.configure(PROMETHEUS_SERVER_URL="http://127.0.0.1:1", VERBOSE=True)
    reload(scene)
    scene.until(lambda: job(scene, "query")["reason"] == "ECONNREFUSED", "the new setting counts")
    assert apart(phase(scene), before) < 0.3
    ran = job(scene, "grid")["last_run_at"]
    scene.until(lambda: job(scene, "grid")["last_run_at"] != ran, "the next turn", PERIOD + 3)
    assert apart(phase(scene), before) < 0.3
    assert "read again" in machine.journal("-u", UNIT)
    assert scene.state()["process"]["uptime_seconds"] > PERIOD
    scene.stop_and_count()


@bookworm
def test_a_reload_with_a_wrong_setting_keeps_the_old_ones(scene, watch):
    machine = scene.machine
    scene.deliver(watch)
    good = machine.ask("cat", SETTINGS)
    machine.write(SETTINGS, good + '\nBUFFER_MAX_ROWS = "many"\nPROMETHEUS_SERVER_URL = "http://127.0.0.1:1"\n')
    reload(scene)
    machine.until(lambda: "BUFFER_MAX_ROWS" in machine.journal("-u", UNIT), "the journal names the setting")
    had = len(scene.pushes())
    scene.until(lambda: len(scene.pushes()) > had + 3, "it goes on delivering")
    assert job(scene, "query")["reason"] != "ECONNREFUSED"
    assert scene.state()["queue"]["capacity"] == 10000
    scene.stop_and_count()


def test_a_rotated_key_is_used_after_a_reload(scene, watch):
    scene.deliver(watch)
    old, new = scene.site.key, second_key(scene)
    scene.configure(key=new)
    reload(scene)
    revoke(scene, old)
    had = len(scene.pushes())
    scene.until(lambda: len(scene.pushes()) > had + 3, "it delivers with the new key")
    assert scene.state()["cloud"]["delivering"]
    assert new not in scene.machine.journal() and old not in scene.machine.journal()
    scene.stop_and_count()


def test_a_wrong_key_ends_nothing_and_the_right_one_brings_everything(scene, watch):
    machine = scene.machine
    scene.deliver(watch)
    right = scene.site.key
    scene.configure(key="wrong-key")
    machine.systemctl("restart", UNIT)
    pid = machine.main_pid()
    depth = scene.until(lambda: scene.depth() >= 5 and scene.depth(), "the queue grows")
    assert not scene.state()["cloud"]["delivering"] and "401" in scene.state()["cloud"]["problem"]
    scene.until(lambda: "key" in scene.status().lower() or "401" in scene.status(), "the unit's status names the key")
    told = machine.run("observer-agent", "status", check=False)
    assert told.returncode == 1 and ("401" in told.stdout or "key" in told.stdout)
    scene.until(lambda: scene.depth() > depth, "it goes on probing and queueing")
    assert machine.main_pid() == pid and machine.show("NRestarts") == "0"
    scene.configure(key=right)
    reload(scene)
    scene.until(lambda: scene.depth() == 0 and scene.state()["cloud"]["delivering"], "everything has come", 60.0)
    scene.stop_and_count()


@bookworm
def test_a_key_file_is_read_again_without_a_reload_when_the_cloud_refuses_the_key(scene, watch):
    machine, place = scene.machine, "/var/lib/observer-agent/key"
    scene.open_hub(watch)
    scene.configure(key="not-used")
    machine.write(place, "wrong-key\n")
    machine.write("/etc/observer-agent/agent.env", f"AGENT_KEY_FILE={place}\n", mode=0o600)
    machine.run("rm", KEY)
    machine.run("chown", "-R", "observer-agent:", "/var/lib/observer-agent")
    pid = scene.start()
    scene.until(lambda: "401" in (scene.state().get("cloud", {}).get("problem") or ""), "it says what is wrong")
    machine.write(place, scene.site.key + "\n")
    machine.run("chown", "observer-agent:", place)
    scene.until(scene.pushes, "the first verdict is at the hub", 90.0)
    assert machine.main_pid() == pid and machine.show("NRestarts") == "0"
