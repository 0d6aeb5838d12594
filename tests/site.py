"""A whole site for end-to-end tests: a hub and an agent as processes, targets as real sockets, files in a folder."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

from observer_agent import queuefile
from observer_agent.clock import Clock
from observer_agent.demo.stage import Hub, clean_env, end_process, free_port, get


class Site:
    """Starts things in `folder` and ends them all at `close`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.page = free_port()
        self.document = folder / "observer.yaml"
        self.hub = Hub(folder, self.document, Clock())
        self.agent: subprocess.Popen[bytes] | None = None
        self.key = ""
        self._listeners: list[socket.socket] = []

    def open_hub(self, metrics: list[dict]) -> None:
        self.document.write_text(json.dumps({"apiVersion": "observer/v1", "metrics": metrics}))
        self.hub.start(lambda seconds: None)
        self.key = self.key or self.hub.create_key()

    def start_agent(self, **env: str) -> None:
        settings = {
            "AGENT_KEY": self.key,
            "CLOUD_SERVER_URL": f"http://127.0.0.1:{self.hub.port}",
            "BUFFER_PATH": str(self.buffer),
            "DEBUG_DASHBOARD_PORT": str(self.page),
            "LOG_FORMAT": "text",
            **env,
        }
        with (self.folder / "agent.log").open("ab") as log:
            command = [sys.executable, "-X", "dev", "-m", "observer_agent", "run"]
            self.agent = subprocess.Popen(command, env=clean_env(settings), stderr=log, start_new_session=True)

    @property
    def buffer(self) -> Path:
        return self.folder / "buffer.db"

    @property
    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    def kill_agent(self) -> None:
        self.agent.send_signal(signal.SIGKILL)
        self.agent.wait()

    def stop_agent(self) -> tuple[int, float]:
        """SIGTERM; the exit code and the seconds that it took."""
        begin = time.monotonic()
        self.agent.send_signal(signal.SIGTERM)
        code = self.agent.wait(30)
        return code, time.monotonic() - begin

    def state(self) -> dict | None:
        return get(self.page, "/api/state")

    def until(self, what, seconds: float = 30.0):
        """Asks `what()` again and again until it says something true."""
        end = time.monotonic() + seconds
        pause = threading.Event()
        while time.monotonic() < end:
            found = what()
            if found:
                return found
            pause.wait(0.05)
        raise AssertionError(f"not within {seconds} s\n{self.log[-3000:]}")

    def pushes(self) -> list[dict]:
        """Every row that the hub holds, with its metric's id."""
        rows = []
        for metric in {m["id"] for m in get(self.hub.port, "/api/v1/metrics")["metrics"]}:
            found = get(self.hub.port, f"/api/v1/metrics/{metric}/pushes?limit=10000")["pushes"]
            rows += [{**row, "metric_id": metric} for row in found]
        return rows

    def hub_agents(self) -> list[dict]:
        return get(self.hub.port, "/api/v1/agents")["agents"]

    def hub_agent(self) -> dict:
        (agent,) = self.hub_agents()
        return agent

    def waiting(self) -> set[tuple[str, int]]:
        """(queue id, row id) of every row that is left in the file."""
        with closing(sqlite3.connect(self.buffer)) as conn:
            openings = conn.execute("SELECT first_row_id, queue_id FROM openings ORDER BY first_row_id").fetchall()
            ids = [row[0] for row in conn.execute(f"SELECT _id FROM {queuefile.TABLE}")]
        return {(max(o for o in openings if o[0] <= i)[1], i) for i in ids}

    def given(self) -> int:
        with closing(sqlite3.connect(self.buffer)) as conn:
            return conn.execute("SELECT next_id - 1 FROM meta").fetchone()[0]

    def listen(self) -> int:
        """A TCP target that takes connections; returns its port."""
        listener = socket.create_server(("127.0.0.1", 0))
        self._listeners.append(listener)
        return listener.getsockname()[1]

    def close(self) -> None:
        if self.agent:
            if self.agent.poll() is None:
                os.kill(self.agent.pid, signal.SIGCONT)
            end_process(self.agent)
        self.hub.end()
        for listener in self._listeners:
            listener.close()


def metric(key: str, source_type: str, config: dict, interval: str = "1s", push: str = "1s") -> dict:
    rules = {"healthy_operation": "under", "healthy_value": 500, "unhealthy_operation": "over", "unhealthy_value": 900}
    return {
        "key": key,
        "source_type": source_type,
        "source_config": config,
        "thresholds": rules,
        "interval": interval,
        "interval_agent_push": push,
    }
