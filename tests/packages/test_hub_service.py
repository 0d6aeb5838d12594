"""The hub's install guide, typed word for word into a bare machine: its unit under real systemd.

The machine has no network. What the guide has pip and apt fetch was fetched before: wheels lie in a folder that pip's
configuration names, Debian's packages are in the root.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from contextlib import ExitStack

import pytest

from tests.packages.hub import PIP, ROOT, clone_into, fetch, need_suite
from tests.packages.machine import Machine, until
from tests.packages.roots import BOOTABLE, Tree, cache_folder, need, root_of

pytestmark = pytest.mark.slow

GUIDE = ROOT / "docs" / "install" / "hub.md"
UNIT = "observer-hub.service"
INSTALL_SECONDS = 600.0  # a quiet machine takes ten
DEBIAN = ("python3-venv", "postgresql")  # what the guide installs by apt-get
ASK = """
import pathlib, sys, urllib.request
token = pathlib.Path("/etc/observer-hub/hub_token").read_text().strip()
asked = urllib.request.Request("http://127.0.0.1:8080" + sys.argv[1], headers={"Authorization": "Bearer " + token})
print(urllib.request.urlopen(asked, timeout=10).read().decode())
"""
WATCH = """\
apiVersion: observer/v1
metrics:
  - key: itself
    title: The hub itself
    source_type: tcp
    source_config: {host: 127.0.0.1, port: 8080}
    interval: 1s
    interval_agent_push: 1s
    thresholds: {healthy_operation: over, healthy_value: 0, unhealthy_operation: under, unhealthy_value: 1}
"""


def blocks() -> list[str]:
    """The guide's commands, block by block."""
    found = re.findall(r"^```sh\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert "python3 -m venv" in found[0], "the guide begins with the install"
    return found


def block(word: str) -> str:
    """The one block that holds `word`."""
    (found,) = [each for each in blocks() if word in each]
    return found


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    """What a clone holds, as far as the guide uses it."""
    return clone_into(tmp_path_factory.mktemp("clone") / "observer-agent")


@pytest.fixture(scope="session")
def wheels(clone, tmp_path_factory):
    """Everything that the guide's `pip install` takes from outside."""
    words = re.search(r"pip install (.*)$", blocks()[0], re.MULTILINE)[1].replace("'", "").split()
    return fetch(clone, tmp_path_factory.mktemp("wheels"), words)


@pytest.fixture(scope="session")
def installed_hub(wheels, clone, tmp_path_factory):
    """The layers of a machine after the guide's first block, with a PostgreSQL that nobody has set up yet."""
    root = root_of(cache_folder(tmp_path_factory), need_suite(), [*BOOTABLE, *DEBIAN])
    with ExitStack() as stack:
        tree = Tree(tmp_path_factory.mktemp("hub"), (root,))
        stack.callback(tree.close)
        tree.open()
        machine = Machine(tree, network=False, binds=[(wheels, "/opt/wheels")])
        stack.callback(machine.close)
        machine.boot()
        machine.write("/etc/pip.conf", PIP)
        shutil.copytree(clone, tree.path / "root" / "observer-agent")
        typed(machine, "python3 -m venv")
        machine.poweroff()
        tree.seal()
        yield tree.layers


@pytest.fixture
def machine(boot, installed_hub, wheels):
    """A machine after the guide's first block, without a network."""
    return boot(installed_hub, network=False, binds=[(wheels, "/opt/wheels")])


def typed(machine, word):
    """Types the block that holds `word`, as root in the clone; what it has printed."""
    lines = [line for line in block(word).splitlines(keepends=True) if not line.startswith("apt-get")]
    words = ("bash", "-euc", "cd /root/observer-agent; exec bash -eu")
    return machine.run(*words, given="".join(lines), timeout=INSTALL_SECONDS).stdout


def said(machine):
    """The hub's journal and state, for a test that fails."""
    return machine.systemctl("status", "--lines=60", UNIT, check=False).stdout


def wait(machine, what, text, seconds=60.0):
    return until(what, text, seconds, lambda: said(machine))


def ask(machine, path):
    """What the hub's API answers; None while it does not."""
    done = machine.run("python3", "-c", ASK, path, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def up(machine):
    """Waits until the hub answers; its process."""
    wait(machine, lambda: ask(machine, "/api/v1/agents"), "the hub answers")
    assert machine.show("ActiveState", UNIT) == "active"
    return machine.show("MainPID", UNIT)


def agent_of(machine):
    """The one agent, as the hub sees it."""
    (found,) = (ask(machine, "/api/v1/agents") or {}).get("agents") or [None]
    return found or {}


def start_agent(machine, key):
    """The agent that the same environment holds, as a unit of its own."""
    machine.write("/run/agent.env", f"AGENT_KEY={key}\n", mode=0o600)
    machine.run(
        "systemd-run", "--quiet", "--unit=agent", "-p", "StateDirectory=agent", "-p", "EnvironmentFile=/run/agent.env",
        "-E", "CLOUD_SERVER_URL=http://127.0.0.1:8080", "-E", "BUFFER_PATH=/var/lib/agent/buffer.db",
        "-E", "ENABLE_DEBUG_DASHBOARD=false", "/opt/observer-hub/bin/observer-agent", "run",
    )  # fmt: skip


def rows(machine):
    """The ids of the rows that the hub holds of the metric in `WATCH`."""
    found = (ask(machine, "/api/v1/metrics") or {}).get("metrics", [])
    ids = [each["id"] for each in found if each["key"] == "itself" and each["agent_id"]]
    pushes = (ask(machine, f"/api/v1/metrics/{ids[0]}/pushes?limit=10000") or {}).get("pushes", []) if ids else []
    return [(each["queue_id"], each["row_id"]) for each in pushes]


def watch(machine):
    """Another document in place of the guide's, made known by a reload."""
    machine.write("/etc/observer-hub/observer.yaml", WATCH)
    machine.systemctl("reload", UNIT)


def nothing_is_missing(machine):
    """The agent ends, and all that it has delivered is there, once."""
    machine.systemctl("stop", "agent")
    found, agent = rows(machine), agent_of(machine)
    assert len(found) == len(set(found)) > 0
    assert [each["unexplained"] for each in agent["delivery"]] == [0] * len(agent["delivery"])


def test_the_guide_leads_to_a_first_heartbeat_and_a_kill_loses_nothing(machine):
    typed(machine, "hub_token")
    pid = up(machine)
    key = typed(machine, "key create").splitlines()[-1]
    assert machine.ask("stat", "-c", "%U %a", "/var/lib/observer-hub/hub.db") == "observer-hub 600"
    assert machine.ask("systemctl", "is-enabled", UNIT) == "enabled"
    start_agent(machine, key)
    wait(machine, lambda: agent_of(machine).get("state") == "online", "the first heartbeat")
    assert agent_of(machine)["name"] == "web-1"

    typed(machine, "docs/examples")
    assert up(machine) != pid
    assert len(ask(machine, "/api/v1/metrics")["metrics"]) > 10, "the document of the examples"
    pid = up(machine)
    watch(machine)
    wait(machine, lambda: rows(machine), "the first verdict", 60.0)
    assert machine.show("MainPID", UNIT) == pid, "a reload keeps the process"

    had = rows(machine)
    machine.systemctl("kill", "--signal=KILL", UNIT)
    wait(machine, lambda: machine.show("NRestarts", UNIT) == "1", "systemd starts it again")
    assert up(machine) != pid
    wait(machine, lambda: len(rows(machine)) > len(had) + 3, "verdicts go on")
    nothing_is_missing(machine)

    machine.systemctl("stop", UNIT)
    assert machine.show("Result", UNIT) == "success" and machine.show("ExecMainStatus", UNIT) == "0"
    journal = machine.journal("-u", UNIT, "-o", "cat")
    assert key not in journal and "Traceback" not in journal and machine.failed() == ""


def test_a_wrong_setting_stays_down_and_says_why(machine):
    typed(machine, "hub_token")
    up(machine)
    machine.write("/etc/observer-hub/hub.env", "OBSERVER_HUB_KEEP_ROWS=ever\n", mode=0o600)
    machine.systemctl("restart", UNIT, check=False)
    wait(machine, lambda: machine.show("ActiveState", UNIT) == "failed", "the unit gives up")
    assert (machine.show("ExecMainStatus", UNIT), machine.show("NRestarts", UNIT)) == ("78", "0")
    assert "OBSERVER_HUB_KEEP_ROWS='ever': must be a time" in machine.journal("-u", UNIT, "-o", "cat")


def test_postgresql_through_its_socket_with_gunicorn(machine):
    typed(machine, "hub_token")
    up(machine)
    machine.write("/etc/observer-hub/observer.yaml", WATCH)
    typed(machine, "createdb")
    pid = up(machine)
    assert ask(machine, "/api/v1/agents") == {"agents": []}
    start_agent(machine, typed(machine, "key create").splitlines()[-1])
    wait(machine, lambda: rows(machine), "the first verdict", 60.0)
    machine.write("/etc/observer-hub/observer.yaml", WATCH.replace("The hub itself", "Another title"))
    machine.systemctl("reload", UNIT)
    wait(machine, lambda: "Another title" in json.dumps(ask(machine, "/api/v1/metrics")), "the reload counts")
    assert machine.show("MainPID", UNIT) == pid

    machine.systemctl("stop", "postgresql")
    assert machine.systemctl("restart", UNIT, check=False).returncode, "who types it is told that it does not listen"
    wait(machine, lambda: int(machine.show("NRestarts", UNIT)) >= 2, "it is tried again and again")
    machine.systemctl("start", "postgresql")
    up(machine)
    had = rows(machine)
    wait(machine, lambda: len(rows(machine)) > len(had) + 3, "verdicts go on", 60.0)

    version = machine.ask("/opt/observer-hub/bin/observer-hub", "--version").split()[-1]
    init = "/root/observer-agent/observer_agent/__init__.py"
    machine.run("sed", "-i", f's/^__version__ = "{version}"/__version__ = "99.1"/', init)
    typed(machine, "--upgrade")
    up(machine)
    assert machine.ask("/opt/observer-hub/bin/observer-hub", "--version").split()[-1] == "99.1"
    wait(machine, lambda: len(rows(machine)) > len(had) + 6, "verdicts go on", 60.0)
    nothing_is_missing(machine)
    machine.systemctl("stop", UNIT)
    assert machine.show("Result", UNIT) == "success"


def score(unit, threshold):
    command = [need("systemd-analyze", "systemd"), "security", "--offline=true", f"--threshold={threshold}", unit]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_score_is_at_most_1_1(tmp_path):
    shipped = ROOT / "systemd" / UNIT
    done = score(shipped, 11)
    assert done.returncode == 0, done.stdout + done.stderr
    worse = tmp_path / UNIT
    worse.write_text(shipped.read_text().replace("PrivateUsers=yes\n", ""))
    assert score(worse, 11).returncode != 0
