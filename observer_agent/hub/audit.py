"""Who has changed what: one row of the `audit` table for each write, in the transaction of the write.

`record` is called by whatever changes something at a person's or a program's wish. A detail never holds a secret.
"""

from __future__ import annotations

from sqlalchemy import Connection, insert

from observer_agent.hub import schema

ACTOR_MAX, ACTION_MAX, SUBJECT_MAX = 128, 64, 256
DETAIL_MAX = 2000


def record(conn: Connection, now: float, actor: str, *, action: str, subject: str, detail: str = "") -> None:
    """Keeps that `actor` (`cli:root`, `api`) did `action` (`webhook.create`) to `subject`; longer texts are cut."""
    row = {"actor": actor[:ACTOR_MAX], "action": action[:ACTION_MAX], "subject": subject[:SUBJECT_MAX]}
    conn.execute(insert(schema.audit).values(at=now, detail=detail[:DETAIL_MAX], **row))
