"""The local page's state behind a socket file beside the queue, for `status` where no port may be opened.

Who may open the file is up to its directory and mode: this user and root. No browser gets here.
"""

from __future__ import annotations

import http.client
import os
import socket
from pathlib import Path

from observer_agent.clock import Clock
from observer_agent.dashboard.server import Pages, Server


def path_of(queue: Path) -> Path:
    """Where the socket lies."""
    return queue.with_name(queue.name + ".socket")


class PrivateServer(Server):
    """A `Server` at a path. Raises OSError where it cannot listen."""

    def __init__(self, path: Path, pages: Pages, clock: Clock) -> None:
        self._path = path
        super().__init__("localhost", 0, pages, None, clock=clock)

    def server_bind(self) -> None:
        """Binds to the path, for this user alone; what lies there is left from a process that has ended."""
        self.socket.close()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            self.socket.bind(str(self._path))
        finally:
            os.umask(before)
        self.server_name, self.server_port = "localhost", 0

    def stop(self) -> None:
        """Stops serving and takes the file away."""
        super().stop()
        self._path.unlink(missing_ok=True)


class PrivateConnection(http.client.HTTPConnection):
    """A connection to such a server."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connects to the path."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
