"""A hub that is looked after: copied while it serves, put back from the copy, brought up from an older schema."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import select, text

from observer_agent.hub import database as database_module
from observer_agent.hub import schema
from observer_agent.hub.app import create_app
from observer_agent.hub.database import open_database
from observer_agent.hub.roller import Roller
from observer_agent.hub.store import Store, digest
from tests.fakes import FakeClock
from tests.postgres import NAMED, Server, drop_database, fresh_database, postgres, programs
from tests.wire_hub import GOLDEN_NOW, QUEUE, STARTED, HubProcess, TestHub, golden, row

__all__ = ["postgres"]
ROOT = Path(__file__).parent.parent
KEY = "obs_live_" + "k" * 43
BATCH = 20
BEFORE, DURING = 40, 20  # batches that are answered before a copy is made, and that must come while and after it is


class Pusher:
    """An agent that pushes without a pause until told to stop; what it knows to be accepted is `answered`."""

    def __init__(self, hub: HubProcess, key: str, answered: int = 0) -> None:
        self._hub = hub
        self._key = key
        self.answered = answered
        self.stop = threading.Event()
        self._enough = threading.Condition()

    def run(self) -> int:
        with requests.Session() as session:
            while not self.stop.is_set():
                self.push(session)
        return self.answered

    def push(self, session: Any) -> dict[str, int]:
        first, last = self.answered + 1, self.answered + BATCH
        head = {"Agent-Key": self._key, "Agent-Started-At": STARTED, "Push-Sequence": f"{QUEUE};{first}-{last}"}
        url = f"http://127.0.0.1:{self._hub.port}/api/agent/receiver/batch"
        answer = session.post(url, json=[row(n) for n in range(first, last + 1)], headers=head, timeout=20)
        assert answer.status_code == 200, answer.text
        with self._enough:
            self.answered = last
            self._enough.notify_all()
        found: dict[str, int] = answer.json()
        return found

    def until(self, rows: int) -> None:
        with self._enough:
            assert self._enough.wait_for(lambda: self.answered >= rows, 60)


def documented(word: str) -> str:
    """The command of docs/hub.md that begins with `word`."""
    (found,) = set(re.findall(rf"^    ({word} [^\n]*)$", (ROOT / "docs" / "hub.md").read_text(), re.M))
    return str(found)


def copied_while_serving(hub: HubProcess, key: str, copy: list[str], env: dict[str, str] | None = None) -> Pusher:
    """Runs `copy` while an agent pushes; returns that agent, which has gone on meanwhile."""
    pusher = Pusher(hub, key)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(pusher.run)
        pusher.until(BEFORE * BATCH)
        done = subprocess.run(copy, cwd=hub.folder, env=env, capture_output=True, text=True, timeout=60)
        pusher.until(pusher.answered + DURING * BATCH)
        pusher.stop.set()
        running.result(30)
    assert done.returncode == 0, done.stderr
    return pusher


def held(hub: HubProcess) -> list[int]:
    found = requests.get(f"http://127.0.0.1:{hub.port}/api/v1/metrics/m/pushes?limit=10000", timeout=20).json()
    return [each["row_id"] for each in reversed(found["pushes"])]


def put_back(restored: HubProcess, key: str, pusher: Pusher) -> None:
    """The copy is whole, says what it has not got, and goes on from there."""
    restored.start()
    had = held(restored)
    assert had == [*range(1, len(had) + 1)], "what was accepted up to one moment, and nothing of what came later"
    assert BEFORE * BATCH <= len(had) < pusher.answered

    accounts = [{"queue_id": QUEUE, "given": pusher.answered, "accepted": pusher.answered, "pending": 0, "lost": {}}]
    body = {**golden("heartbeat-full")["request"]["body"], "delivery": accounts}
    url = f"http://127.0.0.1:{restored.port}/api"
    head = {"Agent-Key": key, "Agent-Started-At": STARTED}
    assert requests.post(f"{url}/agent/heartbeat", json=body, headers=head, timeout=20).status_code == 200
    (agent,) = requests.get(f"{url}/v1/agents", timeout=20).json()["agents"]
    assert [each["unexplained"] for each in agent["delivery"]] == [pusher.answered - len(had)]

    following = Pusher(restored, key, pusher.answered)
    with requests.Session() as session:
        assert following.push(session) == {"accepted": BATCH, "rejected": [], "duplicates": 0}
    assert held(restored) == [*had, *range(pusher.answered + 1, pusher.answered + BATCH + 1)]
    assert restored.end() == 0


@contextmanager
def process(folder: Path, url: str) -> Iterator[HubProcess]:
    folder.mkdir(exist_ok=True)
    made = HubProcess(folder, DATABASE_URL=url)
    try:
        yield made
    finally:
        made.kill()


@pytest.mark.slow
def test_a_copy_of_sqlite_made_while_it_serves_can_be_put_back(tmp_path: Path) -> None:
    if shutil.which("sqlite3") is None:
        pytest.skip("NOT TESTED: sqlite3 is not on the PATH (Debian: apt-get install sqlite3)")
    with process(tmp_path / "one", f"sqlite:///{tmp_path}/one/hub.db") as hub:
        key = hub.key("web")
        hub.start()
        pusher = copied_while_serving(hub, key, ["sh", "-c", documented("sqlite3")])
        assert hub.end() == 0
    (tmp_path / "two").mkdir()
    shutil.move(tmp_path / "one" / "copy.db", tmp_path / "two" / "hub.db")
    with process(tmp_path / "two", f"sqlite:///{tmp_path}/two/hub.db") as restored:
        put_back(restored, key, pusher)


@pytest.mark.slow
def test_a_dump_of_postgresql_made_while_it_serves_can_be_put_back(postgres: Server, tmp_path: Path) -> None:
    import psycopg

    url, other = fresh_database(postgres.url), f"{postgres.url}/restored_{os.getpid()}"
    env = {**os.environ, "PATH": f"{programs()}:{os.environ['PATH']}", "DATABASE_URL": url}
    with process(tmp_path / "one", url) as hub:
        key = hub.key("web")
        hub.start()
        pusher = copied_while_serving(hub, key, ["sh", "-c", documented("pg_dump")], env)
        assert hub.end() == 0
    with closing(psycopg.connect(f"{postgres.url}/postgres", autocommit=True)) as conn:
        conn.execute(f"CREATE DATABASE restored_{os.getpid()}")
    into = ["sh", "-c", documented("pg_restore")]
    done = subprocess.run(
        into, cwd=tmp_path / "one", env={**env, "DATABASE_URL": other}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    with process(tmp_path / "two", other) as restored:
        put_back(restored, key, pusher)
    for each in (url, other):
        drop_database(each)


# -- from an older schema


@pytest.fixture
def old(tmp_path: Path) -> Iterator[str]:
    """A database as the first version has left it, with a row of everything; SQLite, or the server that is named."""
    server = os.environ.get(NAMED)
    if server is None:
        url = f"sqlite:///{tmp_path}/hub.db"
        first_version(url)
        yield url
        return
    import psycopg

    name = f"old_{os.getpid()}"
    with closing(psycopg.connect(f"{server}/postgres", autocommit=True)) as conn:
        conn.execute(f"CREATE DATABASE {name}")
    first_version(f"{server}/{name}")
    yield f"{server}/{name}"
    drop_database(f"{server}/{name}")


DEFINITION = golden("definitions")["answer"]["body"][0]
AT = GOLDEN_NOW - 3600.0
OLD: dict[str, list[dict[str, Any]]] = {
    "agents": [
        {"id": "a" * 36, "name": "web", "created_at": AT, "started_at": AT, "restarts": 2, "taken": 3, "duplicates": 1}
    ],
    "keys": [{"digest": digest(KEY), "agent_id": "a" * 36, "created_at": AT}],
    "metrics": [
        {"id": DEFINITION["id"], "key": "first", "title": "First", "source_type": DEFINITION["source_type"],
         "definition": json.dumps(DEFINITION), "managed": True, "created_at": AT},
        {"id": "m", "source_type": "unmanaged", "managed": False, "created_at": AT},
    ],
    "latest": [
        {"metric_id": "m", "agent_id": "a" * 36, "value": 3.0, "timestamp": AT, "status": "healthy", "received_at": AT}
    ],
    "taken": [{"agent_id": "a" * 36, "queue_id": QUEUE, "first_id": 1, "last_id": 3}],
    "deliveries": [
        {"agent_id": "a" * 36, "queue_id": QUEUE, "given": 3, "accepted": 3, "pending": 0, "lost": "{}",
         "reported_at": AT}
    ],
    "counters": [{"name": "definitions", "n": 7}],
}  # fmt: skip
PUSHED = [
    {"metric_id": "m", "agent_id": "a" * 36, "queue_id": QUEUE, "row_id": n, "value": float(n),
     "timestamp": AT + 60 * n, "status": "healthy", "received_at": AT + 60 * n}
    for n in (1, 2, 3)
]  # fmt: skip


def first_version(url: str) -> None:
    """Runs the first migration alone and fills its tables."""
    database = database_module.Database(database_module._engine(database_module._parse(url)))
    config = Config()
    config.set_main_option("script_location", str(ROOT / "observer_agent" / "hub" / "migrations"))
    config.set_main_option("path_separator", "os")
    # The history alone is not carried over on PostgreSQL, where nobody had one.
    rows = {**OLD, **({"pushes": PUSHED} if database.dialect == "sqlite" else {})}
    with closing(database), database.write() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, "0001")
        for table, each in rows.items():
            for values in each:
                names = ", ".join(values)
                marks = ", ".join(f":{name}" for name in values)
                conn.execute(text(f"INSERT INTO {table} ({names}) VALUES ({marks})"), values)


def test_an_older_database_is_brought_up_with_all_that_it_holds(old: str) -> None:
    clock = FakeClock(GOLDEN_NOW)
    with closing(open_database(old)) as database:
        parts = {"include_name": lambda name, kind, _: not (kind == "table" and str(name).startswith("pushes_"))}
        with database.read() as conn:
            assert compare_metadata(MigrationContext.configure(conn, opts=parts), schema.metadata) == []
            for table, rows in OLD.items():
                found = [dict(each) for each in conn.execute(select(schema.metadata.tables[table])).mappings()]
                assert [{name: each[name] for name in values} for each, values in zip(found, rows, strict=True)] == rows
        store = Store(database, clock)
        hub = TestHub(database, store, clock, create_app(store, clock), KEY)
        before = 3 if database.dialect == "sqlite" else 0
        assert [each["row_id"] for each in hub.pushes("m")] == [3, 2, 1][:before]
        assert hub.push([row(n) for n in (2, 3, 4)], "2-4").json == {"accepted": 3, "rejected": [], "duplicates": 2}
        assert hub.beat(golden("heartbeat-full")["request"]["body"]).status_code == 200
        assert hub.agent()["name"] == "web" and hub.agent()["taken"] == 4
        clock.advance(60)
        roller = Roller(database, clock)
        while roller.roll():
            pass
        points = hub.get(f"metrics/m/history?step=hour&from={AT - 3600}")["series"][0]["points"]
        assert sum(point["n"] for point in points) == before + 1
