"""The doctor on real systemd, beside the agent as the package installs it: one machine, one fault after the other."""

from __future__ import annotations

import json

import pytest

from tests.packages.fixtures import bookworm
from tests.packages.machine import UNIT
from tests.packages.scene import BUFFER, KEY, SETTINGS
from tests.site import metric

pytestmark = pytest.mark.slow
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def doctor(machine, *before: str) -> dict:
    done = machine.run(*before, "observer-agent", "doctor", "--json", check=False)
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["exit_code"] == done.returncode and report["seconds"] < 5 and not done.stderr
    print([(each["id"], each["cause"]) for each in report["findings"]])
    return report


def named(machine, *before: str) -> list[str]:
    return [each["id"] for each in doctor(machine, *before)["findings"]]


@bookworm
def test_what_may_happen_to_an_installed_agent(scene):
    machine = scene.machine
    assert named(machine)[0] == "key.missing"

    scene.deliver([metric("tcp", "tcp", {"host": "127.0.0.1", "port": scene.site.listen()})])
    machine.systemctl("enable", UNIT)
    report = doctor(machine)
    assert (report["findings"], report["exit_code"]) == ([], 0)
    facts = {each["name"]: each["fact"] for each in report["checks"]}
    assert facts["unit"] == "active (running), enabled"
    assert facts["user"] == "root, the service runs as observer-agent"
    assert named(machine, *NOBODY) == ["user.cannot_read"]

    machine.run("observer-agent", "doctor", "--bundle", "/root/bundle.tar.gz")
    system = machine.ask("tar", "-xzOf", "/root/bundle.tar.gz", "observer-agent-doctor/system.txt")
    assert "ExecStart=" in system and "SetCredential=(hidden)" in system

    other = scene.create_key("other")
    machine.write(KEY, other + "\n", mode=0o600)
    assert named(machine) == ["key.newer"]
    scene.configure()
    machine.run("chmod", "0644", KEY)
    assert named(machine) == ["key.world_readable"]
    machine.run("chmod", "0600", KEY)
    assert named(machine) == []

    machine.systemctl("stop", UNIT)
    assert named(machine) == ["unit.inactive"]
    machine.run("chown", "root:", BUFFER)
    assert named(machine)[0] == "user.owner"
    machine.run("chown", "observer-agent:", BUFFER)
    machine.systemctl("mask", UNIT)
    assert named(machine) == ["unit.masked"]
    machine.systemctl("unmask", UNIT)

    settings = machine.ask("cat", SETTINGS)
    machine.write(SETTINGS, settings + '\nBUFFER_MAX_ROWS = "ten"\n')
    machine.systemctl("start", UNIT, check=False)
    machine.until(lambda: machine.show("ActiveState") == "failed", "the unit has failed")
    assert named(machine)[:2] == ["settings.wrong", "unit.failed"]
    machine.write(SETTINGS, settings + "\n")
    scene.start()
    machine.until(lambda: scene.state().get("cloud", {}).get("delivering"), "the agent delivers")
    assert named(machine) == []
