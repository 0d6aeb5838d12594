"""The public status pages: one for each entry of `pages:` in the operator's document."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from flask import render_template
from sqlalchemy import Connection, select
from werkzeug.exceptions import NotFound

from observer_agent.hub import schema
from observer_agent.hub.console import facts
from observer_agent.hub.console.facts import Entry
from observer_agent.hub.console.metrics import bars
from observer_agent.hub.console.parts import Parts, cut
from observer_agent.hub.console.words import PUBLIC
from observer_agent.hub.form import PAGE, ids_of
from observer_agent.hub.rollup import Sums, together

BAR_DAYS = 90
ENTRIES_SHOWN = 100


class Item(NamedTuple):
    """One line of a status page."""

    title: str
    status: str
    bars: list[Any]
    total: Sums
    trouble: list[tuple[str, float]]


class Status:
    """The view."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def page(self, subdomain: str) -> str:
        """Groups of metrics, how they are and how they were: no ids, no values, no reasons."""
        now = self._parts.clock.now()
        with self._parts.store.database.read() as conn:
            page = next((each for each in documents(conn) if each.get("subdomain") == subdomain), None)
            if page is None:
                raise NotFound("there is no such status page")
            wanted = _wanted(conn, page)
            found: dict[str, list[Entry]] = {}
            for entry in facts.entries(conn, now, list({metric_id for _, metric_id in wanted})):
                found.setdefault(entry.metric.id, []).append(entry)
        worst = min((each.status for _, metric_id in wanted for each in found[metric_id]), key=_rank, default="nothing")
        shown = cut(wanted, ENTRIES_SHOWN)
        groups = self._groups(shown.rows, found, now)
        given = {"worst": worst, "now": now, "layout": "public.html", "days": BAR_DAYS}
        return render_template("status.html", page=page, groups=groups, shown=shown, **given)

    def _groups(
        self, wanted: Sequence[tuple[str, str]], found: dict[str, list[Entry]], now: float
    ) -> list[tuple[str, list[Item]]]:
        days = self._parts.history.daily([metric_id for _, metric_id in wanted], BAR_DAYS) if wanted else {}
        groups: dict[str, list[Item]] = {}
        for group, metric_id in wanted:
            groups.setdefault(group, []).append(_item(found[metric_id], days.get(metric_id, {}), now))
        return list(groups.items())


def _wanted(conn: Connection, page: dict[str, Any]) -> list[tuple[str, str]]:
    """Group and metric id of each entry whose metric is there, those of a group together, in the page's order."""
    listed = [each for each in page.get("metrics") or [] if isinstance(each, dict)]
    ids = ids_of(conn, {str(each.get("metric")) for each in listed})
    groups: dict[str, list[str]] = {}
    for each in sorted(listed, key=lambda one: _order(one.get("order"))):
        metric_id = ids.get(str(each.get("metric")))
        if metric_id is not None:
            groups.setdefault(str(each.get("group") or ""), []).append(metric_id)
    return [(group, metric_id) for group, members in groups.items() for metric_id in members]


def documents(conn: Connection) -> list[dict[str, Any]]:
    """The status pages, as the operator has described them."""
    objects = schema.objects
    rows = conn.execute(select(objects.c.body).where(objects.c.kind == PAGE).order_by(objects.c.key))
    return [body for body in (json.loads(row.body) for row in rows) if isinstance(body, dict)]


def _item(entries: list[Entry], known: dict[int, Sums], now: float) -> Item:
    shown = bars(known, now, BAR_DAYS)
    total = together(s for _, _, s in shown if s)
    trouble = [(date, s.percent) for date, _, s in shown if s and s.percent is not None and s.degraded + s.down > 0]
    worst = min((each.status for each in entries), key=_rank)
    return Item(entries[0].metric.title, worst, shown, total, trouble)


def _rank(status: str) -> int:
    word = PUBLIC.get(status)
    return word.rank if word else 3


def _order(given: Any) -> float:
    return float(given) if isinstance(given, int | float) else float("inf")
