"""Installing, upgrading, removing and purging the .deb, on real systemd."""

from __future__ import annotations

import pytest

from tests.packages.fixtures import bookworm, install
from tests.packages.machine import UNIT, throughout
from tests.packages.repack import newer_deb
from tests.packages.scene import BUFFER, CONF, KEY, SETTINGS
from tests.site import metric

pytestmark = pytest.mark.slow

CODE = "/usr/lib/observer-agent"


@pytest.fixture
def watch(scene):
    """Two definitions of one target that answers."""
    port = scene.site.listen()
    return [metric(key, "tcp", {"host": "127.0.0.1", "port": port}) for key in ("a", "b")]


def version(machine):
    return machine.ask("dpkg-query", "--show", "--showformat=${Version}", "observer-agent")


def test_an_install_without_a_network_and_without_a_key_is_inactive_and_not_failed(boot, root, deb):
    machine = boot((root,), network=False)
    said = install(machine, deb)
    assert "agent_key" in said, "the install says where the key belongs"
    assert machine.ask("dpkg-query", "--show", "--showformat=${db:Status-Status}", "observer-agent") == "installed"
    assert machine.ask("systemctl", "is-enabled", UNIT) == "enabled"
    assert (machine.show("ActiveState"), machine.show("ConditionResult")) == ("inactive", "no")
    assert machine.failed() == "" and machine.ask("systemctl", "is-system-running") == "running"
    assert machine.systemctl("start", UNIT, check=False).returncode == 0
    assert machine.show("ActiveState") == "inactive"
    assert version(machine) in machine.ask("observer-agent", "--version")
    assert machine.ask("stat", "-c", "%U:%G %a", CONF) == "root:observer-agent 750"
    assert machine.ask("stat", "-c", "%U %a %s", f"{CONF}/agent.env") == "root 600 0"
    for path in machine.ask("dpkg", "-L", "observer-agent").splitlines():
        assert machine.has(path), f"{path} is in the package and not there"
    machine.run("dpkg", "--verify", "observer-agent")


@bookworm
def test_the_unit_comes_up_by_itself_when_a_configured_machine_boots(scene, boot, watch):
    scene.open_hub(watch)
    scene.configure()
    tree = scene.machine.tree
    scene.machine.poweroff()
    tree.seal()
    machine = boot(tree.layers)
    machine.until(lambda: machine.show("ActiveState") == "active", "the unit is up")
    machine.until(scene.pushes, "the first verdict is at the hub")


def test_an_upgrade_restarts_and_keeps_edited_settings_and_what_is_queued(scene, watch, deb, tmp_path):
    machine = scene.machine
    before = scene.deliver(watch)
    settings = machine.ask("cat", SETTINGS)
    scene.site.hub.kill()
    depth = scene.until(lambda: scene.depth() >= 6 and scene.depth(), "rows wait")
    queue_id = scene.state()["queue"]["queue_id"]
    newer = newer_deb(deb, tmp_path, "99.1")
    said = install(machine, newer)
    assert "Configuration file" not in said, "nobody is asked, since the package's own file is the same"
    assert machine.main_pid() != before and machine.show("NRestarts") == "0"
    machine.until(
        lambda: f"observer-agent {version(machine)} started" in machine.journal("-u", UNIT), "the new one runs"
    )
    assert version(machine) == "99.1" and machine.ask("cat", SETTINGS) == settings
    state = scene.until(scene.state, "the page answers")
    assert state["process"]["version"] == "99.1" and state["queue"]["depth"] >= depth
    openings = machine.run("observer-agent", "queue", "export", "--jsonl", "--config", SETTINGS).stdout
    assert queue_id in openings, "what the older version has queued is still there"
    scene.open_hub(watch)
    assert scene.stop_and_count() > depth


@bookworm
def test_an_upgrade_keeps_an_edited_file_when_the_package_brings_another(scene, deb, tmp_path):
    machine = scene.machine
    scene.open_hub([])
    scene.configure()
    settings = machine.ask("cat", SETTINGS)
    newer = newer_deb(deb, tmp_path, "99.2", settings="# another file of the package\n")
    install(machine, newer, "-o", "Dpkg::Options::=--force-confold")
    assert machine.ask("cat", SETTINGS) == settings
    assert machine.ask("cat", f"{SETTINGS}.dpkg-dist") == "# another file of the package"
    assert machine.has(KEY)


@bookworm
def test_an_upgrade_leaves_a_unit_that_was_disabled_or_masked_as_it_is(scene, watch, deb, tmp_path):
    machine = scene.machine
    scene.deliver(watch)
    for how, version in (("disable", "99.3"), ("mask", "99.4")):
        machine.systemctl(how, "--now", UNIT)
        install(machine, newer_deb(deb, tmp_path, version))
        assert machine.systemctl("is-enabled", UNIT, check=False).stdout.startswith(how)
        throughout(lambda: machine.show("ActiveState") == "inactive", "inactive", 1.0)
    assert machine.failed() == ""


@bookworm
def test_an_upgrade_does_not_start_what_was_stopped(scene, watch, deb, tmp_path):
    machine = scene.machine
    scene.deliver(watch)
    machine.systemctl("stop", UNIT)
    install(machine, newer_deb(deb, tmp_path, "99.5"))
    throughout(lambda: machine.show("ActiveState") == "inactive", "inactive", 1.0)
    assert machine.ask("systemctl", "is-enabled", UNIT) == "enabled"
    machine.systemctl("start", UNIT)
    install(machine, newer_deb(deb, tmp_path, "99.6"))
    machine.until(lambda: "observer-agent 99.6 started" in machine.journal("-u", UNIT), "the one that ran runs again")


def test_remove_keeps_settings_and_queue_and_a_second_install_goes_on(scene, watch, deb):
    machine = scene.machine
    scene.deliver(watch)
    scene.site.hub.kill()
    scene.until(lambda: scene.depth() >= 4, "rows wait")
    queue_id = scene.state()["queue"]["queue_id"]
    machine.run("apt-get", "remove", "--yes", "observer-agent")
    assert machine.run("pgrep", "-u", "observer-agent", check=False).stdout == "", "nothing of it runs"
    for path in (KEY, SETTINGS, BUFFER):
        assert machine.has(path)
    for path in (CODE, "/usr/bin/observer-agent", "/lib/systemd/system/observer-agent.service"):
        assert not machine.has(path)
    assert machine.failed() == ""
    scene.open_hub(watch)
    install(machine, deb)
    machine.main_pid()
    assert machine.ask("systemctl", "is-enabled", UNIT) == "enabled"
    scene.until(lambda: any(row["queue_id"] == queue_id for row in scene.pushes()), "the old rows have come")
    scene.stop_and_count()


def test_purge_leaves_nothing_but_the_user(scene, watch):
    machine = scene.machine
    scene.deliver(watch)
    machine.run("apt-get", "purge", "--yes", "observer-agent")
    left = machine.ask("find", "/", "-xdev", "-name", "*observer*agent*", "-not", "-path", "/root/*")
    assert left == "", "files are left"
    assert machine.ask("getent", "passwd", "observer-agent").endswith("/usr/sbin/nologin")
    assert machine.failed() == ""
    assert machine.systemctl("cat", UNIT, check=False).returncode != 0
    assert machine.show("LoadState") == "not-found"
