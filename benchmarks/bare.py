"""The named peer of `ingest`: the least that a receiver can do behind the same server, `python -m benchmarks.bare URL`.

It decodes the body, stores its rows in the hub's own table of pushes with one statement, commits to the disk, answers.
No key, no fencing, no range of taken ids, no latest verdict, no status, no check of a field.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from observer_agent.clock import Clock, Signals
from observer_agent.hub.server import Server, adopt_log

NAMES = ("metric_id", "agent_id", "queue_id", "row_id", "value", "timestamp", "status", "received_at")
TYPES = ("text[]", "text[]", "text[]", "int8[]", "float8[]", "float8[]", "text[]", "float8[]")
INTO = f"INSERT INTO pushes ({', '.join(NAMES)})"
Put = Callable[[list[tuple[Any, ...]]], object]


def sqlite_put(file: str) -> Put:
    """One connection, one lock round the write transaction, `executemany`."""
    conn = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
    for pragma in ("busy_timeout=10000", "journal_mode=WAL", "synchronous=FULL"):
        conn.execute(f"PRAGMA {pragma}").close()
    lock, text = threading.Lock(), f"{INTO} VALUES (?, ?, ?, ?, ?, ?, ?, ?)"

    def put(rows: list[tuple[Any, ...]]) -> None:
        with lock:
            conn.execute("BEGIN IMMEDIATE")
            conn.executemany(text, rows)
            conn.execute("COMMIT")

    return put


def postgres_put(url: str) -> Put:
    """A connection for each thread, an array for each column."""
    import psycopg

    own = threading.local()
    text = f"{INTO} SELECT * FROM unnest({', '.join(f'CAST(%s AS {kind})' for kind in TYPES)})"

    def put(rows: list[tuple[Any, ...]]) -> None:
        if not hasattr(own, "conn"):
            own.conn = psycopg.connect(url)
        own.conn.execute(text, list(map(list, zip(*rows, strict=True))))
        own.conn.commit()

    return put


def application(put: Put, clock: Clock) -> Any:
    """The receiver as a WSGI application."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        now = clock.now()
        body = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        common = ("a" * 36, "q" * 36)
        put([(r["metric_id"], *common, n, float(r["value"]), now, r["status"], now) for n, r in enumerate(body)])
        answer = json.dumps({"accepted": len(body)}).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
        return [answer]

    return app


def main(url: str) -> None:
    """Serves until SIGTERM."""
    import signal

    file = url.removeprefix("sqlite:///")
    clock = Clock()
    adopt_log()
    server = Server(application(sqlite_put(file) if file != url else postgres_put(url), clock), "127.0.0.1", 0)
    with Signals((signal.SIGTERM,)) as signals:
        server.start()
        print(f"listening on {server.url}", flush=True)
        while not signals.wait(60.0):
            pass
        server.stop()


if __name__ == "__main__":
    main(sys.argv[1])
