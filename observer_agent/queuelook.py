"""The `observer-agent queue` commands that only look: verify, export, the list of dead letters.

Settings enter, a `Report` leaves, and of an export the rows, to stdout or a file. Runs on the main thread of a command,
on a read-only connection, whether an agent runs or not.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from observer_agent.config import Settings
from observer_agent.errors import QueueError, UsageError
from observer_agent.queueaccess import (
    BROKEN,
    LOWEST,
    SHOWN,
    Opening,
    Report,
    meta_of,
    opening_of,
    openings_of,
    plural,
    progress,
    reading,
    slices,
    when,
)
from observer_agent.queuefile import TABLE, checksum
from observer_agent.queuerows import read_json, read_row

# -- verify


class _Findings:
    """What is wrong: the first hundred in words, all of them counted."""

    def __init__(self) -> None:
        self.count = 0
        self.rows = 0
        self.shown: list[dict[str, Any]] = []

    def add(self, check: str, text: str, row_id: int | None = None) -> None:
        self.count += 1
        if self.count <= SHOWN:
            self.shown.append({"check": check, "row_id": row_id, "text": text})


def verify(settings: Settings) -> Report:
    """Reads everything and believes nothing; exit code 1 with findings."""
    file, findings = settings.buffer_path, _Findings()
    try:
        with reading(file) as conn:
            for check in (_check_pages, _check_rows, _check_counts):
                try:
                    check(conn, findings)
                except BROKEN as error:
                    findings.add("file", f"cannot be read on: {error}")
    except QueueError as error:
        findings.add("file", str(error))
    facts = {"path": str(file), "ok": not findings.count, "rows": findings.rows}
    facts |= {"findings": findings.shown, "findings_total": findings.count}
    lines = [f"{file}: {plural(findings.rows, 'row')} read, {plural(findings.count, 'finding')}"]
    lines += ["  " + ("" if f["row_id"] is None else f"row {f['row_id']} ") + f["text"] for f in findings.shown]
    return Report(facts, "\n".join(lines), 1 if findings.count else 0)


def _check_pages(conn: sqlite3.Connection, findings: _Findings) -> None:
    for (text,) in conn.execute(f"PRAGMA quick_check({SHOWN})"):
        if text != "ok":
            findings.add("integrity", f"quick_check: {text}")


def _check_rows(conn: sqlite3.Connection, findings: _Findings) -> None:
    with progress(meta_of(conn)[1], "Checking") as done:
        for rows, _ in slices(conn, "data, crc, timestamp, metric_id, redundant"):
            for row in rows:
                for check, text in _faults(*row):
                    findings.add(check, text, row[0])
            findings.rows += len(rows)
            done(len(rows))


def _faults(row_id: int, data: Any, crc: Any, at: Any, metric_id: Any, redundant: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with a row; where its checksum is, nothing else can be said of its data."""
    if not isinstance(data, bytes) or checksum(row_id, data) != crc:
        yield "crc", "does not match its checksum: it will not be sent, but counted as lost: damaged"
        return
    try:
        if read_row(data).metric_id != metric_id:
            yield "fields", "metric_id: the column is not what the data says"
    except ValueError as error:
        yield ("json" if str(error).startswith("not JSON") else "fields"), str(error)
    if when(at) is None or redundant not in (0, 1):
        yield "columns", "timestamp or redundant is not what it may be"


def _check_counts(conn: sqlite3.Connection, findings: _Findings) -> None:
    """The sums and the accounts against the rows, of one moment."""
    conn.execute("BEGIN")
    try:
        found = conn.execute(
            f"SELECT count(*), total(length(data)), total(redundant), max(_id) FROM {TABLE}"
        ).fetchone()
        next_id, *held = meta_of(conn)
        for name, says, counted in zip(("rows", "bytes", "redundant"), held, found, strict=False):
            if says != counted:
                findings.add("meta", f"meta says {name} {says}, the table has {int(counted)}")
        if next_id <= (found[3] or 0):
            findings.add("meta", f"meta says that the next row id is {next_id}, but there is a row {found[3]}")
        _check_ledgers(conn, openings_of(conn), findings)
    finally:
        conn.execute("ROLLBACK")


def _check_ledgers(conn: sqlite3.Connection, openings: Sequence[Opening], findings: _Findings) -> None:
    """given = accepted + pending + lost, for every opening."""
    between = f"SELECT count(*) FROM {TABLE} WHERE _id >= ? AND _id < ?"
    sums = "SELECT total(iif(name = 'accepted', n, 0)), total(iif(name = 'accepted', 0, n)) FROM counters"
    for each in openings:
        pending = conn.execute(between, (each.first, each.end)).fetchone()[0]
        accepted, lost = conn.execute(f"{sums} WHERE queue_id = ?", (each.queue_id,)).fetchone()
        given = each.end - each.first
        if given != accepted + lost + pending:
            text = f"given {given} is not accepted {int(accepted)} + pending {pending} + lost {int(lost)}"
            findings.add("ledger", f"queue id {each.queue_id}: {text}")
    first = openings[0].first if openings else 2**62
    strays = conn.execute(between, (LOWEST, first)).fetchone()[0]
    if strays:
        findings.add("ledger", f"{plural(strays, 'row')} of no queue id")


# -- export


def export(settings: Settings, jsonl: bool, output: Path | None) -> Report:
    """Writes the waiting rows, oldest first; damaged ones are left out and counted (exit code 1)."""
    file, count = settings.buffer_path, Counter[str]()
    with _writing(output) as out, reading(file) as conn, progress(meta_of(conn)[1], "Exporting") as done:
        out.write(b"" if jsonl else b"[")
        for rows, openings in slices(conn, "data, crc, timestamp"):
            for row_id, data, crc, at in rows:
                line = _line(opening_of(openings, row_id), row_id, data, crc, at)
                if line:
                    out.write((b"" if jsonl else b",\n" if count["rows"] else b"\n") + line + (b"\n" if jsonl else b""))
                count["rows" if line else "left_out"] += 1
            done(len(rows))
        out.write(b"" if jsonl else b"\n]\n")
    left = count["left_out"]
    facts = {"path": str(file), "output": str(output or "-"), "rows": count["rows"], "left_out": left}
    text = f"{plural(count['rows'], 'row')} of {file} exported to {output or 'stdout'}; they still wait in the queue"
    text += f"; {plural(left, 'row')} left out, see `observer-agent queue verify`" if left else ""
    return Report(facts, text, 1 if left else 0)


def _line(queue_id: str | None, row_id: int, data: Any, crc: Any, at: Any) -> bytes | None:
    """One row as JSON on one line, its data as the agent writes it; None for a row that is damaged."""
    try:
        sample = read_row(data)
    except ValueError:
        return None
    if checksum(row_id, data) != crc or queue_id is None:
        return None
    head = json.dumps({"queue_id": queue_id, "row_id": row_id, "queued_at": when(at)}, separators=(",", ":"))
    return f'{head[:-1]},"row":'.encode() + sample.encode() + b"}"


@contextmanager
def _writing(output: Path | None) -> Iterator[IO[bytes]]:
    """Stdout, or a file of mode 0600 that is there whole or not at all."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        with tempfile.NamedTemporaryFile(dir=output.parent, prefix=f".{output.name}.", delete=False) as out:
            try:
                yield out
                out.flush()
                os.fsync(out.fileno())
                os.replace(out.name, output)
            except BaseException:
                os.unlink(out.name)
                raise
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}") from None


# -- dead letters


def rejected(settings: Settings, limit: int) -> Report:
    """The dead letters, newest first."""
    names = ("id", "queue_id", "row_id", "reason", "status", "answer", "rejected_at", "row")
    sql = (
        "SELECT id, queue_id, row_id, reason, status, answer, rejected_at, data FROM rejected ORDER BY id DESC LIMIT ?"
    )
    with reading(settings.buffer_path) as conn:
        total = conn.execute("SELECT count(*) FROM rejected").fetchone()[0]
        found = [dict(zip(names, row, strict=True)) for row in conn.execute(sql, (limit,))]
    for each in found:
        each["rejected_at"] = when(each["rejected_at"])
        each["row"] = _shown(each["row"])
    facts = {"path": str(settings.buffer_path), "total": total, "shown": found}
    lines = [f"{plural(total, 'dead letter')}, the newest {len(found)}:" if total else "No dead letters"]
    lines += [
        f"{e['id']:>6}  {e['rejected_at']}  {e['reason']}  {e['answer']}\n        {json.dumps(e['row'])}" for e in found
    ]
    return Report(facts, "\n".join(lines))


def _shown(data: object) -> Any:
    """A row for people and `--json`: the object, or the text of what is none."""
    try:
        return read_json(data) if isinstance(data, bytes) else str(data)
    except ValueError:
        return str(data)
