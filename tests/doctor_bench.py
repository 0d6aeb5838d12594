"""A host for the doctor that is in order, and the parts from which its faults are made: real files, sockets, mounts."""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from email.utils import format_datetime
from pathlib import Path

from observer_agent.clock import Clock
from observer_agent.diskqueue import Bounds, open_queue
from observer_agent.doctor import Place, examine
from observer_agent.model import Sample, Status
from observer_agent.resolver import ResolveError, parse_literal
from tests.servers import (
    Authority,
    Server,
    answer,
    days,
    read_request,
    scripted,
)

KEY = "obs_live_" + "k" * 43
RULES = {"healthy_operation": "under", "healthy_value": 500, "unhealthy_operation": "over", "unhealthy_value": 900}
UNIT = {
    "LoadState": "loaded",
    "UnitFileState": "enabled",
    "ActiveState": "active",
    "SubState": "running",
    "Result": "success",
    "ExecMainStatus": "0",
    "NRestarts": "0",
    "ConditionResult": "yes",
    "NeedDaemonReload": "no",
    "ActiveEnterTimestampMonotonic": "1",
}


@dataclass
class Bench:
    """A host that is in order until a fault is brought about; what it starts ends with `stack`."""

    tmp: Path
    stack: ExitStack
    env: dict[str, str] = field(default_factory=dict)
    unit: dict[str, str] = field(default_factory=dict)
    lookup: Callable | None = None
    file: Path | None = None
    copies: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        self.state = self.tmp / "state"
        self.etc = self.tmp / "etc"
        for folder in (self.state, self.etc):
            folder.mkdir()
        self.target = self.stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        self.env = {
            "AGENT_KEY": KEY,
            "BUFFER_PATH": str(self.buffer),
            "ENABLE_DEBUG_DASHBOARD": "false",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        self.hold(self.state)
        self.answers(definitions(self.target))

    @property
    def buffer(self) -> Path:
        return self.state / "buffer.db"

    def hold(self, folder: Path) -> None:
        """An agent runs, as far as the queue's lock tells."""
        file = folder / "buffer.db.lock"
        file.touch()
        handle = self.stack.enter_context(file.open("rb"))  # not for writing: a file system may become read-only
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def serve(self, handler, **options) -> Server:
        return self.stack.enter_context(Server(handler, **options))

    def cloud(self, handler, host: str = "127.0.0.1", **options) -> Server:
        """The cloud is this server from now on."""
        server = self.serve(handler, **options)
        self.env["CLOUD_SERVER_URL"] = server.url_of(host)
        return server

    def answers(self, *answers: bytes, **options) -> Server:
        return self.cloud(scripted(*answers), **options)

    def trust(self, authority: Authority) -> None:
        file = self.tmp / "ca.pem"
        file.write_text(authority.pem)
        self.env["REQUESTS_CA_BUNDLE"] = str(file)

    def place(self) -> Place:
        unit = {**UNIT, **self.unit} if self.unit else {}
        said = "\n".join(f"{name}={value}" for name, value in unit.items())
        return Place(
            env=self.env,
            file=self.file,
            folder=self.etc,
            copies=self.copies,
            command=lambda command: said if command[1] == "show" else None,
            lookup=self.lookup or local_names,
        )

    def examine(self):
        return examine(self.place()).report


def local_names(name: str):
    """`good.test` and `localhost` are this machine; nothing else exists."""
    if name not in ("good.test", "other.test", "localhost"):
        raise ResolveError("ENOTFOUND", "no such name")
    return (parse_literal("127.0.0.1"),)


def row(config, source_type="tcp", **more) -> dict:
    return {
        "id": more.pop("id", "m1"),
        "title": "A metric",
        "source_type": source_type,
        "source_config": config,
        **RULES,
    }


def definitions(port: int) -> bytes:
    return json_answer([row({"host": "127.0.0.1", "port": port})])


def json_answer(content, status: int = 200, **headers: str) -> bytes:
    headers.setdefault("Date", format_datetime(days(0), usegmt=True))
    return answer(json.dumps(content), status, Content_Type="application/json", **headers)


# -- queue files


@contextmanager
def queue(bench: Bench, rows: int = 10_000):
    """The queue, opened as the agent does; its lock is ours already and given back for the while."""
    made = open_queue(bench.state / "made.db", Bounds(rows), Clock())
    try:
        yield made
    finally:
        made.close()
        (bench.state / "made.db").rename(bench.buffer)
        for other in bench.state.glob("made.db*"):
            other.unlink()


def sample(n: int = 0) -> Sample:
    return Sample(f"m{n}", float(n), "2026-01-01T00:00:00.000Z", Status.HEALTHY, None)


def fill(bench: Bench, count: int, capacity: int, changes: str = "") -> None:
    with queue(bench, capacity) as made:
        made.put([sample(n) for n in range(count)])
    bench.env["BUFFER_MAX_ROWS"] = str(capacity)
    if changes:
        with closing(sqlite3.connect(bench.buffer)) as conn, conn:
            conn.execute(changes)


def corrupt(bench: Bench) -> None:
    fill(bench, 200, 1000)
    with bench.buffer.open("r+b") as handle:
        handle.seek(4096)
        handle.write(os.urandom(16_384))


# -- proxies


def proxy(status: int):
    """A proxy that answers CONNECT, and everything else, with one status."""

    def handler(conn: socket.socket, server: Server) -> None:
        read_request(conn)
        conn.sendall(answer(status=status, Proxy_Authenticate='Basic realm="x"'))

    return handler


def tunnel(port: int):
    """A proxy as it should be; whatever the name, the way leads to one port."""

    def handler(conn: socket.socket, server: Server) -> None:
        asked = read_request(conn)
        with socket.create_connection(("127.0.0.1", port)) as far:
            if asked.startswith(b"CONNECT "):
                conn.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                far.sendall(asked)
            while not server.stopping.is_set():
                ready, _, _ = select.select([conn, far], [], [], 0.05)
                for sock in ready:
                    data = sock.recv(65536)
                    if not data:
                        return
                    (far if sock is conn else conn).sendall(data)

    return handler


def behind(bench: Bench, handler) -> None:
    """The cloud is spoken to in TLS through a proxy."""
    bench.env["HTTPS_PROXY"] = bench.serve(handler).url
    bench.env["CLOUD_SERVER_URL"] = "https://cloud.test"
