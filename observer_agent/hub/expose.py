"""The hub's numbers in the Prometheus text format: its own at `/metrics`, the verdicts at `/api/v1/metrics/export`.

Both are read from the database at the time of looking, so that every hub process tells the same. Runs on the threads of
the server.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flask import Blueprint, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from observer_agent import __version__
from observer_agent.clock import parse_iso
from observer_agent.hub.access import admit_reader
from observer_agent.hub.look import Look

FORMAT = "text/plain; version=0.0.4; charset=utf-8"
STATUSES = ("healthy", "degraded", "unhealthy", "no_data", "unknown")
LABELS = ("metric_id", "key", "title", "source_type", "agent")


def expose(look: Look, token: str | None) -> Blueprint:
    """The two paths."""
    face = Blueprint("expose", __name__)
    face.before_request(lambda: admit_reader(token))
    face.add_url_rule("/metrics", "own", lambda: _answer(_own(look)))
    face.add_url_rule("/api/v1/metrics/export", "verdicts", lambda: _answer(_verdicts(look)))
    return face


class _Families(Collector):
    """Families that are known already, for a registry that wants a collector."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _answer(families: Iterable[Metric]) -> Response:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(list(families)))
    return Response(generate_latest(registry), content_type=FORMAT)


def _own(look: Look) -> Iterator[Metric]:
    agents = look.agents()
    info = GaugeMetricFamily("observer_hub_build_info", "1, with the version as label.", labels=["version"])
    info.add_metric([__version__], 1)
    yield info
    states = Counter(agent["state"] for agent in agents)
    known = GaugeMetricFamily("observer_hub_agents", "Agents by state.", labels=["state"])
    for state in ("online", "offline"):
        known.add_metric([state], states[state])
    yield known
    yield _per_agent("observer_hub_agent_up", "1 while the agent is online.", agents, _is_up)
    yield _per_agent("observer_hub_agent_queue_depth", "Samples that wait at the agent.", agents, _queue_depth)
    yield _per_agent("observer_hub_agent_uptime_percent", "Uptime of the last 24 hours.", agents, _uptime)
    yield _per_agent("observer_hub_unexplained", "Rows that an agent says were taken and are not here.", agents, _gone)
    alerts = GaugeMetricFamily("observer_hub_alerts", "Open alerts of an agent, by type.", labels=["agent", "type"])
    for agent in agents:
        for alert in agent["alerts"]:
            alerts.add_metric([agent["name"], alert["type"]], 1)
    yield alerts
    yield _totals(agents, "taken", "observer_hub_rows_taken", "Rows that were taken from an agent.")
    yield _totals(agents, "duplicates", "observer_hub_rows_duplicate", "Rows of an agent that had been taken before.")


def _per_agent(
    name: str, text: str, agents: list[dict[str, Any]], value: Callable[[dict[str, Any]], Any]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=["agent"])
    for agent in agents:
        found = value(agent)
        if found is not None:
            family.add_metric([agent["name"]], float(found))
    return family


def _totals(agents: list[dict[str, Any]], field: str, name: str, text: str) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=["agent"])
    for agent in agents:
        family.add_metric([agent["name"]], agent[field])
    return family


def _is_up(agent: dict[str, Any]) -> object:
    return agent["state"] == "online"


def _queue_depth(agent: dict[str, Any]) -> object:
    return agent["queue_depth"]


def _uptime(agent: dict[str, Any]) -> object:
    return agent["uptime_pct"]


def _gone(agent: dict[str, Any]) -> object:
    return sum(each["unexplained"] for each in agent["delivery"])


def _verdicts(look: Look) -> Iterator[Metric]:
    """The last verdict of every metric and agent; a stale one has the status `unknown` and no value."""
    names = {agent["id"]: agent["name"] for agent in look.agents()}
    pushed = [metric for metric in look.metrics() if metric["status"] is not None]
    value = GaugeMetricFamily("observer_metric_value", "The last value of a metric.", labels=LABELS)
    status = GaugeMetricFamily(
        "observer_metric_status", "1 for the status that a metric has, 0 for the others.", labels=[*LABELS, "status"]
    )
    stamp = GaugeMetricFamily("observer_metric_timestamp_seconds", "When a metric was last probed.", labels=LABELS)
    for metric in pushed:
        labels = _labels(metric, names)
        for each in STATUSES:
            status.add_metric([*labels, each], float(each == metric["status"]))
        stamp.add_metric(labels, parse_iso(metric["timestamp"]) or 0.0)
        if metric["status"] not in ("no_data", "unknown"):
            value.add_metric(labels, metric["value"])
    yield from (value, status, stamp)


def _labels(metric: dict[str, Any], names: dict[str, str]) -> list[str]:
    agent = names.get(metric["agent_id"], metric["agent_id"])
    return [metric["id"], metric["key"] or "", metric["title"], metric["source_type"], agent]
