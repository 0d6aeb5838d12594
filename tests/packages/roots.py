"""Debian roots, made once by mmdebstrap and laid under as many throw-away copies as the tests want.

Enters: a suite and package names. Leaves: `Tree`s, folders that a machine may boot from and spoil. What this kernel or
this user may not do skips the test and says so; a program that is missing fails it where CI=true.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

BOOTABLE = ("systemd-sysv", "dbus", "procps", "ca-certificates")
AGENT_NEEDS = ("python3", "init-system-helpers")


def need(program: str, package: str) -> str:
    """The path of a program; without it the test is skipped, and fails where CI=true."""
    found = shutil.which(program)
    if found:
        return found
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI installs {package}, and {program} is not there")
    pytest.skip(f"NOT TESTED: {program} is not on the PATH (Debian: apt-get install {package})")


def need_mounts(folder: Path) -> None:
    """Skips where this user or this kernel mounts nothing."""
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: booting a machine needs root")
    place = folder / "probe"
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"NOT TESTED: the kernel lets us mount nothing here: {done.stderr.strip()}")
    subprocess.run(["umount", place], check=True)


def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where roots are kept: OBSERVER_TEST_CACHE, else until the end of this test run."""
    given = os.environ.get("OBSERVER_TEST_CACHE")
    folder = Path(given) if given else tmp_path_factory.getbasetemp() / "roots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def root_of(cache: Path, suite: str, include: Sequence[str]) -> Path:
    """A root of `suite` with the packages `include`; made now unless the cache has it. Nobody may change it."""
    need_mounts(cache)
    program = need("mmdebstrap", "mmdebstrap")
    names = ",".join(sorted(set(include)))
    place = cache / f"{suite}-{hashlib.sha256(names.encode()).hexdigest()[:12]}"
    with _only_one(place.with_suffix(".lock")):
        if not place.is_dir():
            part = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=cache))
            # Its mounts are its own: a run that is killed here leaves none on the host.
            alone = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]
            command = [*alone, program, "--quiet", "--variant=apt", f"--include={names}", suite, part]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            if done.returncode:
                _refuse_root(suite, done.stderr)
            part.chmod(0o755)
            part.rename(place)
    return place


def _refuse_root(suite: str, said: str) -> None:
    text = f"mmdebstrap made no {suite}: {said.strip()[-1500:]}"
    if os.environ.get("CI") == "true":
        pytest.fail(text)
    pytest.skip(f"NOT TESTED: {text}")


@contextmanager
def _only_one(file: Path) -> Iterator[None]:
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class Tree:
    """A folder that begins as what `layers` hold (the upper first); what is written into it stays in it."""

    def __init__(self, folder: Path, layers: Sequence[Path]) -> None:
        self.path = folder / "root"
        self._disk = folder / "disk"
        self._lower = tuple(layers)
        self._mounted: list[Path] = []
        for place in (self.path, self._disk):
            place.mkdir(parents=True)

    @property
    def layers(self) -> tuple[Path, ...]:
        """What a tree on top of this one, once `seal`ed, takes as its layers."""
        return (self._disk / "upper", *self._lower) if self._mounted else (self.path,)

    def open(self) -> None:
        """Mounts an overlay over a disk in memory; where the kernel refuses that, copies."""
        self._mount("-t", "tmpfs", "-o", "size=2g,mode=0755", "tmpfs", self._disk)
        for name in ("upper", "work"):
            (self._disk / name).mkdir()
        lower = ":".join(map(str, self._lower))
        options = f"lowerdir={lower},upperdir={self._disk}/upper,workdir={self._disk}/work"
        try:
            self._mount("-t", "overlay", "-o", options, "overlay", self.path)
        except subprocess.CalledProcessError:
            self.close()
            self.path.rmdir()
            subprocess.run(["cp", "-a", "--reflink=auto", self._lower[0], self.path], check=True)

    def seal(self) -> None:
        """Ends the writing; what was written stays readable through `layers` until `close`."""
        if self.path in self._mounted:
            subprocess.run(["umount", self.path], check=True)
            self._mounted.remove(self.path)

    def close(self) -> None:
        """Lets go of everything."""
        while self._mounted:
            subprocess.run(["umount", "-l", self._mounted.pop()], check=False)

    def _mount(self, *words: str | Path) -> None:
        subprocess.run(["mount", *words], check=True, capture_output=True)
        self._mounted.append(Path(words[-1]))
