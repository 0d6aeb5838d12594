"""Dead letters: rows that the cloud refused, kept in the table `rejected` of the queue file, inside the transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from observer_agent.model import Answer, Batch, Fate, Reject, Row

KEEP_REJECTED = 1000
KEEP_REJECTED_SECONDS = 7 * 86400.0
TEXT_MAX = 200


def refused(batch: Batch, answer: Answer) -> list[tuple[Row, str]]:
    """The rows that become dead letters, each with the reason to keep."""
    if answer.fate is Fate.REFUSED:
        return [(row, f"status {answer.status}") for row in batch.rows]
    if answer.fate is Fate.ACCEPTED:
        return [(batch.rows[r.index], _reject_text(r)) for r in _valid(answer.rejects, len(batch))]
    return []


def _valid(rejects: Iterable[Reject], length: int) -> list[Reject]:
    return list({r.index: r for r in rejects if 0 <= r.index < length}.values())


def _reject_text(reject: Reject) -> str:
    return f"{reject.field}: {reject.code}"


def bury(tx: sqlite3.Connection, batch: Batch, letters: Sequence[tuple[Row, str]], answer: Answer, now: float) -> None:
    """Keeps refused rows: the newest 1,000 of seven days. `now` is seconds since 1970."""
    if not letters:
        return
    tx.executemany(
        "INSERT INTO rejected (queue_id, row_id, data, reason, status, answer, rejected_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (batch.queue_id, row.id, row.data, reason[:TEXT_MAX], answer.status, answer.text[:TEXT_MAX], now)
            for row, reason in letters
        ],
    )
    tx.execute("DELETE FROM rejected WHERE rejected_at < ?", (now - KEEP_REJECTED_SECONDS,))
    tx.execute(
        "DELETE FROM rejected WHERE id <= (SELECT id FROM rejected ORDER BY id DESC LIMIT 1 OFFSET ?)",
        (KEEP_REJECTED,),
    )
