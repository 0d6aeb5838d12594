"""A small cloud for in-process tests: real sockets, real JSON, no rules of its own."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class LocalCloud(ThreadingHTTPServer):
    """Hands out `definitions`, keeps what arrives; `failing` answers everything with 503."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.definitions: list[dict] = []
        self.version = "v1"
        self.failing = False
        self.beats: list[dict] = []
        self.rows: list[dict] = []
        self.lines: list[dict] = []
        self.pings: list[dict] = []
        self.changed = threading.Condition()
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def until(self, what, seconds: float = 20.0):
        """Waits for something that arrives to make `what()` true."""
        with self.changed:
            assert self.changed.wait_for(what, seconds), "it did not arrive"
            return what()

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    server: LocalCloud

    def do_GET(self) -> None:
        self._say(self.server.definitions, {"x-observer-definitions-version": self.server.version})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        cloud = self.server
        if not cloud.failing:
            with cloud.changed:
                kind = self.path.rpartition("/")[2]
                known = {"heartbeat": cloud.beats, "heartbeat-relay": cloud.pings, "log": cloud.lines}
                known.get(kind, cloud.rows).extend(body if isinstance(body, list) else [body])
                cloud.changed.notify_all()
        self._say({"definitions_version": cloud.version})

    def _say(self, what, headers=()) -> None:
        body = json.dumps(what).encode()
        self.send_response(503 if self.server.failing else 200)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args) -> None:
        pass
