"""MariaDB and Redis for tests: each with a data directory of its own on a free port, ended with the session; and
signing the PostgreSQL of `tests.postgres` in with a password.

Without its programs a test is skipped with the reason, and fails where `CI=true`.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pymysql
import pytest

from tests.servers import Authority

SECRET = "Tr0ub4dor-and-3-horses"
ROWS = 5

MARIADB = f"""
CREATE DATABASE shop;
CREATE TABLE shop.orders (id INT PRIMARY KEY, note VARCHAR(80)) ENGINE=InnoDB;
INSERT INTO shop.orders VALUES (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd'), (5, 'e');
CREATE TABLE shop.old (id INT) ENGINE=MyISAM;
CREATE SEQUENCE shop.tickets;
CREATE FUNCTION shop.writes() RETURNS INT DETERMINISTIC MODIFIES SQL DATA
  RETURN (SELECT COUNT(*) FROM shop.orders) + shop.deletes();
DELIMITER $$
CREATE FUNCTION shop.deletes() RETURNS INT DETERMINISTIC MODIFIES SQL DATA
BEGIN DELETE FROM shop.orders; RETURN 1; END$$
CREATE FUNCTION shop.unlocks() RETURNS INT DETERMINISTIC MODIFIES SQL DATA
BEGIN SET SESSION tx_read_only = 0; DELETE FROM shop.orders; RETURN 1; END$$
DELIMITER ;
CREATE USER boss@'%' IDENTIFIED BY '{SECRET}';
GRANT ALL ON *.* TO boss@'%' WITH GRANT OPTION;
CREATE USER clerk@'%' IDENTIFIED BY '{SECRET}';
GRANT SELECT ON shop.old TO clerk@'%';
CREATE USER bare@'%' IDENTIFIED BY '';
GRANT SELECT ON shop.orders TO bare@'%';
"""


class MariaDb:
    """A MariaDB with the database `shop`; boss may do everything, clerk next to nothing, bare has no password."""

    def __init__(self, program: str, authority: Authority) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="observer-mariadb-"))
        self.port = free_port()
        self._user = "mysql" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        shutil.chown(self.folder, self._user)
        data = self.folder / "data"
        (self.folder / "init.sql").write_text(MARIADB)
        common = ["--no-defaults", f"--datadir={data}", f"--user={self._user}"]
        install = [needed("mariadb-install-db"), *common, "--auth-root-authentication-method=normal", "--skip-test-db"]
        done = subprocess.run(install, capture_output=True, text=True, timeout=120, cwd="/")
        assert done.returncode == 0, done.stdout + done.stderr
        command = [program, *common, f"--port={self.port}", "--bind-address=127.0.0.1", "--skip-name-resolve"]
        command += [
            f"--socket={self.folder}/sock",
            f"--pid-file={self.folder}/pid",
            "--innodb-flush-log-at-trx-commit=0",
        ]
        command += self._tls(authority)
        self._process = start(command, "ready for connections")
        self._fill()

    def dsn(self, user: str = "boss", password: str = SECRET, database: str = "/shop", options: str = "") -> str:
        """A connection string."""
        return f"mysql://{user}:{password}@127.0.0.1:{self.port}{database}{options}"

    def ask(self, query: str) -> tuple[tuple[object, ...], ...]:
        """What a query gives to the one who may do everything."""
        with closing(self._boss()) as connection, connection.cursor() as cursor:
            cursor.execute(query)
            return tuple(cursor.fetchall())

    def remove(self) -> None:
        """Stops it and takes everything away."""
        stop(self._process)
        shutil.rmtree(self.folder)

    def _boss(self, user: str = "boss", password: str = SECRET) -> pymysql.Connection:
        return pymysql.connect(
            host="127.0.0.1", port=self.port, user=user, password=password, autocommit=True, ssl_disabled=True
        )

    def _tls(self, authority: Authority) -> list[str]:
        cert, key = authority.issue("127.0.0.1", "localhost")
        for name, text in (("cert.pem", cert), ("key.pem", key), ("ca.pem", authority.pem)):
            (self.folder / name).write_text(text)
            shutil.chown(self.folder / name, self._user)
        return [f"--ssl-cert={self.folder}/cert.pem", f"--ssl-key={self.folder}/key.pem"]

    def _fill(self) -> None:
        with closing(self._boss("root", "")) as connection, connection.cursor() as cursor:
            for statement in statements(MARIADB):
                cursor.execute(statement)


class Redis:
    """A Redis whose default user has a password, with a user `clerk` who may read nothing but `open:*`."""

    def __init__(self, program: str, authority: Authority) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="observer-redis-"))
        self.port, self.tls_port = free_port(), free_port()
        cert, key = authority.issue("127.0.0.1", "localhost")
        for name, text in (("cert.pem", cert), ("key.pem", key), ("ca.pem", authority.pem)):
            (self.folder / name).write_text(text)
        (self.folder / "redis.conf").write_text(
            f'port {self.port}\ntls-port {self.tls_port}\nbind 127.0.0.1\ndir {self.folder}\nsave ""\n'
            f"requirepass {SECRET}\ntls-auth-clients no\ntls-cert-file {self.folder}/cert.pem\n"
            f"tls-key-file {self.folder}/key.pem\ntls-ca-cert-file {self.folder}/ca.pem\n"
            f"user clerk on >{SECRET} ~open:* +get +ttl +dbsize\n"
        )
        command = [program, str(self.folder / "redis.conf")]
        self._process = start(command, "Ready to accept connections")

    def dsn(self, userinfo: str = f":{SECRET}@", path: str = "", options: str = "") -> str:
        """A connection string."""
        return f"redis://{userinfo}127.0.0.1:{self.port}{path}{options}"

    def ask(self, *words: str) -> bytes:
        """What the default user is answered, as it comes."""
        with closing(socket.create_connection(("127.0.0.1", self.port), 10)) as sock:
            for command in (("AUTH", SECRET), words):
                parts = "".join(f"${len(word)}\r\n{word}\r\n" for word in command)
                sock.sendall(f"*{len(command)}\r\n{parts}".encode())
                answer = sock.recv(65536)
            return answer

    def remove(self) -> None:
        """Stops it and takes everything away."""
        stop(self._process)
        shutil.rmtree(self.folder)


@contextmanager
def mariadb_running() -> Iterator[MariaDb]:
    """A MariaDB while the block runs."""
    server = MariaDb(needed("mariadbd"), Authority())
    try:
        yield server
    finally:
        server.remove()


@contextmanager
def redis_running() -> Iterator[Redis]:
    """A Redis while the block runs."""
    server = Redis(needed("redis-server"), Authority())
    try:
        yield server
    finally:
        server.remove()


def start(command: list[str], ready: str) -> subprocess.Popen[str]:
    """Starts a server and returns once it has said that it is ready."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/"
    )
    said = []
    assert process.stdout
    for line in process.stdout:
        said.append(line)
        if ready in line:
            return process
    process.wait(10)
    raise AssertionError("".join(said))


def stop(process: subprocess.Popen[str]) -> None:
    """Ends a server and waits for it."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait(30)
    if process.stdout:
        process.stdout.close()


def statements(text: str) -> Iterator[str]:
    """The statements of a script in the manner of the `mariadb` client, DELIMITER included."""
    end, statement = ";", ""
    for line in text.strip().splitlines():
        if line.startswith("DELIMITER "):
            end = line.split()[1]
            continue
        statement += line + "\n"
        if line.endswith(end):
            yield statement.strip().removesuffix(end)
            statement = ""


def needed(program: str) -> str:
    """The path of a server's program; skips the test where there is none."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/libexec")
    if found:
        return found
    reason = f"{program} is not installed"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    """A port on which nobody listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as found:
        port: int = found.getsockname()[1]
        return port
