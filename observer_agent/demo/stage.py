"""The processes of the demonstration: a hub on one port through all its restarts, an agent, and how they are asked.

Ports and folders in, running processes out; whoever starts one ends it. The end-to-end tests use the same.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from observer_agent.clock import Clock
from observer_agent.config import VARIABLES
from observer_agent.errors import UsageError

TICK = 0.2
START_SECONDS = 20.0
STOP_SECONDS = 10.0
HUB_NEEDS = ("flask", "waitress", "sqlalchemy", "alembic")


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

    def create_key(self, name: str = "demo") -> str:
        """A key for an agent."""
        return self.command("key", "create", name).splitlines()[-1]

    def command(self, *words: str) -> str:
        """What a command of the hub prints; raises UsageError where it fails."""
        done = subprocess.run(
            self._command(*words), env=self._env(), capture_output=True, text=True, start_new_session=True
        )
        if done.returncode:
            raise UsageError(f"the hub refused `{' '.join(words)}`: {done.stderr.strip()[-500:]}")
        return done.stdout.strip()

    def start(self, pause: Callable[[float], object]) -> None:
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


class Interrupted(Exception):
    """A signal asked for the end."""


def needs() -> None:
    """Raises UsageError without the extra `hub`."""
    missing = [name for name in HUB_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"the demo needs a hub ({', '.join(missing)} not installed): pip install 'observer-agent[hub]'"
        )


def start_lighthouse(folder: Path, token: str, hub_port: int) -> subprocess.Popen[bytes]:
    """An agent of the second dialect as a process of its own; it logs to a file."""
    env = {
        "CLOUD_DIALECT": "lighthouse",
        "LIGHTHOUSE_TOKEN": token,
        "LIGHTHOUSE_URL": f"http://127.0.0.1:{hub_port}",
        "LIGHTHOUSE_DATA_DIR": str(folder / "lighthouse"),
        "LOG_FORMAT": "text",
    }
    with (folder / "agent.log").open("ab") as errors:
        command = [sys.executable, "-m", "observer_agent", "run", "--config", os.devnull]
        return subprocess.Popen(command, env=clean_env(env), stderr=errors, start_new_session=True)


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
        command = [sys.executable, "-m", "observer_agent", "run", "--config", os.devnull]
        return subprocess.Popen(command, env=env, stderr=errors, start_new_session=True)


def end_process(process: subprocess.Popen[Any]) -> None:
    """SIGTERM, and SIGKILL if that does not end it in time."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def free_port() -> int:
    """A TCP port of loopback that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


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
