"""The agent's own metrics, in a registry of its own. Every loss of a sample is counted here under its reason.

The names are an interface: docs/metrics.md lists them, tests/test_docs.py holds the two together.
"""

from __future__ import annotations

import threading

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest

from observer_agent.model import Loss


class SelfMetrics:
    """Counters and gauges; any thread may use them."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        counter, gauge = self._counter, self._gauge
        self.samples_lost = counter("samples_lost", "Samples that will never arrive, by reason.", "reason")
        self.samples_given = counter("samples_given", "Samples that collectors gave to the queue.")
        self.samples_accepted = counter("samples_accepted", "Samples that the cloud accepted.")
        self.probes = counter("probes", "Probes that ran.", "source_type")
        self.probes_failed = counter("probes_failed", "Probes that gave no value.", "source_type", "reason")
        self.probes_skipped = counter("probes_skipped", "Turns that began not at all.", "source_type")
        self.probes_late = counter("probes_late", "Runs that began late in their slot.", "source_type")
        self.probes_missed = counter("probes_missed", "Turns that passed while nothing ran at all.", "source_type")
        self.probe_lateness = gauge("probe_lateness_seconds", "How late the last probe began.", "source_type")
        self.evidence_dropped = counter("evidence_dropped", "Changes of status of which nothing is kept.", "reason")
        self.requests = counter("requests", "Requests to the cloud by endpoint and HTTP status.", "endpoint", "status")
        self.worker_restarts = counter("worker_restarts", "Workers that crashed or hung and were replaced.", "worker")
        self.queue_depth = gauge("queue_depth", "Samples that wait in the queue.")
        self.queue_oldest_age = gauge("queue_oldest_age_seconds", "Age of the oldest sample that waits.")
        self.queue_capacity = gauge("queue_capacity", "Most samples that the queue holds.")
        self.queue_bytes = gauge("queue_bytes", "Size of the queue's files on disk.")
        self.definitions = gauge("definitions", "Definitions that are applied.")
        self.delivering = gauge("delivering", "1 while heartbeats and samples are taken, 0 while something is wrong.")
        self.last_push = gauge("last_push_timestamp_seconds", "When the cloud last took samples; 0 before that.")
        self.last_heartbeat = gauge(
            "last_heartbeat_timestamp_seconds", "When the cloud last took a heartbeat; 0 before that."
        )
        self.relay_depth = gauge("relay_depth", "Pings of jobs that wait for the cloud.")
        self.relay_queued = counter("relay_pings_queued", "Pings that were taken and acknowledged.")
        self.relay_accepted = counter("relay_pings_accepted", "Pings that the cloud accepted.")
        self.relay_lost = counter("relay_pings_lost", "Acknowledged pings that will never arrive, by reason.", "reason")
        self.relay_refused = counter("relay_requests_refused", "Requests to the relay that were not taken.", "reason")
        self.host_metrics = counter("host_metrics_sent", "Figures of this machine or its cluster that were taken.")
        self.host_metrics_lost = counter("host_metrics_lost", "Figures that the console did not take.")
        self.host_metrics_left_out = gauge("host_metrics_left_out", "Things the last look left out, by kind.", "kind")
        gauge("threads", "Threads of the process.").set_function(threading.active_count)
        ProcessCollector(registry=self.registry)
        self._gauge("build_info", "1, with the version as label.", "version").labels(version).set(1)
        for reason in Loss:
            self.samples_lost.labels(reason.value)

    def expose(self) -> bytes:
        """The registry in the Prometheus text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"observer_agent_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"observer_agent_{name}", text, labels, registry=self.registry)


def totals(counter: Counter) -> dict[str, int]:
    """What a counter has counted, by its one label (`""` without one); what is 0 is left out."""
    samples = [each for family in counter.collect() for each in family.samples if each.name.endswith("_total")]
    return {next(iter(each.labels.values()), ""): int(each.value) for each in samples if each.value}
