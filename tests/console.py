"""A small console for tests: real sockets, real JSON, a script instead of rules."""

from __future__ import annotations

import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SUCCESS = {"register": 200, "heartbeat": 200, "events": 202, "discoveries": 200, "shutdown": 204, "host-metrics": 204}


class Console(ThreadingHTTPServer):
    """Hands out `checks`, keeps what arrives.

    `script[endpoint]` holds answers that are given out first, one a request: (status, body, headers), or a status.
    `always[endpoint]` is an answer that is given every time, or a function of the request's body that makes one.
    `tokens` are those that are known, all when it is None; those in `gone` are answered 410.
    """

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.checks: list[dict] = []
        self.etag = "etag-1"
        self.more: dict = {}  # other fields of both answers
        self.once: dict = {}  # other fields of the next heartbeat's answer
        self.registration: dict = {
            "lighthouse_id": "lh-1",
            "name": "test",
            "host": "h",
            "heartbeat_interval_seconds": 5,
        }
        self.tokens: set[str] | None = None
        self.gone: set[str] = set()
        self.script: dict[str, deque] = {}
        self.always: dict = {}
        self.gates: dict[str, threading.Event] = {}  # a request waits until its endpoint's is set
        self.requests: list[tuple[str, dict, dict]] = []  # endpoint, headers, body
        self.raw: list[tuple[str, bytes]] = []  # endpoint and body as it came, before it is answered
        self.changed = threading.Condition()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def bodies(self, endpoint: str) -> list[dict]:
        return [body for name, _, body in list(self.requests) if name == endpoint]

    def posts(self) -> list[dict]:
        """The bodies of events that were accepted."""
        return self.bodies("events")

    def events(self, check: str | None = None) -> list[dict]:
        """Every accepted event in order, with its envelope's kind."""
        rows = [{**event, "sync_kind": body.get("sync_kind")} for body in self.posts() for event in body["events"]]
        return [row for row in rows if check in (None, row["check_id"])]

    def states(self, check: str) -> list[tuple]:
        return [(row["sync_kind"], row["prev_state"], row["new_state"]) for row in self.events(check)]

    def until(self, what, seconds: float = 30.0):
        """Waits for something that arrives to make `what()` true."""
        with self.changed:
            assert self.changed.wait_for(what, seconds), f"it did not arrive; seen: {[r[0] for r in self.requests]}"
            return what()

    def answer(self, endpoint: str, headers: dict, body: dict) -> tuple[int, object, dict]:
        with self.changed:
            made = self._answer(endpoint, headers, body)
            status = made[0]
            self.requests.append(
                (endpoint if status == SUCCESS.get(endpoint) else f"{endpoint}:{status}", headers, body)
            )
            self.changed.notify_all()
        return made

    def _answer(self, endpoint: str, headers: dict, body: dict) -> tuple[int, object, dict]:
        token = headers.get("Authorization", "").removeprefix("Bearer ")
        if token in self.gone:
            return 410, {"error": "gone"}, {}
        if self.tokens is not None and token not in self.tokens:
            return 401, {"error": "unauthorized"}, {}
        scripted = self.script.get(endpoint)
        found = scripted.popleft() if scripted else self.always.get(endpoint)
        if callable(found):
            found = found(body)
        if isinstance(found, int):
            return found, {"error": f"scripted {found}"}, {}
        if found:
            return found
        return SUCCESS.get(endpoint, 404), self._usual(endpoint), {}

    def _usual(self, endpoint: str) -> object:
        common = {"config_etag": self.etag, "paused": False, "flap_protection_threshold": 1, **self.more}
        if endpoint == "register":
            return {**self.registration, **common, "checks": self.checks}
        if endpoint == "heartbeat":
            once, self.once = self.once, {}
            return {**common, "request_full_resync": False, **once}
        return {"received": 1} if endpoint in ("events", "discoveries") else None

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    server: Console

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        try:
            body = json.loads(raw) if raw else {}
        except ValueError:
            body = {"raw": raw}
        endpoint = urlsplit(self.path).path.removeprefix("/api/lighthouse/v1/")
        with self.server.changed:
            self.server.raw.append((endpoint, raw))
            self.server.changed.notify_all()
        if gate := self.server.gates.get(endpoint):
            gate.wait(60)
        status, said, headers = self.server.answer(endpoint, dict(self.headers), body)
        content = b"" if said is None or status == 204 else json.dumps(said).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *args) -> None:
        pass


def check(name: str, url: str, kind: str = "tcp", **more) -> dict:
    """A check as the console gives it."""
    return {"id": name, "type": kind, "name": name, "url": url, "interval_seconds": 5, "timeout_seconds": 2, **more}
