"""A PostgreSQL server for tests: its own data directory, a free port, `fsync` on, ended with the session.

PostgreSQL refuses to run as root, so it is started as another user where we are root. Without its programs a test is
skipped with the reason, and fails where `CI=true`.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from observer_agent.hub.database import open_database

NAMED = "OBSERVER_TEST_POSTGRES"  # a server that runs already: its URL without a database
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "on",
    "autovacuum": "off",  # it writes when it likes, and whoever walks rows by id waits for all who write
    "max_connections": "200",
    "logging_collector": "off",
}


class Server:
    """A server of our own; `url` names it without a database."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="observer-postgres-"))
        self._user = _other_user() if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self._folder, self._user)
        self._data = self._folder / "data"
        self.port = _free_port()
        self.url = f"postgresql://observer@127.0.0.1:{self.port}"
        self._run("initdb", "-D", str(self._data), "-U", "observer", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        with (self._data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = '{value}'\n" for name, value in SETTINGS.items())
            conf.write(f"port = {self.port}\n")

    def start(self) -> None:
        """Starts it; returns once it answers."""
        self._run("pg_ctl", "-D", str(self._data), "-l", str(self._folder / "log"), "-w", "start")

    def stop(self, mode: str = "fast") -> None:
        """Stops it; `immediate` is as if the power were cut."""
        self._run("pg_ctl", "-D", str(self._data), "-m", mode, "-w", "stop")

    @property
    def pid(self) -> int:
        """The process of the server; those of its connections are its children."""
        return int((self._data / "postmaster.pid").read_text().splitlines()[0])

    def remove(self) -> None:
        """Stops it and takes everything away."""
        self.stop("immediate")
        shutil.rmtree(self._folder)

    def _run(self, program: str, *words: str) -> None:
        command = [str(self._programs / program), *words]
        if self._user:
            command = ["setpriv", "--reuid", self._user, "--regid", self._user, "--init-groups", *command]
        with (self._folder / "commands").open("ab") as out:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/", timeout=120)
        assert done.returncode == 0, (self._folder / "commands").read_text()


@contextmanager
def started() -> Iterator[Server]:
    """A server while the block runs; skips the test where there is none to start."""
    server = Server(programs())
    server.start()
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """The server of this session."""
    with started() as server:
        yield server


_names = itertools.count()


def fresh_database(server_url: str) -> str:
    """A new, migrated database on a server; its URL. Copied, because alembic takes longer than a test."""
    import psycopg

    name, template = f"test_{os.getpid()}_{next(_names)}", f"template_{os.getpid()}"
    with closing(psycopg.connect(f"{server_url}/postgres", autocommit=True)) as conn:
        if conn.execute("SELECT 1 FROM pg_database WHERE datname = %s", [template]).fetchone() is None:
            conn.execute(f"CREATE DATABASE {template}")
            open_database(f"{server_url}/{template}").close()
        conn.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    return f"{server_url}/{name}"


def drop_database(url: str) -> None:
    """Takes a database away, whoever is still connected."""
    import psycopg

    server, _, name = url.rpartition("/")
    with closing(psycopg.connect(f"{server}/postgres", autocommit=True)) as conn:
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


def programs() -> Path:
    """Where the server's programs are; skips the test where they are not."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name), reverse=True)
    on_path = shutil.which("initdb")
    for place in [*places, *([Path(on_path).parent] if on_path else [])]:
        if (place / "initdb").exists() and (place / "pg_ctl").exists():
            return place
    reason = "PostgreSQL's server is not installed (initdb, pg_ctl)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def _other_user() -> str:
    known = {each.pw_name for each in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as found:
        port: int = found.getsockname()[1]
        return port
