"""What the kernel says of a machine: files of /proc and /sys in, figures out.

The places are handed in, so that recorded trees can stand for other machines. A file that is missing, or whose content
is not understood, raises LookupError with a text; one that cannot be read raises OSError. Runs on a probe thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

LARGEST: Final = 4_194_304

_CPU_FIELDS: Final = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_BEFORE_AVAILABLE: Final = ("MemFree", "Buffers", "Cached")  # kernels before 3.14 do not say MemAvailable


class Machine(NamedTuple):
    """Where the kernel speaks."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")


class Traffic(NamedTuple):
    """What went through an interface, in bytes."""

    received: int
    sent: int


def read(path: Path) -> str:
    """A file of the kernel; raises LookupError where there is none, OSError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(LARGEST).decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        raise LookupError(f"{path} does not exist") from None


def cpu_times(machine: Machine) -> dict[str, float]:
    """Ticks of all processors since the start, by what they did. `guest` is a part of `user` and is not among them."""
    line = next((line for line in _lines(machine.proc / "stat") if line.startswith("cpu ")), "")
    numbers = [_whole(word, machine.proc / "stat") for word in line.split()[1:]]
    if len(numbers) < 4:
        raise LookupError(f"{machine.proc / 'stat'} has no line for all processors")
    return dict(zip(_CPU_FIELDS, map(float, numbers), strict=False))


def processors(machine: Machine) -> int:
    """How many processors are online."""
    names = (line.partition(" ")[0] for line in _lines(machine.proc / "stat"))
    return max(1, sum(1 for name in names if name.startswith("cpu") and name[3:].isdecimal()))


def load(machine: Machine) -> float:
    """The load average of a minute."""
    try:
        return float(read(machine.proc / "loadavg").split()[0])
    except (ValueError, IndexError):
        raise LookupError(f"{machine.proc / 'loadavg'} holds no load average") from None


def memory(machine: Machine) -> tuple[int, int]:
    """Bytes in use, and all of them; what the kernel would give back at need is not in use."""
    file = machine.proc / "meminfo"
    found: dict[str, int] = {}
    for line in _lines(file):
        name, _, rest = line.partition(":")
        number = rest.split()[:1]
        if number and number[0].isdecimal():
            found[name] = int(number[0]) * 1024
    total = found.get("MemTotal", 0)
    available = found.get("MemAvailable", sum(found.get(name, 0) for name in _BEFORE_AVAILABLE))
    if not total or not ("MemAvailable" in found or "MemFree" in found):
        raise LookupError(f"{file} does not say how much memory there is")
    return max(0, total - available), total


def interfaces(machine: Machine) -> dict[str, Traffic]:
    """The traffic of every network interface."""
    file = machine.proc / "net" / "dev"
    found: dict[str, Traffic] = {}
    for line in _lines(file):
        name, colon, rest = line.rpartition(":")
        words = rest.split()
        if colon and len(words) >= 9:
            found[name.strip()] = Traffic(_whole(words[0], file), _whole(words[8], file))
    if not found:
        raise LookupError(f"{file} names no interface")
    return found


def counted(names: Iterable[str], machine: Machine) -> list[str]:
    """The interfaces through which every byte from or to the outside goes once.

    On a machine those are its devices: bridges, bonds, VLANs, tunnels and the ends of containers' cables repeat what
    goes through them, and so does a device that serves another one. In a container it is what is linked to the outside.
    """
    root = machine.sys / "class" / "net"
    others = [name for name in names if name != "lo"]
    devices = [name for name in others if (root / name / "device").exists()]
    serving = {name for name in devices if _master(root / name) in devices}
    linked = [name for name in others if _leads_outside(root / name)]
    return [name for name in devices if name not in serving] or linked or others


def _master(place: Path) -> str:
    link = place / "master"
    return link.readlink().name if link.is_symlink() else ""


def _leads_outside(place: Path) -> bool:
    try:
        own, link = (int(read(place / name)) for name in ("ifindex", "iflink"))
        stacked = any(entry.name.startswith("lower_") for entry in place.iterdir())
    except (OSError, ValueError, LookupError):
        return False
    return link not in (0, own) and not stacked


def growth(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """By how much each counter grew; one that went back (the kernel corrects some, slightly) did not."""
    return {name: max(0.0, value - before[name]) for name, value in now.items() if name in before}


def _lines(path: Path) -> list[str]:
    return read(path).splitlines()


def _whole(word: str, file: Path) -> int:
    if not word.isdecimal():
        raise LookupError(f"{file} holds something else than numbers")
    return int(word)
