"""The whole agent: joins the parts, starts and stops them in order, applies definitions, tells how it is.

`run` is the main thread: it waits for signals, replaces workers that died or hang, tells systemd, and stops everything
within one budget: collectors, sender, heartbeat, queue. What is left is on disk for the next start.
"""

from __future__ import annotations

import logging
import random
import signal
import socket
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from requests.utils import get_environ_proxies

from observer_agent import __version__, document, policy, probes
from observer_agent.broadcast import Broadcast
from observer_agent.clock import Clock, Signals, iso
from observer_agent.clouds import DIALECTS
from observer_agent.collector import Collector
from observer_agent.config import Settings
from observer_agent.definitions import Definitions, DefinitionsFile, Store, cloud_side, understand_all
from observer_agent.diskqueue import Bounds, DiskQueue, open_queue
from observer_agent.errors import ConfigError, DocumentError, NoPlace, QueueError
from observer_agent.evidence import Evidence
from observer_agent.evidencefile import path_of
from observer_agent.heartbeat import Heartbeat
from observer_agent.keeper import Keeper
from observer_agent.logs import Logs
from observer_agent.lookout import Lookout
from observer_agent.model import Definition, Fault, Health, Loss, Orders, Reading, Status
from observer_agent.notify import Notifier
from observer_agent.pools import Pools
from observer_agent.pulse import Pulse
from observer_agent.relay import Relay
from observer_agent.relayqueue import RelayQueue
from observer_agent.resolver import Resolver
from observer_agent.selfmetrics import SelfMetrics
from observer_agent.sender import Sender
from observer_agent.tally import Tally
from observer_agent.witness import FRESH, Witnesses
from observer_agent.worker import Care, Step, Supervisor, Thread, Worker, attempt

log = logging.getLogger(__name__)

TIDY, TIDY_AGAIN = 15.0, 0.2
LONGEST_CALL = 45.0  # a turn of the sender or the heartbeat: one request has 30 s, whatever it takes
GATHER = 0.05  # seconds for which rows gather, so that many go in one request
STOP_BUDGET = 8.0  # below the unit's TimeoutStopSec

Reread = Callable[[], tuple[Settings, Mapping[str, str]]]

# What a reload changes while the agent runs; every other setting waits for a restart.
LIVE = frozenset(
    name
    for name in Settings.__dataclass_fields__
    if name.startswith(("prometheus_", "probe_", "policy_", "buffer_max_", "agent_key"))
    or name in ("cloud_server_url", "skip_ssl_verification", "verbose")
)


class Agent:
    """One agent. Opening the queue claims the start time; nothing runs before `start`."""

    def __init__(
        self, settings: Settings, clock: Clock, logs: Logs, env: Mapping[str, str], *, reread: Reread | None = None
    ) -> None:
        self.settings = settings
        self._reread = reread or (lambda: (settings, env))
        self.clock = clock
        self.logs = logs
        self.metrics = SelfMetrics(__version__)
        self.supervisor = Supervisor()
        self.tally = Tally(self.metrics, clock)
        self._policy = policy.load(settings.policy_file)
        self.queue = _open(settings, clock)
        self._began = clock.monotonic()
        self.started_at = iso(self.queue.claim_start())
        self._dialect = DIALECTS[settings.cloud_dialect](
            settings, self.started_at, __version__,
            clock=clock, redact=logs.redact, read_key=lambda: self._reread()[0].agent_key,
        )  # fmt: skip
        self._clouds = {name: self._link(name) for name in ("send", "beat", "definitions", "log")}
        self.keeper = Keeper(self.queue, clock)
        self.sender = Sender(self.queue, self._clouds["send"], clock, random.random, gather=GATHER)
        self.heartbeat = Heartbeat(self._clouds["beat"], self.health, clock, self._heard, random.random)
        self.definitions = self._definitions_source()
        self.evidence = Evidence(path_of(settings.buffer_path), clock, logs.redact, self._count_dropped)
        self._resolver = Resolver(clock)
        self._custom = probes.Registry(clock)
        self._otlp = probes.Receiver(settings, clock)
        self._relay = self._make_relay() if settings.heartbeat_relay_enabled else None
        self._prober = self._make_prober(settings, env)
        self.pulse = Pulse(clock)
        witnesses = Witnesses(clock, self._resolver, self._cloud_place)
        self.lookout = Lookout(lambda each: self._look(each), witnesses, self.pulse, clock)
        self.pools = Pools(self.supervisor, clock, self._make_collector, self._count_restart)
        self._aside: tuple[str, ...] = ()
        self._stopping = False
        self._wire()

    # -- joining

    def _make_prober(self, settings: Settings, env: Mapping[str, str]) -> probes.Prober:
        return probes.Prober(
            probes.Tools(
                clock=self.clock,
                resolver=self._resolver,
                env=env,
                redact=self.logs.redact,
                settings=settings,
                policy=self._policy,
                custom=self._custom,
                otlp=self._otlp,
            )
        )

    def _link(self, name: str) -> Any:
        cloud = self._dialect.connect()
        requests = self.metrics.requests
        cloud.on_reply = lambda endpoint, status: requests.labels(endpoint, str(status)).inc()
        return cloud

    def _make_relay(self) -> Relay:
        settings, file = self.settings, self.queue.file
        cloud = self._clouds["relay"] = self._link("relay")
        queue = RelayQueue(file.with_name(file.name + ".relay"), self.clock)
        place = settings.heartbeat_relay_host, settings.heartbeat_relay_port
        return Relay(queue, cloud, self.clock, place=place, metrics=self.metrics, random=random.random)

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
        metrics.queue_bytes.set_function(lambda: queue.size_bytes)
        metrics.queue_capacity.set(queue.capacity)
        metrics.last_push.set_function(lambda: self.sender.last_push or 0)
        metrics.last_heartbeat.set_function(lambda: self.heartbeat.last_ok or 0)
        self.broadcast = Broadcast(self._clouds["log"], self.clock, self.settings.log_broadcast_level)

    def _count_dropped(self, reason: str, n: int) -> None:
        self.metrics.evidence_dropped.labels(reason).inc(n)

    def _count_loss(self, reason: Loss, n: int) -> None:
        self.metrics.samples_lost.labels(reason.value).inc(n)

    # -- life

    def run(self, notifier: Notifier | None = None, describe: Callable[[], str] = str) -> int:
        """Runs until SIGTERM or SIGINT; returns the exit code. Call on the main thread.

        `describe` makes the line that `systemctl status` shows.
        """
        systemd = notifier or Notifier({}, self.clock)
        with Signals((signal.SIGTERM, signal.SIGINT, signal.SIGHUP)) as signals:
            try:
                self.start()
                systemd.ready()
                while True:
                    came = signals.wait(1.0)
                    if signal.SIGTERM in came or signal.SIGINT in came:
                        return 0
                    if signal.SIGHUP in came:
                        systemd.reloading()
                        attempt("The reload", self.reload)
                        systemd.ready()
                    if self.supervisor.check():
                        systemd.alive()
                    systemd.status(describe())
            finally:
                systemd.stopping()
                self.stop()

    def reload(self) -> None:
        """Reads the settings, the key and the files of CAs again; no definition loses its phase.

        Settings that are wrong leave all as it is; those that need a restart are named in the log.
        """
        try:
            fresh, env = self._reread()
            self._policy = policy.load(fresh.policy_file)
        except ConfigError as error:
            log.error("The settings could not be read again (%s); the agent goes on with those that it has", error)
            return
        changed = {f.name for f in fields(Settings) if getattr(fresh, f.name) != getattr(self.settings, f.name)}
        if late := sorted(name.upper() for name in changed - LIVE):
            log.warning("%s changed: restart the agent for it", ", ".join(late))
        self.settings = replace(self.settings, **{name: getattr(fresh, name) for name in changed & LIVE})
        self._custom.renew(self.settings.probe_custom_dir)
        self._use(self.settings, env)
        names = ", ".join(sorted(name.upper() for name in changed & LIVE)) or "no setting"
        log.info("The settings were read again: %s changed", names)
        self.definitions.refresh()
        self.heartbeat.soon()  # one that succeeds ends the sender's wait as well
        for worker in self._named("beat"):
            worker.wake()

    def _use(self, settings: Settings, env: Mapping[str, str]) -> None:
        self.logs.verbose(settings.verbose)
        self._dialect.renew(settings)
        self._prober = self._make_prober(settings, env)
        for collector in self.collectors().values():
            collector.on_target_fault = Status(settings.probe_failure_status)
        self.queue.bounds = _bounds(settings)
        self.metrics.queue_capacity.set(self.queue.capacity)

    def start(self) -> None:
        """Starts the workers, the heartbeat first; raises ConfigError before anything has left the machine."""
        self._check_definitions()
        log.info(
            "observer-agent %s started at %s; queue %s holds %d of %d",
            __version__, self.started_at, self.queue.file, self.queue.depth, self.queue.capacity,
        )  # fmt: skip
        self._custom.renew(self.settings.probe_custom_dir)
        if self._policy.rules.file:
            log.info("The policy in %s says what probes may reach", self._policy.rules.file)
        if self.settings.skip_ssl_verification:
            log.warning("SKIP_SSL_VERIFICATION is on: anybody on the way can read the key and all samples")
        self._work("beat", self.heartbeat.step, Care(LONGEST_CALL, self._renew_heartbeat))
        sending = self._work("send", self.sender.step, Care(LONGEST_CALL, self._renew_sender), breath=GATHER)
        self.sender.wake = self.queue.on_put = sending.wake
        if self._relay:
            self._relay.wake = self._work("relay", self._relay.step).wake
        self._work("tidy", self._tidy)
        self._work("pulse", self.pulse.step)
        self.keeper.wake = self._work("keep", self.keeper.step).wake
        self.evidence.open()
        self.evidence.wake = self._work("evidence", self.evidence.step, Care(LONGEST_CALL, self.evidence.give_up)).wake
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
        attempt("Stopping the OTLP receiver", self._otlp.stop)
        if self._relay:
            attempt("Stopping the relay", self._relay.stop)
        attempt("Queueing what was kept", self.keeper.step)
        attempt("The last push", lambda: self._stop_sender(deadline - 3.0))
        attempt("The last heartbeat", lambda: self._stop_heartbeat(deadline - 1.0))
        attempt("Writing the evidence", lambda: self._stop_evidence(deadline - 0.5))
        left = self.queue.depth
        attempt("Closing the queue", self.queue.close)
        for cloud in self._clouds.values():
            attempt("Closing a connection", cloud.leave)
        log.info("observer-agent stopped; %d samples wait on disk for the next start", left)

    def _stop_collectors(self, deadline: float) -> None:
        self._end([*self.pools.stop(), *self._named("definitions", "log", "tidy", "keep", "pulse", "relay")], deadline)

    def _stop_sender(self, deadline: float) -> None:
        if self._end(self._named("send"), deadline):
            self.sender.flush(deadline)

    def _stop_evidence(self, deadline: float) -> None:
        if self._end(self._named("evidence"), deadline):
            self.evidence.close()

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

    def _work(self, name: str, step: Step, care: Care | None = None, breath: float = 0.0) -> Worker:
        self.metrics.worker_restarts.labels(name)  # 0 is shown as well
        return self.supervisor.add(Worker(name, step, self.clock, self._count_restart, care=care, breath=breath))

    def _renew_heartbeat(self, hung: Thread) -> Step:
        self._clouds["beat"] = self._link("beat")
        self.heartbeat = self.heartbeat.successor(self._clouds["beat"])
        return self.heartbeat.step

    def _renew_sender(self, hung: Thread) -> Step:
        self._clouds["send"] = self._link("send")
        self.sender = self.sender.successor(self._clouds["send"])
        return self.sender.step

    def _count_restart(self, name: str) -> None:
        self.metrics.worker_restarts.labels(name).inc()

    # -- definitions

    def _apply(self, rows: tuple[Any, ...]) -> None:
        """New definitions: each source type's collector gets its own, as added, changed, removed."""
        aside, before = cloud_side(rows), self._aside
        self._aside = aside
        if aside and aside != before:
            log.info("%d definitions are manual or heartbeats: the cloud evaluates them, nothing is probed", len(aside))
        found = self._policy.restricted(understand_all(rows, probes.parse, probes.SOURCES))
        self.lookout.forget(definition.id for definition in found)
        self._otlp.want(each.config.want for each in found if each.source_type == "otlp" and not each.problem)
        self.evidence.keep(found)
        added, changed, removed = self.pools.apply(found)
        self.metrics.definitions.set(len(found))
        if added or changed or removed:
            log.info("%d definitions: %d added, %d changed, %d removed", len(found), added, changed, removed)

    def _make_collector(self, grow: Callable[[], bool]) -> Collector:
        return Collector(
            self.lookout.look,
            self._put,
            self.clock,
            on_target_fault=Status(self.settings.probe_failure_status),
            grow=grow,
            listener=self.tally,
            on_transition=self.evidence.offer,
        )

    def _look(self, definition: Definition) -> Reading:
        if definition.problem:
            fault = Fault.POLICY if definition.problem.reason == policy.DENIED else Fault.CONFIG
            return Reading(None, definition.problem.reason, fault, detail={"error": definition.problem.text})
        return self._prober.look(definition.source_type, definition.config)

    def _put(self, samples: Any) -> int:
        dropped = self.keeper.put(samples)
        self.metrics.samples_given.inc(len(samples))
        return dropped

    def _cloud_place(self) -> tuple[str, int] | None:
        """Host and port of the cloud, while heartbeats reach it without a proxy between."""
        last, parts = self.heartbeat.last_ok, urlsplit(self.settings.cloud_server_url)
        if last is None or self.clock.now() - last > FRESH or not parts.hostname:
            return None
        if get_environ_proxies(self.settings.cloud_server_url):
            return None
        return parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)

    # -- how it is

    def _heard(self, orders: Orders) -> None:
        self.sender.heartbeat(orders.ok)
        if self._relay:
            self._relay.heartbeat(orders.ok)
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
            source_types_active=tuple(sorted(self.tally.active)),
            hostname=socket.gethostname(),
            delivery=self.queue.ledgers(),
            custom_probes=self._custom.descriptors(),
            otlp_stats=self._otlp.stats(),
        )

    def uptime(self) -> float:
        """Seconds since the start."""
        return self.clock.monotonic() - self._began

    def collectors(self) -> dict[str, Collector]:
        """The collectors by source type, for showing."""
        return self.pools.collectors()


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


def _bounds(settings: Settings) -> Bounds:
    return Bounds(settings.buffer_max_rows, settings.buffer_max_bytes, settings.buffer_max_age)


def _open(settings: Settings, clock: Clock) -> DiskQueue:
    bounds = _bounds(settings)
    try:
        return open_queue(settings.buffer_path, bounds, clock, settings.buffer_sync)
    except NoPlace as error:
        place = Path(tempfile.mkdtemp(prefix="observer-agent-"), settings.buffer_path.name)
        log.error("%s: %s. Samples wait in %s instead, which a restart forgets", settings.buffer_path, error, place)
        return open_queue(place, bounds, clock, settings.buffer_sync)
    except QueueError as error:
        raise ConfigError("BUFFER_PATH", str(settings.buffer_path), str(error)) from None
