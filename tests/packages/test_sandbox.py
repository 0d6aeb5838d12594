"""The unit's sandbox: its score, and the whole demonstration inside it, hub, targets and tests included."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.packages.roots import need

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "systemd" / "observer-agent.service"
SUITE_OF_PYTHON = {(3, 11): "bookworm", (3, 13): "trixie"}
DEMO = "tests/end_to_end/test_demo.py"
# What is about being a service of its own, not about the sandbox.
NOT_OURS = ("Type", "NotifyAccess", "Exec", "Restart", "Watchdog", "EnvironmentFile", "LoadCredential", "SetCredential")
HARDENING = 30


def score(unit: Path, threshold: int) -> subprocess.CompletedProcess[str]:
    command = [need("systemd-analyze", "systemd"), "security", "--offline=true", f"--threshold={threshold}", unit]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_score_is_at_most_1_1():
    done = score(SHIPPED, 11)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("line", ["PrivateUsers=yes", "SystemCallFilter=@system-service", "ProtectSystem=strict"])
def test_the_score_is_worse_without_a_line(tmp_path, line):
    unit = tmp_path / SHIPPED.name
    lines = SHIPPED.read_text().splitlines()
    assert line in lines
    unit.write_text("\n".join(each for each in lines if each != line))
    assert score(unit, 11).returncode != 0


@pytest.mark.parametrize("suite", [SUITE_OF_PYTHON.get(sys.version_info[:2], "bookworm")], indirect=True)
def test_the_demo_and_its_tests_run_inside_the_sandbox(boot, installed, tmp_path):
    if sys.version_info[:2] not in SUITE_OF_PYTHON:
        pytest.skip(f"NOT TESTED: no Debian release has this Python ({sys.version.split()[0]}); 3.11 or 3.13 will do")
    libraries = "/opt/libraries"
    machine = boot(installed, binds=[(ROOT, "/opt/checkout"), (Path(sysconfig.get_path("purelib")), libraries)])
    unit = sandboxed(
        f"/usr/bin/python3 -m pytest -q -p no:cacheprovider -c /opt/checkout/setup.cfg /opt/checkout/{DEMO}",
        PYTHONPATH=f"/opt/checkout:{libraries}",
        PYTHONDONTWRITEBYTECODE="1",
    )
    machine.write("/etc/systemd/system/sandboxed-demo.service", unit)
    machine.systemctl("daemon-reload")
    done = machine.systemctl("start", "sandboxed-demo.service", check=False)
    said = machine.journal("-u", "sandboxed-demo.service", "-o", "cat")
    assert done.returncode == 0, said
    assert "1 passed" in said
    for name in ("PrivateUsers", "MemoryDenyWriteExecute", "NoNewPrivileges"):
        assert machine.show(name, "sandboxed-demo.service") == "yes"


def sandboxed(command: str, **env: str) -> str:
    """The shipped unit with another command, every line of its sandbox kept."""
    section, kept = "", []
    for line in SHIPPED.read_text().splitlines():
        section = line if line.startswith("[") else section
        if section == "[Service]" and not line.startswith(NOT_OURS):
            kept.append(line)
    assert len(kept) > HARDENING
    own = ["Type=oneshot", f"ExecStart={command}", *(f"Environment={name}={value}" for name, value in env.items())]
    return "\n".join([*kept, *own, "TimeoutStartSec=180", ""])
