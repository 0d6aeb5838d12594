"""The limits of the container that the agent runs in, from cgroups of either version; a machine has none.

What counts is the group of process 1 and all above it that can be seen: on a machine that is the root, which has no
limits, whatever the agent's own service may be allowed; in a container it is the container. Of several limits the
tightest counts, with the usage of the same level. Nothing here raises: what cannot be read is no limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from observer_agent.probes._procfs import Machine, read


class MemoryLimit(NamedTuple):
    """Bytes in use that the kernel cannot give back at once, and how many there may be."""

    used: int
    limit: int


class CpuLimit(NamedTuple):
    """Seconds of processor time since the start, and how many processors' worth of it there may be."""

    seconds: float
    processors: float


def memory(machine: Machine) -> MemoryLimit | None:
    """The tightest limit of memory."""
    found = [
        *(_memory(level, "memory.max", "memory.current", "inactive_file") for level in _levels(machine, "")),
        *(
            _memory(level, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            for level in _levels(machine, "memory")
        ),
    ]
    return min((each for each in found if each), key=lambda each: each.limit, default=None)


def cpu(machine: Machine) -> CpuLimit | None:
    """The tightest limit of processor time."""
    found = [_cpu_v2(level) for level in _levels(machine, "")]
    found += [_cpu_v1(level, machine) for level in _levels(machine, "cpu")]
    return min((each for each in found if each), key=lambda each: each.processors, default=None)


def _levels(machine: Machine, controller: str) -> Iterator[Path]:
    """The directories of the group of process 1 and of those above it; an empty controller is version 2."""
    root = machine.sys / "fs" / "cgroup" / controller
    path = PurePosixPath(_group(machine, controller).lstrip("/"))
    if ".." in path.parts:
        path = PurePosixPath()
    for each in (path, *path.parents):
        yield root / each
        if each == PurePosixPath():
            return


def _group(machine: Machine, controller: str) -> str:
    for line in _text(machine.proc / "1" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller in names.split(","):
            return path
    return ""


def _memory(level: Path, limit_name: str, usage_name: str, idle_name: str) -> MemoryLimit | None:
    limit, usage = _number(level / limit_name), _number(level / usage_name)
    if not limit or usage is None:
        return None
    return MemoryLimit(max(0, usage - _field(level / "memory.stat", idle_name)), limit)


def _cpu_v2(level: Path) -> CpuLimit | None:
    words = _text(level / "cpu.max").split()
    used = _field(level / "cpu.stat", "usage_usec")
    if len(words) != 2 or not all(word.isdecimal() for word in words) or not int(words[1]):
        return None
    return CpuLimit(used / 1e6, int(words[0]) / int(words[1]))


def _cpu_v1(level: Path, machine: Machine) -> CpuLimit | None:
    quota, period = _number(level / "cpu.cfs_quota_us"), _number(level / "cpu.cfs_period_us")
    root = machine.sys / "fs" / "cgroup"
    used = _number(root / "cpuacct" / level.relative_to(root / "cpu") / "cpuacct.usage")
    if not quota or not period or used is None:
        return None
    return CpuLimit(used / 1e9, quota / period)


def _field(file: Path, name: str) -> int:
    for line in _text(file).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return int(value)
    return 0


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None


def _text(file: Path) -> str:
    try:
        return read(file)
    except (OSError, LookupError):
        return ""
