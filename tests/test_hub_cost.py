"""How many statements the requests of agents cost: on PostgreSQL each is a round trip."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import event

from observer_agent.hub.database import POSTGRESQL
from tests.wire_hub import TestHub, memory_hub, row


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    with memory_hub(tmp_path) as found:
        yield found


@contextmanager
def counted(hub: TestHub) -> Iterator[list[str]]:
    """The statements that are executed meanwhile, without BEGIN and COMMIT."""
    found: list[str] = []

    def note(conn: object, cursor: object, statement: str, *rest: object) -> None:
        if not statement.startswith("BEGIN"):
            found.append(statement)

    event.listen(hub.database._engine, "before_cursor_execute", note)
    yield found
    event.remove(hub.database._engine, "before_cursor_execute", note)


def test_a_heartbeat(hub: TestHub) -> None:
    ledger = {"queue_id": "0b9f5a52-7f0e-4c3b-9a50-3f6f6f1f5d01", "given": 9, "accepted": 9, "pending": 0, "lost": {}}
    body = {"queue_depth": 0, "delivery": [ledger]}
    hub.beat(body)
    for seconds in (30, 30):  # in the same minute, and in the next one
        hub.clock.advance(seconds)
        with counted(hub) as found:
            assert hub.beat(body).status_code == 200
        assert len(found) <= (3 if hub.database.dialect == POSTGRESQL else 6), found


def test_a_push(hub: TestHub) -> None:
    rows = [row(n, metric_id=f"m-{n}") for n in range(100)]
    hub.push(rows, "1-100")
    with counted(hub) as found:
        assert hub.push(rows, "101-200").json["accepted"] == 100
    assert len(found) <= (5 if hub.database.dialect == POSTGRESQL else 8), found


def test_definitions_are_read_once_for_all_agents(hub: TestHub) -> None:
    client = hub.client()
    keys = [hub.key, *(hub.store.create_key(f"other-{n}") for n in range(3))]
    with counted(hub) as found:
        for key in keys:
            assert client.get("/api/agent/metrics-definitions", headers={"Agent-Key": key}).status_code == 200
    assert sum("metrics.definition" in each for each in found) == 1, found
