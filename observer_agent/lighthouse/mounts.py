"""How full this machine's disks are: its table of mounts in, figures out; each disk once, hung ones left out.

Runs on the worker `host-metrics`. `Disks` asks the file systems on helper threads: a dead one never answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from observer_agent.clock import Clock
from observer_agent.lighthouse.figures import Figure, percent
from observer_agent.probes._disks import Disks, Space
from observer_agent.probes._procfs import read
from observer_agent.probes._reasons import Failed

MOUNTS_MAX: Final = 20
MOUNT_SECONDS: Final = 1.0  # for one file system
SLOW_SECONDS: Final = 0.01  # for one that gave no answer the last time
MOUNTS_SECONDS: Final = 5.0  # for all of them

_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Places:
    """Where the kernel speaks, and where the machine's file systems are seen from inside a container."""

    proc: Path = Path("/proc")
    root: Path | None = None

    @property
    def own(self) -> bool:
        """Whether this is the /proc of the agent itself and not one that was mounted into its container."""
        return self.root is None and self.proc == Path("/proc")


class Mounts:
    """See the module; one thread calls."""

    def __init__(self, clock: Clock, places: Places, disks: Disks | None = None) -> None:
        self._clock = clock
        self._places = places
        self._disks = disks or Disks(clock)
        self._slow: set[str] = set()

    def collect(self) -> tuple[list[Figure], int]:
        """The figures, and how many mounts were left out."""
        places = mounts(self._places)
        until = self._clock.monotonic() + MOUNTS_SECONDS
        spaces = {place: space for place in places[:MOUNTS_MAX] if (space := self._space(place, until))}
        self._slow &= set(places)
        seen: dict[str, str] = {}
        for place, space in spaces.items():
            seen.setdefault(space.mounted_on, place)  # shorter paths come first
        # Two of them on one mount point: the longer path is not mounted where the agent sees it.
        shown = [place for place, space in spaces.items() if seen[space.mounted_on] == place]
        return [figure for place in shown for figure in usage(spaces[place], place)], len(places) - len(shown)

    def _space(self, place: str, until: float) -> Space | None:
        """None where the file system gives no answer in time; the next look hardly waits for such a one."""
        now = self._clock.monotonic()
        seconds = SLOW_SECONDS if place in self._slow else MOUNT_SECONDS
        path = str(self._places.root or "").rstrip("/") + place
        try:
            space = self._disks.space(path, min(until, now + seconds))
        except OSError:
            return None
        except Failed:
            self._slow.add(place)
            return None
        self._slow.discard(place)
        return space


def mounts(places: Places) -> list[str]:
    """Where the disks are mounted, each once and at its shortest path; shorter paths first."""
    found: dict[str, str] = {}
    for source, place, options in _mount_rows(places.proc / ("1" if places.root else "self")):
        if not source.startswith("/dev/") or source.startswith("/dev/loop") or "ro" in options.split(","):
            continue
        known = found.get(source)
        if known is None or (len(place), place) < (len(known), known):
            found[source] = place
    return sorted(found.values(), key=lambda place: (len(place), place))


def _mount_rows(process: Path) -> Iterator[tuple[str, str, str]]:
    """Source, place and options of each mount that the process sees.

    From `mountinfo`, which tells the file system's options from the mount's: for a service with ProtectSystem=strict
    everything is mounted read-only, though the machine writes to it.
    """
    try:
        text, wide = read(process / "mountinfo"), True
    except LookupError:
        text, wide = read(process / "mounts"), False
    for line in text.splitlines():
        row = _wide_row(line.split(" ")) if wide else _row(line.split(" "))
        if row:
            source, place, options = row
            yield _decoded(source), _decoded(place), options


def _wide_row(words: Sequence[str]) -> tuple[str, str, str] | None:
    if "-" not in words[6:]:
        return None
    rest = words[words.index("-", 6) + 1 :]
    return (rest[1], words[4], rest[2]) if len(rest) == 3 else None


def _row(words: Sequence[str]) -> tuple[str, str, str] | None:
    return (words[0], words[1], words[3]) if len(words) >= 4 else None


def _decoded(text: str) -> str:
    """The kernel writes a blank as \\040, a backslash as \\134 and so on."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), text)


def usage(space: Space, place: str) -> Iterator[Figure]:
    """How full a file system is, as `df` counts: free is what ordinary users may still take."""
    labels = (("mount", place),)
    if space.size <= 0:
        return
    yield Figure("disk_used_bytes", space.used, labels)
    yield Figure("disk_free_bytes", space.available, labels)
    yield Figure("disk_used_percent", percent(space.used, space.used + space.available), labels)
    if space.inodes > 0:
        yield Figure("disk_inodes_used_percent", percent(space.inodes - space.inodes_free, space.inodes), labels)
