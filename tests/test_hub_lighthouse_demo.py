"""`observer-agent demo --dialect lighthouse`: its figures, counted by itself, and that it can tell a wrong history."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from observer_agent.demo.lighthouse import LEAST, LighthouseDemo
from observer_agent.demo.stage import clean_env
from observer_agent.errors import UsageError

GOOD: dict[str, Any] = {"wrong_histories": {}, "duplicates": 0, "waiting": 0}


@pytest.mark.slow
def test_through_an_outage_the_history_is_the_truth() -> None:
    command = [sys.executable, "-m", "observer_agent", "demo", "--dialect", "lighthouse", "--json", "--seconds", "90"]
    done = subprocess.run(command, env=clean_env({}), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, (done.stdout, done.stderr[-3000:])
    found = json.loads(done.stdout)
    assert found["wrong_histories"] == {} and found["duplicates"] == found["waiting"] == 0
    assert (found["checks"], found["state"], found["stop_reason"]) == (5, "stopped", "sigterm")
    assert found["changes"] >= 3 and found["outage_seconds"] >= 20 and found["max_queue_depth"] >= 1


def test_a_history_that_is_not_the_truth_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    demo = LighthouseDemo(None, True)
    assert demo._report(GOOD) == 0
    for wrong in ({"wrong_histories": {"flip": ["up"]}}, {"duplicates": 1}, {"waiting": 1}):
        assert demo._report({**GOOD, **wrong}) == 1


def test_a_time_that_is_too_short_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match=f"--seconds {LEAST}"):
        LighthouseDemo(LEAST - 1, False).run()
