"""Put and settle against persist-queue as it is shipped, and against raw SQLite, on the same disk in the same run."""

from __future__ import annotations

import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from persistqueue import SQLiteAckQueue, SQLiteQueue

from benchmarks.measure import interleaved, median, once
from observer_agent.clock import Clock
from observer_agent.diskqueue import Bounds, open_queue
from observer_agent.model import Answer, Fate, Sample, Status

ROWS = 10_000
TEXT = "x" * 120
OK = Answer(Fate.ACCEPTED, 200)


def samples(count: int) -> list[Sample]:
    return [Sample(f"{n:036d}", 12.345, "2026-01-01T00:00:00.000Z", Status.HEALTHY) for n in range(count)]


class Ready:
    """A sample whose JSON is made already: the peers below are handed bytes as well."""

    def __init__(self, sample: Sample) -> None:
        self.metric_id, self.status, self._data = sample.metric_id, sample.status, sample.encode()

    def encode(self) -> bytes:
        return self._data


def ours_put(
    folder: Path, batch: int, *, sync: str = "normal", ready: bool = False, bound: int = 10**7
) -> Callable[[], int]:
    rows: list[Any] = [Ready(sample) for sample in samples(batch)] if ready else samples(batch)

    def job() -> int:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            queue = open_queue(Path(place) / "b.db", Bounds(bound), Clock(), sync)
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


def many_threads(folder: Path, sync: str, threads: int, shared: bool) -> Callable[[], int]:
    """Single puts from several threads; without sharing each is a commit of its own, as if under one lock."""
    one, each = samples(1), ROWS // 4 // threads

    def job() -> int:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            queue = open_queue(Path(place) / "b.db", Bounds(10**7), Clock(), sync)
            alone = threading.Lock()

            def work() -> None:
                for _ in range(each):
                    if shared:
                        queue.put(one)
                    else:
                        with alone:
                            queue.put(one)

            with ThreadPoolExecutor(threads) as pool:
                for done in [pool.submit(work) for _ in range(threads)]:
                    done.result()
            queue.close()
        return each * threads

    return job


def puts() -> Iterator[tuple[str, str]]:
    """Puts by batch size, below and at the cap."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        jobs = {f"put of {n}, ours": ours_put(folder, n, ready=True) for n in (1, 10, 100)}
        jobs |= {f"put of {n} at the cap, ours": ours_put(folder, n, ready=True, bound=500) for n in (10, 100)}
        jobs |= {f"put of {n}, raw executemany": raw_put(folder, n) for n in (1, 10, 100)}
        jobs |= {
            "put of 100 with JSON encoding, ours": ours_put(folder, 100),
            "put of 1 FULL, ours": ours_put(folder, 1, sync="full"),
            "put, stock SQLiteQueue as shipped (FULL)": stock_put(folder, False),
            "put, stock SQLiteQueue NORMAL": stock_put(folder, True),
            "put and settle by 100, ours": ours_settle(folder),
            "put, get and ack, stock SQLiteAckQueue as shipped": stock_ack(folder),
        }
        found = interleaved(jobs)
    for name, figure in found.items():
        yield name, f"{figure.rate:10,.0f} rows/s  {figure.cpu_us:8.1f} us CPU a row"
    stock = found["put, stock SQLiteQueue NORMAL"].rate
    for n, aim in ((1, ""), (10, " (aim 0.6)"), (100, "")):
        ours, raw = found[f"put of {n}, ours"].rate, found[f"put of {n}, raw executemany"].rate
        times = " (aim 5)" if n == 100 else ""
        yield f"ratio: put of {n}", f"{ours / raw:.2f}{aim} of raw executemany, {ours / stock:.2f}{times} of stock put"
    for n, aim in ((10, "of raw executemany (aim 0.4)"), (100, "of stock put (aim 3)")):
        peer = found[f"put of {n}, raw executemany"].rate if n == 10 else stock
        yield f"ratio: put of {n} at the cap", f"{found[f'put of {n} at the cap, ours'].rate / peer:.2f} {aim}"
    ours_cpu = found["put of 1, ours"].cpu_us + found["put and settle by 100, ours"].cpu_us
    stock_cpu = found["put, get and ack, stock SQLiteAckQueue as shipped"].cpu_us
    yield "ratio: CPU of single put and settle", f"{ours_cpu / stock_cpu:.2f} of stock SQLiteAckQueue (aim 0.3)"


def threads() -> Iterator[tuple[str, str]]:
    """What shared transactions gain."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        jobs = {
            f"16 threads {sync}, {'shared' if shared else 'a commit each'}": many_threads(folder, sync, 16, shared)
            for sync in ("full", "normal")
            for shared in (True, False)
        }
        found = interleaved(jobs, rounds=3)
    for name, figure in found.items():
        yield name, f"{figure.rate:10,.0f} rows/s"
    for sync, aim in (("full", 4), ("normal", 1.3)):
        ratio = found[f"16 threads {sync}, shared"].rate / found[f"16 threads {sync}, a commit each"].rate
        yield f"ratio: 16 threads {sync}", f"{ratio:.1f} of a commit each (aim {aim})"


def depth() -> Iterator[tuple[str, str]]:
    """Every operation at 1,000, 100,000 and 1,000,000 waiting rows, and the opening of the largest."""
    found: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as place:
        for rows in (1_000, 100_000, 1_000_000):
            found[rows] = at_depth(Path(place) / f"{rows}.db", rows)
    for name in found[1_000]:
        small, middle, large = (found[rows][name] for rows in found)
        text = f"{small:8.1f} {middle:8.1f} {large:8.1f} us"
        yield name, f"{text}; ratio {large / middle:.2f} (aim 1.25) and {large / small:.2f} (aim 2)"
    yield "open a million rows, closed cleanly", f"{found[1_000_000]['open'] / 1000:.1f} ms (aim 20)"


def at_depth(file: Path, rows: int) -> dict[str, float]:
    """Microseconds of one operation each, the median of many."""
    queue = open_queue(file, Bounds(rows), Clock())
    block = samples(1_000)
    for _ in range(rows // 1_000):
        queue.put(block)
    queue.close()
    opened = once(lambda: open_and_close(file, rows))
    queue = open_queue(file, Bounds(rows), Clock())
    one = samples(1)
    timed: dict[str, list[float]] = {"put at the cap": [], "peek 100": [], "settle 100": [], "depth and age": []}
    for _ in range(200):
        clock(timed["put at the cap"], lambda: queue.put(one))
        clock(timed["depth and age"], lambda: (queue.depth, queue.oldest_age()))
    for _ in range(5):
        batch = clock(timed["peek 100"], lambda: queue.peek(100))
        clock(timed["settle 100"], lambda batch=batch: queue.settle(batch, OK))
    queue.close()
    return {name: median(values) * 1e6 for name, values in timed.items()} | {"open": opened.wall * 1e6}


def open_and_close(file: Path, rows: int) -> int:
    open_queue(file, Bounds(rows), Clock()).close()
    return 1


def clock(into: list[float], what: Callable[[], Any]) -> Any:
    begin = time.perf_counter()
    made = what()
    into.append(time.perf_counter() - begin)
    return made


def figures() -> Iterator[tuple[str, str]]:
    """Lines of the report."""
    yield from puts()
    yield from threads()
    yield from depth()
