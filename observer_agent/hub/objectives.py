"""Objectives of services (SLOs): what a document promises of a metric, and how much of that was kept.

An objective is kept while the share of the known time in which its metric was healthy or degraded, over the last
`window_days` UTC days with today, is at least `target_pct`. What the target leaves is the error budget. Services come
out of `objects`, seconds out of the roll-ups; runs on the threads of the server.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, select

from observer_agent.hub import schema
from observer_agent.hub.form import SERVICE, ids_of
from observer_agent.hub.history import History
from observer_agent.hub.rollup import Sums

NOTHING, KEPT, MISSED = "nothing", "kept", "missed"


class Objective(NamedTuple):
    """One promise of a service; `metric_id` is None where the hub has no such metric."""

    service: str
    key: str
    name: str
    metric: str
    metric_id: str | None
    target_pct: float
    window_days: int


class Service(NamedTuple):
    """A service as a document describes it."""

    key: str
    name: str
    description: str
    objectives: tuple[Objective, ...]


class Outcome(NamedTuple):
    """What became of an objective: the seconds known and not kept, those of several agents averaged."""

    target_pct: float
    known: float = 0.0
    bad: float = 0.0

    @property
    def state(self) -> str:
        """Whether it is kept; `nothing` where nothing is known yet."""
        return NOTHING if self.known <= 0 else MISSED if self.left < 0 else KEPT

    @property
    def attained_pct(self) -> float | None:
        """The share of the known time that was good."""
        return (self.known - self.bad) / self.known * 100 if self.known > 0 else None

    @property
    def budget(self) -> float:
        """The seconds that may be bad, of those that are known."""
        return self.known * (100 - self.target_pct) / 100

    @property
    def left(self) -> float:
        """What is left of the budget; below zero where more was spent than there was. Rounding spends nothing."""
        return round(self.budget - self.bad, 3)

    @property
    def left_pct(self) -> float | None:
        """The same as a share of the budget, at least 0; None where nothing is known."""
        if self.known <= 0:
            return None
        if self.left <= 0 or self.budget <= 0:
            return 100.0 if self.bad == 0 else 0.0
        return min(100.0, self.left / self.budget * 100)


def services(conn: Connection, keys: Collection[str] | None = None) -> list[Service]:
    """All services, or some, by key."""
    objects = schema.objects
    query = select(objects.c.key, objects.c.body).where(objects.c.kind == SERVICE).order_by(objects.c.key)
    if keys is not None:
        query = query.where(objects.c.key.in_(keys))
    found = [(row.key, body) for row in conn.execute(query) if isinstance(body := json.loads(row.body), dict)]
    ids = ids_of(conn, {str(slo.get("metric")) for _, body in found for slo in body.get("slos") or []})
    return [_service(key, body, ids) for key, body in found]


def outcomes(history: History, wanted: Sequence[Objective]) -> dict[Objective, Outcome]:
    """What became of some objectives; one question for each length of window among them."""
    found: dict[Objective, Outcome] = {}
    for days in {each.window_days for each in wanted}:
        same = [each for each in wanted if each.window_days == days]
        ids = sorted({each.metric_id for each in same if each.metric_id})
        seen = history.seen(ids, days) if ids else {}
        found |= {each: outcome(each.target_pct, seen.get(each.metric_id or "", ())) for each in same}
    return {each: found[each] for each in wanted}


def outcome(target_pct: float, agents: Iterable[Sums]) -> Outcome:
    """The outcome of what each agent saw; agents that know nothing do not count."""
    known = [each for each in agents if each.percent is not None]
    if not known:
        return Outcome(target_pct)
    seconds = sum(each.up + each.degraded + each.down for each in known) / len(known)
    return Outcome(target_pct, seconds, sum(each.down for each in known) / len(known))


def _service(key: str, body: dict[str, Any], ids: dict[str, str]) -> Service:
    listed = tuple(_objective(key, slo, ids) for slo in body.get("slos") or [])
    return Service(key, str(body.get("name") or key), str(body.get("description") or ""), listed)


def _objective(service: str, slo: dict[str, Any], ids: dict[str, str]) -> Objective:
    metric = str(slo.get("metric"))
    name = str(slo.get("name") or slo.get("key"))
    return Objective(service, str(slo.get("key")), name, metric, ids.get(metric), slo["target_pct"], slo["window_days"])
