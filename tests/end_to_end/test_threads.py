"""However many definitions hang and clients come, the agent stays below 200 threads (the unit allows 256 tasks).

`tests/test_threads.py` adds up the bounds.
"""

from __future__ import annotations

import re
import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from observer_agent.collector import POOL_MAX
from tests import servers
from tests.site import Site, metric

pytestmark = pytest.mark.slow

CLIENTS = 60


def threads(pid):
    return int(re.search(r"^Threads:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M).group(1))


def slow_metrics(port):
    url = f"http://127.0.0.1:{port}/"
    kinds = {
        "tcp": {"host": "127.0.0.1", "port": 1},
        "http": {"url": url, "timeout_ms": 30_000},
        "prometheus": {"scrape_url": url, "metric": "x"},
    }
    return [
        metric(f"{kind}-{n}", kind, config, interval="1s", push="60s")
        for n in range(80)
        for kind, config in kinds.items()
    ]


def test_hanging_targets_and_many_clients(tmp_path):
    with ExitStack() as stack:
        tarpit = stack.enter_context(servers.Server(servers.tarpit))
        site = Site(tmp_path)
        stack.callback(site.close)
        site.open_hub(slow_metrics(tarpit.port))
        site.start_agent()
        pid = site.agent.pid
        site.until(lambda: threads(pid) >= 2 * POOL_MAX, 60)
        for _ in range(CLIENTS):
            stack.enter_context(socket.create_connection(("127.0.0.1", site.page)))
        pause, seen = threading.Event(), []
        for _ in range(150):
            seen.append(threads(pid))
            pause.wait(0.02)
        assert max(seen) < 200
        assert site.agent.poll() is None
