"""The operator's own probes: found in files and installed packages, checked, and known by their names.

Files `*.py` of a directory that only root can write in, and entry points of the group `observer_agent.probes`, become
`CustomProbe`s; what is refused is named in the log and kept as a complaint. Loaded at the start and on a reload, on a
helper thread, so that a file that hangs cannot stop the agent. Looked up from any thread.
"""

from __future__ import annotations

import logging
import os
import stat
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NamedTuple

from observer_agent.clock import Clock
from observer_agent.config import CUSTOM_DIR
from observer_agent.probes import _schema
from observer_agent.probes._slots import Late, NoThread, Slots, Taken

log = logging.getLogger(__name__)

GROUP: Final = "observer_agent.probes"
MOST: Final = 32  # each may be looked at by many definitions
LOADING: Final = 10.0  # seconds for all files and packages together
LARGEST: Final = 1_048_576
DESCRIPTION: Final = 200
NAME: Final = 128


@dataclass(frozen=True, slots=True)
class CustomProbe:
    """One function of the operator's: `run` takes a `Look` and returns a number, or `{"value", "metadata"}`.

    `config_schema` describes `probe_config` (docs/custom-probes.md); without one it is handed on as it is.
    """

    name: str
    run: Callable[[Any], Any]
    description: str = ""
    config_schema: Mapping[str, Any] | None = None


class Complaint(NamedTuple):
    """Something that is not used: a file, a package or one probe of it, and why."""

    origin: str
    text: str


class Refused(Exception):
    """A file, a package or a probe cannot be used; the text says why."""


class Registry:
    """See the module. `slots` outlive a reload, so that a function that hangs is not forgotten."""

    def __init__(
        self, clock: Clock, uid: int | None = None, *, known: Iterable[CustomProbe] = (), loading: float = LOADING
    ) -> None:
        self._clock = clock
        self._uid = os.geteuid() if uid is None else uid
        self._loading = loading
        self._probes = {probe.name: probe for probe in known}
        self.slots = Slots(clock)
        self.complaints: tuple[Complaint, ...] = ()

    def find(self, name: str) -> CustomProbe | None:
        """The probe of this name."""
        return self._probes.get(name)

    def descriptors(self) -> tuple[dict[str, Any], ...]:
        """What the heartbeat says of each: name, description if there is one, has_config_schema."""
        found = sorted(self._probes.items())
        return tuple(
            {
                "name": name,
                **({"description": probe.description[:DESCRIPTION]} if probe.description else {}),
                "has_config_schema": probe.config_schema is not None,
            }
            for name, probe in found
        )

    def renew(self, folder: str) -> None:
        """Loads, and tells the log what was found and what is refused."""
        self.load(folder)
        for origin, text in self.complaints:
            log.error("Custom probes of %s are not used: %s", origin, text)
        if self._probes:
            log.info("%d custom probes: %s", len(self._probes), ", ".join(sorted(self._probes)))

    def load(self, folder: str) -> None:
        """Finds everything anew; what was there before counts until then."""
        deadline = self._clock.monotonic() + self._loading
        found: dict[str, CustomProbe] = {}
        complaints: list[Complaint] = []
        for origin, job in (*self._files(folder, complaints), *_packages()):
            try:
                for probe in self._obtained(origin, job, deadline):
                    _admit(probe, found)
            except Refused as refusal:
                complaints.append(Complaint(origin, str(refusal)))
        self._probes, self.complaints = found, tuple(complaints)

    def _obtained(self, origin: str, job: Callable[[], Any], deadline: float) -> list[CustomProbe]:
        try:
            outcome = self.slots.run(f"\0load {origin}", job, deadline)
        except Late:
            raise Refused(f"loading it did not end within {self._loading:.0f} s, nothing of it counts") from None
        except Taken:
            raise Refused("an earlier loading of it still hangs: restart the agent") from None
        except NoThread:
            raise Refused("no thread could be started") from None
        if isinstance(outcome.error, Refused):
            raise outcome.error
        if outcome.error:
            # Only the class: the text of a stranger's exception may hold anything.
            raise Refused(f"loading it raised {type(outcome.error).__name__}{_place(outcome.error, origin)}")
        found: list[CustomProbe] = outcome.value
        return found

    def _files(self, folder: str, complaints: list[Complaint]) -> list[tuple[str, Callable[[], Any]]]:
        """The files of the directory, each with what loads it; a missing directory that nobody set is none."""
        path = Path(folder)
        if not path.exists() and folder == CUSTOM_DIR:
            return []
        try:
            real = _checked_folder(path, self._uid)
            names = sorted(entry.name for entry in os.scandir(real) if entry.name.endswith(".py"))
        except OSError as error:
            complaints.append(Complaint(folder, f"it cannot be read: {error.strerror}"))
            return []
        except Refused as refusal:
            complaints.append(Complaint(folder, str(refusal)))
            return []
        return [(str(real / name), partial(_from_file, real / name, self._uid)) for name in names]


# -- files


def _checked_folder(folder: Path, uid: int) -> Path:
    """The directory without links; refuses one whose contents others may change, by itself or by one above it."""
    real = folder.resolve(strict=True)
    if not real.is_dir():
        raise Refused("it is not a directory")
    _check_owner(real.stat(), uid, str(real))
    for above in real.parents:
        _check_owner(above.stat(), uid, str(above), sticky=True)
    return real


def _check_owner(facts: os.stat_result, uid: int, what: str, *, sticky: bool = False) -> None:
    if facts.st_uid not in (0, uid):
        own = "root" if uid == 0 else "root or the agent's own user"
        raise Refused(f"{what} belongs to uid {facts.st_uid}, and must belong to {own}: chown root {what}")
    if sticky and facts.st_mode & stat.S_ISVTX:
        return  # nobody but its owner can rename there what is another's
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Refused(f"{what} can be written by others than its owner: chmod go-w {what}")


def _from_file(file: Path, uid: int) -> list[CustomProbe]:
    """Runs a file, checked and read through one descriptor, and takes its PROBES."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        link = file.is_symlink()
        raise Refused("it is a symbolic link" if link else f"it cannot be read: {error.strerror}") from None
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise Refused("it is not a regular file")
        _check_owner(facts, uid, str(file))
        with open(fd, "rb", closefd=False) as handle:
            source = handle.read(LARGEST + 1)
    finally:
        os.close(fd)
    if len(source) > LARGEST:
        raise Refused(f"it has more than {LARGEST} bytes")
    module = types.ModuleType(f"observer_agent_probe_{file.stem}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # dataclasses and pickles of the file look for it there
    exec(compile(source, str(file), "exec"), module.__dict__)
    if not hasattr(module, "PROBES"):
        raise Refused("it has no PROBES, a list of CustomProbe")
    return _listed(module.PROBES)


# -- packages


def _packages() -> Iterator[tuple[str, Callable[[], Any]]]:
    for point in metadata.entry_points(group=GROUP):
        yield f"entry point {point.name}", partial(_from_point, point)


def _from_point(point: metadata.EntryPoint) -> list[CustomProbe]:
    """What an entry point leads to: a CustomProbe, several, or a plain function that gets the entry point's name."""
    offered = point.load()
    if callable(offered) and not isinstance(offered, CustomProbe):
        first = (offered.__doc__ or "").strip().partition("\n")[0]
        return [CustomProbe(point.name, offered, first)]
    return _listed(offered)


# -- both


def _listed(offered: Any) -> list[CustomProbe]:
    listed = [offered] if isinstance(offered, CustomProbe) else offered
    if not isinstance(listed, Iterable):
        raise Refused("it offers neither a CustomProbe nor a list of them")
    found = list(listed)
    for each in found:
        if not isinstance(each, CustomProbe):
            raise Refused("it offers something that is no CustomProbe")
        _check(each)
    return found


def _check(probe: CustomProbe) -> None:
    name = probe.name
    if not isinstance(name, str) or not name.strip() or len(name) > NAME or not name.isprintable():
        raise Refused(f"a probe's name must be 1 to {NAME} printable characters")
    if not callable(probe.run):
        raise Refused(f"run of {name} is not callable")
    if not isinstance(probe.description, str):
        raise Refused(f"the description of {name} must be a text")
    if probe.config_schema is not None:
        try:
            _schema.check(probe.config_schema)
        except ValueError as error:
            raise Refused(f"{name}: {error}") from None
        if probe.config_schema.get("type") != "object":
            raise Refused(f"{name}: config_schema.type must be object")


def _admit(probe: CustomProbe, found: dict[str, CustomProbe]) -> None:
    if probe.name in found:
        raise Refused(f"there is a probe {probe.name} already; the first one counts")
    if len(found) == MOST:
        raise Refused(f"there are {MOST} custom probes already")
    found[probe.name] = probe


def _place(error: BaseException, origin: str) -> str:
    """Where in a file something was raised."""
    at, line = error.__traceback__, None
    while at:
        if at.tb_frame.f_code.co_filename == origin:
            line = at.tb_lineno
        at = at.tb_next
    if isinstance(error, SyntaxError):
        line = error.lineno
    return f" in line {line}" if line else ""
