"""The source type `host`: how busy and how full the agent's own machine or container is.

Rules: docs/probes/host.md, mended by W1 and W37. Values that are differences (cpu, network) are those since the look
before; the first one takes a short window. Limits of a container count where it has any. Runs on a probe thread.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from observer_agent.model import Fault, Reading
from observer_agent.probes import _cgroup, _procfs
from observer_agent.probes._config import Fields
from observer_agent.probes._counters import Mark
from observer_agent.probes._procfs import Machine
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tools import Run, Tools

WINDOW: Final = 1.0  # of the first look, in seconds
NAMES_SHOWN: Final = 16
_IDLE: Final = ("idle", "iowait")


@dataclass(frozen=True, slots=True)
class HostConfig:
    """What to look at; `timeout` is seconds."""

    metric: str
    mountpoint: str
    iface: str | None
    timeout: float


def parse(raw: object) -> HostConfig:
    """The typed configuration; raises InvalidConfig."""
    fields = Fields(raw)
    if "metric" not in fields:
        fields.problem("metric", f"is required: one of {', '.join(_METRICS)}")
    config = HostConfig(
        metric=fields.choice("metric", tuple(_METRICS), "cpu"),
        mountpoint=fields.parsed("mountpoint", _parse_path) or "/",
        iface=fields.text("iface", longest=64) or None,
        timeout=fields.timeout(5_000),
    )
    fields.done()
    return config


def _parse_path(text: str) -> str:
    if not text.startswith("/") or "\0" in text or len(text) > 256:
        raise ValueError("must be an absolute path of at most 256 characters")
    return text


def probe(config: HostConfig, deadline: float, tools: Tools, machine: Machine | None = None) -> Reading:
    """One look at this machine, or at the one whose `proc` and `sys` are handed in."""
    run = Run(tools, deadline, Reason.HOST_READ_ERROR)
    look, reason = _METRICS[config.metric]
    known: dict[str, Any] = {"metric": config.metric}
    try:
        value = look(config, machine or Machine(), run, known)
    except LookupError as error:
        return run.failed(Failed(reason, str(error.args[0]), Fault.AGENT), **known)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        return run.failed(Failed(Reason.HOST_READ_ERROR, f"{error.strerror or name}", errno=name), **known)
    except Failed as failure:
        return run.failed(failure, **known)
    return run.gave(value, **known)


def _cpu(config: HostConfig, machine: Machine, run: Run, known: dict[str, Any]) -> float:
    """Percent of the processors' time, of the container's share where it has a limit."""
    limit = _cgroup.cpu(machine)
    if limit and limit.processors < _procfs.processors(machine):
        return _cpu_of_container(limit.processors, machine, run, known)
    before, now = _two_marks(("cpu", machine), lambda: _procfs.cpu_times(machine), run)
    spent = _procfs.growth(before.figures, now.figures)
    whole = sum(spent.values())
    if not whole:
        raise LookupError("the kernel's counters of processor time stand still")
    known.update(scope="machine", window_s=round(now.at - before.at, 3))
    known["steal_percent"] = round(spent.get("steal", 0.0) / whole * 100, 1)
    return _percent(whole - sum(spent.get(name, 0.0) for name in _IDLE), whole)


def _cpu_of_container(processors: float, machine: Machine, run: Run, known: dict[str, Any]) -> float:
    def used() -> dict[str, float]:
        limit = _cgroup.cpu(machine)
        return {"seconds": limit.seconds} if limit else {}

    before, now = _two_marks(("cpu of container", machine), used, run)
    spent = _procfs.growth(before.figures, now.figures).get("seconds")
    if spent is None:
        raise LookupError("the container's limit of processor time has vanished")
    known.update(scope="container", processors=processors, window_s=round(now.at - before.at, 3))
    return _percent(spent, (now.at - before.at) * processors)


def _memory(config: HostConfig, machine: Machine, run: Run, known: dict[str, Any]) -> float:
    """Percent of the memory that is in use, of the container's share where it has a limit."""
    used, total = _procfs.memory(machine)
    limit = _cgroup.memory(machine)
    known["scope"] = "machine"
    if limit and limit.limit < total:
        used, total = limit
        known["scope"] = "container"
    known.update(used_bytes=used, total_bytes=total)
    return _percent(used, total)


def _filesystem(config: HostConfig, machine: Machine, run: Run, known: dict[str, Any]) -> float:
    """Percent of the space that ordinary users may take, as `df` counts."""
    known["mountpoint"] = config.mountpoint
    try:
        space = run.tools.disks.space(config.mountpoint, run.deadline)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        fault = Fault.AGENT if error.errno == errno.EACCES else None
        raise Failed(Reason.HOST_FILESYSTEM_UNAVAILABLE, error.strerror or name, fault, errno=name) from None
    whole = space.used + space.available
    if whole <= 0:
        raise Failed(Reason.HOST_FILESYSTEM_UNAVAILABLE, "this file system has no size", Fault.CONFIG)
    known.update(mounted_on=space.mounted_on, size_bytes=space.size, used_bytes=space.used)
    known["available_bytes"] = space.available
    return _percent(space.used, whole)


def _network(config: HostConfig, machine: Machine, run: Run, known: dict[str, Any]) -> float:
    """Bytes in a second, both ways, of one interface or of all that lead outside."""
    known["iface"] = config.iface
    before, now = _two_marks(("network", machine), lambda: _bytes(machine), run)
    there = sorted({name.partition(" ")[2] for name in now.figures})
    names = [config.iface] if config.iface else _procfs.counted(there, machine)
    if config.iface and config.iface not in there:
        raise Failed(Reason.HOST_NETWORK_UNAVAILABLE, "there is no interface of this name")
    spent, seconds = _procfs.growth(before.figures, now.figures), now.at - before.at
    received, sent = (sum(spent.get(f"{way} {name}", 0.0) for name in names) / seconds for way in ("rx", "tx"))
    known.update(window_s=round(seconds, 3), received_per_s=round(received), sent_per_s=round(sent))
    known["counted"] = names[:NAMES_SHOWN]
    return float(round(received + sent))


def _bytes(machine: Machine) -> dict[str, float]:
    found = _procfs.interfaces(machine).items()
    received = {f"rx {name}": float(traffic.received) for name, traffic in found}
    return received | {f"tx {name}": float(traffic.sent) for name, traffic in found}


def _load(config: HostConfig, machine: Machine, run: Run, known: dict[str, Any]) -> float:
    """The load average of a minute for each processor: a ratio, 1 is all of them busy."""
    average, number = _procfs.load(machine), _procfs.processors(machine)
    known.update(loadavg_1m=average, ncpu=number)
    return round(average / number, 2)


def _two_marks(key: tuple[object, ...], read: Callable[[], Mapping[str, float]], run: Run) -> tuple[Mark, Mark]:
    """The counters at the look before and now. Without one before, or after a reset, two looks in a short window."""
    monotonic = run.tools.clock.monotonic
    now = Mark(monotonic(), read())
    before = run.tools.counters.swap(key, now)
    if before is None or sum(now.figures.values()) < sum(before.figures.values()):
        run.tools.clock.alarm().wait(min(WINDOW, run.left() / 2))
        before, now = now, Mark(monotonic(), read())
    return before, now


def _percent(part: float, whole: float) -> float:
    return round(min(max(part / whole * 100, 0.0), 100.0), 1)


_Look = Callable[[HostConfig, Machine, Run, dict[str, Any]], float]
_METRICS: Final[Mapping[str, tuple[_Look, Reason]]] = MappingProxyType(
    {
        "cpu": (_cpu, Reason.HOST_CPU_UNAVAILABLE),
        "memory": (_memory, Reason.HOST_MEMORY_UNAVAILABLE),
        "filesystem": (_filesystem, Reason.HOST_FILESYSTEM_UNAVAILABLE),
        "network": (_network, Reason.HOST_NETWORK_UNAVAILABLE),
        "load": (_load, Reason.HOST_UNSUPPORTED_PLATFORM),
    }
)
