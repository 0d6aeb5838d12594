"""Trees of /proc and /sys as machines and containers of several kinds have them, written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from observer_agent.probes._procfs import Machine

GB = 1 << 30

STAT = """\
cpu  {user} {nice} {system} {idle} {iowait} {irq} {softirq} {steal} {guest} {guest_nice}
cpu0 0 0 0 0 0 0 0 0 0 0
cpu1 0 0 0 0 0 0 0 0 0 0
cpu2 0 0 0 0 0 0 0 0 0 0
cpu3 0 0 0 0 0 0 0 0 0 0
intr 123456 0 0
ctxt 99
"""
FIELDS = "user nice system idle iowait irq softirq steal guest guest_nice".split()
DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
"""


class Tree:
    """A machine with four processors and 8 GB, to be changed file by file."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.machine = Machine(place / "proc", place / "sys")
        self.times = dict.fromkeys(FIELDS, 1000)
        self.traffic: dict[str, tuple[int, int]] = {"lo": (5000, 5000)}
        self.write("proc/loadavg", "2.00 1.50 1.00 1/200 4242\n")
        self.memory(total=8 * GB, available=6 * GB)
        self.spend()
        self.move()

    def write(self, name: str, text: str) -> None:
        file = self.place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def spend(self, **ticks: int) -> None:
        """Processor time passes; guest time is part of user time, as the kernel counts it."""
        for name, more in ticks.items():
            self.times[name] += more
        self.write("proc/stat", STAT.format(**self.times))

    def memory(self, total: int, available: int | None, **more: int) -> None:
        figures = {"MemTotal": total, "MemFree": GB, **({"MemAvailable": available} if available is not None else {})}
        lines = (f"{name}: {number // 1024} kB\n" for name, number in {**figures, **more}.items())
        self.write("proc/meminfo", "".join(lines))

    def interface(self, name: str, *, index: int, link: int | None = None, device: bool = False, **links: str) -> None:
        """An interface; `links` are what its directory links to: master, lower_eth0, ..."""
        self.traffic.setdefault(name, (0, 0))
        self.write(f"sys/class/net/{name}/ifindex", f"{index}\n")
        self.write(f"sys/class/net/{name}/iflink", f"{link if link is not None else index}\n")
        if device:
            (self.place / f"sys/class/net/{name}/device").mkdir()
        for link_name, target in links.items():
            (self.place / f"sys/class/net/{name}/{link_name}").symlink_to(f"../{target}")
        self.move()

    def move(self, **by: tuple[int, int]) -> None:
        """Bytes are received and sent, by interface."""
        for name, (received, sent) in by.items():
            before = self.traffic[name]
            self.traffic[name] = (before[0] + received, before[1] + sent)
        lines = (f"{n:>6}: {r} 1 0 0 0 0 0 0 {s} 1 0 0 0 0 0 0\n" for n, (r, s) in self.traffic.items())
        self.write("proc/net/dev", DEV + "".join(lines))

    def group(self, text: str, files: Mapping[str, str]) -> None:
        """The cgroup of process 1, and files of the cgroup file system."""
        self.write("proc/1/cgroup", text)
        for name, content in files.items():
            self.write(f"sys/fs/cgroup/{name}", content)


def version_2(place: Path, *, max_cpu: str = "max 100000", used_us: int = 0, memory: str = "max") -> dict[str, str]:
    """A group's files, as version 2 has them; it uses 700 MB, of which 200 MB are files not used lately."""
    mb = 1 << 20
    files = {
        "cpu.max": f"{max_cpu}\n",
        "cpu.stat": f"usage_usec {used_us}\nuser_usec 1\nsystem_usec 1\nnr_periods 5\n",
        "memory.max": f"{memory}\n",
        "memory.current": f"{700 * mb}\n",
        "memory.stat": f"anon 1\nfile 2\ninactive_file {200 * mb}\nactive_file 3\n",
    }
    return {str(place / name): content for name, content in files.items()}


def version_1(place: Path, *, quota: int = -1, used_ns: int = 0, memory: int = 9223372036854771712) -> dict[str, str]:
    """The same as version 1 has them."""
    mb = 1 << 20
    return {
        str(Path("cpu") / place / "cpu.cfs_quota_us"): f"{quota}\n",
        str(Path("cpu") / place / "cpu.cfs_period_us"): "100000\n",
        str(Path("cpuacct") / place / "cpuacct.usage"): f"{used_ns}\n",
        str(Path("memory") / place / "memory.limit_in_bytes"): f"{memory}\n",
        str(Path("memory") / place / "memory.usage_in_bytes"): f"{700 * mb}\n",
        str(Path("memory") / place / "memory.stat"): f"cache 1\ninactive_file 1\ntotal_inactive_file {200 * mb}\n",
    }
