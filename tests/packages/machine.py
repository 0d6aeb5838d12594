"""Machines: a root with real systemd booted in a container of systemd-nspawn, and commands run inside.

Enters: a `Tree`. Leaves: what commands, the journal and the unit say. A machine shares the host's network unless told
otherwise, so that a hub of the host's loopback is "outside". `close` ends it in whatever state it is, and a test run
that is killed takes its machines with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.packages.roots import Tree, need

UNIT = "observer-agent.service"
BOOT_SECONDS = 60.0
ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}
# A cgroup for each machine: systemd in two containers of one cgroup would take each other's services for their own.
START = 'for each in "$@"; do shift; [ "$each" = -- ] && break; echo $$ >"$each/cgroup.procs" || true; done; exec "$@"'
# With this process ends `unshare`, with that its namespace of processes, and with that all that runs in the machine.
TOGETHER = ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


class Machine:
    """One booted system."""

    def __init__(self, tree: Tree, *, network: bool = True, binds: Sequence[tuple[Path, str]] = ()) -> None:
        self.tree = tree
        self.name = f"obs-{os.getpid()}-{tree.path.parent.name[-24:]}"
        self._console = tree.path.parent / "console.log"
        self._options = ["--resolv-conf=copy-host"] if network else ["--resolv-conf=off", "--private-network"]
        self._options += [f"--bind-ro={source}:{place}" for source, place in binds]
        self._cgroups = [place / self.name for place in _own_cgroups()]
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0

    # -- life

    def boot(self) -> None:
        """Starts it and waits until systemd is up; skips where the kernel refuses."""
        for group in self._cgroups:
            with suppress(OSError):  # a cgroup tree that we may not write: the machine shares our cgroup
                group.mkdir()
        command = [
            need("systemd-nspawn", "systemd-container"), "--quiet", "--boot", f"--directory={self.tree.path}",
            f"--machine={self.name[:60]}", "--register=no", "--keep-unit", "--timezone=off",
            "--console=pipe", *self._options,
        ]  # fmt: skip
        groups = [str(group) for group in self._cgroups if group.is_dir()]
        start = ["sh", "-c", START, "sh", *groups, "--", *TOGETHER, *command]
        with self._console.open("wb") as out:
            self._nspawn = subprocess.Popen(
                start, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        until(self._is_up, "the machine is up", BOOT_SECONDS, lambda: self._console.read_text(errors="replace"))

    def _is_up(self) -> bool:
        assert self._nspawn is not None
        if self._nspawn.poll() is not None:
            said = self._console.read_text(errors="replace").strip()[-800:]
            pytest.skip(f"NOT TESTED: systemd-nspawn boots nothing here: {said}")
        nspawn = _children(self._nspawn.pid)
        found = _children(nspawn[0]) if nspawn and _name(nspawn[0]) == "systemd-nspawn" else []
        if not found:
            return False
        self._leader = found[0]  # the first child of all is a short-lived one
        with suppress(subprocess.TimeoutExpired):
            return self.run("systemctl", "is-system-running", check=False, timeout=5).stdout.strip() in UP
        return False

    def poweroff(self) -> None:
        """Shuts it down as an administrator would, so that its files are whole."""
        assert self._nspawn is not None
        self.run("systemctl", "poweroff", check=False)
        self._nspawn.wait(60)

    def close(self) -> None:
        """Ends it, however it is; what it has said is printed, which pytest shows where a test fails."""
        if self._nspawn is None:
            return
        if self._nspawn.poll() is None:
            with suppress(subprocess.SubprocessError, AssertionError):
                print(self.journal())
            for pid in filter(None, (self._leader, self._nspawn.pid)):  # with its init all its processes end
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._nspawn.wait(30)
        for group in self._cgroups:
            with suppress(AssertionError):  # its last processes may need a moment to be gone
                until(lambda group=group: _remove_cgroup(group), "the cgroup is gone", 5.0)

    # -- inside

    def run(
        self, *command: str | Path, check: bool = True, given: str | None = None, timeout: float = 90.0
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command as root inside; fails the test with everything that was said unless it ends well."""
        words = ["nsenter", "--target", str(self._leader), "--all", "env", "-i"]
        words += [f"{name}={value}" for name, value in ENV.items()] + [str(word) for word in command]
        source: dict[str, Any] = {"input": given} if given is not None else {"stdin": subprocess.DEVNULL}
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, errors="replace", **source)
        if check and done.returncode:
            said = f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            raise AssertionError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{said}")
        return done

    def ask(self, *command: str | Path) -> str:
        """What a command prints, without the blanks around it."""
        return self.run(*command).stdout.strip()

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file of root's inside, made or replaced."""
        self.run("install", "-D", "-m", f"{mode:o}", "/dev/stdin", path, given=text)

    def has(self, path: str) -> bool:
        """Whether there is such a file or folder inside."""
        return self.run("test", "-e", path, check=False).returncode == 0

    def journal(self, *words: str) -> str:
        """The journal of this boot."""
        return self.run("journalctl", "--no-pager", "--boot", *words, check=False).stdout

    # -- units

    def systemctl(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """systemctl inside."""
        return self.run("systemctl", *words, check=check)

    def show(self, name: str, unit: str = UNIT) -> str:
        """One property of a unit."""
        return self.ask("systemctl", "show", "--value", "--property", name, unit)

    def main_pid(self) -> int:
        """The unit's process, as seen from inside; fails the test where there is none (0 would be everybody)."""
        pid = int(self.show("MainPID"))
        assert pid > 1, f"{UNIT} has no process: {self.systemctl('status', UNIT, check=False).stdout}"
        return pid

    def signal(self, name: str) -> int:
        """Sends a signal to the unit's process; its pid."""
        pid = self.main_pid()
        self.run("kill", f"-{name}", str(pid))
        return pid

    def failed(self) -> str:
        """The units that have failed, one a line."""
        return self.ask("systemctl", "--failed", "--plain", "--no-legend")

    def until(self, what: Callable[[], Any], text: str, seconds: float = 30.0) -> Any:
        """Asks `what()` until it says something true; fails the test with the unit's state otherwise."""
        return until(what, text, seconds, lambda: self.systemctl("status", "--lines=30", UNIT, check=False).stdout)


UP = ("running", "degraded")


def until(what: Callable[[], Any], text: str, seconds: float, said: Callable[[], str] = lambda: "") -> Any:
    """Asks `what()` again and again until it says something true; returns that."""
    pause, end = threading.Event(), time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        pause.wait(0.05)
    raise AssertionError(f"not within {seconds:g} s: {text}\n{said()[-4000:]}")


def throughout(what: Callable[[], Any], text: str, seconds: float) -> None:
    """Asks `what()` again and again; fails the test when it once says something false."""
    pause, end = threading.Event(), time.monotonic() + seconds
    while time.monotonic() < end:
        assert what(), f"no longer: {text}"
        pause.wait(0.1)


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has ended
        return []


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _own_cgroups() -> list[Path]:
    """The folder of this process in each tree of cgroups that systemd keeps its services in."""
    trees = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options = line.split()[:4]
        if kind == "cgroup2":
            trees[""] = Path(place)
        elif kind == "cgroup" and "name=systemd" in options.split(","):
            trees["name=systemd"] = Path(place)
    out = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, name, path = line.split(":", 2)
        if name in trees:
            own = trees[name] / path.lstrip("/")
            out.append(own if own.is_dir() else trees[name])
    return out


def _remove_cgroup(group: Path) -> bool:
    for folder, _, _ in os.walk(group, topdown=False):
        with suppress(OSError):
            os.rmdir(folder)
    return not group.exists()
