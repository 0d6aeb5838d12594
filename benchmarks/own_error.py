"""The agent's own error: what a probe reports of a target that answers at once, 500 times a second, load open.

The real collector with its threads looks through the http probe, then on the same schedule through `requests.get`
timed by its caller. Both report what the target takes (the floor, by one socket after another) and what they add.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import requests

from benchmarks import targets
from observer_agent import config, probes
from observer_agent.clock import Clock
from observer_agent.collector import Collector
from observer_agent.logs import Redactor
from observer_agent.lookout import Lookout
from observer_agent.model import Definition, Operation, Reading, Thresholds
from observer_agent.pools import Pools
from observer_agent.pulse import Pulse
from observer_agent.resolver import Resolver
from observer_agent.witness import Witnesses
from observer_agent.worker import Supervisor

RATE = 500
RULES = Thresholds(Operation.UNDER, 5000.0, Operation.OVER, 9000.0)
BOUND, AIM, SHARE = 5.0, 2.5, 0.5

Look = Callable[[Definition], Reading]


def lines(seconds: float) -> Iterator[tuple[str, str]]:
    """Lines of the report; each of the two schedules runs for `seconds` after a warm-up."""
    target, port = targets.start()
    url = f"http://127.0.0.1:{port}/"
    try:
        floor = statistics.median(_bare(port) for _ in range(500))
        ours = _spread(_ours(), url, seconds)
        peer = _spread(_peer, url, seconds)
    finally:
        target.terminate()
    yield "own error: the target itself takes", f"{floor:6.2f} ms"
    for name, (half, most, rate) in (("http probe", ours), ("requests.get", peer)):
        yield f"own error at {RATE} probes/s: {name}", f"p50 {half:6.2f} ms, p99 {most:6.2f} ms ({rate:.0f}/s)"
    yield "own error: p99", f"{ours[1]:6.2f} ms (bound {BOUND}, aim {AIM})"
    yield "ratio: own error, p99", f"{ours[1] / peer[1]:6.2f} of that of requests.get (bound {SHARE})"


def _bare(port: int) -> float:
    begin = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        sock.recv(65536)
        return (time.perf_counter() - begin) * 1000


def _ours() -> Look:
    """The look as the agent has it."""
    clock = Clock()
    resolver = Resolver(clock)
    settings = config.load({}, to_run=False)
    tools = probes.Tools(clock=clock, resolver=resolver, env=os.environ, redact=Redactor(), settings=settings)
    look = probes.Prober(tools).look
    witnesses = Witnesses(clock, resolver)
    return Lookout(lambda each: look(each.source_type, each.config), witnesses, Pulse(clock), clock).look


def _peer(definition: Definition) -> Reading:
    begin = time.perf_counter()
    requests.get(definition.title, timeout=5)
    took = (time.perf_counter() - begin) * 1000
    return Reading(took, duration_ms=took)


def _definitions(url: str) -> list[Definition]:
    """One for each probe of a second, their first moments spread over one second."""
    parsed = probes.parse("http", {"url": url})
    names = (f"probe-{n}" for n in range(RATE * 100))
    chosen = [name for name in names if zlib.crc32(name.encode()) % 7500 < 1000][:RATE]
    return [Definition(name, "http", 1.0, 3600.0, "same", parsed, RULES, title=url) for name in chosen]


def _spread(look: Look, url: str, seconds: float) -> tuple[float, float, float]:
    """p50 and p99 of the reported milliseconds, and the rate, in the real collector."""
    clock, supervisor, values = Clock(), Supervisor(), list[tuple[float, float]]()

    def timed(definition: Definition) -> Reading:
        reading = look(definition)
        if reading.value is None:
            raise SystemExit(f"the probe failed: {reading}")
        values.append((time.monotonic(), reading.value))
        return reading

    pools = Pools(supervisor, clock, lambda grow: Collector(timed, _nothing, clock, grow=grow))
    begin = time.monotonic() + 2.5
    pools.apply(_definitions(url))
    time.sleep(2.5 + seconds)
    workers = pools.stop()
    for worker in workers:
        worker.stop()
    for worker in workers:
        worker.join(5.0)
    taken = sorted(value for at, value in values if at >= begin)
    return statistics.median(taken), taken[int(len(taken) * 0.99)], len(taken) / seconds


def _nothing(samples: Any) -> None:
    """Nobody takes the verdicts."""
