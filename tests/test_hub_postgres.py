"""The hub on a real PostgreSQL: the whole suite, several processes, a server that restarts, parts of the history."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import requests
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, insert, select, text, update

from observer_agent.clock import iso
from observer_agent.hub import schema
from observer_agent.hub.app import create_app
from observer_agent.hub.database import Database, open_database
from observer_agent.hub.horizon import Horizon
from observer_agent.hub.lease import Lease
from observer_agent.hub.partitions import AHEAD, WEEK, Partitions, drop_before, part_of
from observer_agent.hub.roller import Roller
from observer_agent.hub.store import Store
from tests.fakes import FakeClock
from tests.postgres import NAMED, Server, drop_database, fresh_database, postgres, started
from tests.wire_hub import GOLDEN_NOW, QUEUE, HubProcess, TestHub, row

__all__ = ["postgres"]
pytestmark = pytest.mark.slow
BATCH = "/api/agent/receiver/batch"
ROOT = Path(__file__).parent.parent


@pytest.fixture
def url(postgres: Server) -> Iterator[str]:
    found = fresh_database(postgres.url)
    yield found
    drop_database(found)


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    with closing(open_database(url)) as found:
        yield found


@pytest.mark.parametrize(
    ("names", "marks"), [("test_hub_*.py", "not slow and not prove"), ("test_hub_openapi.py", "slow")]
)
def test_the_suite_of_the_hub_passes_here_too(names: str, marks: str, postgres: Server) -> None:
    files = sorted(str(f) for f in (ROOT / "tests").glob(names) if f.name != Path(__file__).name)
    words = ["-X", "dev", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marks, *files]
    env = {**os.environ, NAMED: postgres.url, "SLOW": "1"}
    done = subprocess.run([sys.executable, *words], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:]
    assert "passed" in done.stdout


# -- the schema


def test_the_migrations_make_the_declared_tables(url: str) -> None:
    options = {"include_name": lambda name, kind, _: not (kind == "table" and str(name).startswith("pushes_"))}
    for _ in range(2):
        with closing(open_database(url)) as database, database.read() as conn:
            assert compare_metadata(MigrationContext.configure(conn, opts=options), schema.metadata) == []


def test_processes_that_start_at_once_migrate_once(postgres: Server, tmp_path: Path) -> None:
    import psycopg

    name = f"empty_{os.getpid()}"
    with closing(psycopg.connect(f"{postgres.url}/postgres", autocommit=True)) as conn:
        conn.execute(f"CREATE DATABASE {name}")
    hub = HubProcess(tmp_path, DATABASE_URL=f"{postgres.url}/{name}")
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda n: hub.command("key", "create", f"agent-{n}"), range(4)))
    assert [each.returncode for each in done] == [0] * 4, [each.stderr for each in done]
    drop_database(f"{postgres.url}/{name}")


def test_nothing_that_hypertables_and_distributed_tables_forbid(database: Database) -> None:
    """No foreign key to the history, and each of its unique constraints holds the column by which it is parted."""
    with database.read() as conn:
        foreign = conn.scalar(
            text("SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND confrelid = 'pushes'::regclass")
        )
        unique = conn.scalars(
            text("SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indisunique AND indrelid = 'pushes'::regclass")
        ).all()
    assert foreign == 0
    assert len(unique) == 1 and "received_at" in unique[0]


def parts(database: Database) -> list[str]:
    query = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'pushes'::regclass ORDER BY 1"
    with database.read() as conn:
        return [str(name) for name in conn.scalars(text(query))]


def test_the_history_has_parts_that_are_made_ahead_and_dropped_whole(database: Database) -> None:
    clock = FakeClock(GOLDEN_NOW)
    hub = made_hub(database, clock)
    first = part_of(clock.now())
    for week in range(4):
        assert hub.push([row(week)], str(week + 1)).status_code == 200
        clock.advance(WEEK)
    made = parts(database)
    # The fourth week was not in the process's memory: that process has looked, and made further ones.
    assert made == [part_of(first.first + n * WEEK).name for n in range(AHEAD + 4)]
    assert drop_before(database, first.end - 1) == 0
    assert drop_before(database, first.end + WEEK) == 2
    assert parts(database) == made[2:]
    assert [each["value"] for each in hub.pushes("m")] == [3, 2]
    assert hub.push([row(9)], "4-4").json["duplicates"] == 1, "what was taken stays taken"


def test_two_processes_make_the_same_parts_at_once(url: str) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        stores = [Store(stack.enter_context(closing(open_database(url))), FakeClock(GOLDEN_NOW)) for _ in range(4)]
        list(pool.map(lambda store: store.partitions.ensure(GOLDEN_NOW), stores))
        assert len(parts(stores[0].database)) == AHEAD + 1


def test_where_the_table_was_made_another_kind_rows_go_in_slices(database: Database) -> None:
    with database.write() as conn:
        conn.execute(text("DROP TABLE pushes"))
        conn.execute(text("CREATE TABLE pushes (LIKE latest, id BIGSERIAL, queue_id TEXT, row_id BIGINT)"))
    clock = FakeClock(GOLDEN_NOW)
    hub = made_hub(database, clock)
    hub.push([row(1)], "1")
    clock.advance(60)
    hub.push([row(2)], "2")
    assert drop_before(database, clock.now()) == 1
    assert drop_before(database, clock.now()) == 0
    assert [each["value"] for each in hub.pushes("m")] == [2]


def made_hub(database: Database, clock: FakeClock) -> TestHub:
    store = Store(database, clock)
    key = store.create_key("agent")
    return TestHub(database, store, clock, create_app(store, clock), key)


# -- transactions


def test_a_collision_is_done_again(database: Database) -> None:
    """Two transactions lock two rows in opposite order: the server ends one, and both take effect."""
    counters = schema.counters
    with database.write() as conn:
        conn.execute(insert(counters), [{"name": "a", "n": 0}, {"name": "b", "n": 0}])
    both_hold = threading.Barrier(2)
    tries: Counter[str] = Counter()

    def job(conn: Any, first: str, second: str) -> None:
        tries[first] += 1
        for name in (first, second):
            conn.execute(update(counters).where(counters.c.name == name).values(n=counters.c.n + 1))
            if name == first and tries[first] == 1:
                both_hold.wait(10)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(database.run, lambda c, o=o: job(c, *o)) for o in (("a", "b"), ("b", "a"))]:
            done.result(30)
    with database.read() as conn:
        assert conn.scalars(select(counters.c.n).where(counters.c.name.in_(("a", "b")))).all() == [2, 2]
    assert sum(tries.values()) == 3


def test_no_statement_takes_longer_than_an_answer_may(database: Database) -> None:
    with database.read() as conn:
        for name in ("statement_timeout", "lock_timeout"):
            milliseconds = conn.scalar(text(f"SELECT setting::int FROM pg_settings WHERE name = '{name}'"))
            assert 0 < milliseconds < 10_000


def test_a_row_that_another_holds_is_503_in_time_and_nothing_is_half_done(database: Database) -> None:
    clock = FakeClock(GOLDEN_NOW)
    hub = made_hub(database, clock)
    with database.write() as conn:
        conn.execute(select(schema.agents).with_for_update()).all()
        answer = hub.push([row()], "1")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert hub.push([row()], "1").json == {"accepted": 1, "rejected": [], "duplicates": 0}
    assert len(hub.pushes("m")) == 1


# -- several processes


def test_episodes_open_once_and_clear_once_whoever_looks(url: str) -> None:
    """Three hubs on one database hear ten agents and tick, all at once: each episode is one open and one cleared."""
    clock = FakeClock(GOLDEN_NOW)
    with ExitStack() as stack, ThreadPoolExecutor(12) as pool:
        hubs = [Store(stack.enter_context(closing(open_database(url))), clock) for _ in range(3)]
        apps = [create_app(store, clock) for store in hubs]
        keys = [hubs[0].create_key(f"agent-{n}") for n in range(10)]

        def beat(n: int, depth: int = 0, started: float = GOLDEN_NOW - 10) -> None:
            head = {"Agent-Key": keys[n], "Agent-Started-At": iso(started)}
            body = {"queue_depth": depth, "queue_oldest_age_seconds": 0}
            for app in apps:
                assert app.test_client().post("/api/agent/heartbeat", json=body, headers=head).status_code == 200

        def everywhere(*jobs: Any) -> None:
            ticks = [lambda store=store: store.judge.tick(store.database, clock) for store in hubs] * 2
            for done in [pool.submit(job) for job in (*jobs, *ticks)]:
                done.result(60)

        everywhere(*[lambda n=n: beat(n, 5000) for n in range(10)])
        everywhere(*[lambda n=n: beat(n, 5000, GOLDEN_NOW - 100) for n in range(10)])
        for _ in range(3):
            clock.advance(30)
            everywhere(*[lambda n=n: beat(n) for n in range(10)])
        clock.advance(90)
        everywhere()
        everywhere(*[lambda n=n: beat(n) for n in range(10)])
        for _ in range(10):
            clock.advance(60)
            everywhere(*[lambda n=n: beat(n) for n in range(10)])
        events = apps[0].test_client().get("/api/v1/events?limit=1000").json["events"]
    told = Counter((e["data"]["agent_name"], e["event_type"], e["data"]["state"]) for e in events)
    for name in (f"agent-{n}" for n in range(10)):
        for kind in ("agent.lag_high", "agent.duplicate_key", "agent.offline"):
            assert [told[name, kind, state] for state in ("open", "cleared")] == [1, 1], (name, kind)


def test_definitions_change_for_every_process(url: str) -> None:
    from tests.wire_hub import define, golden

    clock = FakeClock(GOLDEN_NOW)
    with ExitStack() as stack:
        hubs = [Store(stack.enter_context(closing(open_database(url))), clock) for _ in range(3)]
        clients = [create_app(store, clock).test_client() for store in hubs]
        head = {"Agent-Key": hubs[0].create_key("agent")}

        def fetched() -> set[str]:
            return {c.get("/api/agent/metrics-definitions", headers=head).headers[HEADER] for c in clients}

        HEADER = "x-observer-definitions-version"
        before = fetched()
        define(hubs[1], golden("definitions")["answer"]["body"])
        after = fetched()
    assert len(before) == len(after) == 1 and before != after


class Agent:
    """A simulated agent that behaves as docs/wire.md says: in order, sent again until answered."""

    def __init__(self, key: str, ports: list[int], seed: int) -> None:
        self._key = key
        self._ports = ports
        self._random = random.Random(seed)
        self.queue = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        self.metric = f"metric-{seed}"
        self.started = GOLDEN_NOW
        self.answers: Counter[int] = Counter()

    def run(self, rows: int) -> int:
        """Pushes that many rows; answers are lost, the process restarts, an older one shows itself."""
        sent = 0
        while sent < rows:
            first, last = sent + 1, min(rows, sent + self._random.randint(1, 30))
            while self._push(first, last, self.started) != 200 or self._random.random() < 0.2:
                pass  # not answered, or the answer was lost on the way
            sent = last
            if self._random.random() < 0.1:
                self.started += 1.0
            if self._random.random() < 0.1:
                while (answer := self._push(first, last, self.started - 3600)) in (0, 503):
                    pass  # the database is away
                assert answer == 409
        return sent

    def _push(self, first: int, last: int, started: float) -> int:
        port = self._random.choice(self._ports)
        head = {"Agent-Key": self._key, "Agent-Started-At": iso(started)}
        head["Push-Sequence"] = f"{self.queue};{first}-{last}"
        body = [row(n, metric_id=self.metric) for n in range(first, last + 1)]
        try:
            answer = requests.post(
                f"http://127.0.0.1:{port}/api/agent/receiver/batch", json=body, headers=head, timeout=20
            )
        except requests.RequestException:
            self.answers[0] += 1
            return 0
        self.answers[answer.status_code] += 1
        return answer.status_code


def each_once(agents: list[Agent], sent: list[int]) -> Counter[tuple[str, int]]:
    """What must be stored."""
    return Counter({(agent.queue, n + 1): 1 for agent, rows in zip(agents, sent, strict=True) for n in range(rows)})


def stored(database: Database) -> Counter[tuple[str, int]]:
    pushes = schema.pushes
    query = select(pushes.c.queue_id, pushes.c.row_id, func.count()).group_by(pushes.c.queue_id, pushes.c.row_id)
    with database.read() as conn:
        return Counter({(queue, row_id): n for queue, row_id, n in conn.execute(query)})


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_server_that_restarts_in_the_middle_of_pushes_loses_and_doubles_nothing(tmp_path: Path, mode: str) -> None:
    with started() as server, ExitStack() as ending:
        url = fresh_database(server.url)
        hub = HubProcess(tmp_path, DATABASE_URL=url)
        keys = [hub.key(f"agent-{n}") for n in range(4)]
        hub.start()
        ending.callback(hub.kill)
        agents = [Agent(key, [hub.port], n) for n, key in enumerate(keys)]
        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(agent.run, 2000) for agent in agents]
            for _ in range(2):
                before = sum(agent.answers[200] for agent in agents)
                while sum(agent.answers[200] for agent in agents) < before + 20:
                    os.sched_yield()
                server.stop(mode)
                server.start()
            sent = [each.result(120) for each in running]
        with closing(open_database(url)) as database:
            found = stored(database)
        assert hub.end() == 0
    assert found == each_once(agents, sent)
    answered = sum((agent.answers for agent in agents), Counter[int]())
    assert answered[503] > 0 and set(answered) <= {200, 409, 503}, answered
    assert "Traceback" not in hub.log() and "The database refused" in hub.log()


def test_it_lives_without_its_server_but_is_not_ready(tmp_path: Path) -> None:
    with started() as server, ExitStack() as ending:
        hub = HubProcess(tmp_path, DATABASE_URL=fresh_database(server.url))
        base = hub.start()
        ending.callback(hub.kill)

        def asked() -> list[int]:
            return [requests.get(f"{base}/{name}", timeout=20).status_code for name in ("healthz", "readyz")]

        assert asked() == [200, 200]
        server.stop("fast")
        assert asked() == [200, 503]
        server.start()
        until(lambda: asked() == [200, 200])


def test_gunicorn_serves_with_several_processes(url: str, tmp_path: Path) -> None:
    hub = HubProcess(tmp_path, DATABASE_URL=url)
    key = hub.key("web")
    base = hub.start("--server", "gunicorn", "--workers", "3")
    head = {"Agent-Key": key, "Push-Sequence": f"{QUEUE};1-2"}
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda _: requests.post(
                    f"{base}/api/agent/receiver/batch", json=[row(1), row(2)], headers=head, timeout=10
                ),
                range(40),
            )
        )
    assert [each.status_code for each in answers] == [200] * 40
    assert sum(each.json()["accepted"] - each.json()["duplicates"] for each in answers) == 2
    assert len(requests.get(f"{base}/api/v1/metrics/m/pushes", timeout=10).json()["pushes"]) == 2
    assert hub.end() == 0
    assert "Traceback" not in hub.log()


def test_a_lease_that_two_processes_ask_for_first_goes_to_one(database: Database, url: str) -> None:
    name = {"name": "lease_job", "n": 0}
    with ThreadPoolExecutor(1) as pool, closing(open_database(url)) as other:
        with database.write() as conn:
            conn.execute(insert(schema.counters).values(**name))  # another process is about to make the row
            taken = pool.submit(Lease(other, "job", 60).take, 1000.0)
            until(lambda: waiting(database) == 1)
            conn.execute(update(schema.counters).where(schema.counters.c.name == "lease_job").values(n=1_060_000))
        assert taken.result(10) is False


def until(what: Callable[[], bool]) -> None:
    pause, end = threading.Event(), time.monotonic() + 20
    while not what():
        assert time.monotonic() < end
        pause.wait(0.01)


def test_a_row_that_is_committed_late_is_neither_rolled_past_nor_exported_past(database: Database, url: str) -> None:
    clock = FakeClock()
    Partitions(database).ensure(clock.now())

    def stored(n: int) -> dict[str, Any]:
        now = clock.now()
        same = {"queue_id": QUEUE, "value": 1.0, "status": "healthy", "timestamp": now, "received_at": now}
        return {"metric_id": "m", "agent_id": "a", "row_id": n, **same}

    roller, horizon = Roller(database, clock), Horizon(database)
    with closing(open_database(url)) as other:
        with other.write() as slow:
            slow.execute(insert(schema.pushes), [stored(1)])
            with database.write() as conn:
                conn.execute(insert(schema.pushes), [stored(2)])
            clock.advance(3600)
            assert roller.roll() == 0 and horizon.id() == 0
        assert roller.roll() == 2 and horizon.id() == 2
        with other.write() as slow:
            slow.execute(insert(schema.pushes), [stored(3)])
            with database.write() as conn:
                conn.execute(insert(schema.pushes), [stored(4)])
            assert horizon.id() == 2, "3 may come yet"
    with database.write() as conn:
        conn.execute(insert(schema.pushes), [stored(5)])
        assert horizon.id() == 4, "whoever wrote then has ended, somebody else is writing"
    assert horizon.id() == 5


def waiting(database: Database) -> int:
    """How many statements wait for somebody's lock."""
    with database.read() as conn:
        return int(conn.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one())


def test_several_processes_need_a_database_for_several(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path, DATABASE_URL=f"sqlite:///{tmp_path}/hub.db")
    ended = hub.command("serve", "--server", "gunicorn", "--workers", "2", "--port", "0")
    assert ended.returncode == 78 and "PostgreSQL" in ended.stderr and len(ended.stderr.splitlines()) == 1
