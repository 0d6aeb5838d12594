"""The database: one engine, reads side by side, one write at a time, the schema brought up to date at opening.

SQLite in WAL mode, `synchronous=FULL`: a commit is on the disk before the answer goes out, because an agent forgets
what the hub has accepted. Any thread may use a `Database`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import Connection as DriverConnection

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from observer_agent.errors import ConfigError

BUSY_MS = 10_000
POOL = 16  # request threads and a few
PRAGMAS = (f"busy_timeout={BUSY_MS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")


class Database:
    """Transactions on one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writing = threading.Lock()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view; nothing is written."""
        with self._engine.connect() as conn, conn.begin():
            yield conn

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """The one write transaction of this process: committed at the end, undone by an exception."""
        with self._writing, self._engine.connect() as conn:
            with conn.execution_options(observer_write=True).begin():
                yield conn

    def close(self) -> None:
        """Closes every connection."""
        self._engine.dispose()


def open_database(url: str) -> Database:
    """Opens and migrates the database at `url`; raises ConfigError where that cannot be."""
    where = _parse(url)
    engine = create_engine(where, hide_parameters=True, pool_size=POOL, max_overflow=0)
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    database = Database(engine)
    try:
        migrate(database)
    except DBAPIError as error:
        database.close()
        text = f"cannot be opened ({error.orig}): name a file in a directory that exists and can be written"
        raise ConfigError("DATABASE_URL", _shown(where), text) from None
    return database


def migrate(database: Database) -> None:
    """Runs the missing steps of `migrations/`, all in one transaction; other processes wait for it."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with database.write() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, "head")


def _parse(url: str) -> URL:
    try:
        where = make_url(url)
    except ArgumentError:
        raise ConfigError("DATABASE_URL", "[not shown]", "is not a URL: use sqlite:///FILE") from None
    if where.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise ConfigError("DATABASE_URL", _shown(where), "only SQLite is known to this version: use sqlite:///FILE")
    if where.database in (None, "", ":memory:"):
        raise ConfigError("DATABASE_URL", _shown(where), "must name a file: use sqlite:///FILE")
    return where


def _shown(where: URL) -> str:
    return where.set(query={}).render_as_string(hide_password=True)


def _prepare(connection: DriverConnection, _record: object) -> None:
    """The driver must not begin transactions by itself: `_begin` says which kind."""
    connection.isolation_level = None
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(conn: Connection) -> None:
    write = conn.get_execution_options().get("observer_write", False)
    conn.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
