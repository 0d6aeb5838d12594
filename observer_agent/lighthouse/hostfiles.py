"""What the kernel says of this machine, as the 26 host metrics of a Lighthouse console: files of /proc in, figures out.

A section that cannot be read is missing and named; the others go on. Percentages of processor time are those since the
look before, so that the first look has none. Runs on the worker `host-metrics`; file systems are asked through `Disks`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from observer_agent.clock import Clock
from observer_agent.lighthouse.figures import Figure, Look, percent
from observer_agent.lighthouse.mounts import Mounts, Places
from observer_agent.probes._disks import Disks
from observer_agent.probes._procfs import growth, read

DISKS_MAX: Final = 8
INTERFACES_MAX: Final = 16
SECTOR: Final = 512  # bytes, whatever the device

_TIMES: Final = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_IDLE: Final = ("idle", "iowait")
_WHOLE_DISK: Final = re.compile(r"(?:(?:sd|vd|hd|xvd)[a-z]+|nvme\d+n\d+|mmcblk\d+|md\d+)\Z")
_INSIDE: Final = ("docker", "br-", "veth", "cni", "flannel", "cali", "weave", "cilium", "virbr", "vnet", "tap", "tun")

NAMES: Final = frozenset(
    """
    lighthouse_agent_up load1 load5 load15
    mem_used_bytes mem_used_percent mem_available_bytes swap_used_bytes swap_used_percent
    cpu_busy_percent cpu_user_percent cpu_system_percent cpu_iowait_percent
    disk_read_bytes_total disk_write_bytes_total disk_io_time_seconds_total
    net_rx_bytes_total net_rx_packets_total net_rx_errors_total
    net_tx_bytes_total net_tx_packets_total net_tx_errors_total
    disk_used_bytes disk_free_bytes disk_used_percent disk_inodes_used_percent
    """.split()
)


class HostFiles:
    """See the module; one thread calls. `disks` asks the system unless a test hands in another."""

    names = NAMES

    def __init__(self, clock: Clock, places: Places | None = None, disks: Disks | None = None) -> None:
        self._places = places or Places()
        self._mounts = Mounts(clock, self._places, disks)
        self._times: Mapping[str, Mapping[str, float]] = {}
        self._left_out: dict[str, int] = {}

    def restart(self) -> None:
        """The next look is a first one again."""
        self._times = {}

    def collect(self) -> Look:
        """One look."""
        figures, faults = [Figure("lighthouse_agent_up", 1.0)], dict[str, str]()
        self._left_out = {}
        sections: Mapping[str, Callable[[], list[Figure]]] = {
            "load": lambda: load(self._places.proc),
            "memory": lambda: memory(self._places.proc),
            "cpu": self._cpu,
            "disk": lambda: self._capped("disk", DISKS_MAX, disks(self._places.proc)),
            "network": lambda: self._capped("network", INTERFACES_MAX, interfaces(self._places)),
            "mount": self._mounted,
        }
        for name, section in sections.items():
            try:
                figures += section()
            except (LookupError, OSError, ValueError) as error:
                faults[name] = str(error.args[0]) if type(error) is LookupError else str(error)
        return Look(figures, self._left_out, faults)

    def _capped(self, kind: str, most: int, found: Mapping[str, list[Figure]]) -> list[Figure]:
        """The first ones in the order of the kernel: what came with the machine is before what was plugged in."""
        self._left_out[kind] = max(0, len(found) - most)
        return [figure for figures in list(found.values())[:most] for figure in figures]

    def _mounted(self) -> list[Figure]:
        figures, self._left_out["mount"] = self._mounts.collect()
        return figures

    def _cpu(self) -> list[Figure]:
        before, self._times = self._times, processor_times(self._places.proc)
        return [
            figure
            for name, times in self._times.items()
            if name in before
            for figure in shares(growth(before[name], times), name.removeprefix("cpu"))
        ]


def load(proc: Path) -> list[Figure]:
    """The load averages of 1, 5 and 15 minutes."""
    words = read(proc / "loadavg").split()
    if len(words) < 3:
        raise LookupError(f"{proc / 'loadavg'} holds no load averages")
    return [Figure(name, float(word)) for name, word in zip(("load1", "load5", "load15"), words, strict=False)]


def memory(proc: Path) -> list[Figure]:
    """Memory and swap; what the kernel would give back at need is not in use."""
    found = _memory_lines(proc / "meminfo")
    total, swap = found.get("MemTotal", 0), found.get("SwapTotal", 0)
    available = found.get("MemAvailable", sum(found.get(name, 0) for name in ("MemFree", "Buffers", "Cached")))
    if not total or not {"MemAvailable", "MemFree"} & found.keys():
        raise LookupError(f"{proc / 'meminfo'} does not say how much memory there is")
    used, swapped = max(0, total - available), max(0, swap - found.get("SwapFree", 0))
    return [
        Figure("mem_used_bytes", used),
        Figure("mem_used_percent", percent(used, total)),
        Figure("mem_available_bytes", available),
        Figure("swap_used_bytes", swapped),
        Figure("swap_used_percent", percent(swapped, swap)),
    ]


def _memory_lines(file: Path) -> dict[str, int]:
    found = {}
    for line in read(file).splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()[:1]
        if number and number[0].isdecimal():
            found[name] = int(number[0]) * 1024
    return found


def processor_times(proc: Path) -> dict[str, dict[str, float]]:
    """Ticks of all processors (`cpu`) and of each (`cpu0`), by what they did. Guests are a part of `user`."""
    found = {}
    for line in read(proc / "stat").splitlines():
        name, *numbers = line.split() or [""]
        if re.fullmatch(r"cpu\d*", name) and len(numbers) >= 4:
            found[name] = dict(zip(_TIMES, map(float, numbers), strict=False))
    if "cpu" not in found:
        raise LookupError(f"{proc / 'stat'} has no line for all processors")
    return found


def shares(spent: Mapping[str, float], core: str) -> Iterator[Figure]:
    """The percentages of one processor; waiting for a disk is not being busy."""
    whole = sum(spent.values())
    if whole <= 0:
        return
    labels = (("core", core),) if core else ()
    parts = {
        "cpu_busy_percent": whole - sum(spent.get(name, 0.0) for name in _IDLE),
        "cpu_user_percent": spent.get("user", 0.0) + spent.get("nice", 0.0),
        "cpu_system_percent": sum(spent.get(name, 0.0) for name in ("system", "irq", "softirq")),
        "cpu_iowait_percent": spent.get("iowait", 0.0),
    }
    yield from (Figure(name, percent(part, whole), labels) for name, part in parts.items())


def disks(proc: Path) -> dict[str, list[Figure]]:
    """What was read from and written to each whole disk since the start."""
    found = {}
    for line in read(proc / "diskstats").splitlines():
        words = line.split()
        if len(words) < 13 or not _WHOLE_DISK.match(words[2]):
            continue
        labels = (("device", words[2]),)
        found[words[2]] = [
            Figure("disk_read_bytes_total", int(words[5]) * SECTOR, labels),
            Figure("disk_write_bytes_total", int(words[9]) * SECTOR, labels),
            Figure("disk_io_time_seconds_total", int(words[12]) / 1000, labels),
        ]
    return found


def interfaces(places: Places) -> dict[str, list[Figure]]:
    """What went through each interface that leads out of the machine since the start."""
    found = {}
    for line in _network_text(places).splitlines():
        name, colon, rest = line.rpartition(":")
        name, numbers = name.strip(), rest.split()
        if not colon or len(numbers) < 16 or name == "lo" or name.startswith(_INSIDE):
            continue
        labels = (("device", name),)
        found[name] = [
            Figure(f"net_{way}_{what}_total", int(numbers[at]), labels)
            for way, first in (("rx", 0), ("tx", 8))
            for at, what in enumerate(("bytes", "packets", "errors"), first)
        ]
    return found


def _network_text(places: Places) -> str:
    """Of process 1: `net/dev` itself would be that of the agent's own container.

    Where the service manager hides process 1 from the agent they are the same; in a foreign /proc they never are.
    """
    try:
        return read(places.proc / "1" / "net" / "dev")
    except (LookupError, OSError):
        if not places.own:
            raise
    return read(places.proc / "net" / "dev")
