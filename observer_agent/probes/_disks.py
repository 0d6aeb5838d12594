"""How full a file system is, within a deadline, though `statvfs` on a dead network file system never returns.

Every look happens on a helper thread that ends with it; all who ask for the same path meanwhile share that look.
At most THREADS of them hang at a time, then further paths are refused at once. One `Disks` for an agent, in `Tools`;
safe from any thread.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from observer_agent.clock import Alarm, Clock
from observer_agent.model import Fault
from observer_agent.probes._reasons import Failed, Reason, timed_out
from observer_agent.worker import spawn

THREADS: Final = 8


class Space(NamedTuple):
    """Bytes: all of them, used ones, and what ordinary users may still take; and where the file system is mounted.

    A file system that makes inodes as it needs them has none of them.
    """

    size: int
    used: int
    available: int
    mounted_on: str
    inodes: int = 0
    inodes_free: int = 0


Look = Callable[[str], Space]


class _Turn:
    """One look in progress and everybody who waits for it."""

    def __init__(self) -> None:
        self.waiting: list[Alarm] = []
        self.outcome: Space | OSError | None = None


class Disks:
    """See the module. `look` asks the system unless a test hands in another."""

    def __init__(self, clock: Clock, look: Look | None = None) -> None:
        self._clock = clock
        self._look = look or system_look
        self._lock = threading.Lock()
        self._running: dict[str, _Turn] = {}

    def space(self, path: str, deadline: float) -> Space:
        """The space of the file system that holds `path`; raises OSError, or Failed at the deadline."""
        alarm = self._clock.alarm()
        turn = self._join(path, alarm)
        while turn.outcome is None:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                self._leave(turn, alarm)
                raise timed_out("asking the file system", Fault.TARGET)
            alarm.wait(left)
        if isinstance(turn.outcome, OSError):
            raise OSError(turn.outcome.errno, turn.outcome.strerror)
        return turn.outcome

    def _join(self, path: str, alarm: Alarm) -> _Turn:
        with self._lock:
            turn = self._running.get(path)
            if turn is None:
                if len(self._running) >= THREADS:
                    raise _overloaded("too many file systems hang")
                turn = self._running[path] = _Turn()
                self._spawn(path, turn)
            turn.waiting.append(alarm)
            return turn

    def _spawn(self, path: str, turn: _Turn) -> None:
        try:
            spawn(f"disk-{len(self._running)}", lambda: self._run(path, turn))
        except RuntimeError:
            del self._running[path]
            raise _overloaded("no thread could be started") from None

    def _leave(self, turn: _Turn, alarm: Alarm) -> None:
        with self._lock:
            if alarm in turn.waiting:
                turn.waiting.remove(alarm)

    def _run(self, path: str, turn: _Turn) -> None:
        outcome: Space | OSError
        try:
            outcome = self._look(path)
        except OSError as error:
            outcome = error
        with self._lock:
            turn.outcome = outcome
            del self._running[path]
            waiting = tuple(turn.waiting)
        for alarm in waiting:
            alarm.ring()


def system_look(path: str) -> Space:
    """What `df` sees: blocks reserved for root are neither used nor available. Raises OSError."""
    if stat.S_IMODE(os.stat(path).st_mode) == 0:
        # systemd hides a place behind an empty directory without any rights, of another file system.
        raise PermissionError(errno.EACCES, "the agent's service may not look there (ProtectHome, InaccessiblePaths)")
    facts = os.statvfs(path)
    size, free, available = (n * facts.f_frsize for n in (facts.f_blocks, facts.f_bfree, facts.f_bavail))
    place = os.path.realpath(path)
    while not os.path.ismount(place):
        place = os.path.dirname(place)
    return Space(size, size - free, available, place, facts.f_files, facts.f_ffree)


def _overloaded(text: str) -> Failed:
    return Failed(Reason.HOST_FILESYSTEM_UNAVAILABLE, text, Fault.AGENT)
