"""The agent's own trouble is never a target's fault, and a target's fault is told within two intervals.

Real agent, fifty real targets, a real resolver and cloud, all on the loopback of a network namespace: `scene.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from observer_agent.clock import parse_iso

pytestmark = pytest.mark.slow

OURS = {"agent_network", "agent_stalled", "EMFILE", "ENFILE", "dns_overloaded"}
INTERVAL = 1.0


def play(fault):
    if os.geteuid() != 0:
        pytest.skip("a network namespace needs root")
    for tool in ("unshare", "ip", "mount", "iptables"):
        if shutil.which(tool) is None:
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{tool} is not installed")
    if subprocess.run(["unshare", "--net", "--mount", "ip", "link", "set", "lo", "up"], capture_output=True).returncode:
        pytest.skip("the kernel gives no network namespaces here")
    words = ["unshare", "--net", "--mount", sys.executable, "-m", "tests.blind.scene", fault]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    if "iptables" in done.stderr and "CalledProcessError" in done.stderr:
        pytest.skip("the kernel gives no packet filter here")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def blamed(rows):
    """The rows that blame a target: unwell, or no data for a reason that is not the agent's own."""
    return [
        row
        for row in rows
        if row["status"] in ("unhealthy", "degraded") or (row["status"] == "no_data" and row["reason"] not in OURS)
    ]


@pytest.mark.parametrize("fault", ["network_off", "network_silent", "resolver_off", "stopped", "hog", "files"])
def test_no_target_is_blamed_for_the_agent_s_trouble(fault):
    found = play(fault)
    assert blamed(found["rows"]) == [], found["log"][-3000:]
    last = {row["metric_id"]: row["status"] for row in found["rows"]}
    assert set(last.values()) <= {"healthy"}


@pytest.mark.parametrize("fault", ["network_off", "network_silent"])
def test_blindness_is_one_warning_and_its_end_one_line(fault):
    found = play(fault)
    assert {row["reason"] for row in found["rows"] if row["status"] == "no_data"} == {"agent_network"}
    assert found["log"].count("This machine sees nothing") == 1
    assert found["log"].count("This machine sees again") == 1


def test_every_fault_of_a_target_is_told_within_two_intervals():
    found = play("targets_off")
    rows = blamed(found["rows"])
    first = {}
    for row in rows:
        first.setdefault(row["metric_id"], row["after"])
    assert set(first) == set(found["expected"])
    assert max(first.values()) <= 2 * INTERVAL
    assert {row["reason"] for row in rows} == {"ECONNREFUSED", "ETIMEDOUT"}


def test_what_died_while_the_network_was_gone_is_told_when_it_is_back():
    found = play("both")
    rows = blamed(found["rows"])
    assert {row["metric_id"] for row in rows} == set(found["expected"]), found["log"][-3000:]
    assert {row["status"] for row in rows} == {"unhealthy"}  # PROBE_FAILURE_STATUS
    back = found["since"]
    assert all(0 <= parse_iso(row["timestamp"]) - back <= 2 * INTERVAL for row in rows)
