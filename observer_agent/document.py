"""Documents of definitions, `apiVersion: observer/v1` (reference/observer-yaml.md): text in, metrics and warnings out.

YAML is composed to nodes by ruamel.yaml's pure parser and read from there, so that every complaint names its line and
no tag of the text ever makes an object; aliases are followed up to a bound. What is not understood is named in a
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

API_VERSION = "observer/v1"
NAMESPACE = "observer:metric:"
NO_PROBE = "manual"
TEXT_MAX = 8 * 1024 * 1024
VALUES_MAX = 200_000
DEPTH_MAX = 40
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
    """One metric: `agent` names whom it is for, none for everybody; `wire` is CONTRACT.md's definition, and a title."""

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


class Map(dict[str, Any]):
    """A mapping that remembers its line, and that of each key."""

    line = 0

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, int] = {}

    def at(self, name: str) -> int:
        """The line of a field, or that of the mapping where the field is absent."""
        return self.lines.get(name, self.line)


class _Complaint(Exception):
    """Something at a line is not understood."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line
        self.text = text


def read(text: str, source: str, check: Check | None = None) -> Document:
    """Reads a document; `check` may refuse a `source_config` by raising InvalidConfig. Raises DocumentError."""
    return _Reader(source, check).read(text)


class _Reader:
    def __init__(self, source: str, check: Check | None) -> None:
        self._source = source
        self._check = check
        self._warnings: list[tuple[int, str]] = []
        self._values = 0

    def read(self, text: str) -> Document:
        try:
            top = self._top(text)
        except _Complaint as complaint:
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
            self._warn(found.at(name), f"unknown {noun} {_shown(name)} is ignored")

    # -- the document

    def _top(self, text: str) -> Map:
        if len(text) > TEXT_MAX:
            raise _Complaint(1, f"the document is larger than {TEXT_MAX} characters: split it")
        node = _compose(text)
        top = self._value(node, ()) if node is not None else None
        if not isinstance(top, Map):
            raise _Complaint(1, f"not a mapping: begin with `apiVersion: {API_VERSION}` and `metrics:`")
        version = top.get("apiVersion")
        if version != API_VERSION:
            said = "is missing" if version is None else f"is {_shown(version)}"
            raise _Complaint(top.at("apiVersion"), f"apiVersion {said}: write `apiVersion: {API_VERSION}`")
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
                    raise _Complaint(each.at("key"), f"the key {_shown(key)} comes twice; the first one counts")
            except _Complaint as complaint:
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
                    raise _Complaint(each.at("key"), "the key comes twice, the first one counts")
                if metric.wire["id"] in ids:
                    raise _Complaint(each.at("id"), "the id comes twice, the first one counts")
            except _Complaint as complaint:
                self._warn(complaint.line, f"metric {_shown(each.get('key'))} is left out: {complaint.text}")
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
            raise _Complaint(line or found.at("source_config"), f"source_config: {error}") from None

    def _minutes(self, found: Map, name: str, default: float) -> float:
        """An interval in minutes, from a number of minutes or a text like `30s`, `5m`, `1h`; at least one second."""
        value = found.get(name)
        if value is None:
            return default
        minutes = _period(value)
        if minutes is None or not 0 < minutes <= LONGEST_MINUTES:
            raise _Complaint(found.at(name), f"{name}: {_shown(value)} is no interval: write minutes, or `30s`, `5m`")
        if minutes < FLOOR_MINUTES:
            self._warn(found.at(name), f"{name}: {_shown(value)} is below one second; one second is used")
        return max(minutes, FLOOR_MINUTES)

    def _rules(self, found: Map) -> dict[str, Any]:
        rules = _mapping(found, "thresholds")
        self._unknown(rules, frozenset(RULES), "field of thresholds")
        for name in RULES:
            value = rules.get(name)
            if name.endswith("_operation") and value not in tuple(Operation):
                raise _Complaint(rules.at(name), f"thresholds: {name} must be over, under or equal")
            if name.endswith("_value") and not _is_number(value):
                raise _Complaint(rules.at(name), f"thresholds: {name} must be a number")
        return {name: rules[name] for name in RULES}

    # -- nodes to values

    def _value(self, node: Any, above: tuple[int, ...]) -> Any:
        """A node as plain data; refuses what contains itself, is too deep or grows too large through aliases."""
        line = node.start_mark.line + 1
        self._values += 1
        if self._values > VALUES_MAX:
            raise _Complaint(line, f"more than {VALUES_MAX} values, aliases followed: write it with fewer aliases")
        if id(node) in above or len(above) > DEPTH_MAX:
            raise _Complaint(line, f"nested deeper than {DEPTH_MAX}, or in itself: write it without that alias")
        above = (*above, id(node))
        if node.id == "mapping":
            return self._map(node, line, above)
        if node.id == "sequence":
            return [self._value(each, above) for each in node.value]
        return _scalar(node)

    def _map(self, node: Any, line: int, above: tuple[int, ...]) -> Map:
        found = Map()
        found.line = line
        merged: list[Any] = []
        for key, value in node.value:
            at = key.start_mark.line + 1
            if key.id != "scalar":
                self._warn(at, "a key that is not a plain text is ignored")
            elif key.tag == "tag:yaml.org,2002:merge":
                merged += value.value if value.id == "sequence" else [value]
            elif (name := _mended(key.value)) in found:
                self._warn(at, f"the field {_shown(name)} comes twice; the first one counts")
            else:
                found[name] = self._value(value, above)
                found.lines[name] = at
        for each in merged:
            self._merge(found, each, above)
        return found

    def _merge(self, found: Map, node: Any, above: tuple[int, ...]) -> None:
        """`<<`: fields of another mapping where this one has none of its own."""
        other = self._value(node, above)
        if not isinstance(other, Map):
            raise _Complaint(node.start_mark.line + 1, "`<<` takes a mapping or a list of mappings")
        for name, value in other.items():
            if name not in found:
                found[name], found.lines[name] = value, other.at(name)


def metric_id(key: str) -> str:
    """The id of a metric that gives none: the same wherever its document is read."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, NAMESPACE + key))


def _compose(text: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _Complaint(line, f"not YAML ({error.problem or error.context}): correct this line") from None
    except (YAMLError, ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise _Complaint(1, f"not YAML ({type(error).__name__}): correct the text") from None
    except RecursionError:
        raise _Complaint(1, "nested too deeply: write it flatter") from None


def _scalar(node: Any) -> Any:
    """None, a bool, an int, a finite float, or the text as it was written."""
    text, kind = _mended(node.value), str(node.tag).rpartition(":")[2]
    if node.style is not None or kind not in ("null", "bool", "int", "float"):
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in ("true", "yes", "on", "y")
    try:
        return _integer(text.replace("_", "")) if kind == "int" else _finite(text.replace("_", ""))
    except (ValueError, OverflowError):
        return text


def _mended(text: str) -> str:
    """JSON writes a character beyond 16 bits as two escapes; halves that stay alone, and NUL, cannot be stored."""
    if text.isascii() and "\0" not in text:
        return text
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole.replace("\0", "\ufffd")


def _integer(text: str) -> int:
    return int(text, 0) if text.lstrip("+-")[:2].lower() in ("0x", "0o", "0b") else int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def _name(found: Map, name: str) -> str:
    """A text of 1 to 128 characters that must be there; a number counts as its text."""
    value = found.get(name)
    if value is None:
        raise _Complaint(found.at(name), f"{name} is missing")
    if isinstance(value, bool) or not isinstance(value, str | int) or not 1 <= len(str(value)) <= NAME_MAX:
        raise _Complaint(found.at(name), f"{name} must be a text of 1 to {NAME_MAX} characters")
    return str(value)


def _text(found: Map, name: str, default: str) -> str:
    value = found.get(name)
    if value is None:
        return default
    if isinstance(value, dict | list):
        raise _Complaint(found.at(name), f"{name} must be a text")
    return str(value)


def _mapping(found: Map, name: str) -> Map:
    value = found.get(name)
    if value is None:
        value = Map()
        value.line = found.at(name)
    if not isinstance(value, Map):
        raise _Complaint(found.at(name), f"{name} must be a mapping")
    return value


def _agents(found: Map) -> tuple[str, ...]:
    value = found.get("agent")
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(each, str) and each for each in listed) or value == []:
        raise _Complaint(found.at("agent"), "agent must be the name of an agent, or a list of names")
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


def _shown(value: object) -> str:
    """A name in a warning: short, on one line; no more of a value than that."""
    return "without a key" if value is None else repr(str(value)[:64])
