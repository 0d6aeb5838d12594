"""What the `observer-agent queue` commands do: verify, export, import, the dead letters, purge.

Settings enter, a `Report` leaves: facts for `--json`, text for a person, an exit code; `cli.py` prints it. Runs on the
main thread of a command. Looking (and every dry run) goes through a read-only connection, a thousand rows at a time, so
that an agent may run meanwhile. Changing opens the queue, which takes the file's lock; where an agent holds it the
command says so. A file is never created, moved aside or mended here.
"""

from __future__ import annotations

import bisect
import fcntl
import itertools
import json
import math
import os
import re
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import click

from observer_agent import config
from observer_agent.accounts import Change, Held, Lost
from observer_agent.clock import Clock, iso, parse_iso
from observer_agent.config import Settings
from observer_agent.diskqueue import Bounds, DiskQueue
from observer_agent.errors import QueueError, QueueHeld, UsageError
from observer_agent.model import Loss, Sample, Status
from observer_agent.queuefile import TABLE, VERSION, checksum, transaction

SLICE = 1_000  # rows of one look: how long a reader may keep the agent's WAL from being reused
CHUNK = 10_000  # rows of one transaction of an import
BAR_ABOVE = 10_000
SHOWN = 100  # findings and complaints that are listed; all are counted
PURGED_AS = Loss.AGE  # the wire has no word for an operator's purge; the rows were too old to be wanted
FIELDS = ("metric_id", "value", "timestamp", "status", "reason")
LINE_FIELDS = ("queue_id", "row_id", "queued_at", "row")
TABLES = {TABLE, "meta", "openings", "counters", "runs", "rejected"}
LOWEST = -(2**63)
_BROKEN = (sqlite3.Error, UnicodeDecodeError)  # sqlite3 fails to decode its own words about a damaged schema
_BLANKS = re.compile(r"[ \t\r\n]*")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class Report(NamedTuple):
    """What a command found or did."""

    facts: dict[str, Any]
    text: str
    code: int = 0


class Line(NamedTuple):
    """One line of an export, understood."""

    queue_id: str
    row_id: int
    sample: Sample


class Letter(NamedTuple):
    """A dead letter that may go back into the queue."""

    id: int
    data: bytes
    sample: Sample


class Opening(NamedTuple):
    """One opening of the file: its rows are those with ids from `first` up to, not with, `end`."""

    queue_id: str
    first: int
    end: int


# -- the file, looked at and opened


def load(file: Path | None) -> Settings:
    """The settings of a command that looks at the queue; raises ConfigError."""
    return config.load(os.environ, file, to_run=False)


@contextmanager
def reading(file: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection; raises UsageError when there is nothing to read, QueueError when it is no queue file."""
    if not os.path.isfile(file):
        raise UsageError(f"{file} does not exist, or not for this user; BUFFER_PATH names the queue file")
    untouched = not file.with_name(file.name + "-wal").exists()
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=5.0)) as conn:
            conn.isolation_level = None
            conn.text_factory = lambda raw: raw.decode("utf-8", "replace")
            _check_format(conn, file)
            yield conn
    except _BROKEN as error:
        raise QueueError(f"{file} cannot be used: {error}") from None
    finally:
        if untouched:
            _tidy(file)


def _tidy(file: Path) -> None:
    """Removes the empty `-wal` that SQLite makes for a reader: an agent would take it in place of its spare one."""
    wal = file.with_name(file.name + "-wal")
    with suppress(OSError), file.with_name(file.name + ".lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if wal.stat().st_size == 0:
            wal.unlink()
            file.with_name(file.name + "-shm").unlink()


def _check_format(conn: sqlite3.Connection, file: Path) -> None:
    try:
        version = conn.execute("PRAGMA user_version").fetchone()[0]
        names = {row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.OperationalError as error:
        raise UsageError(f"{file} cannot be opened: {error}") from None
    if version > VERSION:
        raise QueueError(f"{file} has format {version}, this version reads {VERSION}")
    if TABLES - names:
        raise QueueError(f"{file} is not a queue file")


@contextmanager
def changing(settings: Settings) -> Iterator[DiskQueue]:
    """The queue, opened and locked; raises UsageError where an agent holds it, QueueError where it is no queue."""
    file = settings.buffer_path
    with reading(file):
        pass  # the opening below would make a missing file and mistake another program's
    bounds = Bounds(settings.buffer_max_rows, settings.buffer_max_bytes, settings.buffer_max_age)
    try:
        queue = DiskQueue(file, bounds, Clock(), settings.buffer_sync)
    except QueueHeld as error:
        mine = os.access(file.with_name(file.name + ".lock"), os.W_OK)
        raise UsageError(f"{file}: {error}; {'stop the agent first' if mine else 'run it as the agent does'}") from None
    except _BROKEN as error:
        raise QueueError(f"{file} cannot be opened: {error}") from None
    try:
        yield queue
    finally:
        queue.close()


def _changing_unless(dry_run: bool, settings: Settings) -> AbstractContextManager[DiskQueue | None]:
    return nullcontext() if dry_run else changing(settings)


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


@contextmanager
def progress(total: int, label: str) -> Iterator[Callable[[int], object]]:
    """A bar on stderr for more than 10,000 rows, on a terminal alone; give it the rows that were done."""
    if total <= BAR_ABOVE or not sys.stderr.isatty():
        yield lambda rows: None
        return
    with click.progressbar(length=total, label=label, file=sys.stderr) as bar:
        yield bar.update


def _slices(conn: sqlite3.Connection, columns: str) -> Iterator[tuple[list[tuple[Any, ...]], list[Opening]]]:
    """The rows oldest first, their id before `columns`, and their openings, in slices that each are of one moment."""
    last, sql = LOWEST, f"SELECT _id, {columns} FROM {TABLE} WHERE _id > ? ORDER BY _id LIMIT ?"
    while True:
        conn.execute("BEGIN")
        try:
            rows, openings = conn.execute(sql, (last, SLICE)).fetchall(), _openings(conn)
        finally:
            conn.execute("ROLLBACK")
        if not rows:
            return
        yield rows, openings
        last = rows[-1][0]


def _openings(conn: sqlite3.Connection) -> list[Opening]:
    next_id = _held(conn)[0]
    found = conn.execute("SELECT queue_id, first_row_id FROM openings ORDER BY first_row_id").fetchall()
    ends = [_int(first) for _, first in found[1:]] + [next_id]
    return [Opening(str(name), _int(first), end) for (name, first), end in zip(found, ends, strict=False)]


def _opening_of(openings: Sequence[Opening], row_id: int) -> str | None:
    at = bisect.bisect_right(openings, row_id, key=lambda each: each.first) - 1
    return openings[max(0, at)].queue_id if openings else None


def _held(conn: sqlite3.Connection) -> tuple[int, int, int, int]:
    """Next row id, rows, bytes and redundant rows, as `meta` has them."""
    found = conn.execute("SELECT next_id, rows, bytes, redundant FROM meta").fetchone() or ()
    next_id, rows, size, redundant = [_int(each) for each in found] or (0, 0, 0, 0)
    return next_id, rows, size, redundant


def _int(value: object) -> int:
    """A number of the file; a damaged file has anything anywhere."""
    return value if isinstance(value, int) else 0


def _when(seconds: object) -> str | None:
    """A time of the file as the wire writes it; None where it is none."""
    try:
        return iso(seconds) if isinstance(seconds, int | float) else None
    except (ValueError, OverflowError, OSError):
        return None


# -- one row, understood


def read_row(data: object) -> Sample:
    """The sample that a row's data is; raises ValueError with what is wrong."""
    if not isinstance(data, bytes):
        raise ValueError("the data is not bytes")
    return read_sample(read_json(data))


def read_json(data: bytes) -> Any:
    """Strict JSON: UTF-8, no NaN, no name twice in an object; raises ValueError."""
    try:
        return _DECODER.decode(data.decode())
    except UnicodeDecodeError:
        raise ValueError("not JSON: not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not JSON that can be read: nested too deep") from None


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice in an object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_no_twins, parse_constant=_no_constant)


def read_sample(row: object) -> Sample:
    """A row of the wire, strictly: its fields and no others; raises ValueError with `field: message`."""
    fields = _fields(row, "row", FIELDS, optional=1)
    status = fields["status"]
    if status not in tuple(Status):
        raise ValueError(f"status: must be one of {', '.join(Status)}")
    if "reason" in fields and status != Status.NO_DATA:
        raise ValueError("reason: is there with no_data alone")
    reason = _text(fields, "reason") if "reason" in fields else None
    moment = _instant(fields, "timestamp")
    return Sample(_text(fields, "metric_id"), _number(fields["value"]), moment, Status(status), reason)


def read_line(line: object) -> Line:
    """One object of an export, strictly; raises ValueError."""
    fields = _fields(line, "line", LINE_FIELDS)
    row_id = fields["row_id"]
    if not isinstance(row_id, int) or isinstance(row_id, bool) or not 1 <= row_id < 2**63:
        raise ValueError("row_id: must be a positive whole number")
    if fields["queued_at"] is not None:
        _instant(fields, "queued_at")
    return Line(_text(fields, "queue_id"), row_id, read_sample(fields["row"]))


def _fields(value: object, what: str, names: Sequence[str], optional: int = 0) -> dict[str, Any]:
    """An object with these fields, the last `optional` of which may be missing."""
    if not isinstance(value, dict):
        raise ValueError(f"the {what} is not an object")
    missing = [name for name in names[: len(names) - optional] if name not in value]
    strange = [name for name in value if name not in names]
    if missing or strange:
        raise ValueError(f"{missing[0]}: is missing" if missing else f"{strange[0][:60]!a}: is not a field of a {what}")
    return value


def _text(fields: dict[str, Any], name: str) -> str:
    text = fields[name]
    if not isinstance(text, str) or not text or _UNSTORABLE.search(text):
        raise ValueError(f"{name}: must be a text")
    return text


def _instant(fields: dict[str, Any], name: str) -> str:
    text = fields[name]
    if not isinstance(text, str) or len(text) > 64 or parse_iso(text) is None:
        raise ValueError(f"{name}: must be a time such as 2026-01-31T08:00:00.000Z")
    return text


def _number(value: object) -> float:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return value
    except OverflowError:
        pass
    raise ValueError("value: must be a finite number")


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
                except _BROKEN as error:
                    findings.add("file", f"cannot be read on: {error}")
    except QueueError as error:
        findings.add("file", str(error))
    facts = {"path": str(file), "ok": not findings.count, "rows": findings.rows}
    facts |= {"findings": findings.shown, "findings_total": findings.count}
    lines = [f"{file}: {_n(findings.rows, 'row')} read, {_n(findings.count, 'finding')}"]
    lines += ["  " + ("" if f["row_id"] is None else f"row {f['row_id']} ") + f["text"] for f in findings.shown]
    return Report(facts, "\n".join(lines), 1 if findings.count else 0)


def _check_pages(conn: sqlite3.Connection, findings: _Findings) -> None:
    for (text,) in conn.execute(f"PRAGMA quick_check({SHOWN})"):
        if text != "ok":
            findings.add("integrity", f"quick_check: {text}")


def _check_rows(conn: sqlite3.Connection, findings: _Findings) -> None:
    with progress(_held(conn)[1], "Checking") as done:
        for rows, _ in _slices(conn, "data, crc, timestamp, metric_id, redundant"):
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
    if _when(at) is None or redundant not in (0, 1):
        yield "columns", "timestamp or redundant is not what it may be"


def _check_counts(conn: sqlite3.Connection, findings: _Findings) -> None:
    """The sums and the accounts against the rows, of one moment."""
    conn.execute("BEGIN")
    try:
        found = conn.execute(
            f"SELECT count(*), total(length(data)), total(redundant), max(_id) FROM {TABLE}"
        ).fetchone()
        next_id, *held = _held(conn)
        for name, says, counted in zip(("rows", "bytes", "redundant"), held, found, strict=False):
            if says != counted:
                findings.add("meta", f"meta says {name} {says}, the table has {int(counted)}")
        if next_id <= (found[3] or 0):
            findings.add("meta", f"meta says that the next row id is {next_id}, but there is a row {found[3]}")
        _check_ledgers(conn, _openings(conn), findings)
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
        findings.add("ledger", f"{_n(strays, 'row')} of no queue id")


# -- export


def export(settings: Settings, jsonl: bool, output: Path | None) -> Report:
    """Writes the waiting rows, oldest first; damaged ones are left out and counted (exit code 1)."""
    file, count = settings.buffer_path, Counter[str]()
    with reading(file) as conn, _writing(output) as out, progress(_held(conn)[1], "Exporting") as done:
        out.write(b"" if jsonl else b"[")
        for rows, openings in _slices(conn, "data, crc, timestamp"):
            for row_id, data, crc, at in rows:
                line = _line(_opening_of(openings, row_id), row_id, data, crc, at)
                if line:
                    out.write((b"" if jsonl else b",\n" if count["rows"] else b"\n") + line + (b"\n" if jsonl else b""))
                count["rows" if line else "left_out"] += 1
            done(len(rows))
        out.write(b"" if jsonl else b"\n]\n")
    left = count["left_out"]
    facts = {"path": str(file), "output": str(output or "-"), "rows": count["rows"], "left_out": left}
    text = f"{_n(count['rows'], 'row')} of {file} exported to {output or 'stdout'}; they still wait in the queue"
    text += f"; {_n(left, 'row')} left out, see `observer-agent queue verify`" if left else ""
    return Report(facts, text, 1 if left else 0)


def _line(queue_id: str | None, row_id: int, data: Any, crc: Any, at: Any) -> bytes | None:
    """One row as JSON on one line, its data as the agent writes it; None for a row that is damaged."""
    try:
        sample = read_row(data)
    except ValueError:
        return None
    if checksum(row_id, data) != crc or queue_id is None:
        return None
    head = json.dumps({"queue_id": queue_id, "row_id": row_id, "queued_at": _when(at)}, separators=(",", ":"))
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


# -- import


def import_rows(settings: Settings, source: IO[bytes], skip_invalid: bool, dry_run: bool) -> Report:
    """Puts the rows of an export into the queue as new rows; nothing at all where a line is not valid.

    With `skip_invalid` those lines are left out. Rows that wait here under the same queue id and row id are skipped.
    """
    lines, wrong = _understand(source)
    facts = {"path": str(settings.buffer_path), "dry_run": dry_run, "imported": 0, "skipped": 0, "dropped": 0}
    facts |= {"invalid": len(wrong), "errors": wrong[:SHOWN], "error": None}
    if not wrong or skip_invalid:
        with _changing_unless(dry_run, settings) as queue, reading(settings.buffer_path) as conn:
            new = _unknown(conn, lines)
            facts["skipped"] = len(lines) - len(new)
            if queue is None:
                room = settings.buffer_max_rows - _held(conn)[1]
                facts |= {"imported": len(new), "dropped": max(0, len(new) - room)}
            else:
                _put(queue, new, facts)
    return Report(facts, _import_text(facts, skip_invalid), 1 if wrong or facts["error"] else 0)


def _understand(source: IO[bytes]) -> tuple[list[Line], list[str]]:
    """The lines of an export, and a complaint for each that is none."""
    lines: list[Line] = []
    wrong: list[str] = []
    for at, value in _values(source):
        try:
            if isinstance(value, ValueError):
                raise value
            lines.append(read_line(read_json(value) if isinstance(value, bytes) else value))
        except ValueError as error:
            wrong.append(f"line {at}: {error}")
    return lines, wrong


def _values(source: IO[bytes]) -> Iterator[tuple[int, object]]:
    """Line number and content: JSON lines as bytes, the elements of an array parsed, a ValueError where it breaks."""
    array = None
    for at, line in enumerate(source, 1):
        if array is None and line.strip():
            array = line.lstrip().startswith(b"[")
        if array:
            yield from _elements(at, line + source.read())
            return
        if line.strip():
            yield at, line.strip()


def _elements(line: int, data: bytes) -> Iterator[tuple[int, object]]:
    """The elements of a JSON array that begins on `line`, up to where it breaks off."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        yield line, ValueError("not JSON: not UTF-8")
        return
    at, counted = _past_blanks(text, text.index("[") + 1), 0
    more = text[at : at + 1] != "]"
    at += 0 if more else 1
    while more:
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = _DECODER.raw_decode(text, at)
            yield line, value
            at = _past_blanks(text, at)
            more = text[at : at + 1] == ","
            if not more and text[at : at + 1] != "]":
                raise ValueError("neither , nor ] follows")
        except (ValueError, RecursionError) as error:
            yield line, ValueError(f"the array breaks off here: {getattr(error, 'msg', error)}")
            return
        at = _past_blanks(text, at + 1)
    if text[at:].strip():
        yield line + text.count("\n", counted, at), ValueError("something follows the array")


def _past_blanks(text: str, at: int) -> int:
    blanks = _BLANKS.match(text, at)
    return blanks.end() if blanks else at


def _unknown(conn: sqlite3.Connection, lines: Iterable[Line]) -> list[Sample]:
    """The samples that do not wait in this file, each once."""
    openings, new, seen = _openings(conn), [], set()
    for line in lines:
        key = (line.queue_id, line.row_id)
        waits = f"SELECT 1 FROM {TABLE} WHERE _id = ?"
        here = line.queue_id == _opening_of(openings, line.row_id) and conn.execute(waits, key[1:]).fetchone()
        if not here and key not in seen:
            new.append(line.sample)
        seen.add(key)
    return new


def _put(queue: DiskQueue, samples: Sequence[Sample], facts: dict[str, Any]) -> None:
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
    said = f"{_n(facts['imported'], 'row')} {would}imported as new rows"
    said += f", {facts['skipped']:,} skipped because they wait here already" if facts["skipped"] else ""
    said += f", {facts['invalid']:,} not valid" if facts["invalid"] else ""
    said += f", {facts['dropped']:,} {would}dropped to make room (counted as lost)" if facts["dropped"] else ""
    if facts["error"]:
        said += f"; then the file took no more: {facts['error']}. Another import adds those rows a second time"
    return "\n".join([*lines, said])


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
        each["rejected_at"] = _when(each["rejected_at"])
        each["row"] = _shown(each["row"])
    facts = {"path": str(settings.buffer_path), "total": total, "shown": found}
    lines = [f"{_n(total, 'dead letter')}, the newest {len(found)}:" if total else "No dead letters"]
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


def retry(settings: Settings, ids: Sequence[int], everything: bool, dry_run: bool) -> Report:
    """Moves dead letters back as new rows, oldest first, as far as there is room; exit code 1 where some stay."""
    if bool(ids) == everything:
        raise UsageError("give --id N, once or more, or --all")
    with _changing_unless(dry_run, settings) as queue, reading(settings.buffer_path) as conn:
        letters, failed = _letters(conn, None if everything else set(ids))
        _, rows, size, _ = _held(conn)
        fit = _fitting(letters, settings.buffer_max_rows - rows, (settings.buffer_max_bytes or 2**62) - size)
        failed += [f"dead letter {each.id} stays: the queue is full" for each in letters[fit:]]
        for at in range(0, fit, SLICE):
            if queue is not None:
                _requeue(queue, letters[at : min(fit, at + SLICE)])
    facts = {"path": str(settings.buffer_path), "dry_run": dry_run, "retried": fit, "failed": failed}
    will = "would go" if dry_run else "went"
    text = [f"{_n(fit, 'dead letter')} {will} back into the queue as new rows; the loss stays counted", *failed]
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
    with _changing_unless(dry_run, settings) as queue, reading(settings.buffer_path) as conn:
        count = conn.execute(f"SELECT count(*) {which}", (before,)).fetchone()[0]
        if queue is not None:
            with queue.tran_lock, transaction(queue._putter) as tx:
                tx.execute(f"DELETE {which}", (before,))
    facts = {"path": str(settings.buffer_path), "dry_run": dry_run, "purged": count}
    said = f"{_n(count, 'dead letter')} {'would be deleted' if dry_run else 'deleted'}"
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
            _, rows, size, _ = _held(conn)
    facts = {"path": str(settings.buffer_path), "dry_run": dry_run, "done": done, "rows": rows, "bytes": size}
    text = f"{_n(rows, 'row')} ({size:,} bytes) {'deleted' if done else 'would be deleted'} from {settings.buffer_path}"
    text += f"; counted as lost: {PURGED_AS}"
    text += "" if done or dry_run else ". Nothing was deleted: add --yes"
    return Report({**facts, "counted_as": PURGED_AS.value}, text, 0 if done or dry_run else 2)


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


def _n(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
