"""What systemd is told: ready, reloading, stopping, a line of status, and that the watchdog may rest.

Datagrams to the socket that `NOTIFY_SOCKET` names (sd_notify(3)); without one, nothing. Used by the main thread alone.
A message that cannot be sent is not tried again: the next one comes within a second.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

from observer_agent.clock import Clock

log = logging.getLogger(__name__)

STATUS_EVERY = 5.0


class Notifier:
    """The connection to the service manager, if there is one."""

    def __init__(self, env: Mapping[str, str], clock: Clock) -> None:
        address = env.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watched = env.get("WATCHDOG_USEC", "").isdecimal() and env.get("WATCHDOG_PID") in (None, str(os.getpid()))
        self._clock = clock
        self._said = ""
        self._say_after = 0.0

    def ready(self) -> None:
        """The agent works."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """The settings are being read again; `ready` ends it."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={int(self._clock.monotonic() * 1_000_000)}")

    def stopping(self) -> None:
        """The stop has begun."""
        self._tell("STOPPING=1\nSTATUS=Stopping")

    def alive(self) -> None:
        """Every worker makes progress; call it much more often than the unit's WatchdogSec."""
        if self._watched:
            self._tell("WATCHDOG=1")

    def status(self, line: str) -> None:
        """One line for `systemctl status`; told when it changes, at most every 5 s."""
        now = self._clock.monotonic()
        if line != self._said and now >= self._say_after:
            self._said, self._say_after = line, now + STATUS_EVERY
            self._tell(f"STATUS={line}".replace("\n", " "))

    def _tell(self, message: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            try:
                sock.sendto(message.encode(), self._address)
            except OSError as error:
                log.debug("systemd was not told %s: %s", message.partition("=")[0], error.strerror)
