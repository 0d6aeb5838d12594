"""Hubs that meet at one agent or one webhook on a real PostgreSQL, each held at the critical moment by a lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select, text, update

from observer_agent.clock import Clock
from observer_agent.hub import schema
from observer_agent.hub.database import Database, open_database
from observer_agent.hub.events import LAYING_OUT, Event, emit
from observer_agent.hub.store import Store
from observer_agent.hub.ticker import Ticker
from observer_agent.hub.wire import read_heartbeat
from tests.fakes import FakeClock
from tests.postgres import Server, drop_database, fresh_database, postgres, started
from tests.wire_hub import GOLDEN_NOW

__all__ = ["postgres"]
pytestmark = pytest.mark.slow
START = GOLDEN_NOW - 10
PATIENCE = 30.0
OPEN, CLEARED = ("agent.offline", "open"), ("agent.offline", "cleared")


class Hubs:
    """Two hubs on one database and one clock, with an agent that was heard once, and a webhook."""

    def __init__(self, one: Database, other: Database) -> None:
        self.clock = FakeClock(GOLDEN_NOW)
        self.one, self.other = Store(one, self.clock), Store(other, self.clock)
        found = self.one.agent_of(self.one.create_key("agent"))
        assert found
        self.agent = found
        hook = {"id": "all", "name": "all", "url": "https://hook.example/", "event_types": "[]", "active": True}
        with one.write() as conn:
            conn.execute(insert(schema.webhooks).values(**hook, created_at=0.0))
        self.beat()
        self.clock.advance(90)

    def beat(self) -> None:
        self.other.beat(self.agent, START, read_heartbeat({"queue_depth": 0}))

    def tick(self) -> int:
        return self.one.judge.tick(self.one.database, self.clock)

    def told(self) -> list[tuple[str, str]]:
        with self.one.database.read() as conn:
            rows = conn.execute(select(schema.events).order_by(schema.events.c.id)).all()
        return [(row.event_type, "open" if '"open"' in row.data else "cleared") for row in rows]

    def open_now(self) -> list[str]:
        with self.one.database.read() as conn:
            return list(conn.scalars(select(schema.alerts.c.signal)))


@pytest.fixture
def hubs(postgres: Server) -> Iterator[Hubs]:
    url = fresh_database(postgres.url)
    with closing(open_database(url)) as one, closing(open_database(url)) as other:
        yield Hubs(one, other)
    drop_database(url)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


def begun(pool: ThreadPoolExecutor, conn: Connection, job: Callable[[], Any], waiting: int = 1) -> Future[Any]:
    """Starts a job; returns once so many transactions wait for a lock."""
    future = pool.submit(job)
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    until = Clock().monotonic() + PATIENCE
    while conn.scalar(query) != waiting:
        assert not future.done(), future.result()
        assert Clock().monotonic() < until
        conn.execute(text("SELECT pg_stat_clear_snapshot()"))
        os.sched_yield()
    return future


def test_a_heartbeat_that_comes_between_the_look_and_the_judgement_counts(hubs: Hubs, pool: ThreadPoolExecutor) -> None:
    """The tick has found the agent silent and waits to hold its row; then the heartbeat is committed."""
    agents = schema.agents
    with hubs.other.database.write() as conn:
        conn.execute(
            text("LOCK TABLE agents IN EXCLUSIVE MODE")
        )  # whoever looks may; whoever wants to hold a row waits
        ticking = begun(pool, conn, hubs.tick)
        conn.execute(update(agents).values(last_heartbeat_at=hubs.clock.now()))
    assert ticking.result(PATIENCE) == 0
    assert hubs.told() == [] and hubs.open_now() == []


def test_a_heartbeat_clears_what_a_tick_opens_at_the_same_moment(hubs: Hubs, pool: ThreadPoolExecutor) -> None:
    """The tick has opened the alert and is not committed; the heartbeat comes to another hub."""
    with hubs.other.database.write() as conn:
        conn.execute(text(f"SELECT pg_advisory_xact_lock({LAYING_OUT})"))
        ticking = begun(pool, conn, hubs.tick)
        beating = begun(pool, conn, hubs.beat, waiting=2)
    assert ticking.result(PATIENCE) == 1
    beating.result(PATIENCE)
    assert hubs.told() == [OPEN, CLEARED] and hubs.open_now() == []


def test_ticks_of_two_hubs_open_an_episode_once(hubs: Hubs, pool: ThreadPoolExecutor) -> None:
    with hubs.other.database.write() as conn:
        conn.execute(text(f"SELECT pg_advisory_xact_lock({LAYING_OUT})"))
        ticking = begun(pool, conn, hubs.tick)
        assert hubs.other.judge.tick(hubs.other.database, hubs.clock) == 0, "the other one has it in hand"
    assert ticking.result(PATIENCE) == 1
    assert hubs.other.judge.tick(hubs.other.database, hubs.clock) == 0
    assert hubs.told() == [OPEN]


def test_what_is_laid_out_first_is_committed_first(hubs: Hubs, pool: ThreadPoolExecutor) -> None:
    """A number that is seen by the courier is never followed by a lower one."""

    def lay_out(name: str) -> None:
        hubs.one.database.run(lambda conn: emit(conn, Event("agent.offline", 0.0, {}, id=name)))

    outbox = schema.outbox
    with hubs.other.database.write() as conn:
        emit(conn, Event("agent.offline", 0.0, {}, id="first"))
        second = begun(pool, conn, lambda: lay_out("second"))
        with hubs.one.database.read() as look:
            assert list(look.scalars(select(outbox.c.event_id))) == []
    second.result(PATIENCE)
    with hubs.one.database.read() as look:
        assert list(look.scalars(select(outbox.c.event_id).order_by(outbox.c.id))) == ["first", "second"]


@pytest.mark.parametrize(("ahead", "word"), [(30.0, "30 s ahead of"), (-30.0, "30 s behind")])
def test_a_clock_that_differs_from_the_servers_is_told(
    hubs: Hubs, caught: pytest.LogCaptureFixture, ahead: float, word: str
) -> None:
    class Off(Clock):
        def now(self) -> float:
            return super().now() + ahead

    for clock in (Clock(), Off()):
        assert "clock" not in caught.text
        ticker = Ticker(hubs.one, clock)
        ticker._clocks()
        ticker.stop()
    assert word in caught.text


# -- a server that is away


def test_workers_that_find_the_database_away_say_so_in_one_line_and_go_on(caught: pytest.LogCaptureFixture) -> None:
    with started() as server, ExitStack() as ending:
        url = fresh_database(server.url)
        database = ending.enter_context(closing(open_database(url)))
        ticker = Ticker(Store(database, Clock()), Clock())
        server.stop("immediate")
        ticker.start()
        try:
            workers = list(ticker._supervisor.workers.values())
            names = "alerts statuses parts clocks roll lighthouses jobs courier".split()
            assert sorted(each.name for each in workers) == sorted(names)
            until = Clock().monotonic() + PATIENCE
            while not all(each.turns for each in workers) and Clock().monotonic() < until:
                os.sched_yield()
        finally:
            ticker.stop()
        assert [each.restarts for each in workers] == [0] * len(names) and all(each.turns for each in workers)
        server.start()
    lines = [each for each in caught.records if each.name.startswith("observer_agent")]
    assert lines and {each.getMessage().partition(" (")[0] for each in lines} == {"The database refused"}
    assert not any(each.exc_info for each in lines)
