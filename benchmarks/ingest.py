"""Rows a second that the hub takes, through its real server, in batches of 100 from several kept connections.

SQLite with waitress; PostgreSQL with waitress and with two processes of gunicorn where its server can be started here.
"""

from __future__ import annotations

import json
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from observer_agent.clock import Clock
from observer_agent.hub.database import open_database
from observer_agent.hub.store import Store
from tests.postgres import fresh_database, started
from tests.wire_hub import HubProcess

SENDERS = 8
BATCHES = 150
ROWS = 100
BODY = json.dumps(
    [
        {"metric_id": f"metric-{n}", "value": n, "timestamp": "2026-05-09T12:00:01.000Z", "status": "healthy"}
        for n in range(ROWS)
    ]
).encode()


def prepared(key: str) -> list[bytes]:
    """The requests of one sender, made before the time is taken."""
    queue, found = str(uuid.uuid4()), []
    for n in range(BATCHES):
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


def rate(folder: Path, url: str, words: tuple[str, ...]) -> float:
    hub = HubProcess(folder, DATABASE_URL=url)
    with closing(open_database(url)) as database:
        store = Store(database, Clock())
        keys = [store.create_key(f"agent-{n}") for n in range(SENDERS)]
    hub.start(*words)
    try:
        send(hub.port, prepared(keys[0])[:20])
        threads = [threading.Thread(target=send, args=(hub.port, prepared(key))) for key in keys]
        begin = time.perf_counter()
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        return SENDERS * BATCHES * ROWS / (time.perf_counter() - begin)
    finally:
        hub.end()


def figures() -> Iterator[tuple[str, str]]:
    """Lines of the report."""
    gunicorn = ("--server", "gunicorn", "--workers")
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        yield "SQLite, waitress", f"{rate(place, f'sqlite:///{place}/hub.db', ()):10,.0f} rows/s (aim 15,000)"
        server: Any = stack.enter_context(started())
        for label, words in (("waitress", ()), ("gunicorn, 2 processes", (*gunicorn, "2"))):
            url = fresh_database(server.url)
            yield f"PostgreSQL, {label}", f"{rate(place, url, words):10,.0f} rows/s (aim 20,000)"
