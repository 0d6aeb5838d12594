"""Rows a second that the hub takes, through its real server, in batches of 100 from several kept connections.

SQLite with waitress; PostgreSQL with waitress and with two processes of gunicorn where its server can be started here.
Each is held against `benchmarks.bare`, a receiver that only stores, behind waitress on the same database, in turns.
"""

from __future__ import annotations

import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from observer_agent.clock import Clock
from observer_agent.hub.database import open_database
from observer_agent.hub.store import Store
from tests.postgres import drop_database, fresh_database, started
from tests.wire_hub import HubProcess

SENDERS = 8
BATCHES = 100
ROWS = 100
ROUNDS = 3
BODY = json.dumps(
    [
        {"metric_id": f"metric-{n}", "value": n, "timestamp": "2026-05-09T12:00:01.000Z", "status": "healthy"}
        for n in range(ROWS)
    ]
).encode()


def prepared(key: str, batches: int = BATCHES) -> list[bytes]:
    """The requests of one sender, made before the time is taken."""
    queue, found = str(uuid.uuid4()), []
    for n in range(batches):
        head = (
            f"POST /api/agent/receiver/batch HTTP/1.1\r\nHost: x\r\nAgent-Key: {key}\r\n"
            "Content-Type: application/json\r\nAgent-Started-At: 2026-05-09T12:00:00.000Z\r\n"
            f"Push-Sequence: {queue};{n * ROWS + 1}-{(n + 1) * ROWS}\r\nContent-Length: {len(BODY)}\r\n\r\n"
        )
        found.append(head.encode() + BODY)
    return found


def send(port: int, requests: list[bytes]) -> None:
    """One request after the other on one connection."""
    with socket.create_connection(("127.0.0.1", port)) as conn, conn.makefile("rb") as file:
        for request in requests:
            conn.sendall(request)
            status, length = file.readline(), 0
            assert b" 200 " in status, status
            while (line := file.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            assert json.loads(file.read(length))["accepted"] == ROWS


def rate(port: int, keys: list[str]) -> float:
    """Rows a second of all senders together, after a warm-up."""
    send(port, prepared(keys[0], 20))
    threads = [threading.Thread(target=send, args=(port, prepared(key))) for key in keys]
    begin = time.perf_counter()
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return SENDERS * BATCHES * ROWS / (time.perf_counter() - begin)


def of_hub(folder: Path, url: str, words: tuple[str, ...]) -> float:
    """The hub as an operator runs it."""
    hub = HubProcess(folder, DATABASE_URL=url)
    with closing(open_database(url)) as database:
        store = Store(database, Clock())
        keys = [store.create_key(f"agent-{n}") for n in range(SENDERS)]
    hub.start(*words)
    try:
        return rate(hub.port, keys)
    finally:
        hub.end()


def of_bare(url: str) -> float:
    """The receiver that only stores."""
    with closing(open_database(url)) as database:
        Store(database, Clock()).partitions.ensure(Clock().now())
    words = [sys.executable, "-m", "benchmarks.bare", url]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        return rate(int(process.stdout.readline().rpartition(":")[2]), ["none"] * SENDERS)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        process.stdout.close()


@contextmanager
def sqlite_url() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as place:
        yield f"sqlite:///{place}/hub.db"


@contextmanager
def postgres_url(server: Any) -> Iterator[str]:
    url = fresh_database(server.url)
    try:
        yield url
    finally:
        drop_database(url)


def compared(fresh: Callable[[], Any], words: tuple[str, ...], aim: int) -> str:
    """The hub and the bare receiver in turns, each on a database of its own."""
    ours, bare = [], []
    with tempfile.TemporaryDirectory() as place:
        for _ in range(ROUNDS):
            with fresh() as url:
                ours.append(of_hub(Path(place), url, words))
            with fresh() as url:
                bare.append(of_bare(url))
    rate, peer = statistics.median(ours), statistics.median(bare)
    return f"{rate:10,.0f} rows/s (aim {aim:,})  {rate / peer:.2f} of a bare receiver on waitress ({peer:,.0f})"


def figures() -> Iterator[tuple[str, str]]:
    """Lines of the report."""
    yield "SQLite, waitress", compared(sqlite_url, (), 15_000)
    gunicorn = ("--server", "gunicorn", "--workers")
    with ExitStack() as stack:
        server: Any = stack.enter_context(started())
        for label, words in (("waitress", ()), ("gunicorn, 2 processes", (*gunicorn, "2"))):
            yield f"PostgreSQL, {label}", compared(lambda: postgres_url(server), words, 20_000)
