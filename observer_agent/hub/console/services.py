"""The pages about services: what was promised of them and what was kept, and which status pages there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flask import request
from sqlalchemy import Connection
from werkzeug.exceptions import NotFound

from observer_agent.hub import objectives
from observer_agent.hub.console import facts
from observer_agent.hub.console.metrics import bars
from observer_agent.hub.console.parts import Parts, cut, show
from observer_agent.hub.console.status import documents
from observer_agent.hub.console.words import OBJECTIVES
from observer_agent.hub.objectives import Objective, Outcome, Service

STRIP_DAYS = 30
SERVICES_SHOWN = 50
PAGES_SHOWN = 200


class Services:
    """The views."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def index(self) -> str:
        """Every service with its objectives, those that miss one first, and the status pages."""
        text = request.args.get("text", "").strip()
        with self._parts.store.database.read() as conn:
            found = objectives.services(conn)
            pages = documents(conn)
        wanted = [each for each in found if text.casefold() in _haystack(each)]
        kept = objectives.outcomes(self._parts.history, [one for each in wanted for one in each.objectives])
        order = sorted(wanted, key=lambda each: (_rank(each, kept), each.name.casefold(), each.key))
        shown = cut(order, SERVICES_SHOWN)
        with self._parts.store.database.read() as conn:
            now = self._now(conn, shown.rows)
        given = {"any": bool(found), "text": text, "pages": pages[:PAGES_SHOWN], "pages_in_all": len(pages)}
        return show("services.html", services=shown, kept=kept, now=now, **given)

    def detail(self) -> str:
        """One service: its objectives in full."""
        with self._parts.store.database.read() as conn:
            service = next(iter(objectives.services(conn, [request.args.get("key", "")])), None)
            if service is None:
                raise NotFound("there is no such service")
            now = self._now(conn, [service])
        kept = objectives.outcomes(self._parts.history, service.objectives)
        days = self._parts.history.daily([each.metric_id for each in service.objectives if each.metric_id], STRIP_DAYS)
        at = self._parts.clock.now()
        strips = {metric_id: bars(known, at, STRIP_DAYS) for metric_id, known in days.items()}
        return show("service.html", service=service, kept=kept, now=now, strips=strips)

    def _now(self, conn: Connection, services: Sequence[Service]) -> dict[str, facts.Entry]:
        """The worst word on each metric that the services name, by the metric's id."""
        ids = {one.metric_id for each in services for one in each.objectives if one.metric_id}
        found: dict[str, facts.Entry] = {}
        for each in facts.chosen(facts.entries(conn, self._parts.clock.now(), list(ids)), facts.Wish(), {}):
            found.setdefault(each.metric.id, each)
        return found


def _rank(service: Service, kept: Mapping[Objective, Outcome]) -> int:
    return min((OBJECTIVES[kept[each].state].rank for each in service.objectives), default=9)


def _haystack(service: Service) -> str:
    names: list[Any] = [service.key, service.name, *(each.name for each in service.objectives)]
    return "\n".join((*names, *(each.metric for each in service.objectives))).casefold()
