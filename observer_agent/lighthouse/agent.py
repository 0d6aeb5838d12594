"""The Lighthouse dialect's agent: joins the parts, and lets the console's word count.

The console's checks become definitions, and what is heard of them events in the queue. The last good configuration is
on disk, so checks run from the first second, whether the console answers or not.
"""

from __future__ import annotations

import logging
import random
import socket
from collections.abc import Mapping
from typing import Any, TypeVar

from observer_agent import __version__
from observer_agent.clock import Clock
from observer_agent.clouds import DIALECTS
from observer_agent.clouds._lighthouse_wire import Beat, CheckDef, LighthouseOrders, decode_checks, encode_check
from observer_agent.config import EXIT_CONFIG, Settings
from observer_agent.lighthouse import extras
from observer_agent.lighthouse.checks import definitions, secrets
from observer_agent.lighthouse.course import Course
from observer_agent.lighthouse.health import Health, serve
from observer_agent.lighthouse.identity import instance_id
from observer_agent.lighthouse.settings import console, looks, runtime, tell_unknown
from observer_agent.lighthouse.store import Configuration, Store
from observer_agent.lighthouse.watch import INITIAL, NEW_CHECK, RESYNC, Figures, Watch
from observer_agent.logs import Logs
from observer_agent.whole import LONGEST_CALL, Reread, Whole
from observer_agent.worker import Care, Step, Thread, attempt

log = logging.getLogger(__name__)

STATES_REST = 60.0
COMPLAINTS = 50  # about one list of checks in the log
T = TypeVar("T")


class LighthouseAgent(Whole):
    """See the module. Opening the queue claims the start time; nothing runs before `start`."""

    heartbeat: Course
    definitions: Course
    live = frozenset(
        name
        for name in Settings.__dataclass_fields__
        if name.startswith(("probe_", "policy_", "buffer_max_", "agent_key", "lighthouse_token"))
        or name in ("cloud_server_url", "lighthouse_url", "skip_ssl_verification", "verbose", "lighthouse_log_level")
    )

    def __init__(
        self, settings: Settings, clock: Clock, logs: Logs, env: Mapping[str, str], *, reread: Reread | None = None
    ) -> None:
        self._instance_id = instance_id(settings.lighthouse_data_dir)
        super().__init__(settings, clock, logs, env, reread=reread, threads=settings.lighthouse_max_concurrent_checks)
        self._env = env
        self.hostname = socket.gethostname()
        self.watch = Watch(self._put, clock, logs.redact, self.tally)
        self.looking.listener = self.watch
        self.store = Store(self.queue.file)
        self.known = Configuration()
        self._checks: dict[str, CheckDef] = {}
        self._states_changed = False
        self._sending = False
        self._clouds["beat"] = self._link()
        self._take_course(Course(self._clouds["beat"], self, clock, random.random))
        self.host_metrics = extras.host_metrics(self)
        self.discovery: extras.Follower | None = None
        self.health: Health | None = None

    def _make_dialect(self) -> Any:
        return DIALECTS["lighthouse"](
            console(self.settings, self._instance_id), self.started_at, __version__,
            clock=self.clock, redact=self.logs.redact, read_key=self.token, sent=self.sent,
        )  # fmt: skip

    def link(self, name: str) -> Any:
        """A connection to the console for one more thread."""
        cloud = self._clouds[name] = self._link()
        return cloud

    def _link(self) -> Any:
        cloud = super()._link()
        cloud.on_verdict = lambda verdict: self.heartbeat.hear(verdict)
        return cloud

    def _take_course(self, course: Course) -> None:
        self.heartbeat = self.definitions = course

    # -- life

    def start(self) -> None:
        """Starts the workers; checks of the last good configuration run before the console has answered."""
        tell_unknown(self.settings)
        self._greet()
        self._start_upkeep()
        self.watch.changed = self._note_states
        self._work("states", self._save_states)
        if looks(self.settings):
            self.watch.believe(self.store.load_states(self.queue.told()))
        self._restore()
        beating = self._work("beat", self._beat, Care(LONGEST_CALL, self._renew_heartbeat))
        self.heartbeat.wake = beating.wake
        if self.settings.lighthouse_host_metrics:
            self.host_metrics.wake = self._work("host-metrics", self.host_metrics.step).wake
        self.health = serve(self)

    def _restore(self) -> None:
        known = self.store.load()
        if known is None:
            return
        checks, _ = decode_checks(list(known.checks))
        self.known, self._checks = known, {check.id: check for check in checks}
        self.watch.threshold = known.flap_threshold
        log.info("%d checks of the last configuration run until the console answers", len(checks))
        self._apply(dict.fromkeys(self._checks, INITIAL))

    def _beat(self) -> float:
        return self.heartbeat.step()

    def _renew_heartbeat(self, hung: Thread) -> Step:
        self._take_course(self.heartbeat.successor(self.link("beat")))
        return self._beat

    def _use(self, settings: Settings, env: Mapping[str, str]) -> None:
        super()._use(settings, env)
        self._dialect.renew(console(settings, self._instance_id))

    def _ask_again(self) -> None:
        self.heartbeat.soon()

    def _looking_workers(self) -> tuple[str, ...]:
        return ("states", "discovery", "host-metrics")

    def _stop_more(self) -> None:
        self.watch.close()
        attempt("Storing the states", lambda: self.store.save_states(self.watch.tracks()))
        if self.health:
            attempt("Stopping the health endpoints", self.health.stop)
        if self.discovery:
            attempt("Stopping the discovery", self.discovery.close)

    def _stop_sender(self, deadline: float) -> None:
        if self._sending:  # a console that has not registered this process is sent nothing
            super()._stop_sender(deadline)

    def _last_word(self) -> None:
        if self.heartbeat.sent:
            self._clouds["beat"].shutdown(self.stop_reason or "stopped")

    # -- what the console says

    def adopt(self, orders: LighthouseOrders, registering: bool) -> float:
        """The console's word counts, field by field; what it did not say stays. Returns the heartbeats' interval."""
        known, before = self.known, self._checks
        if registering and orders.lighthouse_id and known.lighthouse_id not in ("", orders.lighthouse_id):
            log.warning("The token is that of another Lighthouse: what was known of the checks is forgotten")
            self.watch.forget()
            known, before = Configuration(), {}
        checks = before if orders.checks is None else self._decode(orders.checks, before)
        fresh = Configuration(
            lighthouse_id=_given(orders.lighthouse_id, known.lighthouse_id),
            name=_given(orders.name, known.name),
            etag=_given(orders.etag, known.etag),
            paused=_given(orders.paused, known.paused),
            heartbeat_interval=_given(orders.heartbeat_interval, known.heartbeat_interval),
            flap_threshold=_given(orders.flap_threshold, known.flap_threshold),
            checks=tuple(encode_check(check) for check in checks.values()),
        )
        due = dict.fromkeys(checks, RESYNC) if orders.resync else {}
        if not orders.resync:
            due = dict.fromkeys(checks.keys() - before.keys(), INITIAL if registering else NEW_CHECK)
        self._take(fresh, checks, due)
        if registering:
            self.host_metrics.registered(fresh.lighthouse_id, orders.host_metrics)
        else:
            self.host_metrics.orders(orders.host_metrics)
        return fresh.heartbeat_interval

    def _decode(self, raw: list[Any], before: Mapping[str, CheckDef]) -> dict[str, CheckDef]:
        checks, complaints = decode_checks(raw, before)
        for complaint in complaints[:COMPLAINTS]:
            log.warning("The console's configuration: %s", complaint)
        if len(complaints) > COMPLAINTS:
            log.warning("The console's configuration: %d more things are wrong with it", len(complaints) - COMPLAINTS)
        return {check.id: check for check in checks}

    def _take(self, fresh: Configuration, checks: dict[str, CheckDef], due: Mapping[str, str]) -> None:
        old, self.known = self.known, fresh
        changed = checks != self._checks or fresh.paused != old.paused
        self._checks, self.watch.threshold = checks, fresh.flap_threshold
        self.definitions.version = fresh.etag
        if fresh.paused != old.paused:
            log.info("The console %s the checks", "pauses" if fresh.paused else "resumes")
        if fresh != old:
            self.store.save(fresh)
        if changed or due:
            self._apply(due)

    def _apply(self, due: Mapping[str, str]) -> None:
        """Checks as they are now; while they are paused, and in another role, none is looked at (W18, W19)."""
        checks = self._checks.values() if looks(self.settings) else ()
        self.logs.redact.add(*(text for check in checks for text in secrets(check)))
        running = [] if self.known.paused else definitions(checks)
        at_once = self.watch.adopt([check.id for check in checks], running, due)
        self.looking.apply(running)
        for collector in self.collectors().values():
            collector.hasten(at_once)

    # -- what the course asks

    def announce(self) -> tuple[str, str, str]:
        """Version, host name and runtime."""
        return __version__, self.hostname, runtime(self._env)

    def report(self) -> Beat:
        """What the next heartbeat tells."""
        figures = self.watch.drain()
        return Beat(
            config_etag=self.known.etag,
            check_latencies=figures.latencies,
            cert_expiry=figures.certificates,
            node_name=self.node_name,
            role=self.settings.lighthouse_role,
            pod_hostname=self.hostname,
        )

    @property
    def node_name(self) -> str:
        """The name of this machine to the console."""
        return self.settings.node_name or self.hostname

    def keep(self, beat: Beat) -> None:
        """The console has not heard this: it waits for the next heartbeat."""
        self.watch.restore(Figures(beat.check_latencies, beat.cert_expiry))

    def heard(self, ok: bool) -> None:
        """How a heartbeat went; events leave once the console knows this process."""
        self.sender.heartbeat(ok)
        if ok and not self._sending and not self._stopping:
            self._sending = True
            self._start_sender()
            self.discovery = extras.discovery(self)
            if self.discovery:
                self._work("discovery", self.discovery.step)

    def token(self) -> str:
        """The token as a start would read it now; raises ConfigError."""
        return self._reread()[0].agent_key

    def gone(self) -> None:
        """The console has no place for this agent: it ends, with a code that no service manager starts it again for."""
        self.stop_reason, self._exit_code = "deleted", EXIT_CONFIG

    # -- states

    def _note_states(self) -> None:
        self._states_changed = True
        for worker in self._named("states"):
            worker.wake()

    def _save_states(self) -> float:
        """The worker's turn: writes what is believed, where that has changed."""
        if self._states_changed:
            self._states_changed = False
            self.store.save_states(self.watch.tracks())
        return STATES_REST

    # -- how it is

    @property
    def env(self) -> Mapping[str, str]:
        """The environment of the start."""
        return self._env


def _given(value: T | None, before: T) -> T:
    return before if value is None else value
