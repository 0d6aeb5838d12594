"""The hub in the Prometheus text format, checked by a parser that is not ours and by promtool."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.wire_hub import STARTED, TestHub, define, memory_hub, row

HOSTILE = 'a "quoted" \\ title\nwith a break <b>'


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    with memory_hub(tmp_path) as made:
        yield made


def samples(hub: TestHub, path: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = hub.client().get(path)
    assert answer.status_code == 200 and answer.content_type.startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation
        for sample in family.samples:
            found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def pick(found: dict, name: str, **labels: str) -> float:
    (value,) = [v for (n, have), v in found.items() if n == name and labels.items() <= dict(have).items()]
    return value


def test_the_hubs_own_numbers(hub: TestHub) -> None:
    hub.beat({"queue_depth": 1001, "queue_oldest_age_seconds": 7}, STARTED)
    hub.push([row(), row(1)], "1-2")
    hub.push([row(), row(1)], "1-2")
    found = samples(hub, "/metrics")
    name = hub.agent()["name"]
    assert pick(found, "observer_hub_agents", state="online") == 1
    assert pick(found, "observer_hub_agents", state="offline") == 0
    assert pick(found, "observer_hub_agent_up", agent=name) == 1
    assert pick(found, "observer_hub_agent_queue_depth", agent=name) == 1001
    assert pick(found, "observer_hub_alerts", agent=name, type="agent.lag_high") == 1
    assert pick(found, "observer_hub_rows_taken_total", agent=name) == 2
    assert pick(found, "observer_hub_rows_duplicate_total", agent=name) == 2
    assert not any(n == "observer_hub_agent_uptime_percent" for n, _ in found), "an hour was not observed yet"
    hub.clock.advance(91)
    assert pick(samples(hub, "/metrics"), "observer_hub_agent_up", agent=name) == 0


def test_the_verdicts(hub: TestHub) -> None:
    define(hub.store, [{"id": "m0", "title": HOSTILE, "source_type": "tcp", "source_config": {}}])
    hub.push([row(metric_id="m0", value=12.5), row(1, metric_id="other", status="no_data", value=0)], "1-2")
    found = samples(hub, "/api/v1/metrics/export")
    assert pick(found, "observer_metric_value", metric_id="m0", title=HOSTILE) == 12.5
    assert pick(found, "observer_metric_status", metric_id="m0", status="healthy") == 1
    assert pick(found, "observer_metric_status", metric_id="m0", status="unhealthy") == 0
    assert pick(found, "observer_metric_status", metric_id="other", status="no_data") == 1
    assert pick(found, "observer_metric_timestamp_seconds", metric_id="m0") > 0
    assert not any(n == "observer_metric_value" and ("metric_id", "other") in have for n, have in found)
    hub.clock.advance(3600)
    stale = samples(hub, "/api/v1/metrics/export")
    assert pick(stale, "observer_metric_status", metric_id="m0", status="unknown") == 1
    assert not any(n == "observer_metric_value" for n, _ in stale)


def test_a_token_guards_both(tmp_path: Path) -> None:
    with memory_hub(tmp_path, token="t0ken") as hub:
        for path in ("/metrics", "/api/v1/metrics/export"):
            assert hub.client().get(path).status_code == 401
            assert hub.client().get(path, headers={"Authorization": "Bearer t0ken"}).status_code == 200


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_promtool_finds_nothing_to_complain_about(hub: TestHub) -> None:
    hub.beat({"queue_depth": 1}, STARTED)
    hub.push([row()], "1")
    for path in ("/metrics", "/api/v1/metrics/export"):
        text = hub.client().get(path).data
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
