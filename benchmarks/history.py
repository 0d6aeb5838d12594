"""The hub's history on SQLite: what is asked of roll-ups, in milliseconds; how fast rows are taken and rolled up."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from sqlalchemy import insert, select

from benchmarks.measure import Figure, median, once
from observer_agent.clock import Clock
from observer_agent.hub import schema
from observer_agent.hub.app import create_app
from observer_agent.hub.database import Database, open_database
from observer_agent.hub.roller import Roller
from observer_agent.hub.rollup import DAY, HOUR
from observer_agent.hub.store import Managed, Store
from observer_agent.hub.wire import PushSequence, Row

METRICS, AGENTS, DAYS = 3_500, 35, 30
YEAR = 365
BATCHES = 350
QUEUE = "0b9f5a52-7f0e-4c3b-9a50-3f6f6f1f5d"


def metric_id(n: int) -> str:
    return f"0b9f5a52-7f0e-4c3b-9a50-{n:012}"


def sums(pair: tuple[str, str], start: int, size: int) -> dict[str, Any]:
    told = {"metric_id": pair[0], "agent_id": pair[1], "start": start}
    return {**told, "up": size - 300.0, "down": 300.0, "n": size // 300, "total": 1.0 * size, "low": 1.0, "high": 9.0}


def fill(database: Database, agents: list[str], today: int) -> None:
    """Days of every metric for a month and for a year of one; the hours of a year of that one."""
    pairs = [(metric_id(n), agents[n % AGENTS]) for n in range(METRICS)]
    with database.write() as conn:
        for ago in range(YEAR, -1, -1):
            some = pairs if ago < DAYS else pairs[:1]
            conn.execute(insert(schema.days), [sums(pair, today - ago * DAY, DAY) for pair in some])
        starts = range(today - YEAR * DAY, today, HOUR)
        conn.execute(insert(schema.hours), [sums(pairs[0], start, HOUR) for start in starts])
        for pair in pairs[1:]:
            starts = range(today - DAY, today, HOUR)
            conn.execute(insert(schema.hours), [sums(pair, start, HOUR) for start in starts])
        ends = [{"metric_id": m, "agent_id": a, "timestamp": today + 60.0, "status": "healthy"} for m, a in pairs]
        conn.execute(insert(schema.rolled), ends)


def define(store: Store) -> list[str]:
    """The metrics and the ids of the agents."""
    for n in range(AGENTS):
        store.create_key(f"agent-{n}")
    common = {"source_type": "http", "source_config": {}, "interval": 1, "interval_agent_push": 5}
    made = ({"id": metric_id(n), "title": f"Metric {n}", **common} for n in range(METRICS))
    store.apply(Managed(f"metric-{n}", each["title"], (), each) for n, each in enumerate(made))
    with store.database.read() as conn:
        return list(conn.scalars(select(schema.agents.c.id).order_by(schema.agents.c.name)))


def asked(client: Any, path: str) -> Callable[[], int]:
    def job() -> int:
        answer = client.get(f"/api/v1/{path}")
        assert answer.status_code == 200 and len(answer.data) > 100
        return 1

    return job


def answers() -> Iterator[tuple[str, str]]:
    """The read API, the whole way but for the socket."""
    with tempfile.TemporaryDirectory() as place, closing(open_database(f"sqlite:///{place}/hub.db")) as database:
        clock = Clock()
        store = Store(database, clock)
        today = int(clock.now() // DAY) * DAY
        fill(database, define(store), today)
        client = create_app(store, clock).test_client()
        one = metric_id(0)
        paths = {
            "uptime of 3,500 metrics, 30 days": "uptime?days=30",
            "uptime of one metric, a year": f"metrics/{one}/uptime?days={YEAR}",
            "a year of one metric by day": f"metrics/{one}/history?step=day&from={today - YEAR * DAY}",
            "a year of one metric by hour": f"metrics/{one}/history?step=hour&from={today - YEAR * DAY}",
            "a week of one metric by hour": f"metrics/{one}/history?step=hour",
        }
        for name, path in paths.items():
            job = asked(client, path)
            job()
            times = sorted(once(job).wall * 1000 for _ in range(15))
            yield name, f"{median(times):8.1f} ms, slowest of 15 {times[-1]:.1f} ms (aim 100)"


def intake() -> Iterator[tuple[str, str]]:
    """Batches of 100 rows of as many metrics into a file, and the same rows rolled up."""
    with tempfile.TemporaryDirectory() as place, closing(open_database(f"sqlite:///{place}/hub.db")) as database:
        clock = Clock()
        store = Store(database, clock)
        define(store)
        taken = once(lambda: take(store, clock))
        yield "rows taken, batches of 100, one thread", shown(taken)
        rolled = once(lambda: roll(Roller(database, Later())))
        yield "rows rolled up", shown(rolled)


def take(store: Store, clock: Clock) -> int:
    agents = [store.agent_of(store.create_key(f"taker-{n}")) for n in range(AGENTS)]
    begin = clock.now()
    for n in range(BATCHES):
        agent = agents[n % AGENTS]
        assert agent is not None
        ids = range(n % AGENTS * 100, n % AGENTS * 100 + 100)
        rows = [Row(at, metric_id(each), 1.5, begin + n // AGENTS, "healthy", None) for at, each in enumerate(ids)]
        store.take(agent, begin, rows, PushSequence(f"{QUEUE}{n % AGENTS:02}", tuple(range(n * 100, n * 100 + 100))))
    return BATCHES * 100


class Later(Clock):
    """An hour later, when every row is settled."""

    def now(self) -> float:
        return super().now() + HOUR


def roll(roller: Roller) -> int:
    total = 0
    while done := roller.roll():
        total += done
    return total


def shown(figure: Figure) -> str:
    return f"{figure.rate:10,.0f} rows/s  {figure.cpu_us:8.1f} us CPU a row"


def figures() -> Iterator[tuple[str, str]]:
    """Lines of the report."""
    yield from answers()
    yield from intake()
