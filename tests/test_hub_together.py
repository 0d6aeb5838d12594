"""Several threads' writes in one transaction: one sync for those who wait, and nobody pays for another's fault."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, func, insert, select
from sqlalchemy.exc import IntegrityError

from observer_agent.hub import schema
from observer_agent.hub.database import HEAP, Database, open_database
from observer_agent.hub.together import Together

WAIT = 10.0


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with closing(open_database(f"sqlite:///{tmp_path}/hub.db")) as found:
        yield found


def puts(name: str) -> Callable[[Connection], str]:
    def job(conn: Connection) -> str:
        conn.execute(insert(schema.counters).values(name=name, n=1))
        return name

    return job


def stored(database: Database) -> int:
    with database.read() as conn:
        return conn.scalar(select(func.count()).select_from(schema.counters)) or 0


class Gathered:
    """Threads that share: the first is held inside its transaction until the others have joined the next round."""

    def __init__(self, database: Database, jobs: list[Callable[[Connection], str]]) -> None:
        inside, go = threading.Event(), threading.Event()
        self.joined: list[int] = []

        def first(conn: Connection) -> str:
            inside.set()
            assert go.wait(WAIT)
            return "first"

        with ThreadPoolExecutor(len(jobs) + 1) as pool:
            leader = pool.submit(database.share, first)
            assert inside.wait(WAIT)
            self.futures: list[Future[str]] = [pool.submit(database.share, job) for job in jobs]
            waiting(database, len(jobs))
            self.before = commits(database)
            go.set()
            assert leader.result(WAIT) == "first"
            for future in self.futures:
                future.exception(WAIT)


def waiting(database: Database, count: int) -> None:
    """Returns once so many have gathered."""
    together = database._together
    assert isinstance(together, Together)
    end = time.monotonic() + WAIT
    while together.waiting < count:
        assert time.monotonic() < end


def commits(database: Database) -> list[str]:
    """Every commit from now on."""
    found: list[str] = []
    event.listen(database._engine, "commit", lambda conn: found.append("commit"))
    return found


def test_those_who_wait_share_one_transaction(database: Database) -> None:
    here = Gathered(database, [puts(f"row-{n}") for n in range(5)])
    assert sorted(each.result() for each in here.futures) == [f"row-{n}" for n in range(5)]
    assert len(here.before) == 2  # that of the first, and one for the five
    assert stored(database) == 5


def test_one_that_fails_fails_alone(database: Database) -> None:
    here = Gathered(database, [puts("a"), puts("b"), puts("b"), puts("c")])
    failed = [each for each in here.futures if each.exception()]
    assert len(failed) == 1 and isinstance(failed[0].exception(), IntegrityError)
    assert stored(database) == 3


def test_alone_it_raises_what_it_raised_and_the_next_goes_on(database: Database) -> None:
    assert database.share(puts("a")) == "a"
    with pytest.raises(IntegrityError):
        database.share(puts("a"))
    assert database.share(puts("b")) == "b"
    assert stored(database) == 2


def test_a_fault_of_a_job_holds_up_nobody(database: Database) -> None:
    def wrong(conn: Connection) -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        database.share(wrong)
    here = Gathered(database, [wrong, puts("a"), puts("b")])
    assert isinstance(here.futures[0].exception(), ZeroDivisionError)
    assert stored(database) >= 1
    assert database.share(puts("c")) == "c"


def test_many_threads_lose_nothing(database: Database) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(database.share, [puts(f"{n}") for n in range(200)]))
    assert made == [f"{n}" for n in range(200)]
    assert stored(database) == 200


def test_the_pages_that_sqlite_keeps_are_bounded_for_all_connections_together(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/hub.db")
    with database.glance() as one, database.glance() as another:
        bounds = [each.exec_driver_sql("PRAGMA soft_heap_limit").scalar_one() for each in (one, another)]
    database.close()
    assert bounds == [HEAP, HEAP]
