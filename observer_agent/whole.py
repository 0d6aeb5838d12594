"""What every agent is made of, whatever its dialect: queue, sender and looks, its workers, its life from start to stop.

`run` is the main thread: it waits for signals, replaces workers that died or hang, tells systemd, and stops everything
within one budget: collectors, sender, the last word to the cloud, queue. What is left is on disk for the next start.
"""

from __future__ import annotations

import logging
import random
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from requests.utils import get_environ_proxies

from observer_agent import __version__
from observer_agent.clock import Clock, Signals, iso
from observer_agent.clouds import DIALECTS
from observer_agent.collector import Collector
from observer_agent.config import Settings
from observer_agent.diskqueue import Bounds, DiskQueue, open_queue
from observer_agent.errors import ConfigError, NoPlace, QueueError
from observer_agent.keeper import Keeper
from observer_agent.logs import Logs
from observer_agent.looking import Looking, Surroundings
from observer_agent.notify import Notifier
from observer_agent.pools import THREADS_MAX
from observer_agent.selfmetrics import SelfMetrics
from observer_agent.sender import Sender
from observer_agent.sentlog import SentLog, path_of
from observer_agent.witness import FRESH
from observer_agent.worker import Care, Step, Supervisor, Thread, Worker, attempt

log = logging.getLogger(__name__)

TIDY, TIDY_AGAIN = 15.0, 0.2
LONGEST_CALL = 45.0  # a turn of the sender or the heartbeat: one request has 30 s, whatever it takes
GATHER = 0.05  # seconds for which rows gather, so that many go in one request
STOP_BUDGET = 8.0  # below the unit's TimeoutStopSec
ENDINGS = (signal.SIGTERM, signal.SIGINT)

Reread = Callable[[], tuple[Settings, Mapping[str, str]]]


class Heard(Protocol):
    """What the cloud said to a heartbeat, as far as it is shown."""

    @property
    def ok(self) -> bool: ...
    @property
    def status(self) -> int: ...
    @property
    def text(self) -> str: ...


class Beats(Protocol):
    """What is shown of the heartbeats."""

    sent: int
    last_ok: float | None
    heard_at: float | None

    @property
    def last_orders(self) -> Heard | None: ...


class Source(Protocol):
    """What is shown of where definitions come from."""

    version: str | None
    last_ok: float | None
    last_text: str


class Whole:
    """See the module. Opening the queue claims the start time; nothing runs before `start`."""

    heartbeat: Beats
    definitions: Source
    live: frozenset[str] = frozenset()  # what a reload changes while the agent runs; the rest waits for a restart

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        logs: Logs,
        env: Mapping[str, str],
        *,
        reread: Reread | None = None,
        threads: int = THREADS_MAX,
    ) -> None:
        self.settings = settings
        self._reread = reread or (lambda: (settings, env))
        self.clock = clock
        self.logs = logs
        self.metrics = metrics = SelfMetrics(__version__)
        self.supervisor = Supervisor()
        around = Surroundings(clock, logs.redact, metrics, self.supervisor, self._count_restart)
        self.looking = looking = Looking(settings, env, around, self._cloud_place, threads=threads)
        self.tally, self.lookout, self.pulse = looking.tally, looking.lookout, looking.pulse
        self.pools, self.evidence = looking.pools, looking.evidence
        self.queue = _open(settings, clock)
        self._began = clock.monotonic()
        self.started_at = iso(self.queue.claim_start())
        self.sent = SentLog(path_of(self.queue.file), clock, logs.redact)
        self._dialect = self._make_dialect()
        self._clouds: dict[str, Any] = {"send": self._link()}
        self.keeper = Keeper(self.queue, clock)
        self.sender = Sender(self.queue, self._clouds["send"], clock, random.random, gather=GATHER)
        self.stop_reason = ""  # why it stops: the signal's name, or what else ended it
        self._exit_code: int | None = None
        self._stopping = False
        self._wire()

    # -- joining

    def _make_dialect(self) -> Any:
        return DIALECTS[self.settings.cloud_dialect](
            self.settings, self.started_at, __version__,
            clock=self.clock, redact=self.logs.redact, read_key=lambda: self._reread()[0].agent_key,
            sent=self.sent,
        )  # fmt: skip

    def _link(self) -> Any:
        """A connection of its own for one thread."""
        cloud = self._dialect.connect()
        requests = self.metrics.requests
        cloud.on_reply = lambda endpoint, status: requests.labels(endpoint, str(status)).inc()
        return cloud

    def _wire(self) -> None:
        metrics, queue = self.metrics, self.queue
        queue.on_loss = lambda reason, n: metrics.samples_lost.labels(reason.value).inc(n)
        self.sender.on_accepted = lambda n: metrics.samples_accepted.inc(n)
        metrics.queue_depth.set_function(lambda: queue.depth)
        metrics.queue_oldest_age.set_function(queue.oldest_age)
        metrics.queue_bytes.set_function(lambda: queue.size_bytes)
        metrics.queue_capacity.set(queue.capacity)
        metrics.last_push.set_function(lambda: self.sender.last_push or 0)
        metrics.last_heartbeat.set_function(lambda: self.heartbeat.last_ok or 0)

    def _put(self, samples: Sequence[Any]) -> int:
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

    # -- life

    def run(self, notifier: Notifier | None = None, describe: Callable[[], str] = str) -> int:
        """Runs until SIGTERM or SIGINT; returns the exit code. Call on the main thread.

        `describe` makes the line that `systemctl status` shows. A second signal, while it stops, ends the process.
        """
        systemd = notifier or Notifier({}, self.clock)
        with Signals((*ENDINGS, signal.SIGHUP)) as signals:
            try:
                self.start()
                systemd.ready()
                return self._wait(signals, systemd, describe)
            finally:
                signals.force(ENDINGS)
                systemd.stopping()
                self.stop()

    def _wait(self, signals: Signals, systemd: Notifier, describe: Callable[[], str]) -> int:
        """Until a signal comes, or the agent has found out that it has to end."""
        while True:
            came = signals.wait(1.0)
            if ending := next((each for each in ENDINGS if each in came), None):
                self.stop_reason = ending.name.lower()
                return 0
            if self._exit_code is not None:
                return self._exit_code
            if signal.SIGHUP in came:
                systemd.reloading()
                attempt("The reload", self.reload)
                systemd.ready()
            if self.supervisor.check():
                systemd.alive()
            systemd.status(describe())

    def start(self) -> None:
        """Starts the workers; raises ConfigError before anything has left the machine."""
        raise NotImplementedError

    def reload(self) -> None:
        """Reads the settings, the key and the files of CAs again; no definition loses its phase.

        Settings that are wrong leave all as it is; those that need a restart are named in the log.
        """
        try:
            fresh, env = self._reread()
            self.looking.read_policy(fresh)
        except ConfigError as error:
            log.error("The settings could not be read again (%s); the agent goes on with those that it has", error)
            return
        changed = {f.name for f in fields(Settings) if getattr(fresh, f.name) != getattr(self.settings, f.name)}
        if late := sorted(name.upper() for name in changed - self.live):
            log.warning("%s changed: restart the agent for it", ", ".join(late))
        self.settings = replace(self.settings, **{name: getattr(fresh, name) for name in changed & self.live})
        self._use(self.settings, env)
        names = ", ".join(sorted(name.upper() for name in changed & self.live)) or "no setting"
        log.info("The settings were read again: %s changed", names)
        self._ask_again()

    def _use(self, settings: Settings, env: Mapping[str, str]) -> None:
        """These settings count from now on."""
        self.logs.verbose(settings.verbose)
        self.looking.use(settings, env)
        self.queue.bounds = bounds_of(settings)
        self.metrics.queue_capacity.set(self.queue.capacity)

    def _ask_again(self) -> None:
        """The settings were read again: the cloud is asked at once."""
        raise NotImplementedError

    def _greet(self) -> None:
        log.info(
            "observer-agent %s started at %s; queue %s holds %d of %d",
            __version__, self.started_at, self.queue.file, self.queue.depth, self.queue.capacity,
        )  # fmt: skip
        self.looking.start()
        if self.settings.skip_ssl_verification:
            log.warning("SKIP_SSL_VERIFICATION is on: anybody on the way can read the key and all samples")

    def _start_sender(self) -> None:
        sending = self._work("send", self.sender.step, Care(LONGEST_CALL, self._renew_sender), breath=GATHER)
        self.sender.wake = self.queue.on_put = sending.wake
        sending.wake()  # for what was put meanwhile

    def _start_upkeep(self) -> None:
        """The workers that keep what others bring."""
        self._work("tidy", self._tidy)
        self._work("pulse", self.pulse.step)
        self.keeper.wake = self._work("keep", self.keeper.step, breath=GATHER).wake
        self.evidence.open()
        self.evidence.wake = self._work("evidence", self.evidence.step, Care(LONGEST_CALL, self.evidence.give_up)).wake

    def stop(self) -> None:
        """Stops everything within the budget: collectors, sender, the last word, queue. May be called twice."""
        if self._stopping:
            return
        self._stopping = True
        log.info("observer-agent stops (%s)", self.stop_reason or "its work is done")
        deadline = self.clock.monotonic() + STOP_BUDGET
        self.logs.listen(None)
        attempt("Stopping the collectors", lambda: self._stop_collectors(deadline - 6.5))
        attempt("Stopping the OTLP receiver", self.looking.otlp.stop)
        self._stop_more()
        attempt("Queueing what was kept", self.keeper.close)
        attempt("The last push", lambda: self._stop_sender(deadline - 3.0))
        attempt("The last heartbeat", lambda: self._stop_heartbeat(deadline - 1.0))
        attempt("Writing the evidence", lambda: self._stop_evidence(deadline - 0.5))
        left = self.queue.depth
        attempt("Closing the queue", self.queue.close)
        for cloud in self._clouds.values():
            attempt("Closing a connection", cloud.leave)
        attempt("Closing the record of what was sent", self.sent.close)
        log.info("observer-agent stopped; %d samples wait on disk for the next start", left)

    def _stop_collectors(self, deadline: float) -> None:
        names = ("definitions", "log", "tidy", "keep", "pulse", "relay", *self._looking_workers())
        self._end([*self.pools.stop(), *self._named(*names)], deadline)

    def _looking_workers(self) -> tuple[str, ...]:
        """The names of other workers that end with the collectors."""
        return ()

    def _stop_more(self) -> None:
        """What else the dialect has to stop once nothing looks any more."""

    def _stop_sender(self, deadline: float) -> None:
        if self._end(self._named("send"), deadline):
            self.sender.flush(deadline)

    def _stop_heartbeat(self, deadline: float) -> None:
        workers = self._named("beat")
        if not workers or not self._end(workers, deadline):
            return  # it never began, or hangs
        self._clouds["beat"].hurry(deadline - self.clock.monotonic())
        self._last_word()

    def _last_word(self) -> None:
        """What the cloud is told last."""
        raise NotImplementedError

    def _stop_evidence(self, deadline: float) -> None:
        if self._end(self._named("evidence"), deadline):
            self.evidence.close()

    def _end(self, workers: list[Worker], deadline: float) -> bool:
        """Stops workers and waits for them until the deadline; says whether all have ended."""
        for worker in workers:
            worker.stop()
        return all([worker.join(deadline - self.clock.monotonic()) for worker in workers])

    def _tidy(self) -> float:
        """Gives the disk back what an outage has taken, a little at a time."""
        return TIDY_AGAIN if self.queue.tidy() else TIDY

    # -- workers

    def _named(self, *names: str) -> list[Worker]:
        return [worker for name, worker in self.supervisor.workers.items() if name in names]

    def _work(self, name: str, step: Step, care: Care | None = None, breath: float = 0.0) -> Worker:
        self.metrics.worker_restarts.labels(name)  # 0 is shown as well
        return self.supervisor.add(Worker(name, step, self.clock, self._count_restart, care=care, breath=breath))

    def _renew_sender(self, hung: Thread) -> Step:
        self._clouds["send"] = self._link()
        self.sender = self.sender.successor(self._clouds["send"])
        return self.sender.step

    def _count_restart(self, name: str) -> None:
        self.metrics.worker_restarts.labels(name).inc()

    # -- how it is

    def uptime(self) -> float:
        """Seconds since the start."""
        return self.clock.monotonic() - self._began

    def collectors(self) -> dict[str, Collector]:
        """The collectors by source type, for showing."""
        return self.pools.collectors()


def bounds_of(settings: Settings) -> Bounds:
    """The queue's bounds."""
    return Bounds(settings.buffer_max_rows, settings.buffer_max_bytes, settings.buffer_max_age)


def _open(settings: Settings, clock: Clock) -> DiskQueue:
    bounds = bounds_of(settings)
    try:
        return open_queue(settings.buffer_path, bounds, clock, settings.buffer_sync)
    except NoPlace as error:
        place = Path(tempfile.mkdtemp(prefix="observer-agent-"), settings.buffer_path.name)
        log.error("%s: %s. Samples wait in %s instead, which a restart forgets", settings.buffer_path, error, place)
        return open_queue(place, bounds, clock, settings.buffer_sync)
    except QueueError as error:
        raise ConfigError("BUFFER_PATH", str(settings.buffer_path), str(error)) from None
