"""gunicorn as the server: it follows the document, its processes share the limits, and none of them ends the others.

And the end of what runs beside any server.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import requests

from observer_agent.clock import Clock
from observer_agent.hub.database import open_database
from observer_agent.hub.limits import Limits, Rate
from observer_agent.hub.store import Store
from observer_agent.hub.ticker import STOP_SECONDS, Ticker
from tests.postgres import Server, drop_database, fresh_database, postgres, started
from tests.watch import Watch
from tests.wire_hub import HubProcess, database_url

__all__ = ["postgres"]
TCP = {"source_type": "tcp", "source_config": {"host": "h.example", "port": 1}}
RULES = {"healthy_operation": "under", "healthy_value": 1, "unhealthy_operation": "over", "unhealthy_value": 2}
GUNICORN = ("--server", "gunicorn", "--workers", "2")


@pytest.fixture
def hub(postgres: Server, tmp_path: Path) -> Iterator[HubProcess]:
    url = fresh_database(postgres.url)
    made = HubProcess(tmp_path, DATABASE_URL=url)
    yield made
    made.kill()
    drop_database(url)


def write(file: Path, *keys: str) -> None:
    metrics = [{"key": key, "title": key, **TCP, "thresholds": RULES} for key in keys]
    file.write_text(json.dumps({"apiVersion": "observer/v1", "metrics": metrics}))


def watched(hub: HubProcess) -> set[str]:
    """The keys of the metrics that documents name."""
    found = requests.get(f"http://127.0.0.1:{hub.port}/api/v1/metrics", timeout=10).json()["metrics"]
    return {each["key"] for each in found if not each["unmanaged"]}


def workers(hub: HubProcess) -> set[int]:
    assert hub.process is not None
    pid = hub.process.pid
    return {int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def until(what: Callable[[], bool], seconds: float = 20.0) -> None:
    clock = Clock()
    end, pause = clock.monotonic() + seconds, clock.alarm()
    while not what():
        assert clock.monotonic() < end, "not in time"
        pause.wait(0.05)


@pytest.mark.slow
def test_its_processes_follow_the_document(hub: HubProcess, tmp_path: Path) -> None:
    file = tmp_path / "observer.yaml"
    write(file, "one")
    hub.start(*GUNICORN, "--config", str(file))
    assert watched(hub) == {"one"}
    write(file, "one", "two")
    until(lambda: watched(hub) == {"one", "two"})

    before = workers(hub)
    file.write_text("metrics: [")
    assert hub.process is not None
    hub.process.send_signal(signal.SIGHUP)
    until(lambda: len(workers(hub)) == 2 and not before & workers(hub))
    until(lambda: "the definitions stay as they were" in hub.log())
    assert watched(hub) == {"one", "two"}

    before = workers(hub)
    write(file, "one", "two", "three")
    hub.process.send_signal(signal.SIGHUP)
    until(lambda: watched(hub) == {"one", "two", "three"})
    until(lambda: len(workers(hub)) == 2 and not before & workers(hub))
    assert hub.end() == 0
    assert "Traceback" not in hub.log()


@pytest.mark.slow
def test_a_document_that_cannot_be_read_stops_the_start(hub: HubProcess, tmp_path: Path) -> None:
    ended = hub.command("serve", "--port", "0", *GUNICORN, "--config", str(tmp_path / "none.yaml"))
    assert (ended.returncode, len(ended.stderr.splitlines())) == (78, 1)


@pytest.mark.slow
def test_guessing_is_stopped_as_early_by_several_processes(hub: HubProcess) -> None:
    url = hub.start(*GUNICORN)
    # Each on a connection of its own: whichever process is free takes it.
    codes = [requests.get(f"{url}/api/agent/metrics-definitions", timeout=10).status_code for _ in range(3)]
    for n in range(60):
        head = {"Agent-Key": f"guess-{n}"}
        codes.append(requests.get(f"{url}/api/agent/metrics-definitions", headers=head, timeout=10).status_code)
    assert 10 <= codes[3:].count(401) <= 22 and 429 in codes
    assert hub.end() == 0


@pytest.mark.slow
def test_a_process_that_dies_while_the_database_is_away_comes_back_with_it(tmp_path: Path) -> None:
    with started() as server, ExitStack() as ending:
        hub = HubProcess(tmp_path, DATABASE_URL=fresh_database(server.url))
        url = hub.start(*GUNICORN)
        ending.callback(hub.kill)
        assert hub.process is not None
        server.stop()
        before = workers(hub)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        until(lambda: hub.log().count("cannot be opened") >= 2)
        assert hub.process.poll() is None
        server.start()
        until(lambda: answers(url))
        assert hub.end() == 0
    assert "Traceback" not in hub.log()


@pytest.mark.slow
def test_workers_that_hang_share_one_budget_at_the_end(tmp_path: Path) -> None:
    clock = Clock()
    hold = threading.Event()
    with database_url(tmp_path) as url, closing(open_database(url)) as database:
        ticker = Ticker(Store(database, clock), clock)
        begun = threading.Barrier(4)

        def hang() -> float:
            begun.wait(10)
            hold.wait(60)
            return 1.0

        for name in ("one", "two", "three"):
            ticker.also(name, hang)
        ticker.start()
        begun.wait(10)
        before, watch = clock.monotonic(), Watch()
        ticker.stop()
        took, fair = clock.monotonic() - before, watch.seconds
        hold.set()
    assert STOP_SECONDS * 0.9 < took and fair < STOP_SECONDS * 2


def answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/api/v1/agents", timeout=5).status_code == 200
    except requests.RequestException:
        return False


def test_the_share_of_a_process() -> None:
    whole = Limits(Rate(6000.0, 3000), Rate(20.0, 20))
    assert whole.shared(1) == whole
    four = whole.shared(4)
    assert (four.by_key, four.refused) == (Rate(1500.0, 750), Rate(5.0, 5))
    many = whole.shared(64)
    assert many.by_key == Rate(600.0, 300), "an agent that keeps to one process can still catch up"
    assert many.refused == Rate(1.0, 1)
    assert Limits(Rate(60.0, 60), None).shared(4) == Limits(Rate(60.0, 60), None), "no more than was asked for"
    assert Limits(None, None).shared(4) == Limits(None, None)
