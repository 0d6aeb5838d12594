"""The `observer-agent queue` commands that change the queue: import, retry and purge of dead letters, purge.

Settings enter, and an export; a `Report` leaves. Runs on the main thread of a command, which opens the queue and so
takes the file's lock; where an agent holds it the command says so. A dry run only looks, on a read-only connection.
"""

from __future__ import annotations

import itertools
import math
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from observer_agent import config
from observer_agent.accounts import Change, Held, Lost
from observer_agent.clock import Clock
from observer_agent.config import Settings
from observer_agent.diskqueue import DiskQueue
from observer_agent.errors import QueueError, UsageError
from observer_agent.model import Loss
from observer_agent.queueaccess import (
    LOWEST,
    SHOWN,
    SLICE,
    Report,
    changing,
    changing_unless,
    meta_of,
    opening_of,
    openings_of,
    plural,
    progress,
    reading,
)
from observer_agent.queuefile import TABLE, transaction
from observer_agent.queuerows import Line, read_export, read_row

CHUNK = 10_000  # rows of one transaction of an import
PURGED_AS = Loss.AGE  # the wire has no word for an operator's purge; the rows were too old to be wanted


class Letter(NamedTuple):
    """A dead letter that may go back into the queue."""

    id: int
    data: bytes
    sample: Any  # or an event: the queue takes both


# -- import


def import_rows(settings: Settings, source: IO[bytes], skip_invalid: bool, dry_run: bool) -> Report:
    """Puts the rows of an export into the queue as new rows; nothing at all where a line is not valid.

    With `skip_invalid` those lines are left out. Rows that wait here under the same queue id and row id are skipped.
    """
    lines, wrong = read_export(source)
    facts = {"path": str(settings.buffer_path), "dry_run": dry_run, "imported": 0, "skipped": 0, "dropped": 0}
    facts |= {"invalid": len(wrong), "errors": wrong[:SHOWN], "error": None}
    if not wrong or skip_invalid:
        with changing_unless(dry_run, settings) as queue, reading(settings.buffer_path) as conn:
            new = _unknown(conn, lines)
            facts["skipped"] = len(lines) - len(new)
            if queue is None:
                room = settings.buffer_max_rows - meta_of(conn)[1]
                facts |= {"imported": len(new), "dropped": max(0, len(new) - room)}
            else:
                _put(queue, new, facts)
    return Report(facts, _import_text(facts, skip_invalid), 1 if wrong or facts["error"] else 0)


def _unknown(conn: sqlite3.Connection, lines: Iterable[Line]) -> list[Any]:
    """The samples that do not wait in this file, each once."""
    openings, new, seen = openings_of(conn), [], set()
    for line in lines:
        key = (line.queue_id, line.row_id)
        waits = f"SELECT 1 FROM {TABLE} WHERE _id = ?"
        here = line.queue_id == opening_of(openings, line.row_id) and conn.execute(waits, key[1:]).fetchone()
        if not here and key not in seen:
            new.append(line.sample)
        seen.add(key)
    return new


def _put(queue: DiskQueue, samples: Sequence[Any], facts: dict[str, Any]) -> None:
    """In transactions of 10,000 rows; what is stored when the file takes no more stays stored and is told."""
    with progress(len(samples), "Importing") as done:
        for at in range(0, len(samples), CHUNK):
            chunk = samples[at : at + CHUNK]
            try:
                facts["dropped"] += queue.put(chunk)
            except QueueError as error:
                facts["error"] = str(error)
                return
            facts["imported"] += len(chunk)
            done(len(chunk))


def _import_text(facts: dict[str, Any], skip_invalid: bool) -> str:
    would = "would be " if facts["dry_run"] else ""
    lines = [*facts["errors"]]
    if facts["invalid"] > len(lines):
        lines.append(f"and {facts['invalid'] - len(lines)} more")
    if facts["invalid"] and not skip_invalid:
        return "\n".join([*lines, "Nothing was imported; --skip-invalid leaves these lines out"])
    said = f"{plural(facts['imported'], 'row')} {would}imported as new rows"
    said += f", {facts['skipped']:,} skipped because they wait here already" if facts["skipped"] else ""
    said += f", {facts['invalid']:,} not valid" if facts["invalid"] else ""
    said += f", {facts['dropped']:,} {would}dropped to make room (counted as lost)" if facts["dropped"] else ""
    if facts["error"]:
        said += f"; then the file took no more: {facts['error']}. Another import adds those rows a second time"
    return "\n".join([*lines, said])


# -- dead letters


def retry(settings: Settings, ids: Sequence[int], everything: bool, dry_run: bool) -> Report:
    """Moves dead letters back as new rows, oldest first, as far as there is room; exit code 1 where some stay."""
    if bool(ids) == everything:
        raise UsageError("give --id N, once or more, or --all")
    with changing_unless(dry_run, settings) as queue, reading(settings.buffer_path) as conn:
        letters, failed = _letters(conn, None if everything else set(ids))
        _, rows, size, _ = meta_of(conn)
        fit = _fitting(letters, settings.buffer_max_rows - rows, (settings.buffer_max_bytes or 2**62) - size)
        failed += [f"dead letter {each.id} stays: the queue is full" for each in letters[fit:]]
        for at in range(0, fit, SLICE):
            if queue is not None:
                _requeue(queue, letters[at : min(fit, at + SLICE)])
    facts = {"path": str(settings.buffer_path), "dry_run": dry_run, "retried": fit, "failed": failed}
    will = "would go" if dry_run else "went"
    text = [f"{plural(fit, 'dead letter')} {will} back into the queue as new rows; the loss stays counted", *failed]
    return Report(facts, "\n".join(text), 1 if failed else 0)


def _letters(conn: sqlite3.Connection, ids: set[int] | None) -> tuple[list[Letter], list[str]]:
    """The dead letters that are asked for (None: all), oldest first, and why others cannot go back."""
    letters: list[Letter] = []
    found = conn.execute("SELECT id, data FROM rejected ORDER BY id").fetchall()
    failed = [f"there is no dead letter {n}" for n in sorted((ids or set()) - {row[0] for row in found})]
    for letter_id, data in found:
        if ids is None or letter_id in ids:
            try:
                letters.append(Letter(letter_id, data, read_row(data)))
            except ValueError as error:
                failed.append(f"dead letter {letter_id} stays: {error}")
    return letters, failed


def _fitting(letters: Sequence[Letter], rows: int, size: int) -> int:
    """How many of these, from the first on, find room without pushing a waiting row out."""
    sums = itertools.accumulate(len(each.data) for each in letters)
    return sum(1 for n, total in enumerate(sums, 1) if n <= rows and total <= size)


def _requeue(queue: DiskQueue, letters: Sequence[Letter]) -> None:
    """Puts dead letters; a trigger of this connection deletes them in the transaction of the put."""
    conn = queue._putter
    conn.execute("CREATE TEMP TABLE IF NOT EXISTS retried (id INTEGER PRIMARY KEY)")
    conn.executemany("INSERT INTO retried VALUES (?)", [(each.id,) for each in letters])
    conn.execute(
        f"CREATE TEMP TRIGGER IF NOT EXISTS moves AFTER INSERT ON main.{TABLE} BEGIN"
        " DELETE FROM rejected WHERE id IN (SELECT id FROM retried); DELETE FROM retried; END"
    )
    queue.put([each.sample for each in letters])


def purge_rejected(settings: Settings, older_than: str | None, dry_run: bool) -> Report:
    """Deletes dead letters, all or those of a certain age; they are counted as lost already."""
    before = Clock().now() - _age(older_than) if older_than else math.inf
    which = "FROM rejected WHERE rejected_at < ?"
    with changing_unless(dry_run, settings) as queue, reading(settings.buffer_path) as conn:
        count = conn.execute(f"SELECT count(*) {which}", (before,)).fetchone()[0]
        if queue is not None:
            with queue.tran_lock, transaction(queue._putter) as tx:
                tx.execute(f"DELETE {which}", (before,))
    facts = {"path": str(settings.buffer_path), "dry_run": dry_run, "purged": count}
    said = f"{plural(count, 'dead letter')} {'would be deleted' if dry_run else 'deleted'}"
    return Report(facts, said + "; they stay counted as lost")


def _age(text: str) -> float:
    try:
        age = config.VARIABLES["BUFFER_MAX_AGE"].parse(text)
    except ValueError:
        age = None
    if age is None:
        raise UsageError(f"--older-than {text!r}: must be a time such as 3600, 90m or 3d")
    return float(age)


# -- purge


def purge(settings: Settings, yes: bool, dry_run: bool) -> Report:
    """Deletes every waiting row and counts it as lost; without `yes` only says so, exit code 2."""
    done = yes and not dry_run
    if done:
        with changing(settings) as queue:
            rows, size = queue.depth, queue.size_bytes
            _drop_all(queue)
    else:
        with reading(settings.buffer_path) as conn:
            _, rows, size, _ = meta_of(conn)
    facts = {"path": str(settings.buffer_path), "dry_run": dry_run, "done": done, "rows": rows, "bytes": size}
    text = f"{plural(rows, 'row')} ({size:,} bytes) {'deleted' if done else 'would be deleted'}"
    text += f" from {settings.buffer_path}; counted as lost: {PURGED_AS}"
    text += "" if done or dry_run else ". Nothing was deleted: add --yes"
    return Report({**facts, "counted_as": PURGED_AS.value}, text, 0 if done or dry_run else 2)


@contextmanager
def _transaction(queue: DiskQueue) -> Iterator[sqlite3.Connection]:
    """All or nothing, with what changes of the runs; hold `tran_lock`."""
    try:
        with transaction(queue._putter) as tx:
            yield tx
            queue.rows.write(tx)
        queue.rows.commit()
    finally:
        queue.rows.rollback()


def _drop_all(queue: DiskQueue) -> None:
    """In one transaction: the rows leave, are counted under their queue ids, and hand no head on."""
    lost: Lost = Counter()
    high = f"SELECT max(_id) FROM (SELECT _id FROM {TABLE} WHERE _id > ? ORDER BY _id LIMIT {SLICE})"
    with queue.tran_lock, progress(queue.depth, "Purging") as done:
        with _transaction(queue) as tx:
            last = LOWEST
            while (upto := tx.execute(high, (last,)).fetchone()[0]) is not None:
                rows = queue.rows.between(tx, last + 1, upto)
                queue.rows.hand_over(tx, rows, False)
                lost += queue.accounts.count([row.id for row in rows], PURGED_AS)
                last = upto
                done(len(rows))
            tx.execute(f"DELETE FROM {TABLE}")
            change = Change(Held(queue.accounts.held.next_id, 0, 0, 0, None), lost)
            queue.accounts.write(tx, change)
        queue.accounts.take(change)
