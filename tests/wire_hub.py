"""A hub for tests: in this process on a fake clock, or as a process of its own as an operator would run it."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import requests
from sqlalchemy import insert

from observer_agent.clock import parse_iso
from observer_agent.hub import schema
from observer_agent.hub.app import create_app
from observer_agent.hub.database import Database, open_database
from observer_agent.hub.server import Server
from observer_agent.hub.store import Managed, Store, digest
from tests.fakes import FakeClock
from tests.postgres import NAMED, drop_database, fresh_database

GOLDEN = Path(__file__).parent / "wire" / "observer"
GOLDEN_NOW = parse_iso("2026-05-09T12:00:10.000Z") or 0.0
STARTED = "2026-05-09T12:00:00.000Z"
QUEUE = "0b9f5a52-7f0e-4c3b-9a50-3f6f6f1f5d01"


def golden(name: str) -> dict[str, Any]:
    """One exchange of `tests/wire/observer/`."""
    found: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return found


def golden_names() -> list[str]:
    """All of them."""
    return sorted(file.stem for file in GOLDEN.glob("*.json"))


@dataclass
class TestHub:
    """A hub in this process: its parts, an agent's key, and a client that needs no socket."""

    __test__ = False

    database: Database
    store: Store
    clock: FakeClock
    app: Any
    key: str

    def client(self) -> Any:
        """Flask's test client."""
        return self.app.test_client()

    def push(self, rows: list[Any], sequence: str | None = None, started: str | None = STARTED) -> Any:
        """Posts a batch as the agent of `key`; `sequence` is the ranges alone."""
        more = {"Push-Sequence": f"{QUEUE};{sequence}"} if sequence else {}
        return self.post("receiver/batch", rows, started, more)

    def beat(self, body: Mapping[str, Any], started: str | None = STARTED) -> Any:
        """Posts a heartbeat as the agent of `key`."""
        return self.post("heartbeat", body, started)

    def post(
        self, path: str, body: object, started: str | None = STARTED, more: Mapping[str, str] | None = None
    ) -> Any:
        """Posts JSON to an endpoint for agents."""
        headers = {"Agent-Key": self.key, **({"Agent-Started-At": started} if started else {}), **(more or {})}
        return self.client().post(f"/api/agent/{path}", data=json.dumps(body), headers=headers)

    def agent(self) -> dict[str, Any]:
        """What the read API says of the agent."""
        found: dict[str, Any] = self.get("agents")["agents"][0]
        return found

    def pushes(self, metric_id: str) -> list[dict[str, Any]]:
        """What is stored of a metric, newest first."""
        found: list[dict[str, Any]] = self.get(f"metrics/{metric_id}/pushes?limit=10000")["pushes"]
        return found

    def get(self, path: str) -> Any:
        """An object of the read API."""
        answer = self.client().get(f"/api/v1/{path}")
        assert answer.status_code == 200, answer.text
        return answer.json


def row(number: int = 0, **more: object) -> dict[str, Any]:
    """A good row; `number` is its value and makes its time."""
    base = {"metric_id": "m", "value": number, "timestamp": "2026-05-09T12:00:01.000Z", "status": "healthy"}
    return {**base, **more}


@cache
def _template() -> Path:
    """A migrated database to copy: alembic takes longer than a test."""
    folder = Path(tempfile.mkdtemp(prefix="observer-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file = folder / "template.db"
    open_database(f"sqlite:///{file}").close()
    return file


@contextmanager
def database_url(folder: Path) -> Iterator[str]:
    """A fresh database: a file in `folder`, or one on the PostgreSQL server that the environment names."""
    server = os.environ.get(NAMED)
    if server is None:
        shutil.copy(_template(), folder / "hub.db")
        yield f"sqlite:///{folder}/hub.db"
        return
    url = fresh_database(server)
    try:
        yield url
    finally:
        drop_database(url)


@contextmanager
def memory_hub(folder: Path, token: str | None = None, key: str = "obs_live_" + "k" * 43) -> Iterator[TestHub]:
    """A hub in this process on a fake clock, with one agent called `agent`."""
    clock = FakeClock(GOLDEN_NOW)
    with database_url(folder) as url, closing(open_database(url)) as database:
        store = Store(database, clock)
        with database.write() as conn:
            conn.execute(insert(schema.agents).values(id="a" * 36, name="agent", created_at=clock.now()))
            conn.execute(insert(schema.keys).values(digest=digest(key), agent_id="a" * 36, created_at=clock.now()))
        yield TestHub(database, store, clock, create_app(store, clock, token), key)


@contextmanager
def served(app: Any) -> Iterator[str]:
    """An application on a real socket; gives its URL."""
    server = Server(app, "127.0.0.1", 0)
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


def define(store: Store, definitions: list[dict[str, Any]]) -> None:
    """Puts definitions of the wire into a hub, the title as key, in their order."""
    store.apply(Managed(f"{n:02}", each["title"], (), each) for n, each in enumerate(definitions))


class HubProcess:
    """`observer-hub` as an operator runs it."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder = folder
        server = os.environ.get(NAMED) if "DATABASE_URL" not in env else None
        ours = ("OBSERVER_HUB_TOKEN", "DATABASE_URL", "LOG_FORMAT", "VERBOSE", NAMED)
        kept = {name: value for name, value in os.environ.items() if name not in ours}
        self._env = {
            **kept,
            "DATABASE_URL": fresh_database(server) if server else f"sqlite:///{folder}/hub.db",
            "PYTHONUNBUFFERED": "1",
            "OBSERVER_HUB_KEY_RATE": "0",
            **env,
        }
        self.port = 0
        self.process: subprocess.Popen[str] | None = None

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        return subprocess.run(self._words(*words), env=self._env, capture_output=True, text=True, timeout=30)

    def key(self, name: str) -> str:
        """A new key: the last line of the output."""
        return self.command("key", "create", name).stdout.splitlines()[-1]

    def start(self, *words: str) -> str:
        """Serves; returns the URL once it listens. The port stays the same from one start to the next."""
        with (self.folder / "hub.log").open("a") as errors:
            self.process = subprocess.Popen(
                self._words("serve", "--port", str(self.port), *words),
                env=self._env,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("listening on http://"), self.log()
        self.port = int(line.strip().rpartition(":")[2])
        return line.strip().removeprefix("listening on ")

    def end(self, number: signal.Signals = signal.SIGTERM, seconds: float = 10.0) -> int:
        """Sends a signal and waits; returns the exit code."""
        assert self.process is not None and self.process.stdout is not None
        self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()

    def kill(self) -> None:
        """Ends it if it still runs, after a test that failed."""
        if self.process is not None and self.process.poll() is None:
            self.end(signal.SIGKILL)

    def log(self) -> str:
        """What it has logged."""
        return (self.folder / "hub.log").read_text()

    def _words(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "observer_agent.hub.cli", *words]


def send(url: str, request: Mapping[str, Any]) -> requests.Response:
    """The request of a golden message, over a real socket."""
    data = json.dumps(request["body"]) if "body" in request else None
    return requests.request(
        request["method"],
        url + request["path"],
        headers=request["headers"],
        data=data,
        timeout=10,
        allow_redirects=False,
    )
