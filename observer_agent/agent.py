"""The Observer dialect's agent: joins the parts, starts, reloads and stops them, applies definitions, tells how it is.

What both dialects have in common is in whole.py and looking.py; here are heartbeat, definitions, relay and broadcast.
"""

from __future__ import annotations

import logging
import random
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from observer_agent import __version__, document, probes
from observer_agent.broadcast import Broadcast
from observer_agent.clock import Clock
from observer_agent.config import Settings
from observer_agent.definitions import Definitions, DefinitionsFile, Store, cloud_side, understand_all
from observer_agent.errors import ConfigError, DocumentError
from observer_agent.heartbeat import Heartbeat
from observer_agent.logs import Logs
from observer_agent.model import Health, Orders
from observer_agent.relay import Relay
from observer_agent.relayqueue import RelayQueue
from observer_agent.whole import LONGEST_CALL, Reread, Whole
from observer_agent.worker import Care, Step, Thread, attempt

log = logging.getLogger(__name__)


class Agent(Whole):
    """One agent. Opening the queue claims the start time; nothing runs before `start`."""

    heartbeat: Heartbeat
    definitions: Definitions | DefinitionsFile
    live = frozenset(
        name
        for name in Settings.__dataclass_fields__
        if name.startswith(("prometheus_", "probe_", "policy_", "buffer_max_", "agent_key"))
        or name in ("cloud_server_url", "skip_ssl_verification", "verbose")
    )

    def __init__(
        self, settings: Settings, clock: Clock, logs: Logs, env: Mapping[str, str], *, reread: Reread | None = None
    ) -> None:
        super().__init__(settings, clock, logs, env, reread=reread)
        self._clouds.update((name, self._link()) for name in ("beat", "definitions", "log"))
        self.looking.put = self._put
        self.heartbeat = Heartbeat(self._clouds["beat"], self.health, clock, self._heard, random.random)
        self.definitions = self._definitions_source()
        self.relay = self._make_relay() if settings.heartbeat_relay_enabled else None
        self.broadcast = Broadcast(self._clouds["log"], self.clock, self.settings.log_broadcast_level)
        self._aside: tuple[str, ...] = ()

    def _make_relay(self) -> Relay:
        settings, file = self.settings, self.queue.file
        cloud = self._clouds["relay"] = self._link()
        queue = RelayQueue(file.with_name(file.name + ".relay"), self.clock)
        place = settings.heartbeat_relay_host, settings.heartbeat_relay_port
        return Relay(queue, cloud, self.clock, place=place, metrics=self.metrics, random=random.random)

    def _definitions_source(self) -> Definitions | DefinitionsFile:
        if self.settings.definitions_file:
            return DefinitionsFile(Path(self.settings.definitions_file), read_document, self._apply)
        file = self.settings.buffer_path
        store = Store(file.with_name(file.name + ".definitions"))
        return Definitions(self._clouds["definitions"], store, self.clock, self._apply)

    # -- life

    def _use(self, settings: Settings, env: Mapping[str, str]) -> None:
        super()._use(settings, env)
        self._dialect.renew(settings)

    def _ask_again(self) -> None:
        """Definitions and a heartbeat at once: the settings were read again."""
        self.definitions.refresh()
        self.heartbeat.soon()  # one that succeeds ends the sender's wait as well
        for worker in self._named("beat"):
            worker.wake()

    def start(self) -> None:
        """Starts the workers, the heartbeat first; raises ConfigError before anything has left the machine."""
        self._check_definitions()
        self._greet()
        self._work("beat", self.heartbeat.step, Care(LONGEST_CALL, self._renew_heartbeat))
        self._start_sender()
        if self.relay:
            self.relay.wake = self._work("relay", self.relay.step).wake
        self._start_upkeep()
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

    def _stop_more(self) -> None:
        if self.relay:
            attempt("Stopping the relay", self.relay.stop)

    def _last_word(self) -> None:
        self.heartbeat.beat()

    def _renew_heartbeat(self, hung: Thread) -> Step:
        self._clouds["beat"] = self._link()
        self.heartbeat = self.heartbeat.successor(self._clouds["beat"])
        return self.heartbeat.step

    # -- definitions

    def _apply(self, rows: tuple[Any, ...]) -> None:
        """New definitions: each source type's collector gets its own, as added, changed, removed."""
        aside, before = cloud_side(rows), self._aside
        self._aside = aside
        if aside and aside != before:
            log.info("%d definitions are manual or heartbeats: the cloud evaluates them, nothing is probed", len(aside))
        self.looking.apply(understand_all(rows, probes.parse, probes.SOURCES))

    # -- how it is

    def _heard(self, orders: Orders) -> None:
        self.sender.heartbeat(orders.ok)
        if self.relay:
            self.relay.heartbeat(orders.ok)
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
            custom_probes=self.looking.custom.descriptors(),
            otlp_stats=self.looking.otlp.stats(),
        )


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
