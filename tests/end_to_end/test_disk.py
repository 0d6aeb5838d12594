"""The real agent on a disk that is full, and in a directory that takes no file."""

from __future__ import annotations

import subprocess
import time

import pytest

from observer_agent.clock import parse_iso
from tests.conftest import eat
from tests.site import Site, metric

pytestmark = pytest.mark.slow


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    made.close()


def test_a_full_disk_with_the_cloud_away_and_back(site, disk):
    port = site.listen()
    document = [metric(f"m{n}", "tcp", {"host": "127.0.0.1", "port": port}) for n in range(60)]
    site.open_hub(document)
    site.start_agent(BUFFER_PATH=str(disk / "b.db"), BUFFER_MAX_ROWS="100000")
    site.until(lambda: len(site.pushes()) >= 60)
    site.hub.kill()
    site.until(lambda: site.state()["queue"]["depth"] > 50)
    eat(disk)
    site.until(lambda: "kept in memory" in site.log, seconds=60)
    beats = site.state()["process"]["uptime_seconds"]
    site.open_hub(document)
    back = time.time()
    fresh = site.until(lambda: [p for p in site.pushes() if _epoch(p["timestamp"]) > back], seconds=10)
    assert fresh and site.state()["process"]["uptime_seconds"] > beats
    site.until(lambda: site.state()["queue"]["depth"] < 60)
    assert site.stop_agent()[0] == 0
    rows = [(p["queue_id"], p["row_id"]) for p in site.pushes()]
    assert len(rows) == len(set(rows)), "nothing twice"
    (ledger,) = site.hub_agent()["delivery"]  # told by the last heartbeat
    assert ledger["given"] == ledger["accepted"] + ledger["pending"] + sum(ledger["lost"].values())
    assert set(ledger["lost"]) <= {"disk_full"} and ledger["unexplained"] == 0
    assert len(rows) == ledger["accepted"]


def test_a_directory_that_takes_no_file(site, disk):
    port = site.listen()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    site.open_hub([metric("m", "tcp", {"host": "127.0.0.1", "port": port})])
    site.start_agent(BUFFER_PATH=str(disk / "b.db"))
    site.until(lambda: site.pushes())
    assert site.hub_agent()["state"] == "online"
    assert "takes no file" in site.log
    assert site.stop_agent()[0] == 0


def _epoch(text):

    return parse_iso(text)
