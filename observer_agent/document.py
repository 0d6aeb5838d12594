"""Documents of definitions, `apiVersion: observer/v1` (docs/hub.md): text in, metrics and warnings out.

Every complaint names its line, because `nodes` remembers them. What is not understood is named in a
warning and left out, the rest stands. Used by the agent for DEFINITIONS_FILE and by the hub.
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from observer_agent.errors import DocumentError, InvalidConfig
from observer_agent.model import Operation
from observer_agent.nodes import Complaint, Map, Values, shown

API_VERSION = "observer/v1"
NAMESPACE = "observer:metric:"
NO_PROBE = "manual"
TEXT_MAX = 8 * 1024 * 1024
NAME_MAX = 128
TITLE_MAX = 200
FLOOR_MINUTES = 1 / 60
LONGEST_MINUTES = 366 * 24 * 60
DEFAULT_INTERVAL = 1.0
DEFAULT_PUSH = 5.0
SIDES = ("healthy", "unhealthy")
RULES = tuple(f"{side}_{part}" for side in SIDES for part in ("operation", "value"))
SECTIONS = frozenset(("apiVersion", "metrics", "services", "pages"))
METRIC = frozenset(
    "key id title description source_type source_config thresholds interval interval_agent_push agent".split()
)
SERVICE = frozenset(("key", "name", "description", "slos"))
SLO = frozenset(("key", "metric", "name", "target_pct", "window_days"))
PAGE = frozenset(("key", "subdomain", "title", "metrics"))
ENTRY = frozenset(("metric", "group", "order"))
_PERIOD = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(s|m|h|)")
_MINUTES = {"s": 1 / 60, "m": 1.0, "h": 60.0, "": 1.0}
_NUMBER = re.compile(r"[+-]?([0-9]{1,32}(\.[0-9]{0,32})?|\.[0-9]{1,32})([eE][+-]?[0-9]{1,3})?")

Check = Callable[[str, Mapping[str, Any]], object]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: `agent` names whom it is for, none for everybody; `wire` is the wire's definition, and a title."""

    key: str
    title: str
    agent: tuple[str, ...]
    wire: dict[str, Any]
    line: int = 0


@dataclass(frozen=True, slots=True)
class Document:
    """What a document says. `services` and `pages` are plain objects; warnings begin with `source:line: `."""

    metrics: tuple[Metric, ...] = ()
    services: tuple[Mapping[str, Any], ...] = ()
    pages: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()


def read(text: str, source: str, check: Check | None = None) -> Document:
    """Reads a document; `check` may refuse a `source_config` by raising InvalidConfig. Raises DocumentError."""
    return _Reader(source, check).read(text)


class _Reader:
    def __init__(self, source: str, check: Check | None) -> None:
        self._source = source
        self._check = check
        self._warnings: list[tuple[int, str]] = []

    def read(self, text: str) -> Document:
        try:
            top = self._top(text)
        except Complaint as complaint:
            raise DocumentError(f"{self._source}:{complaint.line}: {complaint.text}") from None
        self._unknown(top, SECTIONS, "section")
        metrics = tuple(self._metrics(top))
        services = tuple(self._entries(top, "services", SERVICE, ("slos", SLO)))
        pages = tuple(self._entries(top, "pages", PAGE, ("metrics", ENTRY)))
        warnings = tuple(f"{self._source}:{line}: {said}" for line, said in sorted(self._warnings, key=lambda w: w[0]))
        return Document(metrics, services, pages, warnings)

    def _warn(self, line: int, text: str) -> None:
        self._warnings.append((line, text))

    def _unknown(self, found: Map, known: frozenset[str], noun: str) -> None:
        for name in found.keys() - known:
            self._warn(found.at(name), f"unknown {noun} {shown(name)} is ignored")

    # -- the document

    def _top(self, text: str) -> Map:
        if len(text) > TEXT_MAX:
            raise Complaint(1, f"the document is larger than {TEXT_MAX} characters: split it")
        top = Values(self._warn).read(text)
        if not isinstance(top, Map):
            raise Complaint(1, f"not a mapping: begin with `apiVersion: {API_VERSION}` and `metrics:`")
        version = top.get("apiVersion")
        if version != API_VERSION:
            said = "is missing" if version is None else f"is {shown(version)}"
            raise Complaint(top.at("apiVersion"), f"apiVersion {said}: write `apiVersion: {API_VERSION}`")
        return top

    def _section(self, owner: Map, name: str) -> Iterator[Map]:
        """The mappings of a list; what is none is named."""
        found = owner.get(name)
        if found is None:
            return
        if not isinstance(found, list):
            self._warn(owner.at(name), f"{name} must be a list; it is left out")
            return
        for number, each in enumerate(found, 1):
            if isinstance(each, Map):
                yield each
            else:
                self._warn(owner.at(name), f"number {number} of {name} is not a mapping; it is left out")

    def _entries(
        self, top: Map, name: str, known: frozenset[str], inner: tuple[str, frozenset[str]]
    ) -> Iterator[Mapping[str, Any]]:
        """Services and pages: kept as they are, unknown fields named."""
        keys: set[str] = set()
        for each in self._section(top, name):
            try:
                key = _name(each, "key")
                if key in keys:
                    raise Complaint(each.at("key"), f"the key {shown(key)} comes twice; the first one counts")
            except Complaint as complaint:
                self._warn(complaint.line, f"{name}: {complaint.text}; left out")
                continue
            keys.add(key)
            self._unknown(each, known, f"field of {name}")
            for child in self._section(each, inner[0]):
                self._unknown(child, inner[1], f"field of {inner[0]}")
            yield each

    def _metrics(self, top: Map) -> Iterator[Metric]:
        keys: set[str] = set()
        ids: set[str] = set()
        for each in self._section(top, "metrics"):
            try:
                metric = self._metric(each)
                if metric.key in keys:
                    raise Complaint(each.at("key"), "the key comes twice, the first one counts")
                if metric.wire["id"] in ids:
                    raise Complaint(each.at("id"), "the id comes twice, the first one counts")
            except Complaint as complaint:
                self._warn(complaint.line, f"metric {shown(each.get('key'))} is left out: {complaint.text}")
                continue
            keys.add(metric.key)
            ids.add(metric.wire["id"])
            yield metric

    def _metric(self, found: Map) -> Metric:
        key = _name(found, "key")
        source_type = _name(found, "source_type") if found.get("source_type") is not None else "prometheus"
        config = _mapping(found, "source_config")
        wire = {
            "id": _name(found, "id") if found.get("id") is not None else metric_id(key),
            "title": _text(found, "title", key)[:TITLE_MAX],
            "source_type": source_type,
            "source_config": config,
            "interval": self._minutes(found, "interval", DEFAULT_INTERVAL),
            "interval_agent_push": self._minutes(found, "interval_agent_push", DEFAULT_PUSH),
            **(self._rules(found) if source_type != NO_PROBE or found.get("thresholds") is not None else {}),
        }
        agents = _agents(found)
        if self._check is not None and source_type != NO_PROBE:
            self._examine(found, source_type, config)
        self._unknown(found, METRIC, "field")
        return Metric(key, wire["title"], agents, wire, found.line)

    def _examine(self, found: Map, source_type: str, config: Map) -> None:
        """The source type's own opinion; its first problem gives the line."""
        assert self._check is not None
        try:
            self._check(source_type, config)
        except InvalidConfig as error:
            field = str(error).partition(":")[0].strip().partition(".")[0]
            line = found.at("source_type") if field == "source_type" else config.lines.get(field)
            raise Complaint(line or found.at("source_config"), f"source_config: {error}") from None

    def _minutes(self, found: Map, name: str, default: float) -> float:
        """An interval in minutes, from a number of minutes or a text like `30s`, `5m`, `1h`; at least one second."""
        value = found.get(name)
        if value is None:
            return default
        minutes = _period(value)
        if minutes is None or not 0 < minutes <= LONGEST_MINUTES:
            raise Complaint(found.at(name), f"{name}: {shown(value)} is no interval: write minutes, or `30s`, `5m`")
        if minutes < FLOOR_MINUTES:
            self._warn(found.at(name), f"{name}: {shown(value)} is below one second; one second is used")
        return max(minutes, FLOOR_MINUTES)

    def _rules(self, found: Map) -> dict[str, Any]:
        rules = _mapping(found, "thresholds")
        self._unknown(rules, frozenset(RULES), "field of thresholds")
        for name in RULES:
            value = rules.get(name)
            if name.endswith("_operation") and value not in tuple(Operation):
                raise Complaint(rules.at(name), f"thresholds: {name} must be over, under or equal")
            if name.endswith("_value") and not _is_number(value):
                raise Complaint(rules.at(name), f"thresholds: {name} must be a number")
        return {name: rules[name] for name in RULES}


def metric_id(key: str) -> str:
    """The id of a metric that gives none: the same wherever its document is read."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, NAMESPACE + key))


def _name(found: Map, name: str) -> str:
    """A text of 1 to 128 characters that must be there; a number counts as its text."""
    value = found.get(name)
    if value is None:
        raise Complaint(found.at(name), f"{name} is missing")
    if isinstance(value, bool) or not isinstance(value, str | int) or not 1 <= len(str(value)) <= NAME_MAX:
        raise Complaint(found.at(name), f"{name} must be a text of 1 to {NAME_MAX} characters")
    return str(value)


def _text(found: Map, name: str, default: str) -> str:
    value = found.get(name)
    if value is None:
        return default
    if isinstance(value, dict | list):
        raise Complaint(found.at(name), f"{name} must be a text")
    return str(value)


def _mapping(found: Map, name: str) -> Map:
    value = found.get(name)
    if value is None:
        value = Map()
        value.line = found.at(name)
    if not isinstance(value, Map):
        raise Complaint(found.at(name), f"{name} must be a mapping")
    return value


def _agents(found: Map) -> tuple[str, ...]:
    value = found.get("agent")
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(each, str) and each for each in listed) or value == []:
        raise Complaint(found.at("agent"), "agent must be the name of an agent, or a list of names")
    return tuple(listed)


def _period(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if abs(value) < 1e12 else None
    matched = _PERIOD.fullmatch(value.strip()) if isinstance(value, str) else None
    return float(matched[1]) * _MINUTES[matched[2]] if matched else None


def _is_number(value: object) -> bool:
    """A finite number, or a text that holds one."""
    if isinstance(value, str):
        return _NUMBER.fullmatch(value.strip()) is not None and math.isfinite(float(value))
    return not isinstance(value, bool) and isinstance(value, int | float) and abs(value) < 1e300
