"""The pages about what has happened: events, and the audit log."""

from __future__ import annotations

from flask import request
from sqlalchemy import select

from observer_agent.hub import schema
from observer_agent.hub.console import facts
from observer_agent.hub.console.parts import Parts, show

SHOWN = 200


class Journal:
    """The views."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def events(self) -> str:
        """The last events, of one kind where one is named; `before` leads to older ones."""
        events = schema.events
        kind, query = request.args.get("kind", ""), select(events).order_by(events.c.id.desc()).limit(SHOWN + 1)
        if kind:
            query = query.where(events.c.event_type == kind)
        if before := _number(request.args.get("before", "")):
            query = query.where(events.c.id < before)
        with self._parts.store.database.read() as conn:
            rows = list(conn.execute(query))
            told = facts.told(conn, rows[:SHOWN])
            kinds = list(conn.scalars(select(events.c.event_type).distinct().order_by(events.c.event_type)))
        older = rows[SHOWN - 1].id if len(rows) > SHOWN else None
        return show("events.html", events=told, kinds=kinds, kind=kind, older=older)

    def audit(self) -> str:
        """Who changed what, the newest first."""
        audit = schema.audit
        query = select(audit).order_by(audit.c.id.desc()).limit(SHOWN + 1)
        if before := _number(request.args.get("before", "")):
            query = query.where(audit.c.id < before)
        with self._parts.store.database.read() as conn:
            rows = list(conn.execute(query))
        return show("audit.html", rows=rows[:SHOWN], older=rows[SHOWN - 1].id if len(rows) > SHOWN else None)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None
