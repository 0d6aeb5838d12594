"""The demonstration: real targets, a hub and an agent as processes of their own, an outage in the middle.

Everything lives in a temporary directory on free ports of loopback and is gone at the end, however it ends. The
figures at the end are counted from what the hub holds and what is left in the queue file, not from what was claimed.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click

from observer_agent import queuefile
from observer_agent.clock import Clock, Signals, parse_iso
from observer_agent.config import VARIABLES
from observer_agent.errors import UsageError
from observer_agent.worker import spawn

TICK = 0.2
OUTAGE = 5.0
OUTAGE_AT = 15.0
START_SECONDS = 20.0
STOP_SECONDS = 10.0
HUB_NEEDS = ("flask", "waitress", "sqlalchemy", "alembic")
TYPES = ("prometheus", "http", "tcp")


@dataclass
class Seen:
    """What was measured on the way."""

    heartbeats: int = 0
    max_queue_depth: int = 0
    pushed: int = 0
    accepted: int = 0
    outage_seconds: float = 0.0
    first_push_after: float | None = None
    taken_before: int = 0
    back_at: float | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)


class Demo:
    """One demonstration; `run` returns the exit code."""

    def __init__(self, seconds: int | None, as_json: bool) -> None:
        self._seconds = seconds
        self._json = as_json
        self._clock = Clock()
        self._seen = Seen()
        self._lines = 0

    def run(self) -> int:
        """0 if nothing was lost or doubled, 1 if something was; raises UsageError without the extra `hub`."""
        missing = [name for name in HUB_NEEDS if importlib.util.find_spec(name) is None]
        if missing:
            raise UsageError(
                f"the demo needs a hub ({', '.join(missing)} not installed): pip install 'observer-agent[hub]'"
            )
        with Signals((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)) as signals, ExitStack() as stack:
            self._signals = signals
            folder = Path(tempfile.mkdtemp(prefix="observer-demo-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            try:
                result = self._play(stack, folder)
            except Interrupted:
                return 0
        return self._report(result)

    # -- the play

    def _play(self, stack: ExitStack, folder: Path) -> dict[str, Any]:
        self._say("Starting targets, a hub and an agent; Ctrl-C ends it")
        page_port = free_port()
        targets = stack.enter_context(running_targets(folder, page_port))
        config = folder / "observer.yaml"
        config.write_text(json.dumps(document_of(targets, page_port)))
        self._hub = Hub(folder, config, self._clock)
        stack.callback(self._hub.end)
        self._hub.start(self._pause)
        self._agent = start_agent(folder, self._hub.create_key(), self._hub.port, page_port)
        stack.callback(end_process, self._agent)
        self._page_port = page_port
        began = self._clock.monotonic()
        try:
            self._watch(began)
        except Interrupted:
            self._say("Stopping")
        return self._finish(folder, began)

    def _watch(self, began: float) -> None:
        """Until the time is over: look every 0.2 s, kill the hub once, start it again."""
        cut_at = began + (self._seconds / 2 if self._seconds else OUTAGE_AT)
        down_at: float | None = None
        shown = 0
        while self._seconds is None or self._clock.monotonic() < began + self._seconds:
            now = self._clock.monotonic()
            if down_at is None and now >= cut_at:
                down_at = now
                self._seen.taken_before = self._taken()
                self._hub.kill()
                self._say("--- the hub is killed; the queue fills ---")
            if down_at is not None and not self._seen.back_at and now >= down_at + OUTAGE:
                self._hub.start(self._pause)
                self._seen.back_at = self._clock.monotonic()
                self._seen.outage_seconds = round(self._seen.back_at - down_at, 3)
                self._say("--- the hub is back; the queue drains ---")
            self._look()
            if int(now - began) >= shown:
                shown = int(now - began) + 1
                self._show(now - began)
            if self._agent.poll() is not None:
                raise UsageError(f"the agent ended by itself: {self._agent_log()}")
            self._pause(TICK)

    def _look(self) -> None:
        state = get(self._page_port, "/api/state") or {}
        queue, seen = state.get("queue", {}), self._seen
        seen.max_queue_depth = max(seen.max_queue_depth, queue.get("depth", 0))
        seen.pushed = queue.get("given", seen.pushed)
        seen.accepted = queue.get("accepted", seen.accepted)
        seen.heartbeats = state.get("cloud", {}).get("heartbeats", seen.heartbeats)
        if seen.back_at and seen.first_push_after is None and self._taken() > seen.taken_before:
            seen.first_push_after = round(self._clock.monotonic() - seen.back_at, 3)
        self._state = state

    def _taken(self) -> int:
        found = (get(self._hub.port, "/api/v1/agents") or {}).get("agents", [])
        return sum(agent.get("taken") or 0 for agent in found)

    def _finish(self, folder: Path, began: float) -> dict[str, Any]:
        """Stops the agent as systemd would, then counts what the hub holds and what is left in the file."""
        if not self._hub.running:
            self._hub.start(self._pause)
        end_process(self._agent)
        rows = list(self._rows())
        distinct = {(row["agent_id"], row["queue_id"], row["row_id"]) for _, row in rows}
        stats = queuefile.read_stats(folder / "buffer.db", self._clock.now(), 0)
        types = {metric["id"]: metric["source_type"] for metric in self._seen.metrics}
        pushed = Counter(types[metric_id] for metric_id, _ in rows)
        pushed.update(types.get(i, "other") for i in left_in(folder / "buffer.db"))
        beats = [agent.get("last_heartbeat_at") for agent in (get(self._hub.port, "/api/v1/agents") or {})["agents"]]
        return {
            "seconds": round(self._clock.monotonic() - began, 1),
            "pushed": {name: pushed[name] for name in TYPES},
            "accepted": len(distinct),
            "duplicates": len(rows) - len(distinct),
            "lost": stats["next_row_id"] - 1 - len(distinct) - stats["depth"],
            "heartbeats": self._seen.heartbeats if any(map(parse_iso, filter(None, beats))) else 0,
            "max_queue_depth": self._seen.max_queue_depth,
            "outage_seconds": self._seen.outage_seconds,
            "first_push_after_outage_seconds": self._seen.first_push_after,
        }

    def _rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every row that the hub holds, by metric."""
        self._seen.metrics = (get(self._hub.port, "/api/v1/metrics") or {}).get("metrics", [])
        for metric_id in {metric["id"] for metric in self._seen.metrics}:
            found = get(self._hub.port, f"/api/v1/metrics/{metric_id}/pushes?limit=10000") or {}
            for row in found.get("pushes", []):
                yield metric_id, row

    def _agent_log(self) -> str:
        return (self._hub.folder / "agent.log").read_text(errors="replace")[-500:]

    def _pause(self, seconds: float) -> None:
        if self._signals.wait(seconds):
            raise Interrupted

    # -- what one sees

    def _say(self, line: str) -> None:
        click.echo(line, err=self._json)
        self._lines = 0  # the live table begins below

    def _show(self, at: float) -> None:
        seen = self._seen
        depth = self._state.get("queue", {}).get("depth", "-")
        line = f"{at:5.0f} s  pushed {seen.pushed:5}  accepted {seen.accepted:5}  waiting {depth:>4}"
        if self._json or not sys.stdout.isatty():
            self._say(line)
            return
        lines = [line, *(self._metric(each) for each in self._state.get("definitions", []))]
        up = f"\x1b[{self._lines}A" if self._lines else ""
        click.echo(up + "\n".join(f"\x1b[2K{each}" for each in lines))
        self._lines = len(lines)

    @staticmethod
    def _metric(each: Mapping[str, Any]) -> str:
        said = each["reason"] if each["value"] is None else f"{each['value']:g}"
        return f"   {each['title'] or each['id']:<28} {each['source_type']:<11} {each['status'] or '...':<10} {said}"

    def _report(self, result: dict[str, Any]) -> int:
        if self._json:
            click.echo(json.dumps(result))
        else:
            click.echo("\nEverything that was queued, held against everything that the hub has:")
            for name, value in result.items():
                click.echo(f"  {name:<32} {value}")
        return 0 if result["lost"] == 0 and result["duplicates"] == 0 else 1


class Interrupted(Exception):
    """A signal asked for the end."""


class Hub:
    """A hub as a process of its own, on one port through all its restarts."""

    def __init__(self, folder: Path, config: Path, clock: Clock) -> None:
        self.folder = folder
        self.port = 0
        self._config = config
        self._clock = clock
        self._process: subprocess.Popen[str] | None = None

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def create_key(self) -> str:
        """A key for the agent."""
        command = self._command("key", "create", "demo")
        made = subprocess.run(command, env=self._env(), capture_output=True, text=True, start_new_session=True)
        if made.returncode:
            raise UsageError(f"the hub made no key: {made.stderr.strip()[-500:]}")
        return made.stdout.strip().splitlines()[-1]

    def start(self, pause: Any) -> None:
        """Starts it and waits until it listens."""
        command = self._command("serve", "--config", str(self._config), "--port", str(self.port))
        with (self.folder / "hub.log").open("a") as errors:
            self._process = subprocess.Popen(
                command, env=self._env(), stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
            )
        assert self._process.stdout is not None
        deadline = self._clock.monotonic() + START_SECONDS
        with self._process.stdout as out:
            while not select.select([out], [], [], 0)[0] and self._clock.monotonic() < deadline:
                pause(TICK)
            line = out.readline() if self._clock.monotonic() < deadline else ""
        if not line.startswith("listening on "):
            log = (self.folder / "hub.log").read_text(errors="replace")[-500:]
            raise UsageError(f"the hub did not start: {log}")
        self.port = int(line.strip().rpartition(":")[2])

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def end(self) -> None:
        """Stops it for good."""
        if self._process:
            end_process(self._process)

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "observer_agent.hub.cli", *words]

    def _env(self) -> dict[str, str]:
        return clean_env({"DATABASE_URL": f"sqlite:///{self.folder}/hub.db", "LOG_FORMAT": "text"})


def clean_env(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment without anything that would turn the demo's own processes elsewhere."""
    ours = {*VARIABLES, "OBSERVER_HUB_TOKEN", "DATABASE_URL", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET"}
    env = {name: value for name, value in os.environ.items() if name not in ours}
    return {**env, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "PYTHONUNBUFFERED": "1", **extra}


def start_agent(folder: Path, key: str, hub_port: int, page_port: int) -> subprocess.Popen[bytes]:
    """The agent as a process of its own; it logs to a file."""
    env = clean_env(
        {
            "AGENT_KEY": key,
            "CLOUD_SERVER_URL": f"http://127.0.0.1:{hub_port}",
            "BUFFER_PATH": str(folder / "buffer.db"),
            "DEBUG_DASHBOARD_PORT": str(page_port),
            "LOG_FORMAT": "text",
        }
    )
    with (folder / "agent.log").open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "observer_agent", "run"], env=env, stderr=errors, start_new_session=True
        )


def end_process(process: subprocess.Popen[Any]) -> None:
    """SIGTERM, and SIGKILL if that does not end it in time."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


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


def free_port() -> int:
    """A TCP port of loopback that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def left_in(file: Path) -> list[str]:
    """The metric ids of the rows that wait in a queue file."""
    with closing(queuefile.read_only(file)) as conn:
        return [row[0] for row in conn.execute(f"SELECT metric_id FROM {queuefile.TABLE}")]


def get(port: int, path: str) -> dict[str, Any] | None:
    """A JSON object from a server on loopback; None when it does not answer."""
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
    try:
        conn.request("GET", path)
        found = json.loads(conn.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        conn.close()
    return found if isinstance(found, dict) else None
