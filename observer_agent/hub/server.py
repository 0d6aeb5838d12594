"""waitress, embedded: one thread for the sockets, a few for requests, and an end that nobody can hold up.

`Server(app, host, port)` listens at once; `start` serves on the thread `hub`; `stop` lets the requests in progress end,
closes every connection and returns within `STOP_SECONDS`, idle and hanging clients or not.
"""

from __future__ import annotations

import logging
import resource
import socket
import threading
from functools import partial
from typing import Any

from waitress.channel import HTTPChannel
from waitress.server import create_server
from waitress.task import ErrorTask

from observer_agent.errors import UsageError
from observer_agent.hub.app import CODES
from observer_agent.hub.sockets import Loop, Side
from observer_agent.worker import spawn

log = logging.getLogger(__name__)

THREADS = 8
CONNECTIONS = 30_000  # an agent keeps one for heartbeats, and others for two minutes after they were used
IDLE_SECONDS = 120
STOP_SECONDS = 2.0
BODY_MAX = 4 * 1024 * 1024  # what the application refuses as too large it can refuse politely up to here
FILES_BESIDE = 200


class Server:
    """A listening server around a WSGI application."""

    def __init__(self, app: Any, host: str, port: int) -> None:
        self._socket = _listen(host, port)
        self.host, self.port = self._socket.getsockname()[:2]
        self._loop = Loop()
        self._stopping = False
        self._pulling = threading.Lock()
        self._server = create_server(
            app,
            map=self._loop.map,
            sockets=[self._socket],
            threads=THREADS,
            connection_limit=room(),
            channel_timeout=IDLE_SECONDS,
            max_request_body_size=BODY_MAX,
            ident=None,
            clear_untrusted_proxy_headers=False,  # `limits.peer` decides whom to believe
        )
        self._server.channel_class = partial(_Channel, self._loop)
        self._loop.watch(self._server)

    @property
    def url(self) -> str:
        """Where it listens: http://HOST:PORT."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def start(self) -> None:
        """Serves on a thread of its own until `stop`."""
        self._thread = spawn("hub", self._run)

    def stop(self) -> None:
        """Ends serving; returns once every connection is closed."""
        # Said on the loop's own thread, which may hear of it by somebody else's pull, before ours.
        with self._pulling:
            self._server.trigger.pull_trigger(self._end)
        self._thread.join(2 * STOP_SECONDS)

    def _end(self) -> None:
        self._stopping = True

    def _run(self) -> None:
        while not self._stopping:
            self._loop.turn()
        self._socket.close()
        with self._pulling:
            pass  # the trigger is closed below, and its number may be another file's then
        self._server.task_dispatcher.shutdown(timeout=STOP_SECONDS)
        self._loop.close()


class _ErrorAsJson(ErrorTask):  # type: ignore[misc]
    """What waitress itself refuses (a broken request line, too large a head) is JSON like everything else."""

    def execute(self) -> None:
        error = self.request.error
        code = CODES.get(error.code, error.reason.lower().replace(" ", "_"))
        body = f'{{"error": "{code}", "message": "the request cannot be read"}}\n'.encode()
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Channel(HTTPChannel):  # type: ignore[misc]
    error_task_class = _ErrorAsJson
    request: Any  # the one that is being read

    def __init__(self, loop: Loop, server: Any, sock: socket.socket, addr: Any, adj: Any, map: Any) -> None:
        super().__init__(Side(server, self, loop), sock, addr, adj, map=map)

    def handle_close(self) -> None:
        """The connection is gone."""
        super().handle_close()
        self._let_go()

    def close(self) -> None:
        """The server ends; an answer that is not sent is let go like that of a connection that is gone."""
        self.handle_close()

    def cancel(self) -> None:
        """The server ends before the requests had their turn."""
        for each in self.requests:
            each.close()
        super().cancel()

    def _let_go(self) -> None:
        """Closes the file of a body that was cut off, which waitress leaves to the garbage collector."""
        cut_off = self.request
        self.request = None
        if cut_off is not None:
            cut_off.close()


def adopt_log() -> None:
    """What waitress logs goes where our own lines go; the depth of its task queue is not worth a line."""
    theirs = logging.getLogger("waitress")
    if not any(isinstance(each, _Forward) for each in theirs.handlers):
        theirs.addHandler(_Forward())
    theirs.propagate = False
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)


class _Forward(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log.handle(record)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise UsageError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None


def room() -> int:
    """How many connections the limit on open files allows, after raising it as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + FILES_BESIDE
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    return CONNECTIONS if soft == resource.RLIM_INFINITY else max(100, min(CONNECTIONS, soft - FILES_BESIDE))
