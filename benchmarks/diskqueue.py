"""Put and settle against persist-queue as it is shipped, and against raw SQLite, on the same disk in the same run."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from persistqueue import SQLiteAckQueue, SQLiteQueue

from benchmarks.measure import interleaved
from observer_agent.clock import Clock
from observer_agent.diskqueue import Bounds, open_queue
from observer_agent.model import Answer, Fate, Sample, Status

ROWS = 10_000
TEXT = "x" * 120
OK = Answer(Fate.ACCEPTED, 200)


def samples(count: int) -> list[Sample]:
    return [Sample(f"{n:036d}", 12.345, "2026-01-01T00:00:00.000Z", Status.HEALTHY) for n in range(count)]


def ours_put(folder: Path, sync: str, batch: int) -> Callable[[], int]:
    rows = samples(batch)

    def job() -> int:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            queue = open_queue(Path(place) / "b.db", Bounds(10**7), Clock(), sync)
            for _ in range(ROWS // batch):
                queue.put(rows)
            queue.close()
        return ROWS // batch * batch

    return job


def ours_settle(folder: Path) -> Callable[[], int]:
    def job() -> int:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            queue = open_queue(Path(place) / "b.db", Bounds(10**7), Clock())
            queue.put(samples(ROWS))
            while batch := queue.peek(100):
                queue.settle(batch, OK)
            queue.close()
        return ROWS

    return job


def stock_put(folder: Path, normal: bool) -> Callable[[], int]:
    data = samples(1)[0].encode()

    def job() -> int:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            queue = SQLiteQueue(place, multithreading=True)
            if normal:
                queue._putter.execute("PRAGMA synchronous = NORMAL")
            for _ in range(ROWS):
                queue.put(data)
            queue.close()
        return ROWS

    return job


def stock_ack(folder: Path) -> Callable[[], int]:
    data = samples(1)[0].encode()
    count = ROWS // 20

    def job() -> int:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            queue = SQLiteAckQueue(place, multithreading=True)
            for _ in range(count):
                queue.put(data)
            for _ in range(count):
                queue.ack(queue.get())
            queue.close()
        return count

    return job


def raw_put(folder: Path, batch: int) -> Callable[[], int]:
    rows = [(sample.encode(), 0.0, 1, sample.metric_id, 0) for sample in samples(batch)]

    def job() -> int:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            with closing(sqlite3.connect(f"{place}/raw.db", isolation_level=None)) as conn:
                conn.execute("PRAGMA journal_mode = WAL")
                conn.execute("PRAGMA synchronous = NORMAL")
                conn.execute("CREATE TABLE q (_id INTEGER PRIMARY KEY, data BLOB, timestamp FLOAT, crc, metric, flag)")
                for _ in range(ROWS // batch):
                    conn.execute("BEGIN")
                    conn.executemany("INSERT INTO q (data, timestamp, crc, metric, flag) VALUES (?, ?, ?, ?, ?)", rows)
                    conn.execute("COMMIT")
        return ROWS // batch * batch

    return job


def figures() -> Iterator[tuple[str, str]]:
    """Lines of the report."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        jobs = {f"put of {n}, ours": ours_put(folder, "normal", n) for n in (1, 10, 100)}
        jobs |= {f"put of {n}, raw executemany": raw_put(folder, n) for n in (1, 10, 100)}
        jobs |= {
            "put of 1 FULL, ours": ours_put(folder, "full", 1),
            "put, stock SQLiteQueue as shipped (FULL)": stock_put(folder, False),
            "put, stock SQLiteQueue NORMAL": stock_put(folder, True),
            "put and settle by 100, ours": ours_settle(folder),
            "put, get and ack, stock SQLiteAckQueue as shipped": stock_ack(folder),
        }
        found = interleaved(jobs)
    for name, figure in found.items():
        yield name, f"{figure.rate:10,.0f} rows/s  {figure.cpu_us:8.1f} us CPU a row"
    for n in (1, 10, 100):
        ours = found[f"put of {n}, ours"].rate
        raw, stock = found[f"put of {n}, raw executemany"].rate, found["put, stock SQLiteQueue NORMAL"].rate
        yield f"ratio: put of {n}", f"{ours / raw:.2f} of raw executemany, {ours / stock:.2f} of stock put (all NORMAL)"
    ours_cpu = found["put of 1, ours"].cpu_us + found["put and settle by 100, ours"].cpu_us
    stock_cpu = found["put, get and ack, stock SQLiteAckQueue as shipped"].cpu_us
    yield "ratio: CPU of single put and settle", f"{ours_cpu / stock_cpu:.2f} of stock SQLiteAckQueue"
