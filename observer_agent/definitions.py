"""Definitions: when to fetch them, what they mean, and the last good set on disk.

Raw rows come from the cloud or from a local document; `understand` makes each one a `Definition`, or one that carries
its problem. `Definitions.step` runs on the thread `definitions`; `signal` is called from `beat`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from observer_agent import backoff
from observer_agent.clock import Clock
from observer_agent.errors import DocumentError, InvalidConfig
from observer_agent.model import Definition, DefinitionSet, Operation, Problem, Thresholds

log = logging.getLogger(__name__)

REGULAR = 300.0
EAGER = 30.0
EAGER_FOR = 600.0
LONGEST = 366 * 24 * 60.0  # minutes; a longer interval counts as this
CLOUD_SIDE = ("manual", "heartbeat")  # source types without a probe
GAP = 10.0  # between two fetches that a heartbeat asks for
FILE_EVERY = 5.0
_ID = re.compile(r".{1,128}", re.DOTALL)
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_FINGERPRINT = (
    "interval",
    "interval_agent_push",
    "source_type",
    "source_config",
    "query",
    "healthy_operation",
    "healthy_value",
    "unhealthy_operation",
    "unhealthy_value",
)

Parse = Callable[[str, Mapping[str, Any]], Any]
Apply = Callable[[list[Definition]], object]


class Cloud(Protocol):
    """What the definitions ask of the cloud."""

    def definitions(self) -> DefinitionSet:
        """Fetches the set."""


# -- what a row means


def understand_all(rows: Iterable[Any], parse: Parse, known: Container[str]) -> list[Definition]:
    """Every row that has an id; rows without one cannot be reported and are logged, of doubles the first counts.

    Rows that the cloud evaluates by itself are left out: a verdict of ours would overwrite its own.
    """
    found: dict[str, Definition] = {}
    for at, row in enumerate(rows):
        if _is_cloud_side(row):
            continue
        metric_id = row.get("id") if isinstance(row, Mapping) else None
        if not isinstance(metric_id, str) or not _is_id(metric_id):
            log.warning("Definition number %d has no usable id and is left out", at)
        elif metric_id in found:
            log.warning("Definition %r comes twice; the first one counts", metric_id)
        else:
            found[metric_id] = understand(row, parse, known)
    return list(found.values())


def cloud_side(rows: Iterable[Any]) -> tuple[str, ...]:
    """The ids of the rows that no agent looks at, because the cloud evaluates them by itself."""
    return tuple(sorted(str(row.get("id")) for row in rows if _is_cloud_side(row)))


def _is_cloud_side(row: object) -> bool:
    return isinstance(row, Mapping) and row.get("source_type") in CLOUD_SIDE


def _is_id(text: str) -> bool:
    """1 to 128 characters that can be written: a lone surrogate is valid JSON, and cannot."""
    return bool(_ID.fullmatch(text)) and not any(0xD800 <= ord(c) < 0xE000 for c in text)


def understand(row: Mapping[str, Any], parse: Parse, known: Container[str]) -> Definition:
    """One row as a definition; what cannot be understood becomes its problem, never an exception."""
    source_type = row.get("source_type") or "prometheus"
    config, thresholds, problem = None, None, None
    if not isinstance(source_type, str) or source_type not in known:
        problem = Problem("unknown_source_type", f"source_type: {str(source_type)[:64]!r} is not known to this version")
        source_type = str(source_type)[:64]
    else:
        try:
            config = parse(source_type, _config(row, source_type))
            thresholds = _thresholds(row)
        except InvalidConfig as error:
            problem = Problem("invalid_config", str(error))
    return Definition(
        id=row["id"],
        source_type=source_type,
        interval=seconds(row.get("interval"), 1.0),
        push_interval=seconds(row.get("interval_agent_push"), 5.0),
        fingerprint=fingerprint(row),
        config=config,
        thresholds=thresholds,
        problem=problem,
        title=str(row.get("title") or "")[:200],
    )


def fingerprint(row: Mapping[str, Any]) -> str:
    """Changes exactly when the job has to start afresh (docs/wire.md lists the fields); null equals absent."""
    facts = {name: row[name] for name in _FINGERPRINT if row.get(name) is not None}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def seconds(minutes: object, default: float) -> float:
    """Minutes of the wire as seconds, to the millisecond, at least 1; `default` minutes for anything else."""
    value = number(minutes)
    if value is None or value <= 0:
        value = default
    return max(1.0, round(min(value, LONGEST) * 60_000) / 1000)


def number(value: object) -> float | None:
    """A finite JSON number, or a text that holds a plain decimal one; None for anything else."""
    if isinstance(value, str) and len(value) <= 64 and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def _config(row: Mapping[str, Any], source_type: str) -> Mapping[str, Any]:
    config = row.get("source_config")
    config = dict(config) if isinstance(config, Mapping) else {}
    if source_type == "prometheus" and not config.get("query") and isinstance(row.get("query"), str):
        if "scrape_url" not in config:
            config["query"] = row["query"]
    return config


def _thresholds(row: Mapping[str, Any]) -> Thresholds:
    problems: list[str] = []
    operations: list[Operation] = []
    values: list[float] = []
    for side in ("healthy", "unhealthy"):
        operation, value = row.get(f"{side}_operation"), number(row.get(f"{side}_value"))
        if operation in tuple(Operation):
            operations.append(Operation(operation))
        else:
            problems.append(f"{side}_operation: must be over, under or equal")
        if value is None:
            problems.append(f"{side}_value: must be a number")
        else:
            values.append(value)
    if problems:
        raise InvalidConfig(*problems)
    return Thresholds(operations[0], values[0], operations[1], values[1])


# -- where sets come from


class Store:
    """The last good set, in a file beside the queue: written by atomic replace, mode 0600."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def load(self) -> list[Any]:
        """The rows, or none when there is no readable file."""
        try:
            content = json.loads(self._file.read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            log.warning("The stored definitions in %s cannot be read (%s); the cloud is asked", self._file, error)
            return []
        rows = content.get("definitions") if isinstance(content, dict) else None
        return rows if isinstance(rows, list) else []

    def save(self, rows: Iterable[Any]) -> None:
        """Replaces the file; a disk that refuses costs only the next start without the cloud."""
        fresh = self._file.with_name(self._file.name + ".new")
        try:
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as handle:
                handle.write(json.dumps({"definitions": list(rows)}).encode())
                handle.flush()
                os.fsync(handle.fileno())
            fresh.replace(self._file)
        except OSError as error:
            log.warning("The definitions could not be stored in %s: %s", self._file, error.strerror)


class Definitions:
    """Fetches from the cloud by the rules of docs/wire.md, "When to fetch"."""

    def __init__(self, cloud: Cloud, store: Store, clock: Clock, apply: Callable[[tuple[Any, ...]], object]) -> None:
        self._cloud = cloud
        self._store = store
        self._clock = clock
        self._apply = apply
        self._started = clock.monotonic()
        self._next = self._started
        self._asked = math.inf
        self._last_try = -math.inf
        self._failures = 0
        self._filled = False
        self._saved: str | None = None
        self._signalled: str | None = None
        self.version: str | None = None
        self.last_ok: float | None = None
        self.last_text = ""
        self.wake: Callable[[], object] = lambda: None

    def check(self) -> None:
        """Nothing can be wrong before the cloud has been asked."""

    def start(self) -> None:
        """Applies the stored set, so that an agent that starts while the cloud is away goes on probing."""
        rows = self._store.load()
        if rows:
            log.info("%d stored definitions are used until the cloud answers", len(rows))
            self._apply(tuple(rows))

    def signal(self, version: str | None) -> None:
        """A heartbeat's `definitions_version`; one that differs is fetched once, at least 10 s after the last try."""
        if version is None or version in (self.version, self._signalled):
            return
        self._signalled = version
        self._asked = max(self._clock.monotonic(), self._last_try + GAP)
        self.wake()

    def refresh(self) -> None:
        """Fetches at the next turn, whatever the schedule says."""
        self._asked = self._clock.monotonic()
        self.wake()

    def step(self) -> float:
        """One fetch if it is time; returns the seconds until the next."""
        now = self._clock.monotonic()
        if now >= min(self._next, self._asked):
            self._last_try, self._asked = now, math.inf  # what is asked from here on wants a fetch of its own
            answer = self._cloud.definitions()
            wait = self._failed(answer) if answer.rows is None else self._take(answer)
            self._next = self._clock.monotonic() + wait
        return max(0.0, min(self._next, self._asked) - self._clock.monotonic())

    def _failed(self, answer: DefinitionSet) -> float:
        self._failures += 1
        wait = backoff.fetch(self._failures)
        self.last_text = answer.text
        log.warning(
            "The definitions could not be fetched (status %d: %r); next try in %.0f s", answer.status, answer.text, wait
        )
        return wait

    def _take(self, answer: DefinitionSet) -> float:
        rows = answer.rows or ()
        self._failures, self.version, self.last_text = 0, answer.version, ""
        self.last_ok = self._clock.now()
        self._filled = self._filled or bool(rows)
        self._apply(rows)
        digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
        if digest != self._saved:
            self._store.save(rows)
            self._saved = digest
        young = self._clock.monotonic() - self._started < EAGER_FOR
        return EAGER if young and not self._filled else REGULAR


class DefinitionsFile:
    """Takes the definitions from a local document alone, and looks every five seconds whether it has changed."""

    def __init__(
        self, file: Path, read: Callable[[Path], list[Any]], apply: Callable[[tuple[Any, ...]], object]
    ) -> None:
        self._file = file
        self._read = read
        self._apply = apply
        self._seen: tuple[int, int] | None = None
        self.wake: Callable[[], object] = lambda: None
        self.version: str | None = None
        self.last_ok: float | None = None
        self.last_text = ""

    def check(self) -> None:
        """Reads the document and lets go of it again; raises DocumentError when it cannot be used."""
        self._read(self._file)

    def start(self) -> None:
        """Reads the document; raises DocumentError when it cannot be used."""
        self._seen = self._stamp()
        self._apply(tuple(self._read(self._file)))

    def signal(self, version: str | None) -> None:
        """The cloud's versions do not count here."""

    def refresh(self) -> None:
        """Reads the document again at the next turn."""
        self._seen = None
        self.wake()

    def step(self) -> float:
        """Reads the document again if it has changed; one that cannot be used leaves the last good set."""
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._apply(tuple(self._read(self._file)))
                self.last_text = ""
                log.info("The definitions were read again from %s", self._file)
            except DocumentError as error:
                self.last_text = str(error)
                log.error("%s; the definitions stay as they were", error)
        return FILE_EVERY

    def _stamp(self) -> tuple[int, int] | None:
        try:
            facts = self._file.stat()
        except OSError:
            return None
        return facts.st_mtime_ns, facts.st_size
