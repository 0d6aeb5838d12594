"""Log lines to the cloud, best effort (`BROADCAST_LOGS`): never blocks, never recurses.

`offer` is called by whatever thread logs and only appends; `step` runs on the thread `log` and posts. Lines that this
thread causes are not offered again.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from observer_agent.clock import Clock

KEEP = 200
PAUSE = 5.0
IDLE = 3600.0
LEVELS = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARN": logging.WARNING, "ERROR": logging.ERROR}


class Cloud(Protocol):
    """What the broadcast asks of the cloud."""

    def log(self, line: Mapping[str, str]) -> bool:
        """Posts one line."""


class Broadcast:
    """Holds at most 200 lines; when the cloud does not take them the oldest go."""

    def __init__(self, cloud: Cloud, clock: Clock, level: str) -> None:
        self._cloud = cloud
        self._clock = clock
        self._level = LEVELS[level]
        self._lines: deque[Mapping[str, str]] = deque(maxlen=KEEP)
        self._thread: int | None = None
        self.wake: Callable[[], object] = lambda: None

    def offer(self, levelno: int, line: Mapping[str, str]) -> None:
        """Takes a line at or above the level."""
        if levelno >= self._level and threading.get_ident() != self._thread:
            self._lines.append(line)
            self.wake()

    def step(self) -> float:
        """Posts the oldest line; returns the seconds until the next turn."""
        self._thread = threading.get_ident()
        if not self._lines:
            return IDLE
        line = self._lines.popleft()
        return 0.0 if self._cloud.log(line) else PAUSE
