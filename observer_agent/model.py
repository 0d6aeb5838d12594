"""The words of the program as frozen data: definition, reading, verdict, sample, batch, answer, health.

Nothing here knows how it is made, stored or sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from json.encoder import encode_basestring_ascii as _quoted
from types import MappingProxyType
from typing import Any, NamedTuple

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Status(StrEnum):
    """What a verdict can say."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    NO_DATA = "no_data"


class Operation(StrEnum):
    """How a value is held against a threshold; all are strict."""

    OVER = "over"
    UNDER = "under"
    EQUAL = "equal"


class Fault(StrEnum):
    """Whose fault a failed reading is."""

    TARGET = "target"
    PATH = "path"
    RESOLVER = "resolver"
    AGENT = "agent"
    CONFIG = "config"
    POLICY = "policy"


class Loss(StrEnum):
    """Every reason for which a sample that was given to the queue may not arrive."""

    CAP = "cap"
    AGE = "age"
    REFUSED = "refused"
    FENCED = "fenced"
    DAMAGED = "damaged"
    DISK_FULL = "disk_full"
    POISON = "poison"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The two rules of a definition; the healthy one is asked first."""

    healthy_operation: Operation
    healthy_value: float
    unhealthy_operation: Operation
    unhealthy_value: float


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a definition cannot run: the wire's reason code, and the text that is shown locally."""

    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Definition:
    """One thing to watch. Either `config` and `thresholds` are usable or `problem` says why not.

    `interval` and `push_interval` are seconds, at least 1. `config` is the typed configuration of the source type.
    `fingerprint` changes exactly when the job has to start afresh.
    """

    id: str
    source_type: str
    interval: float
    push_interval: float
    fingerprint: str
    config: Any = None
    thresholds: Thresholds | None = None
    problem: Problem | None = None
    title: str = ""


class Reading(NamedTuple):
    """What one look returned: a value, or none with a reason code. A tuple: two are made for every look.

    `duration_ms` and `phases` are milliseconds with three decimals. `address` is the last one that was tried, and
    `silent` says that nothing came back from it. `evidence` is what `why` shows besides. All but value and reason stay
    on this machine.
    """

    value: float | None
    reason: str | None = None
    fault: Fault | None = None
    duration_ms: float = 0.0
    phases: Mapping[str, float] = _NOTHING
    detail: Mapping[str, Any] = _NOTHING
    address: str = ""
    silent: bool = False
    evidence: Mapping[str, Any] = _NOTHING


class Verdict(NamedTuple):
    """A reading judged; `value` is 0 for no_data, `reason` is set only then."""

    status: Status
    value: float
    reason: str | None


class Past(NamedTuple):
    """A reading of a while ago, in short; `at` is seconds since 1970, `reason` also that of a value judged no data."""

    at: float
    status: Status
    value: float | None
    reason: str | None
    duration_ms: float


@dataclass(frozen=True, slots=True)
class Transition:
    """A metric's status is another than `before`, which is None for the first verdict since the definition was learnt.

    `at` is the end of the probe, seconds since 1970; `past` are the readings before this one, oldest first.
    """

    definition: Definition
    before: Status | None
    verdict: Verdict
    reading: Reading
    at: float
    past: tuple[Past, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """A verdict as the wire's row. `timestamp` is the end of the probe, ISO 8601 UTC with milliseconds."""

    metric_id: str
    value: float
    timestamp: str
    status: Status
    reason: str | None = None

    def encode(self) -> bytes:
        """The JSON object that is stored and posted, byte for byte; `value` must be finite.

        Written out by hand: this runs for every row, and is six times as fast as json.dumps.
        """
        value = self.value
        if not math.isfinite(value):
            raise ValueError("a sample's value must be finite")
        tail = f',"reason":{_quoted(self.reason)}}}' if self.reason is not None else "}"
        head = f'{{"metric_id":{_quoted(self.metric_id)},"value":{value!r},"timestamp":{_quoted(self.timestamp)}'
        return f'{head},"status":"{self.status}"{tail}'.encode("ascii")


class Row(NamedTuple):
    """A sample in the queue: its id, for life, and its JSON."""

    id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows peeked together, ascending, all of one queue id."""

    queue_id: str
    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)


class Fate(StrEnum):
    """What becomes of a batch after an answer."""

    ACCEPTED = "accepted"
    REFUSED = "refused"  # will never succeed as it stands
    FENCED = "fenced"  # another process owns the key
    TOO_LARGE = "too_large"
    LATER = "later"
    AGAIN = "again"  # at once: the dialect has changed its way of asking


@dataclass(frozen=True, slots=True)
class Reject:
    """One row of an accepted batch that the cloud does not want: its index in the batch, the field, a code."""

    index: int
    field: str
    code: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What the cloud said to a batch.

    `status` is the HTTP status, 0 where there was none. `blames` is true where the failure may lie in the rows
    (5xx, 404, 413). `retry_after` is seconds, already capped. `text` is at most 200 redacted characters.
    """

    fate: Fate
    status: int = 0
    text: str = ""
    rejects: tuple[Reject, ...] = ()
    retry_after: float | None = None
    blames: bool = False
    newer_started_at: str | None = None


class Ledger(NamedTuple):
    """The account of one queue id: `given == accepted + pending + sum(lost)` always."""

    queue_id: str
    given: int
    accepted: int
    pending: int
    lost: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Health:
    """The agent's view of itself, for one heartbeat. Ages and uptime in seconds."""

    version: str
    started_at: str
    uptime: int
    queue_depth: int
    queue_oldest_age: int
    queue_capacity: int
    source_types_active: tuple[str, ...]
    hostname: str = ""
    delivery: tuple[Ledger, ...] = ()
    custom_probes: tuple[Mapping[str, Any], ...] = ()
    otlp_stats: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Orders:
    """What the cloud said to a heartbeat: `ok` when it took it, and the version of the definitions it holds."""

    ok: bool
    status: int = 0
    definitions_version: str | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class DefinitionSet:
    """What the cloud said to a fetch: the raw rows, or None with a text when there was no usable answer."""

    rows: tuple[Any, ...] | None
    version: str | None = None
    text: str = ""
    status: int = 0
