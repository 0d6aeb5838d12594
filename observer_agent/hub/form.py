"""The document's form of what the hub holds: rows to the mappings of `apiVersion: observer/v1`, and those to text.

What comes out reads back as the same thing, in an order that does not change. Runs on whatever thread asks.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from io import StringIO
from typing import Any

from sqlalchemy import Connection, select

from observer_agent.document import API_VERSION, RULES, Metric, metric_id, read_period
from observer_agent.hub import schema

Form = dict[str, Any]
Forms = dict[str, Form]  # by key
METRIC, SERVICE, PAGE = "metric", "service", "page"
SECTIONS = {METRIC: "metrics", SERVICE: "services", PAGE: "pages"}
_UNITS = (("h", 60.0), ("m", 1.0), ("s", 1 / 60))


def metric_form(metric: Metric) -> Form:
    """A metric as a document writes it; what equals its default in every document is left away."""
    wire = metric.wire
    form: Form = {"key": metric.key}
    if wire["id"] != metric_id(metric.key):
        form["id"] = wire["id"]
    form["title"] = metric.title
    if metric.description:
        form["description"] = metric.description
    form["source_type"] = wire["source_type"]
    form["source_config"] = wire["source_config"]
    if all(name in wire for name in RULES):
        form["thresholds"] = {name: wire[name] for name in RULES}
    form["interval"] = period(wire["interval"])
    form["interval_agent_push"] = period(wire["interval_agent_push"])
    if metric.agent:
        form["agent"] = metric.agent[0] if len(metric.agent) == 1 else list(metric.agent)
    return form


def period(minutes: float) -> str | float:
    """An interval as people write it, where that reads back as the same number."""
    for unit, size in _UNITS:
        count = round(minutes / size)
        text = f"{count}{unit}"
        if count >= 1 and read_period(text) == minutes:
            return text
    return minutes


def held(conn: Connection) -> dict[str, Forms]:
    """Everything that documents have made, by kind and key."""
    objects = schema.objects
    found: dict[str, Forms] = {kind: {} for kind in SECTIONS}
    described: dict[str, str] = {}
    for row in conn.execute(select(objects).order_by(objects.c.kind, objects.c.key)):
        body = json.loads(row.body)
        if row.kind == METRIC:
            described[row.key] = body.get("description", "")
        elif row.kind in found:
            found[row.kind][row.key] = body
    metrics = schema.metrics
    query = select(metrics).where(metrics.c.managed.is_(True), metrics.c.key.is_not(None)).order_by(metrics.c.key)
    for row in conn.execute(query):
        agents, wire = tuple(json.loads(row.agents)), json.loads(row.definition)
        metric = Metric(row.key, row.title, agents, wire, description=described.get(row.key, ""))
        found[METRIC][row.key] = metric_form(metric)
    return found


def ids_of(conn: Connection, keys: Collection[str]) -> dict[str, str]:
    """The ids of metrics, by key."""
    metrics = schema.metrics
    found = conn.execute(select(metrics.c.key, metrics.c.id).where(metrics.c.key.is_not(None)))
    return {key: metric_id for key, metric_id in found if key in keys}


def to_text(forms: Mapping[str, Mapping[str, Form]]) -> str:
    """A whole document as YAML."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.allow_unicode = True
    yaml.width = 1_000_000
    yaml.representer.ignore_aliases = lambda *_: True
    yaml.representer.add_representer(str, _represent_text)
    text = StringIO()
    yaml.dump({"apiVersion": API_VERSION, **_sections(forms)}, text)
    return text.getvalue()


def _represent_text(representer: Any, text: str) -> Any:
    """Line ends and what cannot be seen are written as escapes, so that they come back as they are."""
    return representer.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


def _sections(forms: Mapping[str, Mapping[str, Form]]) -> dict[str, Sequence[Form]]:
    """Every list, empty ones included: pruning touches only the sections that are there."""
    return {section: [form for _, form in sorted(forms.get(kind, {}).items())] for kind, section in SECTIONS.items()}
