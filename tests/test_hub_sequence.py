"""Push-Sequence: whatever is sent again, cut or crossed, each row is stored once."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from observer_agent.hub import ranges, schema
from observer_agent.hub.wire import read_sequence
from tests.wire_hub import QUEUE, STARTED, TestHub, memory_hub, row, send, served


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestHub]:
    with memory_hub(tmp_path_factory.mktemp("hub")) as found:
        yield found


def written(ids: list[int]) -> str:
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges.merge([], ids))


@pytest.mark.parametrize(
    ("header", "rows", "ids"),
    [
        (f"{QUEUE};1", 1, (1,)),
        (f"{QUEUE};1-3", 3, (1, 2, 3)),
        (f"{QUEUE};1-2,5,7-8", 5, (1, 2, 5, 7, 8)),
        (f"{QUEUE};9223372036854775806-9223372036854775807", 2, (2**63 - 2, 2**63 - 1)),
        (f"{QUEUE};0", 1, (0,)),
    ],
)
def test_well_formed(header: str, rows: int, ids: tuple[int, ...]) -> None:
    assert read_sequence(header, rows) == (QUEUE, ids)


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        (None, 1),
        ("", 1),
        ("1-3", 3),
        (f"{QUEUE}", 1),
        (f"{QUEUE};", 1),
        (f"{QUEUE};1-3", 2),
        (f"{QUEUE};1-3", 4),
        (f"{QUEUE};3-1", 3),
        (f"{QUEUE};2,1", 2),
        (f"{QUEUE};1,1", 2),
        (f"{QUEUE};1-2,2", 3),
        (f"{QUEUE}; 1", 1),
        (f"{QUEUE};1,", 1),
        (f"{QUEUE};01", 1),
        (f"{QUEUE};+1", 1),
        (f"{QUEUE};-1", 1),
        (f"{QUEUE};1-9999999999999999999", 3),
        (f"{QUEUE};9223372036854775808", 1),
        (f"{QUEUE};" + "1" * 5000, 1),
        (f"{QUEUE.upper()};1", 1),
        (f"{{{QUEUE}}};1", 1),
        (f"{QUEUE};1", 0),
        (f"{QUEUE};\u0661", 1),
    ],
)
def test_malformed_counts_as_absent(header: str | None, rows: int) -> None:
    assert read_sequence(header, rows) is None


@given(st.lists(st.integers(0, 80)), st.lists(st.integers(0, 80)))
def test_ranges_are_sets(first: list[int], second: list[int]) -> None:
    merged = ranges.merge(ranges.merge([], first), second)
    assert {i for a, b in merged for i in range(a, b + 1)} == {*first, *second}
    assert all(a[1] + 1 < b[0] for a, b in pairwise(merged))
    assert all(ranges.covers(merged, i) == (i in {*first, *second}) for i in range(82))


Requests = st.lists(st.sets(st.integers(1, 60), min_size=1, max_size=12), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(Requests, st.sets(st.integers(1, 60)))
def test_each_row_is_stored_once(hub: TestHub, requests: list[set[int]], bad: set[int]) -> None:
    """Any resends in any order and any cut; rows in `bad` are refused each time."""
    queue, metric, seen = str(uuid.uuid4()), str(uuid.uuid4()), set[int]()
    hub.push([row(metric_id=metric)])
    for each in requests:
        ids = sorted(each)
        rows = [row(i, metric_id=metric, status="bad" if i in bad else "healthy") for i in ids]
        answer = hub.post("receiver/batch", rows, more={"Push-Sequence": f"{queue};{written(ids)}"}).json
        good = each - bad
        assert answer["accepted"] == len(good)
        assert answer["duplicates"] == len(good & seen)
        assert [ids[r["index"]] for r in answer["rejected"]] == [i for i in ids if i in bad]
        seen |= good
    stored = [push for push in hub.pushes(metric) if push["queue_id"] == queue]
    assert sorted(push["row_id"] for push in stored) == sorted(seen)
    assert all(push["value"] == push["row_id"] for push in stored)
    assert kept_ranges(hub, queue) == ranges.merge([], seen)


def kept_ranges(hub: TestHub, queue: str) -> list[tuple[int, int]]:
    taken = schema.taken
    query = select(taken.c.first_id, taken.c.last_id).where(taken.c.queue_id == queue).order_by(taken.c.first_id)
    with hub.database.read() as conn:
        return [tuple(each) for each in conn.execute(query)]


def test_queues_and_agents_do_not_know_one_another(hub: TestHub) -> None:
    rows = [row(metric_id="queues")]
    for queue in (str(uuid.uuid4()), str(uuid.uuid4())):
        answer = hub.post("receiver/batch", rows, more={"Push-Sequence": f"{queue};1"})
        assert answer.json["duplicates"] == 0
    other = hub.store.create_key("another")
    headers = {"Agent-Key": other, "Push-Sequence": f"{queue};1"}
    assert hub.client().post("/api/agent/receiver/batch", json=rows, headers=headers).json["duplicates"] == 0


def test_single_rows_and_batches_share_their_ids(hub: TestHub) -> None:
    header = {"Push-Sequence": f"{uuid.uuid4()};"}
    single = {name: value + "7" for name, value in header.items()}
    batch = {name: value + "6-8" for name, value in header.items()}
    assert hub.post("receiver", row(metric_id="s"), more=single).json["duplicates"] == 0
    assert hub.post("receiver", row(metric_id="s"), more=single).json["duplicates"] == 1
    assert hub.post("receiver/batch", [row(metric_id="s")] * 3, more=batch).json["duplicates"] == 1


def test_totals_count_rows_and_duplicates(tmp_path: Path) -> None:
    with memory_hub(tmp_path) as hub:
        hub.push([row(), row(1), row(2, value="x")], "1-3")
        hub.push([row(), row(1), row(2)], "1-3")
        hub.push([row()])
        assert (hub.agent()["taken"], hub.agent()["duplicates"]) == (4, 2)


def test_crossing_requests_store_each_row_once(tmp_path: Path) -> None:
    """Eight threads send the same hundred rows in differing cuts, all at once."""
    with memory_hub(tmp_path) as hub, served(hub.app) as url, ThreadPoolExecutor(8) as pool:
        cuts = [[*range(start, min(start + size, 101))] for size in (7, 20, 33, 100) for start in range(1, 101, size)]
        answers = list(pool.map(lambda ids: push_over(url, hub.key, ids), cuts * 3))
        stored = hub.pushes("m")
    assert sorted(push["row_id"] for push in stored) == [*range(1, 101)]
    assert sum(answer["accepted"] - answer["duplicates"] for answer in answers) == 100


def push_over(url: str, key: str, ids: list[int]) -> dict[str, int]:
    headers = {"Agent-Key": key, "Agent-Started-At": STARTED, "Push-Sequence": f"{QUEUE};{written(ids)}"}
    body = [row(i) for i in ids]
    answer = send(url, {"method": "POST", "path": "/api/agent/receiver/batch", "headers": headers, "body": body})
    found: dict[str, int] = answer.json()
    return found
