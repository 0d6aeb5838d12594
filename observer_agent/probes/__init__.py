"""Probes: one look at one target. A source type's name and its typed configuration in, a `Reading` out.

`SOURCES` is the table of source types: a new one is a file and a line. `parse` turns a raw `source_config` into the
typed one (agent and hub); `Prober.look` runs a probe under its deadline on whatever thread calls it, and never raises.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from observer_agent.clock import to_ms
from observer_agent.errors import InvalidConfig
from observer_agent.model import Fault, Reading
from observer_agent.probes import (
    cloudwatch,
    custom,
    database,
    dns,
    elasticsearch,
    grpc,
    host,
    http,
    icmp,
    loki,
    mtls_http,
    otlp,
    prometheus,
    tcp,
    tls_cert,
    udp,
    websocket,
)
from observer_agent.probes._disks import Disks
from observer_agent.probes._evidence import facts, shown
from observer_agent.probes._otlp import Receiver
from observer_agent.probes._reasons import Reason
from observer_agent.probes._registry import Registry
from observer_agent.probes._tools import Tools

__all__ = [
    "SOURCES", "Disks", "Prober", "Reason", "Receiver", "Registry", "SourceType", "Tools", "UnknownSourceType",
    "facts", "parse", "shown",
]  # fmt: skip

log = logging.getLogger(__name__)


class SourceType(NamedTuple):
    """One kind of thing to watch: how its configuration is read, and how one look is done.

    `libraries` are loaded before the clock of the first look begins: that takes a while, and is nobody's time.
    """

    parse: Callable[[object], Any]
    probe: Callable[[Any, float, Tools], Reading]
    libraries: tuple[str, ...] = ()


class UnknownSourceType(InvalidConfig):
    """No source type of this name exists in this version."""


SOURCES: Final[Mapping[str, SourceType]] = MappingProxyType(
    {
        "tcp": SourceType(tcp.parse, tcp.probe),
        "dns": SourceType(dns.parse, dns.probe, ("dns.message", "dns.name")),
        "icmp": SourceType(icmp.parse, icmp.probe),
        "tls_cert": SourceType(tls_cert.parse, tls_cert.probe, ("asn1crypto.x509",)),
        "http": SourceType(http.parse, http.probe),
        "prometheus": SourceType(prometheus.parse, prometheus.probe),
        "database": SourceType(database.parse, database.probe),
        "loki": SourceType(loki.parse, loki.probe),
        "cloudwatch": SourceType(cloudwatch.parse, cloudwatch.probe),
        "elasticsearch": SourceType(elasticsearch.parse, elasticsearch.probe),
        "custom": SourceType(custom.parse, custom.probe),
        "grpc": SourceType(grpc.parse, grpc.probe),
        "websocket": SourceType(websocket.parse, websocket.probe, ("wsproto",)),
        "mtls_http": SourceType(mtls_http.parse, mtls_http.probe),
        "host": SourceType(host.parse, host.probe),
        "otlp": SourceType(otlp.parse, otlp.probe),
        "udp": SourceType(udp.parse, udp.probe),  # ours: the wire of the observer does not know it
    }
)


def parse(source_type: str, config: Mapping[str, Any]) -> Any:
    """The typed, normalised configuration with its defaults; raises InvalidConfig or UnknownSourceType."""
    source = SOURCES.get(source_type)
    if source is None:
        raise UnknownSourceType(f"source_type: {ascii(source_type)[:66]} is not known to this version")
    return source.parse(config)


class Prober:
    """Runs probes with one set of tools; safe from any thread."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._loaded: set[str] = set()

    def look(self, source_type: str, config: Any, timeout_override: float | None = None) -> Reading:
        """One look, ended within 50 ms of its deadline; never raises.

        The deadline is the configuration's own `timeout`, or `timeout_override`, in seconds from now. `duration_ms` of
        the reading is the whole look in milliseconds. The first look of a type loads its libraries before that.
        """
        source = SOURCES.get(source_type)
        if source is None:
            return Reading(None, Reason.UNKNOWN_SOURCE_TYPE.value, Fault.CONFIG)
        if complaint := self._tools.policy.of_type(source_type):
            return Reading(None, Reason.POLICY_DENIED.value, Fault.POLICY, detail={"error": complaint})
        monotonic = self._tools.clock.monotonic
        started = monotonic()
        try:
            if source.libraries and source_type not in self._loaded:
                self._load(source_type, source.libraries)
                started = monotonic()
            timeout = config.timeout if timeout_override is None else timeout_override
            reading = source.probe(config, started + timeout, self._tools)
        except Exception as error:
            # Only the class: a message may hold anything that the probe had in its hands.
            name = type(error).__name__
            log.error("A %s probe broke with %s: please report it; other probes go on", source_type, name)
            text = f"the probe broke with {name}"
            reading = Reading(None, Reason.SOURCE_THREW.value, Fault.AGENT, detail={"error": text})
        return self._finished(reading, to_ms(monotonic() - started))

    def _load(self, source_type: str, libraries: tuple[str, ...]) -> None:
        for name in libraries:
            importlib.import_module(name)
        self._loaded.add(source_type)

    def _finished(self, reading: Reading, duration_ms: float) -> Reading:
        detail = reading.detail
        if "error" in detail:
            detail = {**detail, "error": self._tools.redact(detail["error"])}
        # Not `_replace`, which takes three times as long: this runs for every look.
        return Reading(
            reading.value,
            reading.reason,
            reading.fault,
            duration_ms,
            reading.phases,
            detail,
            reading.address,
            reading.silent,
            reading.evidence,
        )
