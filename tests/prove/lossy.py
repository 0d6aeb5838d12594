"""A proxy that loses answers after the hub has committed, and now and then answers itself or dawdles."""

from __future__ import annotations

import random
import threading
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOSE = 0.3
REFUSE = 0.05
DAWDLE = 0.1
LONGEST = 0.05  # seconds
PATIENCE = 30.0


class Lossy(ThreadingHTTPServer):
    """Listens at once; forwards to `upstream`, a port of this machine, until `close`."""

    daemon_threads = True

    def __init__(self, upstream: int, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.passed = self.lost = self.refused = 0
        self.unheard: set[int] = set()  # row ids the hub was given and the writer may not have heard about
        self.lock = threading.Lock()
        self._chance = random.Random(seed)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="lossy")
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def draw(self) -> tuple[bool, bool, float]:
        """Whether to answer 503, whether to lose the hub's answer, seconds to dawdle before asking it."""
        with self.lock:
            refuse, lose = self._chance.random() < REFUSE, self._chance.random() < LOSE
            pause = self._chance.uniform(0, LONGEST) if self._chance.random() < DAWDLE else 0.0
        return refuse, lose, pause


class _Handler(BaseHTTPRequestHandler):
    """One connection of the writer, and one to the hub behind it."""

    server: Lossy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    timeout = PATIENCE

    def setup(self) -> None:
        super().setup()
        self.hub = HTTPConnection("127.0.0.1", self.server.upstream, timeout=PATIENCE)
        self.given: list[int] = []  # the rows of the last request: heard of once the next one comes

    def finish(self) -> None:
        self.hub.close()
        with self.server.lock:
            self.server.unheard.update(self.given)
        try:
            super().finish()
        except OSError:
            self.rfile.close()

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            pass  # the writer was killed

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        refuse, lose, pause = self.server.draw()
        if refuse:
            self._count("refused")
            return self._say(503, b"{}")
        threading.Event().wait(pause)
        self.given = row_ids(self.headers.get("Push-Sequence"))
        answer = self._forward(body)
        if answer is None or lose:
            self._count("lost")
            self.close_connection = True
            return None
        self._count("passed")
        return self._say(*answer)

    def _forward(self, body: bytes) -> tuple[int, bytes] | None:
        """The hub's answer; None when it is away. Asked once only: who asks again is the writer."""
        sent = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
        try:
            self.hub.request("POST", self.path, body, sent)
            answer = self.hub.getresponse()
            return answer.status, answer.read()
        except (OSError, HTTPException):
            self.hub.close()
            return None

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _count(self, name: str) -> None:
        with self.server.lock:
            setattr(self.server, name, getattr(self.server, name) + 1)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def row_ids(sequence: str | None) -> list[int]:
    """The ids of a `Push-Sequence`."""
    ranges = (sequence or "").partition(";")[2]
    ends = [one.partition("-") for one in ranges.split(",") if one]
    return [i for first, _, last in ends for i in range(int(first), int(last or first) + 1)]
