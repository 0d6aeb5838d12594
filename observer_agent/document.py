"""Documents of definitions, `apiVersion: observer/v1` (docs/hub.md): text in, metrics and warnings out.

Every complaint names its line, because `nodes` remembers them. What is not understood is named in a
warning and left out, the rest stands. Used by the agent for DEFINITIONS_FILE and by the hub.
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from observer_agent.errors import DocumentError, InvalidConfig
from observer_agent.model import Operation
from observer_agent.nodes import Complaint, Map, Values, shown
from observer_agent.sections import TEXT_MAX, TITLE_MAX, Item, Sections, Severity, mapping_of, name_of, text_of

API_VERSION = "observer/v1"
NAMESPACE = "observer:metric:"
NO_PROBE = "manual"
HEARTBEAT = "heartbeat"  # the hub judges it by the pings of a job
UNRULED = (NO_PROBE, HEARTBEAT)  # they need no thresholds
LENGTH_MAX = 8 * 1024 * 1024
FLOOR_MINUTES = 1 / 60
LONGEST_MINUTES = 366 * 24 * 60
DEFAULT_INTERVAL = 1.0
DEFAULT_PUSH = 5.0
SIDES = ("healthy", "unhealthy")
RULES = tuple(f"{side}_{part}" for side in SIDES for part in ("operation", "value"))
LISTS = ("metrics", "services", "pages")
SECTIONS = frozenset(("apiVersion", *LISTS))
METRIC = frozenset(
    "key id title description source_type source_config thresholds interval interval_agent_push agent".split()
)
_PERIOD = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(s|m|h|)")
_MINUTES = {"s": 1 / 60, "m": 1.0, "h": 60.0, "": 1.0}
_NUMBER = re.compile(r"[+-]?([0-9]{1,32}(\.[0-9]{0,32})?|\.[0-9]{1,32})([eE][+-]?[0-9]{1,3})?")

Check = Callable[[str, Mapping[str, Any]], object]
Seen = dict[tuple[str, str, str], str]  # section, field and value to the place that has it first


class Remark(NamedTuple):
    """Something to say about a line of a document; line 0 is the whole of it."""

    severity: Severity
    source: str
    line: int
    text: str

    def __str__(self) -> str:
        place = f"{self.source}:{self.line}" if self.line else self.source
        return f"{place}: {self.text}"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: `agent` names whom it is for, none for everybody; `wire` is the wire's definition, and a title."""

    key: str
    title: str
    agent: tuple[str, ...]
    wire: dict[str, Any]
    line: int = 0
    description: str = ""
    source: str = ""


Thing = TypeVar("Thing", Metric, Item)


@dataclass(frozen=True, slots=True)
class Document:
    """What one document says, or several together. `sections` are the lists that are there, empty ones included."""

    metrics: tuple[Metric, ...] = ()
    services: tuple[Item, ...] = ()
    pages: tuple[Item, ...] = ()
    remarks: tuple[Remark, ...] = ()
    sections: frozenset[str] = frozenset()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Every remark as a text that begins with `source:line: `."""
        return tuple(str(each) for each in self.remarks)


def read(text: str, source: str, check: Check | None = None) -> Document:
    """Reads a document; `check` may refuse a `source_config` by raising InvalidConfig, or return a text: a note.

    Raises DocumentError.
    """
    return read_all([(source, text)], check)


def read_all(documents: Iterable[tuple[str, str]], check: Check | None = None) -> Document:
    """Reads several documents, source and text each, as one: no key counts twice. Raises DocumentError."""
    seen: Seen = {}
    read = [_Reader(source, check, seen).read(text) for source, text in documents]
    return Document(
        tuple(each for one in read for each in one.metrics),
        tuple(each for one in read for each in one.services),
        tuple(each for one in read for each in one.pages),
        tuple(each for one in read for each in one.remarks),
        frozenset(each for one in read for each in one.sections),
    )


class _Reader:
    def __init__(self, source: str, check: Check | None, seen: Seen) -> None:
        self._source = source
        self._check = check
        self._seen = seen
        self._remarks: list[Remark] = []
        self._sections = Sections(source, self._say)

    def read(self, text: str) -> Document:
        try:
            top = self._top(text)
        except Complaint as complaint:
            raise DocumentError(f"{self._source}:{complaint.line}: {complaint.text}") from None
        self._sections.unknown(top, SECTIONS, "section")
        metrics = tuple(self._each(top, "metrics", self._metric))
        services = tuple(self._each(top, "services", self._sections.service))
        pages = tuple(self._each(top, "pages", self._sections.page))
        remarks = tuple(sorted(self._remarks, key=lambda remark: remark.line))
        there = frozenset(name for name in LISTS if isinstance(top.get(name), list))
        return Document(metrics, services, pages, remarks, there)

    def _say(self, severity: Severity, line: int, text: str) -> None:
        self._remarks.append(Remark(severity, self._source, line, text))

    def _warn(self, line: int, text: str) -> None:
        self._say(Severity.WARNING, line, text)

    # -- the document

    def _top(self, text: str) -> Map:
        if len(text) > LENGTH_MAX:
            raise Complaint(1, f"the document is larger than {LENGTH_MAX} characters: split it")
        top = Values(self._warn).read(text)
        if not isinstance(top, Map):
            raise Complaint(1, f"not a mapping: begin with `apiVersion: {API_VERSION}` and `metrics:`")
        version = top.get("apiVersion")
        if version != API_VERSION:
            said = "is missing" if version is None else f"is {shown(version)}"
            raise Complaint(top.at("apiVersion"), f"apiVersion {said}: write `apiVersion: {API_VERSION}`")
        return top

    def _each(self, top: Map, section: str, read: Callable[[Map], Thing]) -> Iterator[Thing]:
        """The good ones of a section; of two with the same key, id or subdomain the first one counts."""
        for found in self._sections.listed(top, section):
            try:
                thing = read(found)
                for field, value in _marks(thing):
                    if (first := self._seen.get((section, field, value))) is not None:
                        raise Complaint(found.at(field), f"the {field} comes twice, the one at {first} counts")
            except Complaint as complaint:
                said = f"{section[:-1]} {shown(found.get('key'))} is left out: {complaint.text}"
                self._say(Severity.ERROR, complaint.line, said)
                continue
            for field, value in _marks(thing):
                self._seen[section, field, value] = f"{self._source}:{found.at(field)}"
            yield thing

    def _metric(self, found: Map) -> Metric:
        key = name_of(found, "key")
        source_type = name_of(found, "source_type") if found.get("source_type") is not None else "prometheus"
        config = mapping_of(found, "source_config")
        wire = {
            "id": name_of(found, "id") if found.get("id") is not None else metric_id(key),
            "title": text_of(found, "title", key, TITLE_MAX),
            "source_type": source_type,
            "source_config": config,
            "interval": self._minutes(found, "interval", DEFAULT_INTERVAL),
            "interval_agent_push": self._minutes(found, "interval_agent_push", DEFAULT_PUSH),
            **(self._rules(found) if source_type not in UNRULED or found.get("thresholds") is not None else {}),
        }
        agents, description = _agents(found), text_of(found, "description", "", TEXT_MAX)
        if self._check is not None and source_type != NO_PROBE:
            self._examine(found, source_type, config)
        self._sections.unknown(found, METRIC, "field")
        return Metric(key, wire["title"], agents, wire, found.line, description, self._source)

    def _examine(self, found: Map, source_type: str, config: Map) -> None:
        """The source type's own opinion; its first problem gives the line."""
        assert self._check is not None
        try:
            note = self._check(source_type, config)
        except InvalidConfig as error:
            field = str(error).partition(":")[0].strip().partition(".")[0]
            line = found.at("source_type") if field == "source_type" else config.lines.get(field)
            raise Complaint(line or found.at("source_config"), f"source_config: {error}") from None
        if isinstance(note, str):
            self._say(Severity.NOTE, found.at("source_type"), f"metric {shown(found.get('key'))}: {note}")

    def _minutes(self, found: Map, name: str, default: float) -> float:
        """An interval in minutes, from a number of minutes or a text like `30s`, `5m`, `1h`; at least one second."""
        value = found.get(name)
        if value is None:
            return default
        minutes = read_period(value)
        if minutes is None or not 0 < minutes <= LONGEST_MINUTES:
            raise Complaint(found.at(name), f"{name}: {shown(value)} is no interval: write minutes, or `30s`, `5m`")
        if minutes < FLOOR_MINUTES:
            self._warn(found.at(name), f"{name}: {shown(value)} is below one second; one second is used")
        return max(minutes, FLOOR_MINUTES)

    def _rules(self, found: Map) -> dict[str, Any]:
        rules = mapping_of(found, "thresholds")
        self._sections.unknown(rules, frozenset(RULES), "field of thresholds")
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


def _marks(thing: Metric | Item) -> tuple[tuple[str, str], ...]:
    """What must be unique in a section."""
    if isinstance(thing, Metric):
        return ("key", thing.key), ("id", thing.wire["id"])
    return tuple((field, thing.body[field]) for field in ("key", "subdomain") if field in thing.body)


def _agents(found: Map) -> tuple[str, ...]:
    value = found.get("agent")
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(each, str) and each for each in listed) or value == []:
        raise Complaint(found.at("agent"), "agent must be the name of an agent, or a list of names")
    return tuple(listed)


def read_period(value: object) -> float | None:
    """An interval in minutes as a document writes it, None where it is none."""
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
