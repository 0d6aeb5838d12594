"""The whole agent: joins the parts, starts and stops them in order, applies definitions, tells how it is.

`run` is the main thread: it waits for signals, revives workers that died, and stops everything within one budget:
collectors, sender, heartbeat, queue. What is left is on disk for the next start.
"""

from __future__ import annotations

import logging
import random
import signal
import socket
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from observer_agent import __version__, document, probes
from observer_agent.broadcast import Broadcast
from observer_agent.clock import Clock, Signals, iso
from observer_agent.clouds import DIALECTS
from observer_agent.collector import POOL_MAX, Collector, Listener
from observer_agent.config import Settings
from observer_agent.definitions import Definitions, DefinitionsFile, Store, understand_all
from observer_agent.diskqueue import Bounds, DiskQueue, open_queue
from observer_agent.errors import ConfigError, DocumentError, NoPlace, QueueError
from observer_agent.heartbeat import Heartbeat
from observer_agent.keeper import Keeper
from observer_agent.logs import Logs
from observer_agent.model import Definition, Fault, Health, Loss, Orders, Reading, Status
from observer_agent.resolver import Resolver
from observer_agent.selfmetrics import SelfMetrics
from observer_agent.sender import Sender
from observer_agent.worker import Supervisor, Worker, attempt

log = logging.getLogger(__name__)

TIDY, TIDY_AGAIN = 15.0, 0.2
STOP_BUDGET = 8.0  # below the unit's TimeoutStopSec
BROKEN = "broken"  # the collector of definitions that cannot run


class Agent:
    """One agent. Opening the queue claims the start time; nothing runs before `start`."""

    def __init__(self, settings: Settings, clock: Clock, logs: Logs, env: Mapping[str, str]) -> None:
        self.settings = settings
        self.clock = clock
        self.logs = logs
        self.metrics = SelfMetrics(__version__)
        self.supervisor = Supervisor()
        self.queue = _open(settings, clock)
        self._began = clock.monotonic()
        self.started_at = iso(self.queue.claim_start())
        self._connect = DIALECTS[settings.cloud_dialect](settings, self.started_at, __version__, clock, logs.redact)
        self._clouds = {name: self._link(name) for name in ("send", "beat", "definitions", "log")}
        self.keeper = Keeper(self.queue, clock)
        self.sender = Sender(self.queue, self._clouds["send"], clock, random.random)
        self.heartbeat = Heartbeat(self._clouds["beat"], self.health, clock, self._heard, random.random)
        self.definitions = self._definitions_source()
        tools = probes.Tools(clock=clock, resolver=Resolver(clock), env=env, redact=logs.redact, settings=settings)
        self._prober = probes.Prober(tools)
        self._collectors: dict[str, Collector] = {}
        self._pools: dict[str, list[Worker]] = {}
        self._lock = threading.Lock()
        self._pool_lock = threading.Lock()
        self._ran: set[str] = set()
        self._stopping = False
        self._wire()

    # -- joining

    def _link(self, name: str) -> Any:
        cloud = self._connect()
        requests = self.metrics.requests
        cloud.on_reply = lambda endpoint, status: requests.labels(endpoint, str(status)).inc()
        return cloud

    def _definitions_source(self) -> Definitions | DefinitionsFile:
        if self.settings.definitions_file:
            return DefinitionsFile(Path(self.settings.definitions_file), read_document, self._apply)
        file = self.settings.buffer_path
        store = Store(file.with_name(file.name + ".definitions"))
        return Definitions(self._clouds["definitions"], store, self.clock, self._apply)

    def _wire(self) -> None:
        metrics, queue = self.metrics, self.queue
        queue.on_loss = self._count_loss
        self.sender.on_accepted = lambda n: metrics.samples_accepted.inc(n)
        metrics.queue_depth.set_function(lambda: queue.depth)
        metrics.queue_oldest_age.set_function(queue.oldest_age)
        metrics.queue_capacity.set(queue.capacity)
        self.broadcast = Broadcast(self._clouds["log"], self.clock, self.settings.log_broadcast_level)

    def _count_loss(self, reason: Loss, n: int) -> None:
        self.metrics.samples_lost.labels(reason.value).inc(n)

    # -- life

    def run(self) -> int:
        """Runs until SIGTERM or SIGINT; returns the exit code. Call on the main thread."""
        with Signals((signal.SIGTERM, signal.SIGINT, signal.SIGHUP)) as signals:
            try:
                self.start()
                while True:
                    came = signals.wait(1.0)
                    if signal.SIGTERM in came or signal.SIGINT in came:
                        return 0
                    if signal.SIGHUP in came:
                        self.definitions.refresh()
                    self.supervisor.check()
            finally:
                self.stop()

    def start(self) -> None:
        """Starts the workers, the heartbeat first; raises ConfigError before anything has left the machine."""
        self._check_definitions()
        log.info(
            "observer-agent %s started at %s; queue %s holds %d of %d",
            __version__, self.started_at, self.queue.file, self.queue.depth, self.queue.capacity,
        )  # fmt: skip
        if self.settings.skip_ssl_verification:
            log.warning("SKIP_SSL_VERIFICATION is on: anybody on the way can read the key and all samples")
        if self.settings.heartbeat_relay_enabled:
            log.warning("HEARTBEAT_RELAY_ENABLED is set, but this version has no relay")
        self._work("beat", self.heartbeat.step)
        self.sender.wake = self.queue.on_put = self._work("send", self.sender.step).wake
        self._work("tidy", self._tidy)
        self.keeper.wake = self._work("keep", self.keeper.step).wake
        self.definitions.start()
        self.definitions.wake = self._work("definitions", self.definitions.step).wake
        if self.settings.broadcast_logs:
            self.broadcast.wake = self._work("log", self.broadcast.step).wake
            self.logs.listen(self.broadcast.offer)

    def _check_definitions(self) -> None:
        try:
            self.definitions.check()
        except DocumentError as error:
            raise ConfigError("DEFINITIONS_FILE", str(self.settings.definitions_file), str(error)) from None

    def stop(self) -> None:
        """Stops everything within the budget: collectors, sender, heartbeat, queue. May be called twice."""
        if self._stopping:
            return
        self._stopping = True
        deadline = self.clock.monotonic() + STOP_BUDGET
        self.logs.listen(None)
        attempt("Stopping the collectors", lambda: self._stop_collectors(deadline - 6.5))
        attempt("Queueing what was kept", self.keeper.step)
        attempt("The last push", lambda: self._stop_sender(deadline - 3.0))
        attempt("The last heartbeat", lambda: self._stop_heartbeat(deadline - 1.0))
        left = self.queue.depth
        attempt("Closing the queue", self.queue.close)
        for cloud in self._clouds.values():
            attempt("Closing a connection", cloud.leave)
        log.info("observer-agent stopped; %d samples wait on disk for the next start", left)

    def _stop_collectors(self, deadline: float) -> None:
        with self._lock:
            collectors, pools = list(self._collectors.values()), list(self._pools.values())
        for collector in collectors:
            collector.stop()
        workers = [worker for pool in pools for worker in pool]
        self._end([*workers, *self._named("definitions", "log", "tidy", "keep")], deadline)

    def _stop_sender(self, deadline: float) -> None:
        if self._end(self._named("send"), deadline):
            self.sender.flush(deadline)

    def _stop_heartbeat(self, deadline: float) -> None:
        workers = self._named("beat")
        if not workers or not self._end(workers, deadline):
            return  # it never began, or hangs
        self._clouds["beat"].hurry(deadline - self.clock.monotonic())
        self.heartbeat.beat()

    def _end(self, workers: list[Worker], deadline: float) -> bool:
        """Stops workers and waits for them until the deadline; says whether all have ended."""
        for worker in workers:
            worker.stop()
        return all([worker.join(deadline - self.clock.monotonic()) for worker in workers])

    def _tidy(self) -> float:
        """Gives the disk back what an outage has taken, a little at a time."""
        return TIDY_AGAIN if self.queue.tidy() else TIDY

    def _named(self, *names: str) -> list[Worker]:
        return [worker for name, worker in self.supervisor.workers.items() if name in names]

    def _work(self, name: str, step: Any) -> Worker:
        return self.supervisor.add(Worker(name, step, self.clock, self._count_restart))

    def _count_restart(self, name: str) -> None:
        self.metrics.worker_restarts.labels(name).inc()

    # -- definitions

    def _apply(self, rows: tuple[Any, ...]) -> None:
        """New definitions: each source type's collector gets its own, as added, changed, removed."""
        found = understand_all(rows, probes.parse, probes.SOURCES)
        groups: dict[str, list[Definition]] = {name: [] for name in self._collectors}
        for definition in found:
            groups.setdefault(BROKEN if definition.problem else definition.source_type, []).append(definition)
        sums = [self._collector(name).apply(group) for name, group in groups.items()]
        self.metrics.definitions.set(len(found))
        added, changed, removed = (sum(column) for column in zip(*sums, strict=True)) if sums else (0, 0, 0)
        if added or changed or removed:
            log.info("%d definitions: %d added, %d changed, %d removed", len(found), added, changed, removed)

    def _collector(self, name: str) -> Collector:
        with self._lock:
            if name not in self._collectors:
                self._collectors[name] = self._make_collector(name)
            return self._collectors[name]

    def _make_collector(self, name: str) -> Collector:
        collector = Collector(
            self._look,
            self._put,
            self.clock,
            on_target_fault=Status(self.settings.probe_failure_status),
            grow=lambda: self._grow(name),
            listener=Listener(self._count_run, self._count_skipped),
        )
        self._pools[name] = []
        self._grow(name, collector)
        return collector

    def _grow(self, name: str, collector: Collector | None = None) -> bool:
        """One more thread for a pool, up to its bound."""
        step = (collector or self._collectors[name]).step
        with self._pool_lock:
            pool = self._pools[name]
            if len(pool) >= POOL_MAX or self._stopping:
                return False
            worker = Worker(f"probe-{name}-{len(pool)}", step, self.clock, self._count_restart)
            pool.append(worker)
        self.supervisor.add(worker)
        return True

    def _look(self, definition: Definition) -> Reading:
        if definition.problem:
            return Reading(None, definition.problem.reason, Fault.CONFIG, detail={"error": definition.problem.text})
        return self._prober.look(definition.source_type, definition.config)

    def _put(self, samples: Any) -> int:
        dropped = self.keeper.put(samples)
        self.metrics.samples_given.inc(len(samples))
        return dropped

    def _count_run(self, definition: Definition, reading: Reading, late: float) -> None:
        if definition.problem:
            return
        self._ran.add(definition.source_type)
        self.metrics.probes.labels(definition.source_type).inc()
        self.metrics.probe_lateness.labels(definition.source_type).set(late)
        if reading.reason:
            self.metrics.probes_failed.labels(definition.source_type, reading.reason).inc()

    def _count_skipped(self, definition: Definition, n: int) -> None:
        self.metrics.probes_skipped.labels(definition.source_type).inc(n)

    # -- how it is

    def _heard(self, orders: Orders) -> None:
        self.sender.heartbeat(orders.ok)
        if orders.ok:
            self.definitions.signal(orders.definitions_version)

    def health(self) -> Health:
        """The snapshot for a heartbeat, from memory alone."""
        return Health(
            version=__version__,
            started_at=self.started_at,
            uptime=int(self.uptime()),
            queue_depth=self.queue.depth,
            queue_oldest_age=int(self.queue.oldest_age()),
            queue_capacity=self.queue.capacity,
            source_types_active=tuple(sorted(self._ran)),
            hostname=socket.gethostname(),
            delivery=self.queue.ledgers(),
        )

    def uptime(self) -> float:
        """Seconds since the start."""
        return self.clock.monotonic() - self._began

    def collectors(self) -> dict[str, Collector]:
        """The collectors by source type, for showing."""
        with self._lock:
            return dict(self._collectors)


def read_document(file: Path) -> list[Any]:
    """The definitions of a local document as the wire's rows; warnings are logged. Raises DocumentError."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DocumentError(f"{file} cannot be read: {error}") from None
    found = document.read(text, str(file))
    for warning in found.warnings:
        log.warning("%s", warning)
    return [metric.wire for metric in found.metrics if metric.wire.get("source_type") != "manual"]


def _open(settings: Settings, clock: Clock) -> DiskQueue:
    bounds = Bounds(settings.buffer_max_rows, settings.buffer_max_bytes, settings.buffer_max_age)
    try:
        return open_queue(settings.buffer_path, bounds, clock, settings.buffer_sync)
    except NoPlace as error:
        place = Path(tempfile.mkdtemp(prefix="observer-agent-"), settings.buffer_path.name)
        log.error("%s: %s. Samples wait in %s instead, which a restart forgets", settings.buffer_path, error, place)
        return open_queue(place, bounds, clock, settings.buffer_sync)
    except QueueError as error:
        raise ConfigError("BUFFER_PATH", str(settings.buffer_path), str(error)) from None
