"""A fleet at its normal pace: how many agents the hub holds on this machine, generator and database included.

`benchmarks.swarm` sends in a process of its own; the hub runs as an operator runs it, two gunicorn processes on
PostgreSQL, and waitress on SQLite. A number of agents holds when the 99th percentile of heartbeats and of batches,
counted from the moment a request was due, stays below 250 ms, no request fails and none is left at the end. Each step
warms up for one heartbeat interval, then measures. CPU is in cores, of the processes with their children.

`FLEET_AGENTS="3000 10000"` tries these numbers on PostgreSQL instead of searching; `FLEET_ROWS=1` makes every row a
request of its own, as if no two verdicts of an agent came within one round trip.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import insert

from benchmarks import swarm
from observer_agent.clock import Clock
from observer_agent.hub import schema
from observer_agent.hub.database import open_database
from observer_agent.hub.store import Managed, Store, digest
from tests.postgres import drop_database, fresh_database, started
from tests.wire_hub import HubProcess

LIMIT = 0.250
MUST, AIM = 3_000, 10_000
FINEST = 2_000
SECONDS = 20.0
ROWS = int(os.environ.get("FLEET_ROWS", "5"))
GUNICORN = ("--server", "gunicorn", "--workers", "2")
TICKS = os.sysconf("SC_CLK_TCK")


class Place(NamedTuple):
    """Where a hub runs: on which database, started how; the process of the database's server."""

    fresh: Callable[[], AbstractContextManager[str]]
    words: tuple[str, ...]
    server: int | None


class Step(NamedTuple):
    """What one number of agents came to; CPU in cores by process."""

    agents: int
    outcome: dict[str, Any]
    cores: dict[str, float]
    seconds: float

    @property
    def holds(self) -> bool:
        """Within the limit, without a fault, nothing left."""
        slow = max(self.percentile(kind, 99) for kind in (swarm.BEAT, swarm.PUSH))
        return slow < LIMIT and not self.outcome["faults"] and not self.outcome["backlog"]

    def percentile(self, kind: str, percent: float) -> float:
        """In seconds."""
        values = sorted(self.outcome["latencies"][kind])
        return float(values[min(len(values) - 1, int(len(values) * percent / 100))]) if values else 0.0

    def __str__(self) -> str:
        kinds = (swarm.BEAT, swarm.PUSH)
        times = ", ".join(
            f"{kind} p50 {self.percentile(kind, 50) * 1000:.0f} p99 {self.percentile(kind, 99) * 1000:.0f} ms"
            for kind in kinds
        )
        requests = sum(map(len, self.outcome["latencies"].values())) / self.seconds
        cores = ", ".join(f"{name} {used:.2f}" for name, used in self.cores.items())
        faults = self.outcome["faults"] or "no error"
        left = f", {self.outcome['backlog']} unanswered" if self.outcome["backlog"] else ""
        held = "holds" if self.holds else "DOES NOT HOLD"
        return f"{held}: {times}; {requests:.0f} requests/s, {faults}{left}; cores: {cores}"


def enrol(url: str, agents: int) -> list[str]:
    """The definitions, and the keys of so many agents."""
    keys = [f"obs_live_{n:043}" for n in range(agents)]
    with closing(open_database(url)) as database:
        store = Store(database, Clock())
        common = {"source_type": "http", "source_config": {"url": "http://127.0.0.1/"}, "interval": 1}
        made = ({"id": swarm.metric_id(n), **common, "interval_agent_push": 5} for n in range(swarm.METRICS))
        store.apply(Managed(f"metric-{n}", f"Metric {n}", (), each) for n, each in enumerate(made))
        rows = [{"id": str(uuid.uuid4()), "name": f"agent-{n}", "created_at": store.now()} for n in range(agents)]
        good = [
            {"digest": digest(key), "agent_id": row["id"], "created_at": row["created_at"]}
            for key, row in zip(keys, rows, strict=True)
        ]
        with database.write() as conn:
            conn.execute(insert(schema.agents), rows)
            conn.execute(insert(schema.keys), good)
    return keys


def step(place: Place, agents: int, rows: int = ROWS, seconds: float = SECONDS) -> Step:
    """One number of agents against a fresh hub."""
    with tempfile.TemporaryDirectory() as folder, place.fresh() as url:
        keys = enrol(url, agents)
        hub = HubProcess(Path(folder), DATABASE_URL=url)
        hub.start(*place.words)
        try:
            assert hub.process is not None
            orders = swarm.Orders(hub.port, keys, swarm.BEAT_EVERY, seconds, rows)
            watched = {"hub": hub.process.pid, **({"PostgreSQL": place.server} if place.server else {})}
            return _measured(orders, watched)
        finally:
            hub.end(seconds=30.0)


def _measured(orders: swarm.Orders, watched: dict[str, int]) -> Step:
    words = [sys.executable, "-m", "benchmarks.swarm"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        json.dump(asdict(orders), process.stdin)
        process.stdin.close()
        assert process.stdout.readline() == "measuring\n"
        before = {name: cpu(pid) for name, pid in watched.items()}
        outcome = json.loads(process.stdout.readline())
        used = {name: cpu(pid) - before[name] for name, pid in watched.items()}
    used["generator"] = outcome["cpu"]
    return Step(len(orders.keys), outcome, {n: each / orders.seconds for n, each in used.items()}, orders.seconds)


def cpu(pid: int) -> float:
    """Seconds of CPU of a process and its children, those that have ended included."""
    parents = {}
    spent = {}
    for each in Path("/proc").iterdir():
        if each.name.isdecimal():
            try:
                fields = (each / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            parents[int(each.name)] = int(fields[1])
            spent[int(each.name)] = sum(map(int, fields[11:15]))
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(spent.get(each, 0) for each in family) / TICKS


@contextmanager
def on_sqlite() -> Iterator[Place]:
    @contextmanager
    def fresh() -> Iterator[str]:
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{folder}/hub.db"

    yield Place(fresh, (), None)


@contextmanager
def on_postgres() -> Iterator[Place]:
    with started() as server:

        @contextmanager
        def fresh() -> Iterator[str]:
            url = fresh_database(server.url)
            try:
                yield url
            finally:
                drop_database(url)

        yield Place(fresh, GUNICORN, server.pid)


def figures() -> Iterator[tuple[str, str]]:
    """What must hold on both; on PostgreSQL the largest number that does, up to the aim."""
    room()
    with on_postgres() as here:
        listed = [int(each) for each in os.environ.get("FLEET_AGENTS", "").split()]
        for agents in listed:
            yield f"PostgreSQL, gunicorn: {agents:,} agents", str(step(here, agents))
        if not listed:
            first = step(here, MUST)
            yield f"PostgreSQL, gunicorn: {MUST:,} agents (must hold)", str(first)
            yield from largest(here, first.holds)
    with on_sqlite() as here:
        yield f"SQLite, waitress: {MUST:,} agents (must hold)", str(step(here, MUST))


def short() -> Iterator[tuple[str, str]]:
    """One step on each."""
    room()
    for label, place in {"PostgreSQL, gunicorn": on_postgres, "SQLite, waitress": on_sqlite}.items():
        with place() as here:
            yield f"{label}: {MUST:,} agents (must hold)", str(step(here, MUST, seconds=10.0))


def largest(place: Place, holds: bool) -> Iterator[tuple[str, str]]:
    """Halves the span between a number that holds and one that does not."""
    good, bad = (MUST, AIM + FINEST) if holds else (0, MUST)
    tried = AIM if holds else MUST // 2
    while bad - good > FINEST:
        found = step(place, tried)
        yield f"{tried:,} agents", str(found)
        good, bad = (tried, bad) if found.holds else (good, tried)
        tried = round((good + bad) / 2 / 500) * 500
    yield f"largest number that holds (aim {AIM:,})", f"{good:,}"


def room() -> None:
    """Sockets of the generator and of the hub, which inherits this."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
