"""What the demonstration watches: an HTTP server, a TCP listener, a real Prometheus where there is one.

Real sockets on free ports of loopback; `document_of` is the document of definitions that watches them.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from observer_agent.demo.stage import end_process, free_port
from observer_agent.worker import spawn


@contextmanager
def running_targets(folder: Path, page_port: int) -> Iterator[dict[str, int]]:
    """An HTTP server with a good and a failing path, a TCP listener, a Prometheus where there is one; ports by name."""
    with ExitStack() as stack:
        server = stack.enter_context(closing_server(ThreadingHTTPServer(("127.0.0.1", 0), _Target)))
        listener = stack.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
        spawn("demo-tcp", lambda: accept_all(listener))
        ports = {"http": server.server_port, "tcp": listener.getsockname()[1]}
        program = shutil.which("prometheus")
        if program:
            ports["prometheus"] = free_port()
            stack.callback(end_process, start_prometheus(program, folder, ports["prometheus"], page_port))
        yield ports


def start_prometheus(program: str, folder: Path, port: int, page_port: int) -> subprocess.Popen[bytes]:
    """A real Prometheus that scrapes the agent's own metrics every second."""
    jobs = [{"job_name": "agent", "static_configs": [{"targets": [f"127.0.0.1:{page_port}"]}]}]
    config = folder / "prometheus.yml"
    config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}))
    command = [
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)


@contextmanager
def closing_server(server: ThreadingHTTPServer) -> Iterator[ThreadingHTTPServer]:
    """Serves on a thread until the block ends."""
    server.daemon_threads = True
    spawn("demo-http", server.serve_forever)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def accept_all(listener: socket.socket) -> None:
    """Takes connections and closes them, until the listener is closed."""
    while True:
        try:
            listener.accept()[0].close()
        except OSError:
            return


class _Target(BaseHTTPRequestHandler):
    """`/ok` answers 200 with JSON, anything else 500."""

    def do_GET(self) -> None:
        good = self.path == "/ok"
        body = b'{"orders": {"open": 7}}' if good else b"broken"
        self.send_response(200 if good else 500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """The demo's targets are silent."""


def document_of(ports: Mapping[str, int], page_port: int) -> dict[str, Any]:
    """The definitions: every second a look, every five a forced push."""
    base = f"http://127.0.0.1:{ports['http']}"
    fast = ("under", 500, "over", 2000)
    metrics = [
        _metric("shop-page", "http", {"url": f"{base}/ok"}, fast),
        _metric("broken-page", "http", {"url": f"{base}/broken"}, fast),
        _metric("open-orders", "http", {"url": f"{base}/ok", "json_path": "$.orders.open"}, ("under", 5, "over", 10)),
        _metric("port-open", "tcp", {"host": "127.0.0.1", "port": ports["tcp"]}, fast),
        _metric("port-closed", "tcp", {"host": "127.0.0.1", "port": free_port()}, fast),
        _metric(
            "agent-queue",
            "prometheus",
            {"scrape_url": f"http://127.0.0.1:{page_port}/metrics", "metric": "observer_agent_queue_depth"},
            ("under", 10, "over", 100),
        ),
    ]
    if "prometheus" in ports:
        url = f"http://127.0.0.1:{ports['prometheus']}"
        query = {"query": "observer_agent_queue_depth", "prometheus_url": url}
        metrics.append(_metric("queue-by-promql", "prometheus", query, ("under", 10, "over", 100)))
    return {"apiVersion": "observer/v1", "metrics": metrics}


def _metric(key: str, source_type: str, config: Mapping[str, Any], rules: tuple[str, float, str, float]) -> Any:
    names = ("healthy_operation", "healthy_value", "unhealthy_operation", "unhealthy_value")
    return {
        "key": key,
        "title": key.replace("-", " "),
        "source_type": source_type,
        "source_config": config,
        "thresholds": dict(zip(names, rules, strict=True)),
        "interval": "1s",
        "interval_agent_push": "5s",
    }
