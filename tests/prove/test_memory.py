"""The hub's memory stays where it is: a fleet at thirty times its pace for two minutes, or for a real hour.

`OBSERVER_PROVE_HOUR=1` runs the real hour at the normal pace. Resident memory is read after a warm-up and at the end;
what is bounded by design (the cache of SQLite, connections, limits by key) is full by then.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import fleet, swarm
from tests.postgres import Server, drop_database, fresh_database, postgres
from tests.wire_hub import HubProcess

__all__ = ["postgres"]
pytestmark = pytest.mark.prove
HOUR = os.environ.get("OBSERVER_PROVE_HOUR") == "1"
AGENTS = 1000 if HOUR else 100
SPEED = 1.0 if HOUR else 30.0
WARM_UP, MEASURED = (600.0, 3000.0) if HOUR else (40.0, 90.0)
EVERY = MEASURED / 10
GROWTH_MAX = 0.10  # of what was there after the warm-up
ROWS_MIN = 0.8 * AGENTS * (swarm.METRICS + 1) / swarm.PUSH_EVERY * SPEED * MEASURED


def resident(pid: int) -> int:
    """Bytes of a process and its children that are in memory and theirs alone."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    own = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))
    return own + sum(resident(int(each)) for each in children)


@pytest.fixture(params=["sqlite", "postgresql"])
def hub(request: pytest.FixtureRequest, tmp_path: Path, postgres: Server) -> Iterator[tuple[HubProcess, list[str]]]:
    fleet.room()
    on_postgres = request.param == "postgresql"
    url = fresh_database(postgres.url) if on_postgres else f"sqlite:///{tmp_path}/hub.db"
    keys = fleet.enrol(url, AGENTS)
    found = HubProcess(tmp_path, DATABASE_URL=url)
    found.start(*(fleet.GUNICORN if on_postgres else ()))
    yield found, keys
    found.kill()
    if on_postgres:
        drop_database(url)


def test_memory_stays_flat_under_a_fleet(hub: tuple[HubProcess, list[str]]) -> None:
    process, keys = hub
    assert process.process is not None
    orders = swarm.Orders(process.port, keys, WARM_UP, MEASURED, speed=SPEED)
    words = [sys.executable, "-m", "benchmarks.swarm"]
    done, seen = threading.Event(), []
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as generator:
        assert generator.stdin is not None and generator.stdout is not None
        json.dump(asdict(orders), generator.stdin)
        generator.stdin.close()
        assert generator.stdout.readline() == "measuring\n"
        while len(seen) < 10:
            seen.append(resident(process.process.pid))
            done.wait(EVERY)
        outcome = json.loads(generator.stdout.readline())
        seen.append(resident(process.process.pid))
    assert not outcome["faults"]
    assert outcome["rows"] >= ROWS_MIN
    begin, end = sum(seen[:3]) / 3, sum(seen[-3:]) / 3
    shown = [f"{each / 2**20:.1f}" for each in seen]
    print("resident MB:", *shown)
    assert end <= begin * (1 + GROWTH_MAX), f"{shown} MB"
