"""The host metrics of a Lighthouse console: recorded machines, and this one by two ways."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from observer_agent.clock import Clock
from observer_agent.lighthouse.figures import Figure
from observer_agent.lighthouse.hostfiles import NAMES, HostFiles
from observer_agent.lighthouse.mounts import Places
from observer_agent.probes._disks import Disks, Space

STAT = """\
cpu  {0} 0 {1} {2} {3} 0 0 0 0 0
cpu0 {0} 0 {1} {2} {3} 0 0 0 0 0
cpu1 100 20 30 400 50 6 7 8 90 10
intr 123456 0 0
"""
MEMINFO = """\
MemTotal:        8000 kB
MemFree:         1000 kB
MemAvailable:    6000 kB
Buffers:           10 kB
Cached:          4000 kB
SwapTotal:       2000 kB
SwapFree:        1500 kB
HugePages_Total:    0
"""
DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
"""


class Machine:
    """A tree of /proc, written file by file; `spaces` are what its file systems say."""

    def __init__(self, place: Path) -> None:
        self.proc = place / "proc"
        self.clock = Clock()
        self.spaces: dict[str, Space | OSError] = {}
        self.asked: list[str] = []
        self.root: Path | None = None
        self.write("loadavg", "2.00 1.50 1.25 1/200 4242\n")
        self.write("meminfo", MEMINFO)
        self.cpu(1000, 1000, 1000, 1000)
        self.write("diskstats", "   8       0 sda 10 0 20 30 40 0 50 60 0 1500 90 0 0 0 0 0 0\n")
        self.network(eth0=(1, 2))
        self.mounts("/dev/sda1 / ext4 rw,relatime 0 0\n")
        self.spaces["/"] = Space(1000, 600, 300, "/", 200, 150)

    def write(self, name: str, text: str) -> None:
        file = self.proc / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def cpu(self, *ticks: int) -> None:
        self.write("stat", STAT.format(*ticks))

    def network(self, process: str = "1/", **traffic: tuple[int, int]) -> None:
        lines = (f"{name:>6}: {r} 11 12 0 0 0 0 0 {s} 21 22 0 0 0 0 0\n" for name, (r, s) in traffic.items())
        self.write(f"{process}net/dev", DEV + "".join(lines))

    def mounts(self, text: str, process: str = "self") -> None:
        self.write(f"{process}/mounts", text)

    def files(self) -> HostFiles:
        return HostFiles(self.clock, Places(self.proc, self.root), Disks(self.clock, self._look))

    def _look(self, path: str) -> Space:
        self.asked.append(path)
        found = self.spaces.get(path, FileNotFoundError(2, "no such place"))
        if isinstance(found, OSError):
            raise found
        return found


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def table(figures: list[Figure]) -> dict[str, float]:
    """By name, and by name and label value."""
    return {" ".join((figure.name, *(value for _, value in figure.labels))): figure.value for figure in figures}


def twice(machine: Machine, *ticks: int) -> dict[str, float]:
    """The figures of a second look, after these ticks."""
    files = machine.files()
    files.collect()
    machine.cpu(*ticks)
    return table(files.collect().figures)


def test_every_name_of_the_closed_list_and_no_other(machine: Machine) -> None:
    files = machine.files()
    first = {figure.name for figure in files.collect().figures}
    assert first == {name for name in NAMES if not name.startswith("cpu_")}, (
        "the first look has nothing to compare with"
    )
    machine.cpu(1100, 1000, 1100, 1000)
    look = files.collect()
    assert {figure.name for figure in look.figures} == NAMES and len(NAMES) == 26
    assert look.faults == {} and look.left_out == {"disk": 0, "network": 0, "mount": 0}


def test_after_a_restart_there_is_nothing_to_compare_with(machine: Machine) -> None:
    files = machine.files()
    files.collect()
    files.restart()
    machine.cpu(1100, 1000, 1100, 1000)
    assert not [name for name in table(files.collect().figures) if name.startswith("cpu_")]


def test_load_and_memory(machine: Machine) -> None:
    found = table(machine.files().collect().figures)
    assert (found["load1"], found["load5"], found["load15"]) == (2.0, 1.5, 1.25)
    assert found["mem_used_bytes"] == 2000 * 1024 and found["mem_available_bytes"] == 6000 * 1024
    assert found["mem_used_percent"] == 25.0
    assert found["swap_used_bytes"] == 500 * 1024 and found["swap_used_percent"] == 25.0


def test_a_machine_without_swap_uses_none_of_it(machine: Machine) -> None:
    machine.write("meminfo", "MemTotal: 100 kB\nMemFree: 40 kB\nCached: 10 kB\n")
    found = table(machine.files().collect().figures)
    assert (found["swap_used_bytes"], found["swap_used_percent"]) == (0, 0.0)
    assert found["mem_available_bytes"] == 50 * 1024, "kernels before 3.14 do not say what is available"


def test_counters_of_disks_and_interfaces(machine: Machine) -> None:
    found = table(machine.files().collect().figures)
    assert found["disk_read_bytes_total sda"] == 20 * 512
    assert found["disk_write_bytes_total sda"] == 50 * 512
    assert found["disk_io_time_seconds_total sda"] == 1.5
    numbers = [found[f"net_{way}_{what}_total eth0"] for way in ("rx", "tx") for what in ("bytes", "packets", "errors")]
    assert numbers == [1, 11, 12, 2, 21, 22]


def test_file_systems_count_as_df_does(machine: Machine) -> None:
    found = table(machine.files().collect().figures)
    assert (found["disk_used_bytes /"], found["disk_free_bytes /"]) == (600, 300)
    assert found["disk_used_percent /"] == pytest.approx(100 * 600 / 900), "100 of them are kept for root"
    assert found["disk_inodes_used_percent /"] == 25.0


def test_whole_disks_only(machine: Machine) -> None:
    names = "sda sda1 sdab vdb hdc xvdd xvdd1 nvme0n1 nvme0n1p1 nvme10n2 mmcblk0 mmcblk0p1 md127 dm-0 loop0 sr0".split()
    machine.write("diskstats", "".join(f"8 0 {name} 1 0 1 1 1 0 1 1 0 1 1\n" for name in names))
    look = machine.files().collect()
    seen = [figure.labels[0][1] for figure in look.figures if figure.name == "disk_read_bytes_total"]
    assert seen == ["sda", "sdab", "vdb", "hdc", "xvdd", "nvme0n1", "nvme10n2", "mmcblk0"]
    assert look.left_out["disk"] == 1, "md127 is the ninth"


def test_interfaces_inside_the_machine_are_not_counted(machine: Machine) -> None:
    inside = "lo docker0 br-1a2b veth9 cni0 flannel.1 cali12 weave cilium_host virbr0 vnet1 tap0 tun0".split()
    machine.network(**dict.fromkeys([*inside, "eth0", "br0", "lowpan0", "bond0"], (1, 1)))
    look = machine.files().collect()
    seen = [figure.labels[0][1] for figure in look.figures if figure.name == "net_rx_bytes_total"]
    assert seen == ["eth0", "br0", "lowpan0", "bond0"]


def test_mounts_one_for_each_disk(machine: Machine) -> None:
    machine.mounts(
        "proc /proc proc rw 0 0\n"
        "/dev/sda1 / ext4 rw,relatime 0 0\n"
        "/dev/sda1 /bound ext4 rw 0 0\n"
        "/dev/sdb1 /long/place xfs rw 0 0\n"
        "/dev/sdb1 /short xfs rw 0 0\n"
        "/dev/sdc1 /cd iso9660 ro,relatime 0 0\n"
        "/dev/sdd1 /errors ext4 rw,errors=remount-ro 0 0\n"
        "/dev/loop3 /snap squashfs rw 0 0\n"
        "tmpfs /tmp tmpfs rw 0 0\n"
        "server:/share /net nfs rw 0 0\n"
        "half a line\n"
    )
    machine.spaces.update({place: Space(10, 5, 5, place) for place in ("/short", "/errors")})
    look = machine.files().collect()
    assert [f.labels[0][1] for f in look.figures if f.name == "disk_used_bytes"] == ["/", "/short", "/errors"]
    assert look.left_out["mount"] == 0
    assert not [f for f in look.figures if f.name == "disk_inodes_used_percent" and f.labels[0][1] != "/"]


def test_a_disk_that_only_the_service_may_not_write_to_is_counted(machine: Machine) -> None:
    """ProtectSystem=strict mounts everything read-only for the agent; the file system itself says rw."""
    machine.write(
        "self/mountinfo",
        "36 25 8:1 / / ro,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n"
        "37 36 8:2 / /iso ro - iso9660 /dev/sdb1 ro\n"
        "38 36 0:20 / /empty rw -  \n"
        "39 36 8:3 / /cut rw shared:2\n"
        "40 36 8:4 / /a\\040b rw shared:2 master:1 - xfs /dev/sdc1 rw\n",
    )
    machine.spaces["/a b"] = Space(10, 5, 5, "/a b")
    found = table(machine.files().collect().figures)
    assert "disk_used_bytes /" in found and "disk_used_bytes /iso" not in found
    assert "disk_used_bytes /a b" in found


def test_the_file_systems_of_the_host_are_seen_below_its_root(machine: Machine) -> None:
    machine.root = Path("/host/root")
    machine.mounts("/dev/sda9 /etc/hosts ext4 rw 0 0\n")
    machine.mounts("/dev/sda1 / ext4 rw 0 0\n/dev/sdb1 /data ext4 rw 0 0\n/dev/sdc1 /cold ext4 rw 0 0\n", "1")
    machine.spaces = {
        "/host/root/": Space(100, 50, 50, "/host/root"),
        "/host/root/data": Space(10, 5, 5, "/host/root/data"),
        "/host/root/cold": Space(100, 50, 50, "/host/root"),  # not propagated: the directory of the disk above
    }
    look = machine.files().collect()
    found = table(look.figures)
    assert machine.asked == ["/host/root/", "/host/root/cold", "/host/root/data"]
    assert [name for name in found if name.startswith("disk_used_bytes")] == [
        "disk_used_bytes /",
        "disk_used_bytes /data",
    ]
    assert look.left_out["mount"] == 1


def test_w22_the_network_is_that_of_process_1_and_of_no_other(machine: Machine) -> None:
    """In a DaemonSet `net/dev` of a mounted /proc is that of the pod that reads it."""
    machine.network("", eth0=(5, 5))
    machine.network("self/", eth0=(5, 5))
    machine.network("1/", eth0=(7_000, 8_000))
    found = table(machine.files().collect().figures)
    assert (found["net_rx_bytes_total eth0"], found["net_tx_bytes_total eth0"]) == (7_000, 8_000)


def test_w22_where_process_1_is_hidden_in_a_foreign_proc_there_are_no_figures(machine: Machine) -> None:
    machine.network("", eth0=(5, 5))
    (machine.proc / "1/net/dev").unlink()
    look = machine.files().collect()
    assert not [figure for figure in look.figures if figure.name.startswith("net_")]
    assert "does not exist" in look.faults["network"] and set(look.faults) == {"network"}


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs a network namespace of its own")
def test_w22_from_another_network_namespace_the_counters_are_still_those_of_the_machine() -> None:
    code = (
        "from pathlib import Path\n"
        "from observer_agent.lighthouse.hostfiles import interfaces\n"
        "from observer_agent.lighthouse.mounts import Places\n"
        "own = [line.split(':')[0].strip() for line in Path('/proc/net/dev').read_text().splitlines()[2:]]\n"
        "print(','.join(own), ','.join(interfaces(Places())))\n"
    )
    run = subprocess.run(["unshare", "-n", sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    if "Operation not permitted" in run.stderr:
        pytest.skip("namespaces are not allowed here")
    assert run.returncode == 0, run.stderr
    own, _, seen = run.stdout.strip().partition(" ")
    outside = {file.name for file in Path("/sys/class/net").iterdir()} - {"lo"}
    assert set(seen.split(",")) <= outside and seen
    assert not set(own.split(",")) >= outside


def test_w23_processor_counters_that_go_back_are_clamped(machine: Machine) -> None:
    found = twice(machine, 1300, 1000, 1100, 900)  # the kernel corrects iowait
    assert found["cpu_iowait_percent"] == 0.0
    assert found["cpu_user_percent"] == 75.0 and found["cpu_busy_percent"] == 75.0
    assert all(0.0 <= value <= 100.0 for name, value in found.items() if "percent" in name)


def test_w23_processors_that_stood_still_or_were_set_back_have_no_figures(machine: Machine) -> None:
    found = twice(machine, 10, 10, 10, 10)
    assert not [name for name in found if name.startswith("cpu_")]


def test_w23_waiting_for_a_disk_is_not_being_busy(machine: Machine) -> None:
    found = twice(machine, 1010, 1010, 1030, 1050)
    assert found["cpu_busy_percent"] == 20.0 and found["cpu_iowait_percent"] == 50.0
    assert (found["cpu_user_percent"], found["cpu_system_percent"]) == (10.0, 10.0)
    assert found["cpu_busy_percent 0"] == 20.0
    assert "cpu_busy_percent 1" not in found, "it did nothing at all: it may be offline"


def test_w23_what_each_processor_did(machine: Machine) -> None:
    files = machine.files()
    files.collect()
    machine.write(
        "stat", "cpu  1001 0 1000 1000 1000 0 0 0\ncpu1 110 30 40 460 50 7 9 15 900 900\ncpu7 1 1 1 1 1 1 1 1\n"
    )
    found = table(files.collect().figures)
    assert found["cpu_user_percent 1"] == 20.0, "nice is user; guests are in it already"
    assert found["cpu_system_percent 1"] == 13.0, "interrupts are system"
    assert found["cpu_busy_percent 1"] == 40.0, "and what another machine stole is busy"
    assert not [name for name in found if name.endswith((" 0", " 7"))], "one is gone, one is new"


def test_w23_blanks_in_mount_points_are_decoded(machine: Machine) -> None:
    machine.mounts("/dev/sda1 /mnt/my\\040disk\\134\\011x\\0401 ext4 rw 0 0\n")
    machine.spaces["/mnt/my disk\\\tx 1"] = Space(10, 5, 5, "/mnt")
    assert "disk_used_bytes /mnt/my disk\\\tx 1" in table(machine.files().collect().figures)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs a mount namespace of its own")
def test_w23_a_blank_in_a_mount_point_as_the_kernel_itself_writes_it(tmp_path: Path) -> None:
    code = (
        "from observer_agent.clock import Clock\n"
        "from observer_agent.lighthouse.hostfiles import HostFiles\n"
        "print([f for f in HostFiles(Clock()).collect().figures if f.name == 'disk_free_bytes'])\n"
    )
    place = tmp_path / "my disk"
    place.mkdir()
    script = 'mount -t tmpfs -o size=1m /dev/canary "$1" && exec "$2" -c "$3"'
    run = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(place), sys.executable, code],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "ermi" in run.stderr:  # not permitted, permission denied
        pytest.skip("mounts are not allowed here")
    assert run.returncode == 0, run.stderr
    assert f"value=1048576, labels=(('mount', '{place}'),)" in run.stdout


def test_w23_what_is_left_out_is_counted(machine: Machine) -> None:
    machine.write("diskstats", "".join(f"8 0 sd{a} 1 0 1 1 1 0 1 1 0 1 1\n" for a in "abcdefghijk"))
    machine.network(**{f"eth{n}": (1, 1) for n in range(20)})
    machine.mounts("".join(f"/dev/sda{n} /m{n:02} ext4 rw 0 0\n" for n in range(25)))
    machine.spaces = {f"/m{n:02}": Space(10, 5, 5, f"/m{n:02}") for n in range(25) if n != 3}
    look = machine.files().collect()
    assert look.left_out == {"disk": 3, "network": 4, "mount": 6}
    names = [figure.name for figure in look.figures]
    assert (names.count("disk_io_time_seconds_total"), names.count("net_tx_errors_total")) == (8, 16)
    assert names.count("disk_free_bytes") == 19, "the first 20, and one of them did not answer"


@pytest.mark.parametrize(
    ("file", "text", "section"),
    [
        ("loadavg", "", "load"),
        ("loadavg", "a b c", "load"),
        ("meminfo", "MemTotal: lots\n", "memory"),
        ("stat", "intr 5\n", "cpu"),
        ("stat", "cpu one two three four\n", "cpu"),
        ("diskstats", "8 0 sda 1 0 x 1 1 0 1 1 0 1 1\n", "disk"),
        ("1/net/dev", DEV + "eth0: " + "x " * 16, "network"),
        ("self/mounts", None, "mount"),
        ("stat", None, "cpu"),
    ],
)
def test_a_section_that_cannot_be_read_does_not_take_the_others_with_it(
    machine: Machine, file: str, text: str | None, section: str
) -> None:
    if text is None:
        (machine.proc / file).unlink()
    else:
        machine.write(file, text)
    look = machine.files().collect()
    assert set(look.faults) == {section}
    assert {"lighthouse_agent_up"} <= {figure.name for figure in look.figures} and len(look.figures) > 5


@pytest.mark.slow
def test_a_dead_file_system_holds_up_one_look_and_hardly_the_next(machine: Machine) -> None:
    release = threading.Event()
    clock = Clock()

    def look(path: str) -> Space:
        if path == "/dead":
            assert release.wait(30)
        return Space(10, 5, 5, path)

    machine.mounts("/dev/sda1 / ext4 rw 0 0\n/dev/sdb1 /dead ext4 rw 0 0\n")
    files = HostFiles(clock, Places(machine.proc), Disks(clock, look))
    try:
        for longest in (4.0, 0.8):
            begun = clock.monotonic()
            found = files.collect()
            assert clock.monotonic() - begun < longest
            assert found.left_out["mount"] == 1 and "disk_used_bytes /" in table(found.figures)
    finally:
        release.set()


@pytest.fixture
def here() -> Iterator[HostFiles]:
    if not Path("/proc/stat").exists():
        pytest.skip("needs Linux")
    yield HostFiles(Clock())


def test_this_machine_says_the_same_by_other_ways(here: HostFiles) -> None:
    before = sys_counters()
    look = here.collect()
    after = sys_counters()
    found = table(look.figures)
    assert look.faults == {}
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert abs(found["mem_used_bytes"] + found["mem_available_bytes"] - total) < 0.02 * total
    assert found["load15"] == pytest.approx(os.getloadavg()[2], abs=0.5)
    counted = [name for name in before if name in found]
    assert counted
    assert all(before[name] <= found[name] <= after[name] for name in counted)


def sys_counters() -> dict[str, float]:
    """The same counters as /sys has them, those of interfaces and of disks."""
    counters: dict[str, float] = {}
    for way in ("rx", "tx"):
        for what in ("bytes", "packets", "errors"):
            for place in Path("/sys/class/net").glob(f"*/statistics/{way}_{what}"):
                counters[f"net_{way}_{what}_total {place.parts[-3]}"] = int(place.read_text())
    for place in Path("/sys/block").glob("*/stat"):
        words = place.read_text().split()
        counters[f"disk_read_bytes_total {place.parts[-2]}"] = int(words[2]) * 512
        counters[f"disk_write_bytes_total {place.parts[-2]}"] = int(words[6]) * 512
        counters[f"disk_io_time_seconds_total {place.parts[-2]}"] = int(words[9]) / 1000
    return counters


def test_this_machines_disks_are_as_full_as_df_says(here: HostFiles) -> None:
    look = here.collect()
    places = [figure.labels[0][1] for figure in look.figures if figure.name == "disk_used_bytes"]
    if not places:
        pytest.skip("no disk is mounted here")
    found = table(look.figures)
    for place in places:
        output = subprocess.run(
            ["df", "-B1", "--output=used,avail,pcent", place], capture_output=True, text=True, check=True, timeout=30
        ).stdout
        used, free, pct = output.splitlines()[1].replace("%", "").split()
        assert found[f"disk_used_bytes {place}"] == pytest.approx(int(used), rel=0.02)
        assert found[f"disk_free_bytes {place}"] == pytest.approx(int(free), rel=0.02)
        assert found[f"disk_used_percent {place}"] == pytest.approx(int(pct), abs=1.5), "df rounds up"


@pytest.mark.slow
def test_this_machines_processors_are_busy_while_one_is(here: HostFiles) -> None:
    here.collect()
    end = os.times().user + 0.5
    while os.times().user < end:
        pass
    found = table(here.collect().figures)
    cores = [value for name, value in found.items() if name.startswith("cpu_busy_percent ")]
    assert found["cpu_user_percent"] > 0 and found["cpu_busy_percent"] >= 100 * 0.5 / len(cores) / 5
    assert max(cores) >= found["cpu_busy_percent"] - 1
