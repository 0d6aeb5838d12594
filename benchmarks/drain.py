"""Draining a backlog through the real sender, against a bare peek, POST, delete loop; and bytes written to the disk."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import requests
from persistqueue import SQLiteAckQueue

from benchmarks.diskqueue import OK, samples
from benchmarks.measure import interleaved, median
from observer_agent.clock import Clock
from observer_agent.clouds.observer import Notice, Observer, headers
from observer_agent.diskqueue import Bounds, open_queue
from observer_agent.resolver import Resolver
from observer_agent.sender import Sender
from observer_agent.transport import Transport

ROWS = 20_000
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 30\r\n\r\n"
BODY = b'{"accepted":100,"rejected":[]}'


def serve(ready: Any, latency: float) -> None:
    """A receiver that answers every POST after `latency` seconds, on kept connections."""
    listener = socket.create_server(("127.0.0.1", 0))
    pause = threading.Event()
    ready.send(listener.getsockname()[1])

    def talk(conn: socket.socket) -> None:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with conn, conn.makefile("rb") as file:
            while True:
                length = 0
                while (line := file.readline()) not in (b"\r\n", b""):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                if not line:
                    return
                file.read(length)
                if latency:
                    pause.wait(latency)
                conn.sendall(ANSWER + BODY)

    while True:
        threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()


def receiver(latency: float) -> tuple[Any, int]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(theirs, latency), daemon=True)
    process.start()
    return process, ours.recv()


def by_sender(folder: Path, port: int, rows: int) -> Callable[[], int]:
    def job() -> int:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            clock = Clock()
            queue = open_queue(Path(place) / "b.db", Bounds(10**6), clock)
            fill(queue, rows)
            url = f"http://127.0.0.1:{port}"
            transport = Transport(url, headers("k", "s", "0"), clock=clock, resolver=Resolver(clock))
            sender = Sender(queue, Observer(transport, clock, Notice(clock)), clock, lambda: 1.0)
            begin = time.perf_counter()
            while sender.step() == 0.0:
                pass
            took = time.perf_counter() - begin
            transport.close()
            queue.close()
        times.append(took)
        return rows

    times: list[float] = []
    job.times = times  # type: ignore[attr-defined]
    return job


def bare(folder: Path, port: int, rows: int) -> Callable[[], int]:
    """The least that a drain can be: select, post with a kept requests session, delete."""

    def job() -> int:
        with (
            tempfile.TemporaryDirectory(dir=folder) as place,
            closing(sqlite3.connect(f"{place}/b.db", isolation_level=None)) as conn,
            requests.Session() as session,
        ):
            session.trust_env = False
            conn.execute("PRAGMA journal_mode = WAL")
            conn.execute("PRAGMA synchronous = NORMAL")
            conn.execute("CREATE TABLE q (_id INTEGER PRIMARY KEY, data BLOB)")
            conn.execute("BEGIN")
            conn.executemany("INSERT INTO q (data) VALUES (?)", [(s.encode(),) for s in samples(rows)])
            conn.execute("COMMIT")
            url = f"http://127.0.0.1:{port}/"
            begin = time.perf_counter()
            while found := conn.execute("SELECT _id, data FROM q ORDER BY _id LIMIT 100").fetchall():
                body = b"[" + b",".join(data for _, data in found) + b"]"
                assert session.post(url, data=body, timeout=30).status_code == 200
                conn.execute("DELETE FROM q WHERE _id <= ?", (found[-1][0],))
            times.append(time.perf_counter() - begin)
        return rows

    times: list[float] = []
    job.times = times  # type: ignore[attr-defined]
    return job


def fill(queue: Any, rows: int) -> None:
    block = samples(1000)
    for _ in range(rows // 1000):
        queue.put(block)


def drains() -> Iterator[tuple[str, str]]:
    """Drain rates at three latencies of the receiver."""
    for latency, rows, aim in ((0.0, ROWS, 0.7), (0.02, 5000, 0.85), (0.1, 2000, 0.95)):
        process, port = receiver(latency)
        with tempfile.TemporaryDirectory() as place:
            jobs: dict[str, Any] = {"ours": by_sender(Path(place), port, rows), "bare": bare(Path(place), port, rows)}
            interleaved(jobs, rounds=3)
        process.terminate()
        process.join()
        ours, peer = (rows / median(jobs[name].times[1:]) for name in ("ours", "bare"))
        label = f"drain at {latency * 1000:.0f} ms"
        yield label, f"{ours:10,.0f} rows/s, bare loop {peer:,.0f}"
        if latency:
            yield f"ratio: {label}", f"{ours / (100 / latency):.2f} of 100 rows a round trip (aim {aim})"
        else:
            yield f"ratio: {label}", f"{ours / peer:.2f} of the bare loop (aim {aim})"


def written(job: Callable[[], object]) -> int:
    """Bytes that this process has sent to the disk in a job."""
    os.sync()
    before = _written()
    job()
    os.sync()
    return _written() - before


def _written() -> int:
    line = next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("write_bytes"))
    return int(line.split()[1])


def disk() -> Iterator[tuple[str, str]]:
    """Bytes written a push over its whole life, singly (as at 17 a second) and in the batches of 1,000 a second."""
    pushes = 2000
    with tempfile.TemporaryDirectory() as place:
        queue = open_queue(Path(place) / "b.db", Bounds(10**6), Clock())
        stock = SQLiteAckQueue(f"{place}/stock", multithreading=True)
        one = samples(1)
        data = one[0].encode()

        def ours(batch: int) -> None:
            for _ in range(pushes // batch):
                for _ in range(batch):
                    queue.put(one)
                queue.settle(queue.peek(100), OK)

        def peer(batch: int) -> None:
            for _ in range(pushes // batch):
                for _ in range(batch):
                    stock.put(data)
                for _ in range(batch):
                    stock.ack(stock.get())

        for label, batch in (("singly (17 a second)", 1), ("in batches of 50 (1,000 a second)", 50)):
            mine, theirs = written(lambda b=batch: ours(b)), written(lambda b=batch: peer(b))
            yield f"disk, {label}", f"{mine / pushes:8,.0f} bytes a push, stock ack queue {theirs / pushes:,.0f}"
            yield f"ratio: disk, {label}", f"{mine / theirs:.2f} of stock SQLiteAckQueue (aim 0.2)"
        queue.close()
        stock.close()


def figures() -> Iterator[tuple[str, str]]:
    """Lines of the report."""
    yield from drains()
    yield from disk()
