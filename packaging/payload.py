"""The source tree in; the tree of libraries and programs that both packages hold out.

Everything is copied with fixed modes and written without time or place of the build. Raises BuildError.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import NamedTuple

import lock

WANTED = ("observer_agent/", "packaging/", "systemd/", "docs/configuration.md")
WANTED += ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "MANIFEST.in")
DROPPED = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "entry_points.txt")
COMPILED = (".so", ".pyd", ".dylib", ".a", ".o", ".pyc")


class BuildError(Exception):
    """What is missing or wrong, in one line for the person who builds."""


class Library(NamedTuple):
    """One vendored library: as the lock has it, what its metadata says, and the texts of its licence."""

    name: str
    version: str
    sha256: str
    metadata: Message
    places: list[str]
    texts: dict[str, str]


def run(command: list[str | Path], cwd: Path, env: dict[str, str] | None = None) -> str:
    """The output of a program; raises BuildError with the end of what it complained."""
    try:
        done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"cannot start {command[0]}: {error.strerror}") from None
    if done.returncode:
        raise BuildError(f"{Path(command[0]).name} failed ({done.returncode}):\n{done.stderr.strip()[-2000:]}")
    return done.stdout


def stage(root: Path, to: Path) -> None:
    """Copies what packages are made of: the working tree's files, never one that git ignores."""
    for name in _known(root):
        if name.startswith(WANTED) and (root / name).is_file():
            target = to / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, target)
            target.chmod(0o644)


def _known(root: Path) -> list[str]:
    """Names of files that belong to the project; without git (an archive) all but what .gitignore names."""
    if (root / ".git").exists():
        out = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], root)
        return sorted({name for name in out.split("\0") if name})
    ignored = [p.rstrip("/") for p in (root / ".gitignore").read_text().split() if p]
    names = []
    for file in sorted(root.rglob("*")):
        parts = file.relative_to(root).parts
        if file.is_file() and not any(fnmatch.fnmatch(part, p) for part in parts for p in ignored):
            names.append("/".join(parts))
    return names


def wheel(source: Path, out: Path) -> Path:
    """Our own wheel, by the pinned setuptools."""
    constraints = source / "packaging" / "build-constraints.txt"
    command = [sys.executable, "-m", "build", "--wheel", "--dependency-constraints-txt", constraints, "--outdir", out]
    run([*command, source], source)
    [made] = out.glob("observer_agent-*.whl")
    return made


def download(lock_file: Path, to: Path) -> None:
    """The locked wheels, each with exactly the locked hash."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", *lock.PURE]
    run([*command, "--python-version", lock.FLOOR, "--dest", to, "--requirement", lock_file], to)


def vendor(lock_file: Path, wheels: Path, lib: Path) -> list[Library]:
    """Unpacks every locked wheel into `lib`."""
    found = {}
    for file in sorted(wheels.glob("*.whl")):
        metadata, places, texts = unpack(file, lib)
        found[_canonical(metadata["Name"])] = (metadata, places, texts)
    return [Library(name, *pin, *found[name]) for name, pin in sorted(lock.read(lock_file).items())]


def unpack(file: Path, lib: Path) -> tuple[Message, list[str], dict[str, str]]:
    """Unpacks one pure wheel without its tests, scripts and pip's records: metadata, top folders, licence texts."""
    with zipfile.ZipFile(file) as archive:
        names = [n for n in archive.namelist() if not n.endswith("/")]
        [info] = {n.split("/")[0] for n in names if n.split("/")[0].endswith(".dist-info")}
        if "Root-Is-Purelib: true" not in archive.read(f"{info}/WHEEL").decode():
            raise BuildError(f"{file.name} is not a pure wheel: this way of packaging ends with compiled code")
        for name in names:
            if _kept(name, info):
                _write(lib, name, archive.read(name))
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        texts = {n.rsplit("/", 1)[-1]: archive.read(n).decode() for n in names if _is_licence(n, info)}
    return metadata, sorted({n.split("/")[0] for n in names if _kept(n, info)}), texts


def _kept(name: str, info: str) -> bool:
    if name.endswith(COMPILED):
        raise BuildError(f"{name} is compiled: this way of packaging ends with compiled code")
    parts = name.split("/")
    if parts[0] == info:
        return parts[-1] not in DROPPED and not _is_licence(name, info)
    return not parts[0].endswith(".data") and "tests" not in parts[:-1]


def _is_licence(name: str, info: str) -> bool:
    return name.startswith(f"{info}/") and bool(re.match(r"(?i)(licen[cs]e|notice|copying)", name.rsplit("/", 1)[-1]))


def _write(lib: Path, name: str, content: bytes) -> None:
    target = lib / name
    if not target.resolve().is_relative_to(lib.resolve()):
        raise BuildError(f"{name} leads out of the tree")
    if target.exists():
        raise BuildError(f"two wheels hold {name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".py") and content.startswith(b"#!"):
        content = content.partition(b"\n")[2]  # a module is no program
    target.write_bytes(content)


def normalise(top: Path, epoch: int) -> None:
    """Fixed modes and times: nfpm takes a tree's from the disk."""
    for path in sorted(top.rglob("*"), reverse=True):
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (epoch, epoch))


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
