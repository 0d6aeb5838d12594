"""One HTTP and one TCP probe, a new connection each, against `requests.get` and `socket.create_connection`."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests

from benchmarks.measure import interleaved
from observer_agent import config, probes
from observer_agent.clock import Clock
from observer_agent.logs import Redactor
from observer_agent.resolver import Resolver

COUNT = 600
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


def serve(ready: Any) -> None:
    """A server process that answers every connection at once."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    ready.send(listener.getsockname()[1])

    def answer(conn: socket.socket) -> None:
        with conn:
            conn.settimeout(2)
            try:
                if conn.recv(65536):
                    conn.sendall(ANSWER)
            except OSError:
                return

    with ThreadPoolExecutor(16) as pool:
        while True:
            pool.submit(answer, listener.accept()[0])


def figures() -> Iterator[tuple[str, str]]:
    """Lines of the report."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    port = ours.recv()
    clock = Clock()
    settings = config.load({}, to_run=False)
    tools = probes.Tools(clock=clock, resolver=Resolver(clock), env=os.environ, redact=Redactor(), settings=settings)
    look = probes.Prober(tools).look
    url = f"http://127.0.0.1:{port}/"
    http = probes.parse("http", {"url": url})
    tcp = probes.parse("tcp", {"host": "127.0.0.1", "port": port})

    def by(threads: int, one: Any) -> Any:
        def job() -> int:
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(lambda _: one(), range(COUNT)):
                    pass
            return COUNT

        return job

    def probe(kind: str, parsed: Any) -> None:
        reading = look(kind, parsed)
        if reading.value is None:
            raise SystemExit(f"the {kind} probe failed: {reading}")

    session_free = {"http": lambda: probe("http", http), "requests.get": lambda: requests.get(url, timeout=5)}
    jobs = {f"{name}, {n} threads": by(n, one) for n in (1, 8) for name, one in session_free.items()}
    jobs["tcp, 1 thread"] = by(1, lambda: probe("tcp", tcp))
    jobs["socket.create_connection, 1 thread"] = by(1, lambda: socket.create_connection(("127.0.0.1", port)).close())
    try:
        found = interleaved(jobs, rounds=3)
    finally:
        server.terminate()
        server.join()
    for name, figure in found.items():
        yield name, f"{figure.rate:8,.0f}/s  {figure.cpu_us:8.1f} us CPU each"
    for n in (1, 8):
        ours_, peer = found[f"http, {n} threads"], found[f"requests.get, {n} threads"]
        yield (
            f"ratio: http probe, {n} threads",
            f"{ours_.rate / peer.rate:.1f} times the rate, {ours_.cpu_us / peer.cpu_us:.2f} of the CPU of requests.get",
        )
    ratio = found["tcp, 1 thread"].cpu_us / found["socket.create_connection, 1 thread"].cpu_us
    yield "ratio: tcp probe", f"{ratio:.2f} of the CPU of socket.create_connection"
