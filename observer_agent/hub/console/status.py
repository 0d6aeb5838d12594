"""The public status pages: one for each entry of `pages:` in the operator's document."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from flask import render_template
from sqlalchemy import Connection, select
from werkzeug.exceptions import NotFound

from observer_agent.hub import schema
from observer_agent.hub.console import facts
from observer_agent.hub.console.facts import DAY, Entry, Shares
from observer_agent.hub.console.metrics import bars
from observer_agent.hub.console.parts import Parts
from observer_agent.hub.console.words import PUBLIC

BAR_DAYS = 90
KIND = "page"


class Item(NamedTuple):
    """One line of a status page."""

    title: str
    status: str
    bars: list[Any]
    total: Shares
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
            groups = _groups(conn, page, now)
        worst = min((item.status for _, items in groups for item in items), key=_rank, default="nothing")
        return render_template(
            "status.html", page=page, groups=groups, worst=worst, now=now, layout="public.html", days=BAR_DAYS
        )


def documents(conn: Connection) -> list[dict[str, Any]]:
    """The status pages, as the operator has described them."""
    objects = schema.objects
    rows = conn.execute(select(objects.c.body).where(objects.c.kind == KIND).order_by(objects.c.key))
    return [body for body in (json.loads(row.body) for row in rows) if isinstance(body, dict)]


def _groups(conn: Connection, page: dict[str, Any], now: float) -> list[tuple[str, list[Item]]]:
    wanted = [each for each in page.get("metrics") or [] if isinstance(each, dict)]
    metrics = schema.metrics
    keys = [each.get("metric") for each in wanted]
    ids = {row.key: row.id for row in conn.execute(select(metrics.c.key, metrics.c.id).where(metrics.c.key.in_(keys)))}
    found: dict[str, list[Entry]] = {}
    for entry in facts.entries(conn, now, list(ids.values())):
        found.setdefault(entry.metric.id, []).append(entry)
    days = facts.daily(conn, list(ids.values()), now - BAR_DAYS * DAY)
    groups: dict[str, list[Item]] = {}
    for each in sorted(wanted, key=lambda one: _order(one.get("order"))):
        metric_id = ids.get(each.get("metric"))
        if metric_id is not None:
            item = _item(found[metric_id], days.get(metric_id, {}), now)
            groups.setdefault(str(each.get("group") or ""), []).append(item)
    return list(groups.items())


def _item(entries: list[Entry], known: dict[int, Shares], now: float) -> Item:
    shown = bars(known, now, BAR_DAYS)
    total = facts.together(s for _, _, s in shown if s)
    trouble = [(date, s.percent) for date, _, s in shown if s and s.percent is not None and s.degraded + s.down > 0]
    worst = min((each.status for each in entries), key=_rank)
    return Item(entries[0].metric.title, worst, shown, total, trouble)


def _rank(status: str) -> int:
    word = PUBLIC.get(status)
    return word.rank if word else 3


def _order(given: Any) -> float:
    return float(given) if isinstance(given, int | float) else float("inf")
