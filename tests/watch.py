"""A stopwatch for tests: what a busy machine adds is no fault of what is tested."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

PRESSURE = Path("/proc/pressure/cpu")


def contended() -> float:
    """Seconds in which something on this machine waited for a processor; 0 where the kernel does not count them."""
    with suppress(OSError):
        return int(PRESSURE.read_text().partition("total=")[2].split()[0]) / 1e6
    return 0.0


class Watch:
    """Runs from the moment at which it is made."""

    def __init__(self) -> None:
        self._begin, self._busy = time.monotonic(), contended()

    @property
    def seconds(self) -> float:
        """How long it has run, without the time in which something on this machine waited for a processor."""
        busy = contended() - self._busy
        return time.monotonic() - self._begin - busy
