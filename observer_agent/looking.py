"""All that surrounds a look, whatever the dialect: policy, probes, collectors, the lookout, counters and evidence.

Definitions come in through `apply`; readings leave through `listener`, verdicts that matter through `put`. Runs on the
probe threads; `apply`, `use` and the life cycle are called by whoever owns the agent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from observer_agent import policy, probes
from observer_agent.bursts import Bursts
from observer_agent.clock import Clock
from observer_agent.collector import Collector, Listener
from observer_agent.config import Settings
from observer_agent.evidence import Evidence
from observer_agent.evidencefile import path_of
from observer_agent.logs import Redactor
from observer_agent.lookout import Lookout
from observer_agent.model import Definition, Fault, Reading, Status
from observer_agent.pools import THREADS_MAX, Pools
from observer_agent.pulse import Pulse
from observer_agent.resolver import Resolver
from observer_agent.selfmetrics import SelfMetrics
from observer_agent.tally import Tally
from observer_agent.witness import Witnesses
from observer_agent.worker import Supervisor

log = logging.getLogger(__name__)

CloudPlace = Callable[[], tuple[str, int] | None]


class Surroundings(NamedTuple):
    """What the looks share with the rest of the agent."""

    clock: Clock
    redact: Redactor
    metrics: SelfMetrics
    supervisor: Supervisor
    on_restart: Callable[[str], object]


class Looking:
    """See the module. `cloud_place` is an address that answers while the cloud does; raises ConfigError.

    `put` and `listener` are set before the first `apply`.
    """

    def __init__(
        self,
        settings: Settings,
        env: Mapping[str, str],
        around: Surroundings,
        cloud_place: CloudPlace,
        *,
        threads: int = THREADS_MAX,
    ) -> None:
        clock, metrics = around.clock, around.metrics
        self._settings = settings
        self._around = around
        self.policy = policy.load(settings.policy_file)
        self.tally = Tally(metrics, clock)
        self.listener: Listener = self.tally
        self.put: Callable[[Sequence[object]], object] = lambda samples: None
        self.evidence = Evidence(path_of(settings.buffer_path), clock, around.redact, self._count_dropped)
        self.resolver = Resolver(clock)
        self.custom = probes.Registry(clock)
        self.otlp = probes.Receiver(settings, clock)
        self._disks = probes.Disks(clock)
        self._bursts = Bursts(clock)
        self._prober = self._make_prober(settings, env)
        self.pulse = Pulse(clock)
        witnesses = Witnesses(clock, self.resolver, cloud_place)
        self.lookout = Lookout(lambda each: self._look(each), witnesses, self.pulse, clock)
        self.pools = Pools(around.supervisor, clock, self._make_collector, around.on_restart, threads=threads)

    def start(self) -> None:
        """Loads the custom probes; nothing is looked at yet."""
        self.custom.renew(self._settings.probe_custom_dir)
        if self.policy.rules.file:
            log.info("The policy in %s says what probes may reach", self.policy.rules.file)

    def read_policy(self, settings: Settings) -> None:
        """Reads the operator's policy again; raises ConfigError, and then the old one stays."""
        self.policy = policy.load(settings.policy_file)

    def use(self, settings: Settings, env: Mapping[str, str]) -> None:
        """Every look from now on uses these settings."""
        self._settings = settings
        self.custom.renew(settings.probe_custom_dir)
        self._prober = self._make_prober(settings, env)
        for collector in self.pools.collectors().values():
            collector.on_target_fault = Status(settings.probe_failure_status)

    def apply(self, found: list[Definition]) -> tuple[int, int, int]:
        """All definitions as they are now, each to its collector; how many were added, changed, removed."""
        found = self.policy.restricted(found)
        self.lookout.forget(definition.id for definition in found)
        self.otlp.want(each.config.want for each in found if each.source_type == "otlp" and not each.problem)
        self.evidence.keep(found)
        counts = self.pools.apply(found)
        self._around.metrics.definitions.set(len(found))
        if any(counts):
            log.info("%d definitions: %d added, %d changed, %d removed", len(found), *counts)
        return counts

    def _make_prober(self, settings: Settings, env: Mapping[str, str]) -> probes.Prober:
        tools = probes.Tools(
            clock=self._around.clock,
            resolver=self.resolver,
            env=env,
            redact=self._around.redact,
            settings=settings,
            policy=self.policy,
            custom=self.custom,
            otlp=self.otlp,
        )
        tools.disks = self._disks
        return probes.Prober(tools)

    def _make_collector(self, grow: Callable[[], bool]) -> Collector:
        return Collector(
            self.lookout.look,
            self.put,
            self._around.clock,
            on_target_fault=Status(self._settings.probe_failure_status),
            grow=grow,
            listener=self.listener,
            on_transition=self.evidence.offer,
            bursts=self._bursts,
        )

    def _look(self, definition: Definition) -> Reading:
        if definition.problem:
            fault = Fault.POLICY if definition.problem.reason == policy.DENIED else Fault.CONFIG
            return Reading(None, definition.problem.reason, fault, detail={"error": definition.problem.text})
        return self._prober.look(definition.source_type, definition.config)

    def _count_dropped(self, reason: str, n: int) -> None:
        self._around.metrics.evidence_dropped.labels(reason).inc(n)
