"""The source type `otlp`: one number of the freshest point that was pushed to the agent in OpenTelemetry's protocol.

Rules: docs/probes/otlp.md, mended by W26, W27 and W28. The receiver is `_otlp.py`; a look reads memory alone and
connects to nothing. The sample's own time is detail only. Runs on a probe thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from observer_agent.clock import iso
from observer_agent.model import Reading
from observer_agent.probes._config import Fields
from observer_agent.probes._otlp import Receiver
from observer_agent.probes._otlpstore import Kept, Want
from observer_agent.probes._otlpvalue import AGGREGATIONS, value_of
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tools import Run, Tools

FILTERS: Final = 128
KEY_LONGEST, VALUE_LONGEST = 128, 512
STALENESS_MS: Final = 120_000
BEHIND: Final = 5.0  # seconds that a sender's stamp may be off before the detail says so


@dataclass(frozen=True, slots=True)
class OtlpConfig:
    """Which stream, and what of it. `staleness` and `timeout` are seconds; a look waits for nothing."""

    want: Want
    aggregation: str
    staleness: float
    timeout: float = 1.0


def parse(raw: object) -> OtlpConfig:
    """The typed configuration; raises InvalidConfig."""
    fields = Fields(raw)
    name = fields.text("metric_name", required=True, longest=256)
    filters = fields.mapping("attribute_filters", FILTERS)
    for key, value in filters.items():
        if not 1 <= len(key) <= KEY_LONGEST or len(value) > VALUE_LONGEST:
            fields.problem("attribute_filters", f"keys have 1 to {KEY_LONGEST} characters, values {VALUE_LONGEST}")
    aggregation = fields.choice("aggregation", AGGREGATIONS, "latest")
    staleness = fields.whole("staleness_ms", 1_000, 86_400_000, STALENESS_MS) / 1000
    fields.done()
    return OtlpConfig(Want(name or "", tuple(sorted(filters.items()))), aggregation, staleness)


def probe(config: OtlpConfig, deadline: float, tools: Tools) -> Reading:
    """The number of the freshest point, if it is fresh enough."""
    run = Run(tools, deadline, Reason.PUSH_SOURCE_INIT_FAILED)
    known: dict[str, Any] = {"metric_name": config.want.metric_name}
    try:
        kept = _newest(config, tools.otlp)
        known |= _about(kept, config)
        if tools.otlp and (streams := tools.otlp.streams_of(config.want)) > 1:
            known["streams"] = streams
        value = _value(kept, config, tools.clock.monotonic())
    except Failed as failure:
        return run.failed(failure, **known)
    return run.gave(value, **known)


def _newest(config: OtlpConfig, receiver: Receiver | None) -> Kept:
    if receiver is None:
        raise Failed(Reason.OTLP_NO_SAMPLES, "points come to a running agent only, not to this command")
    receiver.check()
    kept = receiver.newest(config.want)
    if kept is None:
        raise Failed(Reason.OTLP_NO_SAMPLES, "no point of this name and these attributes has come yet")
    return kept


def _about(kept: Kept, config: OtlpConfig) -> dict[str, Any]:
    point = kept.point
    about: dict[str, Any] = {
        "data_point_kind": point.kind,
        "aggregation": config.aggregation,
        "sample_time": iso(kept.at),
    }
    if point.temporality:
        about["temporality"] = point.temporality
    if abs(kept.lag) > BEHIND:
        about["sender_clock_seconds"] = round(-kept.lag, 3)
    return about


def _value(kept: Kept, config: OtlpConfig, now: float) -> float:
    age = kept.age(now)
    if age > config.staleness:
        ms, most = round(age * 1000), round(config.staleness * 1000)
        raise Failed(Reason.OTLP_STALE, "the freshest point is too old", age_ms=ms, staleness_ms=most)
    value = value_of(kept.point.data, config.aggregation)
    if value is None:
        raise Failed(Reason.OTLP_AGGREGATION_UNAVAILABLE, "the freshest point has no such number")
    return value
