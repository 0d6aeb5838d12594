"""Documents in the hub: applied by key, twice the same as once, bad metrics left out; and the schema behind it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from observer_agent.errors import DocumentError
from observer_agent.hub import schema
from observer_agent.hub.apply import apply_file
from observer_agent.hub.database import open_database
from tests.wire_hub import HubProcess, TestHub, memory_hub, row

METRIC = """
  - key: {key}
    title: {title}
    source_type: {source_type}
    source_config: {config}
    thresholds: {{healthy_operation: under, healthy_value: 50, unhealthy_operation: over, unhealthy_value: 200}}
    interval: 1s
    interval_agent_push: 5s
"""
TCP = {"key": "port", "title": "The port", "source_type": "tcp", "config": "{host: 127.0.0.1, port: 80}"}
HTTP = {"key": "page", "title": "The page", "source_type": "http", "config": "{url: 'http://127.0.0.1/'}"}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    with memory_hub(tmp_path) as found:
        yield found


def written(folder: Path, *metrics: dict[str, str], extra: str = "") -> Path:
    file = folder / "observer.yaml"
    file.write_text("apiVersion: observer/v1\nmetrics:" + "".join(METRIC.format(**m) for m in metrics) + extra)
    return file


def fetched(hub: TestHub) -> tuple[list[dict[str, Any]], str]:
    answer = hub.client().get("/api/agent/metrics-definitions", headers={"Agent-Key": hub.key})
    return answer.json, answer.headers["x-observer-definitions-version"]


def test_applied_twice_is_applied_once(hub: TestHub, tmp_path: Path) -> None:
    file = written(tmp_path, TCP, HTTP)
    empty = fetched(hub)[1]
    assert apply_file(hub.store, file) is True
    definitions, version = fetched(hub)
    assert [each["title"] for each in definitions] == ["The page", "The port"]
    assert version != empty
    assert apply_file(hub.store, file) is False
    assert fetched(hub) == (definitions, version)
    assert hub.beat({}).json == {"definitions_version": version}


def test_a_change_changes_the_version_and_keeps_the_id(hub: TestHub, tmp_path: Path) -> None:
    apply_file(hub.store, written(tmp_path, TCP, HTTP))
    before, version = fetched(hub)
    assert apply_file(hub.store, written(tmp_path, {**TCP, "config": "{host: 127.0.0.1, port: 81}"})) is True
    after, newer = fetched(hub)
    assert newer != version
    assert [each["id"] for each in after] == [each["id"] for each in before]
    assert after[1]["source_config"]["port"] == 81


def test_the_version_is_of_the_content_not_of_the_times_applied(hub: TestHub, tmp_path: Path) -> None:
    versions = []
    for port in (80, 81, 80):
        apply_file(hub.store, written(tmp_path, {**TCP, "config": f"{{host: 127.0.0.1, port: {port}}}"}))
        versions.append(fetched(hub)[1])
    assert versions[0] == versions[2] != versions[1]


def test_a_broken_metric_is_named_with_its_line_and_left_out(
    hub: TestHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = {**TCP, "key": "broken", "config": "{host: 127.0.0.1, port: 99999}"}
    file = written(tmp_path, broken, HTTP, {**HTTP, "key": "odd", "source_type": "telepathy"})
    with caplog.at_level(logging.WARNING, logger="observer_agent"):
        assert apply_file(hub.store, file) is True
    assert [each["title"] for each in fetched(hub)[0]] == ["The page"]
    assert f"{file}:6: metric 'broken' is left out: source_config: port" in caplog.text
    assert "metric 'odd' is left out: source_config: source_type" in caplog.text


def test_a_metric_that_broke_keeps_its_last_good_form(hub: TestHub, tmp_path: Path) -> None:
    apply_file(hub.store, written(tmp_path, TCP))
    before = fetched(hub)
    apply_file(hub.store, written(tmp_path, {**TCP, "config": "{host: 127.0.0.1}"}))
    assert fetched(hub) == before


def test_definitions_go_to_the_agents_they_name(hub: TestHub, tmp_path: Path) -> None:
    file = written(tmp_path, {**TCP, "title": "Ours\n    agent: [agent, other]"}, HTTP)
    apply_file(hub.store, file)
    assert [each["title"] for each in fetched(hub)[0]] == ["The page", "Ours"]
    hub.key = hub.store.create_key("third")
    third, version = fetched(hub)
    assert [each["title"] for each in third] == ["The page"]
    hub.key = hub.store.create_key("fourth")
    assert fetched(hub) == (third, version)


def test_manual_metrics_have_no_probe(hub: TestHub, tmp_path: Path) -> None:
    manual = {"key": "by-hand", "title": "By hand", "source_type": "manual", "config": "{}"}
    apply_file(hub.store, written(tmp_path, manual, TCP))
    assert [each["title"] for each in fetched(hub)[0]] == ["The port"]
    assert [each["title"] for each in hub.get("metrics")["metrics"]] == ["By hand", "The port"]


def test_a_key_may_move_to_another_id(hub: TestHub, tmp_path: Path) -> None:
    apply_file(hub.store, written(tmp_path, TCP))
    first = fetched(hub)[0][0]["id"]
    hub.push([row(metric_id=first)])
    apply_file(hub.store, written(tmp_path, {**TCP, "title": "Moved\n    id: chosen"}))
    assert [each["id"] for each in fetched(hub)[0]] == ["chosen"]
    assert len(hub.pushes(first)) == 1
    apply_file(hub.store, written(tmp_path, TCP))
    assert [each["id"] for each in fetched(hub)[0]] == [first]


def test_an_unreadable_document_is_an_error(hub: TestHub, tmp_path: Path) -> None:
    file = tmp_path / "observer.yaml"
    for content in (b"\xff\xfe\xff", b"metrics: [", b"apiVersion: other/v9"):
        file.write_bytes(content)
        with pytest.raises(DocumentError, match=str(file)):
            apply_file(hub.store, file)


@pytest.mark.slow
def test_served_with_a_document_from_the_command_line(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path)
    file = written(tmp_path, TCP, extra="\ncolour: red\n")
    for said in ("changed: 1 metrics", "are as they were: 1 metrics"):
        hub.start("--config", str(file))
        assert hub.end() == 0
        assert said in hub.log()
    assert "unknown section 'colour' is ignored" in hub.log()
    file.write_text("apiVersion: [")
    ended = hub.command("serve", "--config", str(file), "--port", "0")
    assert ended.returncode == 78
    assert f"{file}:1: not YAML" in ended.stderr


def test_the_migrations_make_the_declared_tables(tmp_path: Path) -> None:
    for _ in range(2):
        with closing(open_database(f"sqlite:///{tmp_path}/hub.db")) as database, database.read() as conn:
            assert compare_metadata(MigrationContext.configure(conn), schema.metadata) == []
