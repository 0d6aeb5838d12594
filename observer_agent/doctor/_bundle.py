"""The bundle: one `.tar.gz` to hand to somebody who helps, without a secret in it.

Facts that the walk has gathered enter, and a file of mode 0600 is there whole or not at all. Every text passes the
redactor, which by then knows all secrets; of definitions no configuration goes in, of the queue no row.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from observer_agent import __version__, status
from observer_agent.config import VARIABLES, masked, origin
from observer_agent.doctor._place import UNIT, Known, Place
from observer_agent.doctor._report import Report
from observer_agent.errors import UsageError

LINES = 200
LIBRARIES = (
    "requests",
    "urllib3",
    "certifi",
    "persist-queue",
    "click",
    "prometheus-client",
    "ruamel.yaml",
    "asn1crypto",
    "dnspython",
    "h2",
    "wsproto",
    "pg8000",
    "PyMySQL",
)
_ASSIGNED = re.compile(r"^(\s*(?:Environment|SetCredential|SetCredentialEncrypted)\s*=).*$", re.M)

Redact = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Gathered:
    """What the walk has seen besides its findings."""

    known: Known
    state: Mapping[str, Any] | None = None
    queue: Mapping[str, Any] = field(default_factory=dict)


def write(file: Path, place: Place, report: Report, gathered: Gathered) -> list[str]:
    """Writes the bundle; returns its members. Raises UsageError where the file cannot be written."""
    members = dict(_members(place, report, gathered))
    try:
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as out:
            try:
                _pack(out, members, place.clock.now())
                out.flush()
                os.fsync(out.fileno())
                os.replace(out.name, file)
            except BaseException:
                os.unlink(out.name)
                raise
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from None
    return list(members)


def _pack(out: Any, members: Mapping[str, str], now: float) -> None:
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, text in members.items():
            data = text.encode("utf-8", "replace")
            entry = tarfile.TarInfo(f"observer-agent-doctor/{name}")
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(now)
            tar.addfile(entry, io.BytesIO(data))


def _members(place: Place, report: Report, gathered: Gathered) -> Iterator[tuple[str, str]]:
    redact, known = place.redact, gathered.known
    yield "doctor.json", _json(report.facts, redact)
    yield "doctor.txt", redact(report.text()) + "\n"
    yield "configuration.txt", redact(_configuration(known))
    if gathered.state is not None:
        yield "state.json", _json({k: v for k, v in gathered.state.items() if k != "log"}, redact)
    yield "log.txt", redact(_log(place, gathered.state))
    yield "queue.json", _json(gathered.queue, redact)
    yield "system.txt", redact("\n".join(_system(place, known)) + "\n")


def _json(facts: Mapping[str, Any], redact: Redact) -> str:
    return json.dumps(clean(facts, redact), indent=1, ensure_ascii=False) + "\n"


def clean(value: Any, redact: Redact) -> Any:
    """JSON-like data with every text in it redacted, names included."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(str(name)): clean(each, redact) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [clean(each, redact) for each in value]
    return value


def _configuration(known: Known) -> str:
    """The settings of the local page's allow-list; secrets as set or unset, of URLs no more than their origin."""
    lines = [f"# from {known.file or 'the environment'}"]
    if known.settings is None:
        return "\n".join([*lines, "# the settings cannot be read", ""])
    values = masked(known.settings)
    shown = [name for name, row in VARIABLES.items() if row.secret or name in status.SHOWN]
    lines += [f"{name} = {_value(name, values[name])}" for name in shown]
    return "\n".join([*lines, f"key = {'(set)' if known.key else '(unset)'}", ""])


def _value(name: str, value: str) -> str:
    if not name.endswith("_URL") or not value:
        return value
    try:
        return origin(value)
    except ValueError:
        return "(no URL)"


def _log(place: Place, state: Mapping[str, Any] | None) -> str:
    """The last lines: of the running agent, else of the journal."""
    lines = (state or {}).get("log")
    if isinstance(lines, list):
        texts = [f"{e.get('timestamp')} {e.get('level'):<5} {e.get('message')}" for e in lines if isinstance(e, dict)]
        return "\n".join([*texts[-LINES:], ""])
    said = place.command(["journalctl", "-u", UNIT, "-n", str(LINES), "--output=short-iso", "--no-pager"])
    return said if said else "no lines: no agent answers, and the journal is not there or not readable\n"


def _system(place: Place, known: Known) -> Iterator[str]:
    uname = os.uname()
    yield f"kernel: {uname.sysname} {uname.release} {uname.machine}"
    yield f"os: {_os_name()}"
    yield f"python: {platform.python_version()} ({sys.executable})"
    yield f"openssl: {__import__('ssl').OPENSSL_VERSION}"
    yield f"observer-agent: {__version__}"
    for name in LIBRARIES:
        yield f"{name}: {_version(name)}"
    if known.settings:
        yield from _file_system(known.settings.buffer_path.parent)
    unit = place.command(["systemctl", "cat", UNIT, "--no-pager"]) if known.unit else None
    if unit:
        yield from ("", "unit:", _ASSIGNED.sub(r"\1(hidden)", unit))
    shown = {name: text for name, text in known.unit.items() if name not in ("Environment",)}
    yield from (f"{name}={text}" for name, text in shown.items())


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return "unknown"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


def _file_system(folder: Path) -> Iterator[str]:
    """Room and mount options of the directory of the queue."""
    try:
        facts = os.statvfs(folder)
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        yield f"{folder}: {error.strerror}"
        return
    size, free = (n * facts.f_frsize // 1024 for n in (facts.f_blocks, facts.f_bavail))
    yield f"{folder}: {free:,} of {size:,} KiB free, {facts.f_favail:,} of {facts.f_files:,} inodes free"
    real, best = str(folder.resolve()), ("", "")
    for line in mounts:
        left, _, right = line.partition(" - ")
        point, options = left.split()[4:6]
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= len(best[0]):
            best = (point, f"{right.split()[0]} {options}")
    yield f"mounted at {best[0]}: {best[1]}"
