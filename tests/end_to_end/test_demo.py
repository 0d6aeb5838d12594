"""The demonstration as a newcomer runs it: everything arrives, once, and nothing is left behind."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from observer_agent.demo.stage import clean_env

pytestmark = pytest.mark.slow


def test_twenty_seconds_of_the_demo(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "observer_agent", "demo", "--seconds", "20", "--json"],
        env=clean_env({"TMPDIR": str(tmp_path)}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {
        "seconds", "pushed", "accepted", "duplicates", "lost", "heartbeats", "max_queue_depth", "outage_seconds",
        "first_push_after_outage_seconds",
    }  # fmt: skip
    assert (found["duplicates"], found["lost"]) == (0, 0)
    assert all(found["pushed"][kind] > 0 for kind in ("prometheus", "http", "tcp"))
    assert found["accepted"] >= sum(found["pushed"].values()) - found["max_queue_depth"]
    assert found["heartbeats"] >= 1 and found["max_queue_depth"] > 0
    assert found["outage_seconds"] >= 5.0 and found["first_push_after_outage_seconds"] <= 5.0
    assert list(tmp_path.iterdir()) == []
