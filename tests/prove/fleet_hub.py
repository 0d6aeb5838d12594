"""A hub process of the fleet: all of `observer-hub serve`, on a clock that the test moves and that is a little off.

`python -m tests.prove.fleet_hub serve --port N`, with FLEET_CLOCK (a file of eight bytes, the time) and FLEET_AHEAD
(seconds) in the environment.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import sys
from pathlib import Path

from observer_agent.clock import Alarm, Clock, Signals
from observer_agent.hub.cli import FOR_EVER, serving

LOOK = 0.02  # real seconds after which a wait sees that the time has been moved


class SharedClock(Clock):
    """The time in a file, for every process that has mapped it; it moves when somebody writes it."""

    def __init__(self, file: Path, ahead: float = 0.0) -> None:
        with file.open("r+b") as opened:
            self._memory = memoryview(mmap.mmap(opened.fileno(), 8)).cast("d")
        self._ahead = ahead

    @classmethod
    def made(cls, file: Path, at: float) -> SharedClock:
        """A new one."""
        file.write_bytes(struct.pack("=d", at))
        return cls(file)

    def now(self) -> float:
        """What the file says, and what this process is ahead of it."""
        return self._memory[0] + self._ahead

    def monotonic(self) -> float:
        """The same: nobody sets it back."""
        return self.now()

    def alarm(self) -> Alarm:
        """A wait that ends when the time has been moved far enough."""
        return _SharedAlarm(self)

    def move(self, to: float) -> None:
        """Moves the time of all, never back."""
        self._memory[0] = max(to, self._memory[0])


class _SharedAlarm(Alarm):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, seconds: float) -> bool:
        until = self._clock.monotonic() + seconds
        while self._clock.monotonic() < until:
            if super().wait(LOOK):
                return True
        return super().wait(0.0)


def main() -> None:
    """Serves until SIGTERM."""
    clock = SharedClock(Path(os.environ["FLEET_CLOCK"]), float(os.environ["FLEET_AHEAD"]))
    with Signals((signal.SIGTERM,)) as signals, serving(None, "127.0.0.1", int(sys.argv[-1]), clock) as url:
        sys.stdout.write(f"listening on {url}\n")
        sys.stdout.flush()
        while signal.SIGTERM not in signals.wait(FOR_EVER):
            pass


if __name__ == "__main__":
    main()
