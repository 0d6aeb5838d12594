"""The steps `unit`, `user` and `disk`: what this machine gives the agent. Reads, but for one file without a name.

The unit is asked for with `systemctl show`, which needs no privileges. The disk is written to beside the queue file,
as the agent would, into a file that has no name and is gone when it is closed.
"""

from __future__ import annotations

import errno
import os
import pwd
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from observer_agent.clock import Clock
from observer_agent.doctor._place import UNIT, Known, Place
from observer_agent.doctor._report import Check, Finding, checked, skipped

PROPERTIES = (
    "LoadState,UnitFileState,ActiveState,SubState,Result,ExecMainStatus,NRestarts,ConditionResult,NeedDaemonReload,"
    "ConditionTimestampMonotonic,ActiveEnterTimestampMonotonic,MainPID,User,Environment,EnvironmentFiles,FragmentPath,DropInPaths"
)
JOURNAL = f"journalctl -u {UNIT} -n 50"
LOOPING = 3  # restarts
FRESH = 60.0  # seconds
LOW_BYTES = 50 * 1024 * 1024
NO_BYTES = 256 * 1024
FEW_INODES = 100
SLOW = 0.1  # seconds of one write and fsync
TRIES = 3


# -- the unit


def ask_unit(place: Place) -> dict[str, str]:
    """The unit's properties; none where systemd does not run here."""
    said = place.command(["systemctl", "show", UNIT, "-p", PROPERTIES]) or ""
    out: dict[str, str] = {}
    for line in said.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            out[name] = f"{out[name]}\n{value}" if name in out else value
    return out if out.get("LoadState") else {}


def check_unit(facts: Mapping[str, str], clock: Clock) -> Check:
    """Whether systemd runs the agent, and will after the next boot."""
    if not facts:
        return skipped("unit", "systemd does not run here, or does not answer")
    if facts["LoadState"] == "not-found":
        return skipped("unit", f"there is no unit {UNIT} on this machine")
    fact = f"{facts.get('ActiveState')} ({facts.get('SubState')}), {facts.get('UnitFileState') or 'no state'}"
    return checked("unit", fact, _unit(facts, clock))


def _unit(facts: Mapping[str, str], clock: Clock) -> Iterator[Finding]:
    load, active = facts["LoadState"], facts.get("ActiveState", "")
    start = f"systemctl start {UNIT}"
    if load == "masked" or facts.get("UnitFileState", "").startswith("masked"):
        fix = f"systemctl unmask {UNIT} && systemctl enable --now {UNIT}"
        yield Finding("unit.masked", f"the unit {UNIT} is masked: systemd does not start it", fix)
        return
    if load != "loaded":
        fix = f"systemd-analyze verify {UNIT}.service, mend the unit or its drop-ins, then: systemctl daemon-reload"
        yield Finding("unit.not_loaded", f"systemd cannot load the unit {UNIT} ({load})", fix)
        return
    yield from _active(facts, active, clock, start)
    if facts.get("UnitFileState") == "disabled":
        yield Finding("unit.disabled", f"the unit {UNIT} will not be started at boot", f"systemctl enable {UNIT}")
    if facts.get("NeedDaemonReload") == "yes":
        fix = f"systemctl daemon-reload && systemctl restart {UNIT}"
        yield Finding("unit.stale", "the unit's files have changed since systemd read them", fix)


def _active(facts: Mapping[str, str], active: str, clock: Clock, start: str) -> Iterator[Finding]:
    restarts = _whole(facts.get("NRestarts"))
    since = clock.monotonic() - _whole(facts.get("ActiveEnterTimestampMonotonic")) / 1e6
    if active == "failed":
        why = f"{facts.get('Result')}, exit status {facts.get('ExecMainStatus')}"
        yield Finding("unit.failed", f"the unit {UNIT} has failed ({why})", f"{JOURNAL}; when mended: {start}")
    elif facts.get("SubState") == "auto-restart" or (restarts >= LOOPING and since < FRESH):
        why = f"{restarts} restarts, last result {facts.get('Result')}, exit status {facts.get('ExecMainStatus')}"
        yield Finding("unit.looping", f"the agent ends again and again ({why})", JOURNAL)
    elif active == "inactive" and facts.get("ConditionResult") == "no" and _checked(facts):
        fix = f"put the key into /etc/observer-agent/agent_key, then: {start}"
        yield Finding("unit.condition", "the agent is not configured: the unit's condition is not met", fix)
    elif active == "inactive":
        yield Finding("unit.inactive", f"the unit {UNIT} is not started", f"systemctl enable --now {UNIT}")


def _checked(facts: Mapping[str, str]) -> bool:
    """Whether the condition was ever looked at: of a unit that nobody has started it says `no` as well."""
    return _whole(facts.get("ConditionTimestampMonotonic")) > 0


def _whole(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


# -- the user


def check_user(place: Place, known: Known) -> Check:
    """Who runs this, and whether the service's user can use what is the agent's."""
    me = _name(os.geteuid())
    findings = [*_unseen(place, known), *_service(known)]
    service = f", the service runs as {known.service_user}" if known.service_user else ""
    return checked("user", f"{me}{service}", findings)


def _unseen(place: Place, known: Known) -> Iterator[Finding]:
    """Files that this user cannot read, so that nothing may be said of them."""
    if os.geteuid() == 0:
        return
    files = [place.folder / name for name in ("config.toml", "agent.env", "agent_key")]
    if known.settings:
        files.append(known.settings.buffer_path)
        files += (
            [known.settings.buffer_path.parent] if not os.access(known.settings.buffer_path.parent, os.X_OK) else []
        )
    unseen = [str(file) for file in files if os.path.lexists(file) and not os.access(file, os.R_OK)]
    if os.path.isdir(place.folder) and not os.access(place.folder, os.X_OK):
        unseen.insert(0, str(place.folder))
    if unseen:
        cause = f"this user cannot read {', '.join(unseen)}: what is said here may be wrong"
        yield Finding("user.cannot_read", cause, "sudo observer-agent doctor")


def _service(known: Known) -> Iterator[Finding]:
    if not known.service_user or not known.settings:
        return
    uid = _uid(known.service_user)
    if uid is None:
        fix = f"systemd-sysusers, or: useradd --system --no-create-home {known.service_user}"
        yield Finding("user.missing", f"the service's user {known.service_user} does not exist", fix)
        return
    folder = known.settings.buffer_path.parent
    foreign = [str(file) for file in _own_files(known.settings.buffer_path) if not _may_write(file, uid)]
    if foreign and uid != 0:
        cause = f"{known.service_user} may not write {', '.join(foreign[:3])}: another user has made it"
        yield Finding("user.owner", cause, f"chown -R {known.service_user}: {folder} && systemctl restart {UNIT}")


def _own_files(buffer: Path) -> list[Path]:
    names = ("", "-wal", "-shm", ".lock", ".definitions", ".evidence")
    files = [buffer.parent, *(buffer.with_name(buffer.name + name) for name in names)]
    return [file for file in files if os.path.exists(file)]


def _may_write(file: Path, uid: int) -> bool:
    """Whether a user may write by owner, group or everybody's bits."""
    facts = file.stat()
    if facts.st_uid == uid:
        return bool(facts.st_mode & 0o200)
    try:
        groups = os.getgrouplist(pwd.getpwuid(uid).pw_name, pwd.getpwuid(uid).pw_gid)
    except KeyError:
        groups = []
    return bool(facts.st_mode & (0o020 if facts.st_gid in groups else 0o002))


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _uid(name: str) -> int | None:
    try:
        return int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


# -- the disk


def check_disk(known: Known, clock: Clock) -> Check:
    """Room, inodes and the time of a write and fsync beside the queue file."""
    if known.settings is None:
        return skipped("disk", "the settings cannot be read")
    folder = known.settings.buffer_path.parent
    if not os.path.isdir(folder):
        fix = f"install -d -m 0700 -o {known.service_user or _name(os.geteuid())} {folder}"
        return checked("disk", str(folder), [Finding("disk.missing", f"the directory {folder} does not exist", fix)])
    facts = os.statvfs(folder)
    free = facts.f_bavail * facts.f_frsize
    fact = f"{folder}: {free // 2**20:,} MiB and {facts.f_favail:,} inodes free" if facts.f_files else str(folder)
    if facts.f_flag & os.ST_RDONLY:
        fix = f"findmnt -T {folder}, look for errors with dmesg, then: mount -o remount,rw MOUNTPOINT"
        return checked("disk", fact, [Finding("disk.read_only", f"{folder} is mounted read-only", fix)])
    if facts.f_files and facts.f_favail == 0:
        fix = f"df -i {folder}, then delete small files there"
        return checked("disk", fact, [Finding("disk.no_inodes", f"the file system of {folder} has no inode left", fix)])
    if free < NO_BYTES:
        return checked("disk", fact, [_full(folder)])
    if os.geteuid() != 0 and not os.access(folder, os.W_OK) and os.stat(folder).st_uid != os.geteuid():
        return skipped("disk", f"this user may not write {folder}")
    return _write(folder, fact, clock, list(_low(folder, free, facts.f_favail if facts.f_files else FEW_INODES)))


def _full(folder: Path) -> Finding:
    return Finding("disk.full", f"the disk of {folder} is full", f"df -h {folder}, then make room there")


def _low(folder: Path, free: int, inodes: int) -> Iterator[Finding]:
    if free < LOW_BYTES:
        cause = f"the disk of {folder} has {free // 1024:,} KiB left"
        yield Finding("disk.low", cause, f"df -h {folder}, then make room there")
    if inodes < FEW_INODES:
        cause = f"the file system of {folder} has {inodes} inodes left"
        yield Finding("disk.few_inodes", cause, f"df -i {folder}, then delete small files there")


def _write(folder: Path, fact: str, clock: Clock, findings: list[Finding]) -> Check:
    try:
        took = [_one_write(folder, clock) for _ in range(TRIES)]
    except OSError as error:
        return checked("disk", fact, [_failed(folder, error)])
    median = statistics.median(took)
    if median > SLOW:
        cause = f"a write to {folder} takes {median * 1000:.0f} ms: samples are queued slowly"
        findings.append(Finding("disk.slow", cause, "iostat -x 1: see who keeps the disk busy, or move BUFFER_PATH"))
    return checked("disk", f"{fact}, a write takes {median * 1000:.1f} ms", findings)


def _one_write(folder: Path, clock: Clock) -> float:
    """Seconds for 4 KiB into a file that never has a name where the file system can do that."""
    began = clock.monotonic()
    with tempfile.TemporaryFile(dir=folder, buffering=0) as out:
        out.write(b"\0" * 4096)
        os.fsync(out.fileno())
    return clock.monotonic() - began


def _failed(folder: Path, error: OSError) -> Finding:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _full(folder)
    if error.errno == errno.EROFS:
        return Finding("disk.read_only", f"{folder} is read-only", f"findmnt -T {folder}")
    if error.errno in (errno.EACCES, errno.EPERM):
        fix = f"ls -ld {folder}; the agent's user must own it"
        return Finding("disk.not_writable", f"{folder} takes no file from this user", fix)
    return Finding("disk.failed", f"writing to {folder} fails: {error.strerror}", "dmesg | tail: look for disk errors")
