"""Now, monotonic, and the only waits in the program.

One `Clock` is made by the front door and handed to everything; tests hand in a fake one and replay an hour in
milliseconds. Stamps come from `now()`, deadlines and intervals from `monotonic()`. An `Alarm` is a wait that another
thread can end; `Signals` is the main thread's wait, ended by a signal.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime


class Alarm:
    """Wakes one waiting thread: `ring` from any thread, `wait` from the one that owns it.

    A lock that is free while there is a ring to be used up: it costs a twentieth of what an Event costs to wait on.
    """

    def __init__(self) -> None:
        self._silence = threading.Lock()
        self._silence.acquire()

    def ring(self) -> None:
        """Ends the wait in progress, or the next one if none is."""
        if self._silence.locked():
            with suppress(RuntimeError):  # another thread has rung meanwhile
                self._silence.release()

    def wait(self, seconds: float) -> bool:
        """Waits at most `seconds` and says whether it was rung; the ring is used up."""
        return self._silence.acquire(timeout=min(max(seconds, 0.0), threading.TIMEOUT_MAX))


class Clock:
    """The machine's clocks. Seconds as floats, everywhere."""

    def now(self) -> float:
        """Wall clock: seconds since 1970-01-01 UTC; may be set back."""
        return time.time()

    monotonic = staticmethod(time.monotonic)  # seconds since an arbitrary start; a probe asks 20 times

    def slept(self) -> float:
        """Seconds that the machine has slept (suspended) since its boot; `monotonic` stands still meanwhile."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)

    def alarm(self) -> Alarm:
        """A new wait that other threads can end."""
        return Alarm()


class Signals:
    """The main thread's wait: the handlers do nothing, the signal numbers arrive through a pipe.

    Use as a context manager on the main thread; the handlers that stood before are restored at the end.
    """

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self._numbers = tuple(numbers)
        self._read, self._write = os.pipe()
        for fd in (self._read, self._write):
            os.set_blocking(fd, False)

    def __enter__(self) -> Signals:
        self._old_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, lambda *_: None) for number in self._numbers}
        return self

    def __exit__(self, *exc: object) -> None:
        signal.set_wakeup_fd(self._old_fd)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)

    def force(self, numbers: Iterable[signal.Signals]) -> None:
        """From now on one of these ends the process at once: somebody does not want to wait for the stop."""
        for number in numbers:
            signal.signal(number, lambda n, _: os._exit(128 + n))

    def wait(self, seconds: float) -> tuple[signal.Signals, ...]:
        """Waits at most `seconds`; returns the signals that have come, none if the time ran out."""
        ready, _, _ = select.select([self._read], [], [], max(seconds, 0.0))
        if not ready:
            return ()
        return tuple(signal.Signals(n) for n in os.read(self._read, 64) if n in self._numbers)


def iso(seconds: float) -> str:
    """The wire's timestamp: ISO 8601, UTC, milliseconds, `Z`."""
    whole, ms = divmod(round(seconds * 1000), 1000)
    return f"{datetime.fromtimestamp(whole, UTC).isoformat()[:19]}.{ms:03d}Z"


def to_ms(seconds: float) -> float:
    """Milliseconds with three decimals. `round(x, 3)` takes three times as long, and a look asks six times."""
    return round(seconds * 1e6) / 1000


def parse_iso(text: str) -> float | None:
    """An ISO 8601 instant as seconds since 1970, or None where it is not one or has no offset."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.timestamp() if moment.tzinfo else None
