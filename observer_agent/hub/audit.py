"""Who has changed what: one row of the `audit` table for each write, in the transaction of the write.

`record` is called by whatever changes something at a person's or a program's wish. A detail never holds a secret.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, insert

from observer_agent.hub import schema

ACTOR_MAX, ACTION_MAX, SUBJECT_MAX = 128, 64, 256
DETAIL_MAX = 2000


def record(conn: Connection, now: float, actor: str, *, action: str, subject: str, detail: str = "") -> None:
    """Keeps that `actor` (`cli:root`, `api`) did `action` (`webhook.create`) to `subject`; longer texts are cut."""
    keep(conn, now, [entry(actor, action, subject, detail)])


def entry(actor: str, action: str, subject: str, detail: str) -> dict[str, str]:
    """One row, without its time."""
    row = {"actor": actor[:ACTOR_MAX], "action": action[:ACTION_MAX], "subject": subject[:SUBJECT_MAX]}
    return {**row, "detail": detail[:DETAIL_MAX]}


def keep(conn: Connection, now: float, rows: Sequence[Mapping[str, str]]) -> None:
    """Keeps many rows at once."""
    if rows:
        conn.execute(insert(schema.audit), [{"at": now, **row} for row in rows])
