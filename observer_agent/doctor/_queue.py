"""The step `queue`: the queue file, read only. It is never made, mended or moved here.

Leaves the check, the file's account and the start time that it keeps, for the steps that ask for them.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from observer_agent import queuelook
from observer_agent.clock import Clock
from observer_agent.config import Settings
from observer_agent.doctor._place import UNIT, Known
from observer_agent.doctor._report import Check, Finding, checked, skipped
from observer_agent.errors import QueueError, UsageError
from observer_agent.queueaccess import BAR_ABOVE, TABLES, plural
from observer_agent.queuefile import VERSION, is_held, read_only, read_stats

VERIFY_SECONDS = 2.0
STEPS = 20_000  # of SQLite's machine between two looks at the clock
FILLING = 0.8
OLD = 300.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What the queue file says."""

    check: Check
    stats: Mapping[str, Any] = field(default_factory=dict)
    verified: Mapping[str, Any] = field(default_factory=dict)
    started_at: float | None = None
    held: bool = False


def look(known: Known, clock: Clock) -> Seen:
    """Reads the queue file whole where it is small enough, else its pages as far as two seconds go."""
    if known.settings is None:
        return Seen(skipped("queue", "the settings cannot be read"))
    file, held = known.settings.buffer_path, is_held(known.settings.buffer_path)
    if os.geteuid() != 0 and os.path.isdir(file.parent) and not os.access(file.parent, os.X_OK):
        return Seen(skipped("queue", f"this user cannot look into {file.parent}"))
    aside = list(_aside(file))
    if not os.path.lexists(file):
        return Seen(checked("queue", f"{file} is not there yet: the agent makes it", aside), held=held)
    if not os.access(file, os.R_OK):
        return Seen(_unreadable(file), held=held)
    try:
        began = started_at(file)
    except QueueError as error:
        return Seen(checked("queue", str(file), [_unusable(file, error), *aside]), held=held)
    verified, bad = _verify(known.settings, clock)
    try:
        stats = read_stats(file, clock.now(), known.settings.buffer_max_rows)
    except QueueError as error:
        return Seen(checked("queue", str(file), [bad or _damaged(file, str(error)), *aside]), verified=verified)
    findings = [*([bad] if bad else []), *aside, *_account(stats)]
    return Seen(checked("queue", _fact(stats, verified), findings), stats, verified, began, held)


def _unreadable(file: Path) -> Check:
    if os.geteuid() != 0:
        return skipped("queue", f"this user cannot read {file}")
    return checked("queue", str(file), [Finding("queue.unreadable", f"{file} cannot be read", f"ls -l {file}")])


class _Newer(QueueError):
    """The file's format is not known to this version."""


class _Foreign(QueueError):
    """The file is not a queue file."""


def started_at(file: Path) -> float | None:
    """The start time that the file keeps; raises QueueError where it is none of this version's files."""
    try:
        with closing(read_only(file)) as conn:
            version = conn.execute("PRAGMA user_version").fetchone()[0]
            names = {row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if version > VERSION:
                raise _Newer(f"{file} has format {version}, this version reads {VERSION}")
            if TABLES - names:
                raise _Foreign(f"{file} is not a queue file")
            started = conn.execute("SELECT started_at FROM meta").fetchone()
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise QueueError(str(error)) from None
    return started[0] if started and isinstance(started[0], float) and started[0] > 0 else None


def _unusable(file: Path, error: QueueError) -> Finding:
    if isinstance(error, _Newer):
        fix = f"install the version that wrote it, or move it away: mv {file} {file}.newer; then restart the agent"
        return Finding("queue.newer_format", str(error), fix)
    if isinstance(error, _Foreign):
        return Finding("queue.foreign", str(error), "set BUFFER_PATH to a file of the agent's own")
    return _damaged(file, str(error))


def _damaged(file: Path, text: str) -> Finding:
    fix = f"systemctl restart {UNIT}: the agent moves the file aside and saves what can be read of it"
    return Finding("queue.damaged", f"the queue file {file} is damaged: {text}", fix)


# -- integrity


def _verify(settings: Settings, clock: Clock) -> tuple[dict[str, Any], Finding | None]:
    """The findings of `queue verify`; of a large file as much as the time allows."""
    file = settings.buffer_path
    if _rows(file) > BAR_ABOVE:
        return _verify_pages(file, clock)
    try:
        facts = queuelook.verify(settings).facts
    except UsageError:  # an agent has started meanwhile: what was read is of no use
        return {"path": str(file), "ok": None, "note": "the file changed during the look"}, None
    if facts["ok"]:
        return facts, None
    first = _said(facts["findings"][0]) if facts["findings"] else "it cannot be read"
    more = f" (and {facts['findings_total'] - 1} more)" if facts["findings_total"] > 1 else ""
    return facts, _damaged(file, f"{first}{more}")


def _said(finding: Mapping[str, Any]) -> str:
    where = "" if finding["row_id"] is None else f"row {finding['row_id']} "
    return f"{where}{finding['text']}"


def _rows(file: Path) -> int:
    try:
        with closing(read_only(file)) as conn:
            found = conn.execute("SELECT rows FROM meta").fetchone()
    except sqlite3.Error:
        return 0
    return found[0] if found and isinstance(found[0], int) else 0


def _verify_pages(file: Path, clock: Clock) -> tuple[dict[str, Any], Finding | None]:
    until = clock.monotonic() + VERIFY_SECONDS
    facts: dict[str, Any] = {"path": str(file), "ok": True, "note": "a large file: its pages alone were looked at"}
    try:
        with closing(read_only(file)) as conn:
            conn.set_progress_handler(lambda: int(clock.monotonic() > until), STEPS)
            said = [str(row[0]) for row in conn.execute("PRAGMA quick_check(3)") if row[0] != "ok"]
    except sqlite3.OperationalError as error:
        return {**facts, "ok": None, "note": f"a large file, not looked through: {error}"}, None
    except sqlite3.DatabaseError as error:
        said = [str(error)]
    if said:
        return {**facts, "ok": False, "findings": said}, _damaged(file, said[0])
    return facts, None


# -- the account


def _aside(file: Path) -> Iterator[Finding]:
    """Damaged files that the agent has moved aside."""
    try:
        names = sorted(each for each in os.listdir(file.parent) if each.startswith(f"{file.name}.corrupt-"))
    except OSError:
        return
    names = [name for name in names if not name.endswith(("-wal", "-shm"))]
    if names:
        newest = file.with_name(names[-1])
        cause = f"the queue file was damaged before and moved aside: {newest}"
        yield Finding("queue.corrupt_aside", cause, f"check the disk (dmesg), then: rm {file}.corrupt-*")


def _account(stats: Mapping[str, Any]) -> Iterator[Finding]:
    depth, capacity, age = stats["depth"], stats["capacity"], stats["oldest_age_seconds"]
    if depth >= capacity:
        cause = f"the queue is full ({depth:,} of {capacity:,}): the oldest samples are being lost"
        yield Finding("queue.full", cause, "mend what keeps them from being delivered; BUFFER_MAX_ROWS gives more room")
    elif depth >= FILLING * capacity:
        cause = f"the queue is nearly full ({depth:,} of {capacity:,})"
        yield Finding("queue.filling", cause, "mend what keeps samples from being delivered, or raise BUFFER_MAX_ROWS")
    if depth and age > OLD:
        cause = f"{depth:,} samples wait, the oldest for {age / 60:,.0f} minutes"
        yield Finding("queue.old", cause, "observer-agent status: see why they are not delivered")
    if stats["rejected"]:
        cause = f"the cloud has refused {plural(stats['rejected'], 'sample')} (dead letters)"
        yield Finding("queue.dead_letters", cause, "observer-agent queue rejected list, then: ... retry or ... purge")


def _fact(stats: Mapping[str, Any], verified: Mapping[str, Any]) -> str:
    lost = ", ".join(f"{reason} {n:,}" for reason, n in stats["lost"].items() if n)
    parts = [f"{stats['depth']:,} of {stats['capacity']:,} wait", f"lost: {lost or 'nothing'}"]
    return "; ".join([*parts, *([str(verified["note"])] if verified.get("note") else [])])
