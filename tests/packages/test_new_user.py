"""The install guide for Debian, typed word for word into a bare machine that has nothing of ours and no Python."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.packages.machine import UNIT
from tests.packages.roots import cache_folder, root_of
from tests.packages.scene import SETTINGS, Scene
from tests.site import metric

pytestmark = pytest.mark.slow

GUIDE = Path(__file__).parents[2] / "docs" / "install" / "debian.md"
BARE = ("systemd-sysv", "dbus")
TWO_MINUTES = 120.0


@pytest.fixture
def scene(boot, tmp_path, tmp_path_factory):
    """A bare machine that reaches Debian's mirrors, and a hub outside that nobody has started yet."""
    root = root_of(cache_folder(tmp_path_factory), "bookworm", BARE)
    made = Scene(boot((root,)), tmp_path / "hub")
    yield made
    made.close()


def blocks():
    """The guide's commands, block by block."""
    found = re.findall(r"^```sh\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(found) >= 4 and "apt-get install" in found[0], "the guide begins with the install"
    return found


def test_the_guide_leads_from_a_bare_machine_to_the_first_verdict(scene, deb):
    machine = scene.machine
    assert not machine.has("/usr/bin/python3")
    scene.open_hub([metric("tcp", "tcp", {"host": "127.0.0.1", "port": scene.site.listen()})])
    (machine.tree.path / "root" / deb.name).write_bytes(deb.read_bytes())
    mine = {"obs_live_...": scene.site.key, "https://use.observer": f"http://127.0.0.1:{scene.site.hub.port}"}
    began, said = time.monotonic(), ""
    for number, block in enumerate(blocks()):
        for word, own in mine.items():
            block = block.replace(word, own)
        said = machine.run("bash", "-euc", "cd /root; exec bash -eu", given=block).stdout
        if number == 0:  # the only thing that no user types: the page's usual port may be taken on the tests' host
            machine.run("sh", "-c", f"echo DEBUG_DASHBOARD_PORT = {scene.site.page} >>{SETTINGS}")
    took = time.monotonic() - began
    print(f"the guide took {took:.1f} s")
    assert "Delivering" in said and "healthy" in said
    assert machine.show("ActiveState") == "active" and machine.ask("systemctl", "is-enabled", UNIT) == "enabled"
    assert scene.pushes() and scene.agents()["demo"]["state"] == "online"
    assert took < TWO_MINUTES
