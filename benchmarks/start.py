"""Process start to first heartbeat, memory with 100 definitions, and how quick the front door is."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.measure import median

FULL = "import requests, persistqueue, click, prometheus_client"


class Cloud(ThreadingHTTPServer):
    """Counts heartbeats and rows, hands out definitions of itself."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.beat_at: float | None = None
        self.beaten = threading.Event()
        self.rows: set[str] = set()
        self.all_in = threading.Event()
        self.definitions: list[dict[str, object]] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Cloud

    def do_GET(self) -> None:
        self._say(self.server.definitions if self.path.endswith("definitions") else {"ok": True})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("heartbeat"):
            self.server.beat_at = self.server.beat_at or time.monotonic()
            self.server.beaten.set()
        elif isinstance(body, list):
            self.server.rows |= {row["metric_id"] for row in body}
            if len(self.server.rows) >= len(self.server.definitions):
                self.server.all_in.set()
        self._say({"accepted": len(body), "rejected": []})

    def _say(self, what: object) -> None:
        body = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def definitions(port: int, count: int) -> list[dict[str, object]]:
    rules = {"healthy_operation": "under", "healthy_value": 500, "unhealthy_operation": "over", "unhealthy_value": 900}
    http = {"source_type": "http", "source_config": {"url": f"http://127.0.0.1:{port}/"}}
    tcp = {"source_type": "tcp", "source_config": {"host": "127.0.0.1", "port": port}}
    return [{"id": f"m{n}", "interval": 0.1, **(http if n % 2 else tcp), **rules} for n in range(count)]


def agent(port: int, folder: str, page: int | None = None) -> subprocess.Popen[bytes]:
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    env |= {
        "AGENT_KEY": "bench",
        "CLOUD_SERVER_URL": f"http://127.0.0.1:{port}",
        "BUFFER_PATH": f"{folder}/b.db",
        "DEBUG_DASHBOARD_PORT": str(page or free_port()),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "observer_agent", "run"], env=env, stderr=subprocess.DEVNULL, cwd=folder
    )


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def started(count: int) -> tuple[float, float, int]:
    """Seconds to the first heartbeat, RSS in MB once every definition has given a row, threads."""
    cloud = Cloud()
    cloud.definitions = definitions(cloud.server_port, count)
    threading.Thread(target=cloud.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        process = agent(cloud.server_port, folder)
        try:
            if not cloud.beaten.wait(30) or not cloud.all_in.wait(60):
                raise SystemExit("the agent did not come up")
            status = Path(f"/proc/{process.pid}/status").read_text()
        finally:
            process.terminate()
            process.wait(20)
            cloud.shutdown()
            cloud.server_close()
    facts = dict(line.split(":", 1) for line in status.splitlines())
    assert cloud.beat_at is not None
    return cloud.beat_at - begin, int(facts["VmRSS"].split()[0]) / 1024, int(facts["Threads"])


def run_time(*command: str) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def figures() -> Iterator[tuple[str, str]]:
    """Lines of the report."""
    runs = [started(100) for _ in range(3)]
    beat, memory, threads = (median([float(run[i]) for run in runs]) for i in range(3))
    yield "exec to first heartbeat", f"{beat:.3f} s (aim 0.4)"
    yield "memory with 100 definitions", f"{memory:.1f} MB RSS, {threads:.0f} threads (aim at most 50 MB)"
    helps, imports, starts = [], [], []
    for _ in range(7):
        helps.append(run_time(sys.executable, "-m", "observer_agent", "--help"))
        imports.append(run_time(sys.executable, "-c", FULL))
        starts.append(run_time(sys.executable, "-c", "import observer_agent.dashboard, observer_agent.cli"))
    yield "--help", f"{median(helps):.3f} s"
    yield "the four libraries imported", f"{median(imports):.3f} s"
    yield "everything that `run` imports", f"{median(starts):.3f} s"
    yield "ratio: --help", f"{median(helps) / median(starts):.2f} of the full start (aim 0.33)"
