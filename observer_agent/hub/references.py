"""What a document names besides itself: metrics of services and pages, ids, subdomains, agents; held against the hub.

A document goes in, the same without what cannot be comes out, with a remark for each. `resolve` runs inside the
transaction that applies the document, `within` needs no hub.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from sqlalchemy import Connection, select

from observer_agent.document import HEARTBEAT, NO_PROBE, Document, Metric, Remark, metric_id
from observer_agent.hub import schema
from observer_agent.hub.form import METRIC, PAGE, SECTIONS, Forms
from observer_agent.nodes import shown
from observer_agent.sections import Item, Severity

LISTS = {"service": ("slos", "key", "slo"), "page": ("metrics", "metric", "entry")}


def resolve(conn: Connection, found: Document, before: Mapping[str, Forms], prune: bool) -> Document:
    """The document without what names something that neither it nor the hub has, or takes what another has."""
    agents = set(conn.scalars(select(schema.agents.c.name)))
    stay = {kind: {} if prune and SECTIONS[kind] in found.sections else forms for kind, forms in before.items()}
    look = _References()
    metrics = look.without_taken_ids(found.metrics, stay[METRIC])
    look.agents(metrics, agents)
    known = {metric.key for metric in metrics} | (stay[METRIC].keys() - look.renamed)
    services = [look.known_only(each, known, "that neither the documents nor the hub have") for each in found.services]
    types = {key: form["source_type"] for key, form in stay[METRIC].items()}
    look.unwatched(services, {**types, **{metric.key: metric.wire["source_type"] for metric in metrics}})
    pages = look.without_taken_subdomains(found.pages, stay[PAGE])
    pages = [look.known_only(each, known, "that neither the documents nor the hub have") for each in pages]
    named = {(item.kind, item.key) for item in (*services, *pages)}
    for kind in LISTS:
        left = {key: form for key, form in stay[kind].items() if (kind, key) not in named}
        look.stranded(kind, left, before[METRIC].keys() - known)
    remarks = found.remarks + tuple(look.remarks)
    return replace(found, metrics=tuple(metrics), services=tuple(services), pages=tuple(pages), remarks=remarks)


def within(found: Document) -> Document:
    """The document with notes on metrics that it does not have itself; the hub may have them."""
    look = _References(Severity.NOTE)
    known = {metric.key for metric in found.metrics}
    for item in (*found.services, *found.pages):
        look.known_only(item, known, "that these documents do not have; `apply` asks the hub")
    look.unwatched(found.services, {metric.key: metric.wire["source_type"] for metric in found.metrics})
    return replace(found, remarks=found.remarks + tuple(look.remarks))


class _References:
    """Collects remarks, of `severity` where a metric is not known."""

    def __init__(self, severity: Severity = Severity.ERROR) -> None:
        self.remarks: list[Remark] = []
        self.renamed: set[str] = set()  # keys whose id another key takes over
        self._severity = severity

    def without_taken_ids(self, metrics: Collection[Metric], stay: Forms) -> list[Metric]:
        """Without those whose id is that of a metric that stays in the hub under another key.

        A key that the hub does not have yet may take over an id: that is a metric under a new name.
        """
        named = {metric.key for metric in metrics}
        ids = {form.get("id") or metric_id(key): key for key, form in stay.items() if key not in named}
        good = []
        for metric in metrics:
            other = ids.get(metric.wire["id"])
            if other is not None and metric.key in stay:
                said = f"metric {shown(metric.key)} is left out: its id is that of the metric {shown(other)} of the hub"
                self._say(Severity.ERROR, metric.source, metric.line, said)
                continue
            good.append(metric)
            if other is not None:
                self.renamed.add(other)
        return good

    def without_taken_subdomains(self, pages: Collection[Item], stay: Forms) -> list[Item]:
        """Without those whose subdomain is that of another page that stays in the hub."""
        named = {page.key for page in pages}
        taken = {form.get("subdomain"): key for key, form in stay.items() if key not in named}
        good = []
        for page in pages:
            other = taken.get(page.body["subdomain"])
            if other is None:
                good.append(page)
                continue
            said = f"page {shown(page.key)} is left out: its subdomain is that of the page {shown(other)} of the hub"
            self._say(Severity.ERROR, page.source, page.line, said)
        return good

    def agents(self, metrics: Collection[Metric], known: Collection[str]) -> None:
        """Names the agents that have no key."""
        for metric in metrics:
            for agent in metric.agent:
                if agent not in known:
                    said = f"metric {shown(metric.key)} is for the agent {shown(agent)}, which has no key yet"
                    self._say(Severity.WARNING, metric.source, metric.line, said)

    def known_only(self, item: Item, known: Collection[str], who: str) -> Item:
        """The item without entries whose metric is not known."""
        section, field, noun = LISTS[item.kind]
        good, lines = [], []
        for body, line in zip(item.body[section], item.lines, strict=True):
            if body["metric"] in known:
                good.append(body)
                lines.append(line)
                continue
            left = " is left out" if self._severity is Severity.ERROR else ""
            what = f"{item.kind} {shown(item.key)}: {noun} {shown(body[field])}{left}"
            said = f"{what}: it names the metric {shown(body['metric'])} {who}"
            self._say(self._severity, item.source, line, said)
        return item._replace(body={**item.body, section: good}, lines=tuple(lines))

    def unwatched(self, services: Collection[Item], types: Mapping[str, str]) -> None:
        """Notes the objectives of metrics that no agent of this version looks at."""
        from observer_agent import probes

        for item in services:
            for slo, line in zip(item.body["slos"], item.lines, strict=True):
                source_type = types.get(slo["metric"])
                if source_type is None or source_type == HEARTBEAT or source_type in probes.SOURCES:
                    continue
                what = f"service {shown(item.key)}: slo {shown(slo['key'])} is stored and not evaluated"
                why = "manual: no agent looks at it" if source_type == NO_PROBE else f"of the source type {source_type}"
                self._say(Severity.NOTE, item.source, line, f"{what}: its metric {shown(slo['metric'])} is {why}")

    def stranded(self, kind: str, forms: Forms, going: Collection[str]) -> None:
        """Names what stays in the hub and would lose a metric."""
        section = LISTS[kind][0]
        for key, form in forms.items():
            for each in form[section]:
                if each["metric"] in going:
                    said = f"the {kind} {shown(key)} stays and names the metric {shown(each['metric'])}, which would go"
                    self._say(Severity.ERROR, "hub", 0, said)

    def _say(self, severity: Severity, source: str, line: int, text: str) -> None:
        self.remarks.append(Remark(severity, source, line, text))
