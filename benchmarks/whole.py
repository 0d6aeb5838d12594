"""The whole agent as a process: CPU of a probe, memory, overload and the way back, and its own error.

Half the definitions are http, half tcp, a new connection each, spread over 40 addresses of one cheap target; the cloud
is a process that answers at once. CPU is that of the agent's process alone, probes are those that it counts itself.
"""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.request import ProxyHandler, build_opener

from benchmarks import own_error, targets
from benchmarks.blackbox import cpu_of
from benchmarks.receiver import Receiver, longest_gap
from benchmarks.start import agent, free_port

ADDRESSES = 40  # with one, 28,000 local ports last for half a minute
SECOND, MINUTE = 1 / 60, 1.0  # the wire counts minutes
SOON = 1000  # milliseconds of spread of the first looks, for definitions that are probed each second
RULES = {"healthy_operation": "under", "healthy_value": 500, "unhealthy_operation": "over", "unhealthy_value": 900}
METRIC = re.compile(
    r"^observer_agent_(probes|probes_skipped|probe_lateness_seconds|definitions)(?:_total)?(?:{.*})? (\S+)$"
)
PROBES, SKIPPED, LATENESS, DEFINITIONS = "probes", "probes_skipped", "probe_lateness_seconds", "definitions"
FIRST_OFFER, LAST_OFFER = 4000, 32000
NORMAL_LATE = 0.1  # of an interval of a second: later than that counts as late

Line = tuple[str, str]


class Facts(NamedTuple):
    """The agent at one moment: monotonic seconds, seconds of CPU, what it says of itself."""

    at: float
    cpu: float
    probes: float
    skipped: float
    late: float
    definitions: float


class Whole:
    """An agent, its cloud and its target."""

    def __init__(self, folder: str) -> None:
        self._target, self._target_port = targets.start()
        self.cloud = Receiver()
        self._page = free_port()
        self._process: subprocess.Popen[bytes] = agent(self.cloud.port, folder, self._page)
        self._open = build_opener(ProxyHandler({})).open
        self._ids: list[str] = []

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._target.terminate()
        self.cloud.close()

    def facts(self) -> Facts:
        """CPU first: reading the metrics costs the agent a little."""
        now, cpu = time.monotonic(), cpu_of(self._process.pid)
        with self._open(f"http://127.0.0.1:{self._page}/metrics", timeout=10) as answer:
            found: dict[str, list[float]] = {}
            for line in answer.read().decode().splitlines():
                if match := METRIC.match(line):
                    found.setdefault(match[1], []).append(float(match[2]))
        return Facts(
            now, cpu, sum(found.get(PROBES, ())), sum(found.get(SKIPPED, ())), max(found.get(LATENESS, [0.0])),
            sum(found.get(DEFINITIONS, ())),
        )  # fmt: skip

    def memory(self) -> float:
        """RSS in MB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def watch(self, count: int, interval: float, push: float | None, soon: bool = True) -> float:
        """Lets the agent have these definitions; returns the moment at which it was told.

        Without `push` each one is pushed at an interval of its own, 10 to 60 s, so that rows come all the time.
        """
        self.cloud.hand_out([self._definition(n, interval, push) for n in self._chosen(count, soon)])
        told = time.monotonic()
        self._process.send_signal(signal.SIGHUP)
        self._until(lambda: self.facts().definitions == count)
        return told

    def come_up(self) -> None:
        """Waits for the first heartbeat and the page."""
        self._until(lambda: bool(self.cloud.seen().beats))
        self._until(lambda: self.facts().at > 0)

    def _until(self, done: Callable[[], bool], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if done():
                    return
            except OSError:
                pass  # the page is not there yet
            time.sleep(0.1)
        raise SystemExit("the agent does not do what it is asked for")

    def _chosen(self, count: int, soon: bool) -> list[str]:
        """Ids; `soon` takes those whose first looks fall within SOON ms, so that warm-ups are short."""
        if not soon:
            return [f"slow-{n:06}" for n in range(count)]
        n = int(self._ids[-1].partition("-")[2]) + 1 if self._ids else 0
        while len(self._ids) < count:
            name = f"quick-{n:06}"
            if zlib.crc32(name.encode()) % 7500 < SOON:
                self._ids.append(name)
            n += 1
        return self._ids[:count]

    def _definition(self, name: str, interval: float, push: float | None) -> dict[str, object]:
        number = zlib.crc32(name.encode()) // 7500
        host = f"127.0.0.{1 + number % ADDRESSES}"
        http = {"source_type": "http", "source_config": {"url": f"http://{host}:{self._target_port}/"}}
        tcp = {"source_type": "tcp", "source_config": {"host": host, "port": self._target_port}}
        kind = http if number // ADDRESSES % 2 else tcp
        return {
            "id": name,
            "interval": interval,
            "interval_agent_push": push or (10 + number % 51) / 60,
            **kind,
            **RULES,
        }


@contextmanager
def running() -> Iterator[Whole]:
    """An agent that has come up, without definitions."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Whole(folder)
        try:
            whole.come_up()
            yield whole
        finally:
            whole.close()


def short() -> Iterator[Line]:
    """Under a minute: the price of a probe and the own error, in short windows."""
    with running() as whole:
        yield "memory without definitions", f"{whole.memory():6.1f} MB RSS (bound 45)"
        yield from _price(whole, 8.0, 8.0)
    yield from own_error.lines(5.0)


def figures() -> Iterator[Line]:
    """Everything, in under five minutes."""
    with running() as whole:
        yield "memory without definitions", f"{whole.memory():6.1f} MB RSS (bound 45)"
        yield from _slow(whole)
        yield from _price(whole, 20.0, 60.0)
        yield from _overload(whole)
    yield from own_error.lines(10.0)


def _slow(whole: Whole) -> Iterator[Line]:
    """1,000 definitions a minute, for one whole minute: first looks are spread over 8 s of it only."""
    whole.watch(1000, MINUTE, 5 * MINUTE, soon=False)
    time.sleep(9)
    before = whole.facts()
    time.sleep(60)
    after = whole.facts()
    share = (after.cpu - before.cpu) / (after.at - before.at) * 100
    yield (
        "1,000 definitions a minute: CPU",
        f"{share:6.2f} % of a core (bound 1, aim 0.5), {_rate(before, after):.1f} probes/s",
    )
    yield "1,000 definitions a minute: memory", f"{whole.memory():6.1f} MB RSS (bound 45)"


def _price(whole: Whole, fast: float, slow: float) -> Iterator[Line]:
    """`slow` is 60 s, or leaves out the one moment of a minute at which all are pushed."""
    for name, push, bound, seconds in (("second", SECOND, 300, fast), ("minute", MINUTE, 150, slow)):
        whole.watch(1000, SECOND, push)
        time.sleep(4)
        rows, before = whole.cloud.seen().rows, whole.facts()
        time.sleep(seconds)
        after, came = whole.facts(), whole.cloud.seen().rows - rows
        each = (after.cpu - before.cpu) / (after.probes - before.probes) * 1e6
        what = f"{_rate(before, after):.0f} probes/s, {came / (after.at - before.at):.0f} rows/s"
        yield f"1,000 a second, pushed each {name}: CPU", f"{each:6.0f} us a probe (bound {bound}); {what}"
        yield f"1,000 a second, pushed each {name}: memory", f"{whole.memory():6.1f} MB RSS (bound 60)"


def _rate(before: Facts, after: Facts) -> float:
    return (after.probes - before.probes) / (after.at - before.at)


def _offered(whole: Whole, count: int, seconds: float) -> tuple[Facts, Facts]:
    whole.watch(count, SECOND, None)
    time.sleep(4)
    before = whole.facts()
    time.sleep(seconds)
    return before, whole.facts()


def _overload(whole: Whole) -> Iterator[Line]:
    most, offer = 0.0, FIRST_OFFER
    while offer <= LAST_OFFER:
        rate = _rate(*_offered(whole, offer, 8.0))
        yield f"offered {offer:,} probes/s", f"{rate:8,.0f}/s"
        most = max(most, rate)
        if rate < 0.9 * offer:
            break
        offer *= 2
    near = round(most * 1.1, -2)
    most = max(most, _rate(*_offered(whole, int(near), 8.0)))
    yield "the most that it finishes", f"{most:8,.0f} probes/s"
    yield from _thrice(whole, int(3 * most), most)
    yield from _back(whole)


def _thrice(whole: Whole, offer: int, most: float) -> Iterator[Line]:
    before, after = _offered(whole, offer, 45.0)
    seen = whole.cloud.seen()
    rate, skipped = _rate(before, after), (after.skipped - before.skipped) / (after.at - before.at)
    yield (
        f"offered {offer:,}/s",
        f"{rate:8,.0f}/s, {skipped:,.0f}/s skipped; {rate / most:.2f} of the most (bound 0.90)",
    )
    gaps = [longest_gap(moments, before.at, after.at) for moments in (seen.beats, seen.batches)]
    beats, batches = (sum(before.at <= at <= after.at for at in moments) for moments in (seen.beats, seen.batches))
    yield (
        "meanwhile: heartbeats",
        f"{beats} in {after.at - before.at:.0f} s, longest gap {gaps[0]:.1f} s (one each 30 s)",
    )
    yield "meanwhile: pushes", f"{batches} batches, longest gap {gaps[1]:.1f} s"


def _back(whole: Whole) -> Iterator[Line]:
    """The load falls: how long until nothing is skipped or late any more."""
    told = whole.watch(1000, SECOND, None)
    last, trouble = whole.facts(), time.monotonic()
    while time.monotonic() < told + 12:
        time.sleep(0.25)
        now = whole.facts()
        if now.skipped > last.skipped or now.late > NORMAL_LATE:
            trouble = now.at
        last = now
    yield (
        "back to 1,000/s: normal again after",
        f"{trouble - told:6.1f} s (bound 5): nothing skipped, none {NORMAL_LATE} s late",
    )
