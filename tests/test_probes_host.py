"""The source type `host`: against recorded trees of several machines, and against this one and its own tools."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from observer_agent.clock import Clock
from observer_agent.errors import InvalidConfig
from observer_agent.model import Fault
from observer_agent.probes import _disks, host
from observer_agent.probes._counters import LEAST, LONGEST, Counters, Mark
from observer_agent.probes._disks import Disks, Space
from observer_agent.probes._procfs import Machine
from observer_agent.probes._reasons import Failed
from tests.contracts.test_probe import look, nothing_left
from tests.fakes import FakeClock
from tests.machines import GB, Tree, version_1, version_2
from tests.servers import make_prober, make_tools

MB = 1 << 20


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


class Looks:
    """Looks at a tree with tools that are kept, on a clock that is moved by hand."""

    def __init__(self, tree):
        self.tree = tree
        self.clock = FakeClock()
        self.tools = make_tools(clock=self.clock)

    def __call__(self, metric, **config):
        typed = host.parse({"metric": metric, **config})
        return host.probe(typed, self.clock.monotonic() + typed.timeout, self.tools, self.tree.machine)

    def after(self, seconds, metric, **config):
        self.clock.advance(seconds)
        return self(metric, **config)


@pytest.fixture
def looks(tree):
    return Looks(tree)


# -- configuration


def test_w1_a_small_configuration_and_its_defaults():
    assert host.parse({"metric": "filesystem"}) == host.HostConfig("filesystem", "/", None, 5.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("metric", "mood"), ("metric", None), ("metric", 5), ("mountpoint", "tmp"), ("mountpoint", "/" + "x" * 256),
        ("mountpoint", "/a\0b"), ("mountpoint", 5), ("iface", "x" * 65), ("iface", 5), ("timeout_ms", 0),
        ("unknown", 1),
    ],
)  # fmt: skip
def test_what_a_configuration_may_not_hold(field, value):
    with pytest.raises(InvalidConfig) as caught:
        host.parse({"metric": "cpu", field: value})
    assert str(caught.value).startswith(field)


# -- cpu


def test_cpu_is_what_happened_since_the_look_before(tree, looks):
    looks("cpu")
    tree.spend(user=20, system=10, irq=3, softirq=4, nice=2, steal=1, idle=50, iowait=10)
    reading = looks.after(30, "cpu")
    assert reading.value == 40.0
    assert reading.detail == {"metric": "cpu", "scope": "machine", "window_s": 30.0 + host.WINDOW, "steal_percent": 1.0}


def test_w37_guest_time_is_not_counted_twice(tree, looks):
    looks("cpu")
    tree.spend(user=50, guest=50, nice=10, guest_nice=10, idle=40)
    assert looks.after(30, "cpu").value == 60.0


def test_the_first_look_takes_a_window_of_its_own(looks):
    before = looks.clock.monotonic()
    assert looks("cpu").reason == "host_cpu_unavailable"  # nothing happened meanwhile in this tree
    assert looks.clock.monotonic() - before == host.WINDOW


def test_a_short_timeout_makes_a_short_window(tree, looks):
    before = looks.clock.monotonic()
    looks("cpu", timeout_ms=400)
    assert looks.clock.monotonic() - before == pytest.approx(0.2)


def test_counters_that_went_back_are_a_machine_that_started_again(tree, looks):
    looks("cpu")
    tree.times = dict.fromkeys(tree.times, 10)
    tree.spend()
    before = looks.clock.monotonic()
    looks.after(30, "cpu")
    assert looks.clock.monotonic() - before == 30 + host.WINDOW


def test_iowait_that_goes_back_a_little_counts_as_nothing(tree, looks):
    looks("cpu")
    tree.spend(user=50, idle=50, iowait=-5)
    assert looks.after(30, "cpu").value == 50.0


@pytest.mark.parametrize("text", ["", "cpu\n", "cpu  1 2 3\n", "cpu  1 2 x 4\n", "cpu0 1 2 3 4\n"])
def test_cpu_without_figures(text, tree, looks):
    tree.write("proc/stat", text)
    reading = looks("cpu")
    assert (reading.value, reading.reason, reading.fault) == (None, "host_cpu_unavailable", Fault.AGENT)


# -- containers


def container_v2(tree, path="", **limits):
    tree.group(f"0::/{path}\n", version_2(Path(path), **limits))


def container_v1(tree, path="", **limits):
    text = f"9:name=systemd:/{path}\n4:memory:/{path}\n2:cpu,cpuacct:/{path}\n"
    tree.group(text, version_1(Path(path), **limits))


@pytest.mark.parametrize("path", ["", "docker/abc", "kubepods/burstable/pod1/abc"])
def test_w37_cpu_of_a_container_of_version_2(path, tree, looks):
    container_v2(tree, path, max_cpu="50000 100000", used_us=1_000_000)
    looks("cpu")
    container_v2(tree, path, max_cpu="50000 100000", used_us=1_000_000 + 3_100_000)
    reading = looks.after(30, "cpu")
    assert reading.value == 20.0  # 3.1 s in 31 s of half a processor
    assert (reading.detail["scope"], reading.detail["processors"]) == ("container", 0.5)


@pytest.mark.parametrize("path", ["", "docker/abc"])
def test_w37_cpu_of_a_container_of_version_1(path, tree, looks):
    container_v1(tree, path, quota=200_000, used_ns=0)
    looks("cpu")
    container_v1(tree, path, quota=200_000, used_ns=31 * 10**9)
    assert looks.after(30, "cpu").value == 50.0  # one of two processors


@pytest.mark.parametrize("limits", [{}, {"max_cpu": "400000 100000"}, {"max_cpu": "junk"}])
def test_a_limit_that_is_none_leaves_the_machine(limits, tree, looks):
    container_v2(tree, **limits)
    looks("cpu")
    tree.spend(user=30, idle=70)
    reading = looks.after(30, "cpu")
    assert (reading.value, reading.detail["scope"]) == (30.0, "machine")


@pytest.mark.parametrize(("make", "limit"), [(container_v2, "1073741824"), (container_v1, 1073741824)])
@pytest.mark.parametrize("path", ["", "docker/abc"])
def test_w37_memory_of_a_container(make, limit, path, tree, looks):
    make(tree, path, memory=limit)
    reading = looks("memory")
    assert reading.value == round(500 / 1024 * 100, 1)  # what the kernel can give back is not in use
    assert reading.detail["scope"] == "container"
    assert (reading.detail["used_bytes"], reading.detail["total_bytes"]) == (500 * MB, GB)


def test_w37_the_tightest_limit_on_the_way_up_counts(tree, looks):
    tree.group("0::/pod/box\n", {**version_2(Path("pod"), memory=str(GB)), **version_2(Path("pod/box"))})
    assert looks("memory").detail["total_bytes"] == GB
    tree.group("0::/pod/box\n", version_2(Path("pod/box"), memory=str(GB // 2)))
    assert looks("memory").detail["total_bytes"] == GB // 2


@pytest.mark.parametrize("make", [container_v2, container_v1])
def test_memory_without_a_limit_or_with_one_above_the_machine(make, tree, looks):
    make(tree)
    assert (looks("memory").value, looks("memory").detail["scope"]) == (25.0, "machine")
    make(tree, memory=9 * GB)
    assert looks("memory").detail["scope"] == "machine"


def test_w37_a_limit_of_the_agents_own_service_is_none_of_the_machine(tree, looks):
    tree.group("0::/init.scope\n", version_2(Path("init.scope")))
    tree.write("proc/self/cgroup", "0::/system.slice/observer-agent.service\n")
    for name, text in version_2(Path("system.slice/observer-agent.service"), memory=str(200 * MB)).items():
        tree.write(f"sys/fs/cgroup/{name}", text)
    assert looks("memory").detail["scope"] == "machine"


@pytest.mark.parametrize("text", ["", "junk\n", "0::/../elsewhere\n", "::::\n"])
def test_a_group_that_makes_no_sense_is_no_limit(text, tree, looks):
    tree.group(text, version_2(Path("../elsewhere"), memory=str(GB)))
    assert looks("memory").value == 25.0


# -- memory, load


def test_memory_before_the_kernel_said_what_is_available(tree, looks):
    tree.memory(8 * GB, None, MemFree=GB, Buffers=GB, Cached=4 * GB)
    assert looks("memory").value == 25.0


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemTotal: 0 kB\nMemAvailable: 0 kB\n", "MemTotal: x kB\n"])
def test_memory_without_figures(text, tree, looks):
    tree.write("proc/meminfo", text)
    reading = looks("memory")
    assert (reading.value, reading.reason, reading.fault) == (None, "host_memory_unavailable", Fault.AGENT)


def test_load_is_a_ratio_per_processor(looks):
    reading = looks("load")
    assert (reading.value, reading.detail) == (0.5, {"metric": "load", "loadavg_1m": 2.0, "ncpu": 4})


@pytest.mark.parametrize("text", [None, "", "much\n"])
def test_load_without_a_load_average(text, tree, looks):
    if text is None:
        (tree.place / "proc/loadavg").unlink()
    else:
        tree.write("proc/loadavg", text)
    reading = looks("load")
    assert (reading.reason, reading.fault) == ("host_metric_unsupported_platform", Fault.AGENT)


@pytest.mark.parametrize(
    ("metric", "reason"),
    [("cpu", "host_cpu_unavailable"), ("memory", "host_memory_unavailable"), ("network", "host_network_unavailable"),
     ("load", "host_metric_unsupported_platform")],
)  # fmt: skip
def test_a_machine_without_proc(metric, reason, tmp_path):
    config = host.parse({"metric": metric})
    tools = make_tools()
    reading = host.probe(config, Clock().monotonic() + 1, tools, Machine(tmp_path / "none", tmp_path / "none"))
    assert (reading.reason, reading.fault) == (reason, Fault.AGENT)


@pytest.mark.parametrize(
    ("metric", "file"),
    [("cpu", "stat"), ("memory", "meminfo"), ("load", "loadavg"), ("network", "net/dev")],
)
def test_a_file_that_cannot_be_read(metric, file, tree, looks):
    (tree.place / "proc" / file).unlink()
    (tree.place / "proc" / file).mkdir()
    reading = looks(metric)
    assert (reading.reason, reading.fault, reading.detail["errno"]) == ("host_read_error", Fault.AGENT, "EISDIR")


# -- network


def test_w37_network_is_divided_by_the_time_that_really_passed(tree, looks):
    tree.interface("eth0", index=2, device=True)
    looks("network")
    tree.move(eth0=(31_000, 62_000), lo=(10**9, 10**9))
    reading = looks.after(30, "network")
    assert reading.value == 3000
    assert (reading.detail["received_per_s"], reading.detail["sent_per_s"]) == (1000, 2000)
    assert (reading.detail["window_s"], reading.detail["counted"]) == (31.0, ["eth0"])


def test_w37_lo_counts_where_it_is_asked_for(tree, looks):
    looks("network", iface="lo")
    tree.move(lo=(3100, 0))
    assert looks.after(30, "network", iface="lo").value == 100


def docker_host(tree):
    tree.interface("eth0", index=2, device=True)
    tree.interface("docker0", index=3, lower_veth1="veth1")
    tree.interface("veth1", index=5, link=4, master="docker0", upper_docker0="docker0")
    tree.interface("tun0", index=6)
    tree.interface("eth0.7", index=7, link=2, lower_eth0="eth0")
    return ["eth0"]


def bonded(tree):
    tree.interface("bond0", index=4, lower_eth0="eth0", lower_eth1="eth1")
    tree.interface("eth0", index=2, device=True, master="bond0", upper_bond0="bond0")
    tree.interface("eth1", index=3, device=True, master="bond0", upper_bond0="bond0")
    return ["eth0", "eth1"]


def azure(tree):
    """A virtual function that serves the interface in front of it, which counts its traffic as well."""
    tree.interface("eth0", index=2, device=True, lower_enP1="enP1")
    tree.interface("enP1", index=3, device=True, master="eth0", upper_eth0="eth0")
    return ["eth0"]


def container(tree):
    tree.interface("eth0", index=2, link=91)
    tree.interface("tun0", index=3)
    tree.interface("br0", index=4, lower_eth0="eth0")
    tree.interface("eth0.5", index=5, link=2, lower_eth0="eth0")
    return ["eth0"]


def without_sys(tree):
    tree.traffic |= {"eth0": (0, 0), "eth1": (0, 0)}
    return ["eth0", "eth1"]


@pytest.mark.parametrize("shape", [docker_host, bonded, azure, container, without_sys])
def test_w37_no_byte_is_counted_twice(shape, tree, looks):
    counted = shape(tree)
    tree.move()
    looks("network")
    tree.move(**{name: (3100, 3100) for name in tree.traffic})
    reading = looks.after(30, "network")
    assert reading.detail["counted"] == counted
    assert reading.value == 200 * len(counted)


def test_an_interface_that_comes_and_one_that_starts_again(tree, looks):
    tree.interface("eth0", index=2, device=True)
    tree.move(eth0=(10**6, 10**6))
    looks("network")
    tree.interface("eth1", index=3, device=True)
    tree.move(eth0=(31, 0), eth1=(10**9, 10**9))
    assert looks.after(30, "network").value == 1  # what eth1 had before is not of this window


def test_an_interface_that_is_not_there(tree, looks):
    reading = looks("network", iface="eth9")
    assert (reading.reason, reading.fault) == ("host_network_unavailable", Fault.TARGET)


def test_a_machine_with_lo_alone(tree, looks):
    reading = looks("network")
    assert (reading.value, reading.detail["counted"]) == (0, [])


# -- counters


def test_a_base_is_old_enough_and_not_too_old():
    counters = Counters()
    assert counters.swap("a", Mark(0.0, {"n": 1.0})) is None
    assert counters.swap("a", Mark(LEAST / 2, {"n": 2.0})) is None
    assert counters.swap("a", Mark(10.0, {"n": 3.0})).at == 0.0
    assert counters.swap("a", Mark(10.1, {"n": 4.0})).at == 0.0
    assert counters.swap("a", Mark(20.0, {"n": 5.0})).at == 10.0
    assert counters.swap("a", Mark(20.0 + LONGEST + 1, {"n": 5.0})) is None
    assert counters.swap("b", Mark(30.0, {})) is None


def test_counters_are_bounded():
    counters = Counters(most=3)
    for n in range(10):
        counters.swap(n, Mark(0.0, {}))
    assert len(counters) == 3
    assert counters.swap(9, Mark(5.0, {})).at == 0.0
    assert counters.swap(1, Mark(5.0, {})) is None


# -- file systems


def used_of_df(place):
    out = subprocess.run(["df", "-B1", "--output=pcent,size,used,avail,target", place], capture_output=True, text=True)
    percent, size, used, available, target = out.stdout.splitlines()[1].split()
    return int(percent.rstrip("%")), int(size), int(used), int(available), target


def test_w37_a_file_system_is_as_full_as_df_says(disk):
    (disk / "file").write_bytes(b"x" * 700_001)
    percent, size, used, available, target = used_of_df(disk)
    with nothing_left():
        reading = look(make_prober(), "host", {"metric": "filesystem", "mountpoint": str(disk)})
        inside = look(make_prober(), "host", {"metric": "filesystem", "mountpoint": str(disk / "file")})
    detail = reading.detail
    assert (detail["size_bytes"], detail["used_bytes"], detail["available_bytes"]) == (size, used, available)
    assert percent - 1 <= reading.value <= percent  # df rounds up
    assert detail["mounted_on"] == inside.detail["mounted_on"] == target == str(disk)


def needed(program, package):
    """The path of a program; without it the test is skipped, and fails where CI=true."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{program} is not here: {package} of Debian")
    return found


def test_w37_a_file_system_with_blocks_that_are_roots_alone_is_as_full_as_df_says(tmp_path):
    image, place = tmp_path / "image", tmp_path / "place"
    image.write_bytes(bytes(8 * MB))
    place.mkdir()
    subprocess.run([needed("mkfs.ext4", "e2fsprogs"), "-q", "-m", "20", image], check=True)
    done = subprocess.run(["mount", "-o", "loop", image, place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the kernel lets us mount nothing here: {done.stderr.strip()}")
    try:
        (place / "file").write_bytes(b"x" * 2 * MB)
        percent, size, used, available, _ = used_of_df(place)
        reading = look(make_prober(), "host", {"metric": "filesystem", "mountpoint": str(place)})
    finally:
        subprocess.run(["umount", "-l", place], check=True)
    assert size - used - available > MB
    assert (reading.detail["used_bytes"], reading.detail["available_bytes"]) == (used, available)
    assert percent - 1 <= reading.value <= percent


def test_w37_blocks_that_are_roots_alone_are_not_free():
    tools = make_tools()
    tools.disks = Disks(tools.clock, lambda path: Space(100, 60, 35, "/"))  # 5 are reserved
    reading = host.probe(host.parse({"metric": "filesystem"}), Clock().monotonic() + 1, tools)
    assert reading.value == 63.2


@pytest.mark.parametrize(
    ("mountpoint", "fault", "word"),
    [("/no/where", Fault.TARGET, "No such file"), ("/proc", Fault.CONFIG, "no size"),
     ("/etc/passwd/x", Fault.TARGET, "Not a directory")],
)  # fmt: skip
def test_a_file_system_that_is_none(mountpoint, fault, word):
    with nothing_left():
        reading = look(make_prober(), "host", {"metric": "filesystem", "mountpoint": mountpoint})
    assert (reading.value, reading.reason, reading.fault) == (None, "host_filesystem_unavailable", fault)
    assert word in reading.detail["error"]


def test_a_place_that_systemd_hides_has_no_value_instead_of_another_ones(disk):
    disk.chmod(0)
    reading = look(make_prober(), "host", {"metric": "filesystem", "mountpoint": str(disk)})
    assert (reading.value, reading.reason, reading.fault) == (None, "host_filesystem_unavailable", Fault.AGENT)
    assert "ProtectHome" in reading.detail["error"]


@contextlib.contextmanager
def dead(place):
    """A network file system whose server is gone, to the kernel: a FUSE mount that nobody serves."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        handle = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        pytest.skip(f"no FUSE here: {error}")
    options = f"fd={handle},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"dead", str(place).encode(), b"fuse", 6, options):
        os.close(handle)
        pytest.skip(f"the kernel lets us mount nothing here: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        os.close(handle)  # ends every call that hangs
        libc.umount2(str(place).encode(), 2)


def test_w37_a_dead_file_system_does_not_outlive_the_deadline_and_takes_one_thread(tmp_path):
    prober, config = make_prober(), {"metric": "filesystem", "mountpoint": str(tmp_path), "timeout_ms": 300}
    threads = set(threading.enumerate())
    with dead(tmp_path):
        with ThreadPoolExecutor(20) as pool:
            readings = list(pool.map(lambda _: look(prober, "host", config), range(20)))
        hung = set(threading.enumerate()) - threads
        assert {(r.reason, r.fault) for r in readings} == {("ETIMEDOUT", Fault.TARGET)}
        assert [t.name for t in hung] == ["disk-1"]
        assert look(prober, "host", {"metric": "filesystem"}).value > 0  # the others go on
    for thread in hung:
        thread.join(10)
    assert look(prober, "host", {**config, "timeout_ms": 2000}).value > 0


def test_w37_file_systems_that_hang_are_bounded():
    release = threading.Event()

    def hangs(path):
        release.wait(30)
        return Space(100, 50, 50, path)

    tools = make_tools()
    tools.disks = Disks(tools.clock, hangs)
    reasons = []
    try:
        for n in range(_disks.THREADS + 1):
            config = host.parse({"metric": "filesystem", "mountpoint": f"/{n}", "timeout_ms": 20})
            reading = host.probe(config, Clock().monotonic() + 0.02, tools)
            reasons.append((reading.reason, reading.fault))
    finally:
        release.set()
    assert reasons[:-1] == [("ETIMEDOUT", Fault.TARGET)] * _disks.THREADS
    assert reasons[-1] == ("host_filesystem_unavailable", Fault.AGENT)


def test_everybody_who_asks_meanwhile_shares_the_look():
    inside, release, looked = threading.Event(), threading.Event(), []

    def slow(path):
        looked.append(path)
        inside.set()
        release.wait(30)
        return Space(100, 50, 50, path)

    disks = Disks(Clock(), slow)
    deadline = Clock().monotonic() + 30
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(disks.space, "/a", deadline)
        assert inside.wait(10)
        with pytest.raises(Failed):
            disks.space("/a", Clock().monotonic() + 0.05)
        others = [pool.submit(disks.space, "/a", deadline) for _ in range(4)]
        release.set()
        spaces = [each.result(10) for each in (first, *others)]
    assert {space.used for space in spaces} == {50}
    assert 1 <= len(looked) <= 2  # somebody may come after the first look has ended


# -- this machine and its own tools


@pytest.mark.parametrize("metric", ["memory", "filesystem", "load", "cpu", "network"])
def test_this_machine_has_a_value_for_each(metric):
    with nothing_left():
        reading = look(make_prober(), "host", {"metric": metric, "timeout_ms": 500})
    assert reading.value >= 0


def run(*command):
    needed(command[0], "procps, coreutils")
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"}).stdout


def test_memory_is_what_free_says():
    def free():
        words = next(line for line in run("free", "-b").splitlines() if line.startswith("Mem:")).split()
        return int(words[1]), int(words[1]) - int(words[6])

    before, reading, after = free(), look(make_prober(), "host", {"metric": "memory"}), free()
    if reading.detail["scope"] == "container":
        pytest.skip("this is a container with a limit, of which free knows nothing")
    assert reading.detail["total_bytes"] == before[0]
    low, high = sorted((before[1], after[1]))
    slack = before[0] * 0.03  # others use memory meanwhile
    assert low - slack <= reading.detail["used_bytes"] <= high + slack


def test_load_is_what_uptime_and_nproc_say():
    def average():
        return float(re.search(r"load average: ([\d.]+)", run("uptime"))[1])

    before, reading, after = average(), look(make_prober(), "host", {"metric": "load"}), average()
    assert reading.detail["ncpu"] == int(run("nproc", "--all"))
    assert reading.detail["loadavg_1m"] in (before, after)
    assert reading.value == round(reading.detail["loadavg_1m"] / reading.detail["ncpu"], 2)


@pytest.mark.slow
def test_a_machine_that_is_busy_reads_as_busy():
    burning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    try:
        prober = make_prober()
        first = look(prober, "host", {"metric": "cpu"})
        assert first.detail["window_s"] >= 0.9
        Clock().alarm().wait(1.1)
        reading = look(prober, "host", {"metric": "cpu"})
    finally:
        for each in burning:
            each.kill()
            each.wait()
    assert reading.duration_ms < 500  # no window: the look before is the base
    assert reading.value > 90


SCRIPT = """
import json, sys
from pathlib import Path
from observer_agent.clock import Clock
from observer_agent.probes import host
from observer_agent.probes._procfs import Machine
from tests.servers import make_tools
import socket, threading
import socket, threading


sys_place = Path(sys.argv[1])
tools, clock = make_tools(), Clock()
def look(**config):
    typed = host.parse({"metric": "network", **config})
    return host.probe(typed, clock.monotonic() + 5, tools, Machine(Path("/proc"), sys_place))
look()
began = clock.monotonic()
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
peer, _ = server.accept()
thread = threading.Thread(target=lambda: [client.sendall(b"x" * 1_000_000) for _ in range(10)] and client.close())
thread.start()
while peer.recv(1 << 20):
    pass
thread.join()
peer.close(); server.close()
clock.alarm().wait(max(0.0, 1.1 - (clock.monotonic() - began)))
lo, all_of_them = look(iface="lo"), look()
print(json.dumps([lo.value * lo.detail["window_s"], all_of_them.detail["counted"]]))
"""


@pytest.mark.slow
def test_w37_a_container_with_a_real_kernel(tmp_path):
    """A network of its own with a cable to the outside, a bridge, and a cable that leads nowhere."""
    needed("unshare", "util-linux")
    needed("ip", "iproute2")
    outside = subprocess.Popen(["unshare", "-n", "cat"], stdin=subprocess.PIPE)
    place = tmp_path / "sys"
    place.mkdir()
    setup = f"""
        set -e
        mount -t sysfs none {place}
        ip link set lo up
        ip link add eth0 type veth peer name far
        ip link add br0 type bridge
        until [ "$(readlink /proc/{outside.pid}/ns/net)" != "{os.readlink("/proc/self/ns/net")}" ]; do :; done
        ip link set far netns {outside.pid}
        exec "$0" -c "$1" {place}
    """
    command = ["unshare", "-n", "-m", "sh", "-c", setup, sys.executable, SCRIPT]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    finally:
        outside.stdin.close()
        outside.wait()
    if done.returncode and re.search("permitted|denied|Unknown device type|not supported", done.stderr):
        pytest.skip(f"the kernel gives us no network of our own: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    moved, counted = json.loads(done.stdout)
    assert counted == ["eth0"]
    assert 20_000_000 <= moved <= 22_000_000  # ten megabytes, sent and received, and their headers
