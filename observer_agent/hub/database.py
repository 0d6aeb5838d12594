"""The database: one engine, transactions, and the schema brought up to date at opening. SQLite or PostgreSQL.

What was committed is on the disk before the answer goes out, because an agent forgets what the hub has accepted:
SQLite in WAL mode with `synchronous=FULL`, one write at a time in this process; PostgreSQL at READ COMMITTED, where
whoever changes a row locks it first. Any thread may use a `Database`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar, cast

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection

from observer_agent.errors import ConfigError, UsageError
from observer_agent.hub.together import Together

log = logging.getLogger(__name__)
T = TypeVar("T")

BUSY_MS = 10_000
POOL = 16  # request threads and a few
POOL_WAIT = 8.0
HEAP = 8 * 2**20  # bytes that SQLite keeps for all connections together; each would fill 2 MB with pages, over hours
STATEMENTS = 32  # prepared ones that a connection keeps; some take 20 kB, and the driver's 128 would fill for hours
PRAGMAS = (
    f"busy_timeout={BUSY_MS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"soft_heap_limit={HEAP}",
)  # fmt: skip
POSTGRESQL = "postgresql"
# Below the 10 s within which an answer should go out; a connection to a machine that is gone is given up as well.
LIMITS = {"statement_timeout": "8s", "lock_timeout": "5s", "idle_in_transaction_session_timeout": "30s"}
CONNECT = {"connect_timeout": 5, "keepalives_idle": 30, "tcp_user_timeout": 10_000, "application_name": "observer-hub"}
ATTEMPTS = 4
COLLISIONS = ("40001", "40P01")  # serialization failure, deadlock: the same transaction may pass the next time
# The server restarts, the file is locked, the disk is full, no connection is free: for a while, and no fault of ours.
AWAY = (OperationalError, InterfaceError, NoConnection)
WRONG = ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_NOTADB")  # a file that no waiting makes better
MIGRATING = 0x0B5E_47EB  # the advisory lock of those who bring the schema up to date


class Database:
    """Transactions on one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writing = threading.Lock() if engine.dialect.name == "sqlite" else nullcontext()
        self._together = Together(self._writing, self._transaction) if engine.dialect.name == "sqlite" else None
        self._reading = {} if engine.dialect.name == "sqlite" else _SNAPSHOT
        # The same pool; what is executed is a transaction of its own.
        single = {"observer_single": True} if engine.dialect.name == "sqlite" else {"isolation_level": "AUTOCOMMIT"}
        self._glancing = engine.execution_options(**single)

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._engine.dialect.name

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view; nothing is written."""
        with self._engine.connect() as conn:
            with conn.execution_options(**self._reading).begin():
                yield conn

    @contextmanager
    def glance(self) -> Iterator[Connection]:
        """For one SELECT: no transaction is begun or ended around it, which would take longer than the look itself."""
        with self._glancing.connect() as conn:
            yield conn

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One write transaction: committed at the end, undone by an exception."""
        with self._writing, self._transaction() as conn:
            yield conn

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._engine.connect() as conn:
            with conn.execution_options(observer_write=True).begin():
                yield conn

    def run(self, job: Callable[[Connection], T]) -> T:
        """Does `job` in a write transaction; one that collided with another is undone and done again."""
        for left in reversed(range(ATTEMPTS)):
            try:
                with self.write() as conn:
                    return job(conn)
            except DBAPIError as error:
                if not left or getattr(error.orig, "sqlstate", None) not in COLLISIONS:
                    raise
                log.debug("Two transactions collided; this one is done again")
        raise AssertionError("the last attempt returns or raises")

    def share(self, job: Callable[[Connection], T]) -> T:
        """Like `run`; on SQLite in one transaction with what other threads have to write at this moment.

        A job may be called twice, and must not raise to undo: others are in its transaction.
        """
        if self._together is None:
            return self.run(job)
        turn = self._together.do(job)
        return cast(T, turn.value) if turn.done else self.run(job)

    def ahead(self, now: Callable[[], float]) -> float:
        """Seconds by which a clock is ahead of the database server's; 0 on SQLite, which has none of its own."""
        if self.dialect != POSTGRESQL:
            return 0.0
        with self.glance() as conn:
            conn.execute(text("SELECT 1"))  # a connection that had to be made first would count as a difference
            before = now()
            theirs = conn.execute(text("SELECT CAST(extract(epoch FROM clock_timestamp()) AS float8)")).scalar_one()
            return (before + now()) / 2 - float(theirs)

    def close(self) -> None:
        """Closes every connection."""
        self._engine.dispose()


def said(error: BaseException) -> str:
    """The first line of what the database or its driver says; the others may name the statement."""
    told = error.orig if isinstance(error, DBAPIError) else error
    return (str(told).splitlines() or [""])[0]


def insert(conn: Connection, table: Table) -> Any:
    """An INSERT that knows `on_conflict_do_update` and `on_conflict_do_nothing`, of the connection's dialect."""
    return DIALECTS[conn.dialect.name].insert(table)


DIALECTS: dict[str, Any] = {"postgresql": postgresql, "sqlite": sqlite}
_SNAPSHOT: dict[str, Any] = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}


def open_database(url: str) -> Database:
    """Opens and migrates the database at `url`; raises ConfigError, or UsageError where a later start may succeed."""
    where = _parse(url)
    database = Database(_engine(where))
    try:
        migrate(database)
    except DBAPIError as error:
        database.close()
        what = "name a file in a directory that exists and can be written"
        if where.get_backend_name() == POSTGRESQL:
            what = "check that the server runs and that the database, the user and the password are right"
        # What the server says takes several lines and may name the user; the first says what is wrong.
        refused = ConfigError("DATABASE_URL", _shown(where), f"cannot be opened ({said(error)}): {what}")
        if str(getattr(error.orig, "sqlite_errorname", "")).startswith(WRONG):
            raise refused from None
        raise UsageError(str(refused)) from None  # a server that is away comes back: the same start may succeed then
    return database


def migrate(database: Database) -> None:
    """Runs the missing steps of `migrations/`, all in one transaction; other processes wait for it."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with database.write() as conn:
        if database.dialect == POSTGRESQL:
            conn.exec_driver_sql("SET LOCAL lock_timeout = '120s'")
            conn.exec_driver_sql("SET LOCAL statement_timeout = 0")
            conn.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATING})")
        config.attributes["connection"] = conn
        command.upgrade(config, "head")


def _engine(where: URL) -> Engine:
    common: dict[str, Any] = {"hide_parameters": True, "pool_size": POOL, "max_overflow": 0, "pool_timeout": POOL_WAIT}
    if where.get_backend_name() == POSTGRESQL:
        given = {name: value for name, value in CONNECT.items() if name not in where.query}
        try:
            engine = create_engine(where, connect_args=given, pool_recycle=1800, **common)
        except ImportError:
            fix = "needs the extra `postgres`: pip install 'observer-agent[hub,postgres]'"
            raise ConfigError("DATABASE_URL", _shown(where), fix) from None
        event.listen(engine, "connect", _limit)
    else:
        engine = create_engine(where, connect_args={"cached_statements": STATEMENTS}, **common)
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "begin", _begin)
    return engine


def _parse(url: str) -> URL:
    try:
        where = make_url(url)
    except ArgumentError:
        text = "is not a URL: use sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        raise ConfigError("DATABASE_URL", "[not shown]", text) from None
    if where.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return where.set(drivername="postgresql+psycopg")
    if where.drivername not in ("sqlite", "sqlite+pysqlite"):
        text = "is neither SQLite nor PostgreSQL: use sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        raise ConfigError("DATABASE_URL", _shown(where), text)
    if where.database in (None, "", ":memory:"):
        raise ConfigError("DATABASE_URL", _shown(where), "must name a file: use sqlite:///FILE")
    return where


def _shown(where: URL) -> str:
    return where.set(query={}).render_as_string(hide_password=True).replace("+psycopg", "")


def _limit(connection: Any, _record: object) -> None:
    """No statement may hold up an answer for ever, whatever the server's own settings are."""
    before, connection.autocommit = connection.autocommit, True
    connection.execute("; ".join(f"SET {name} = '{value}'" for name, value in LIMITS.items()))
    connection.autocommit = before


def _prepare(connection: Any, _record: object) -> None:
    """The driver must not begin transactions by itself: `_begin` says which kind."""
    connection.isolation_level = None
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(conn: Connection) -> None:
    options = conn.get_execution_options()
    if not options.get("observer_single", False):
        conn.exec_driver_sql("BEGIN IMMEDIATE" if options.get("observer_write", False) else "BEGIN")
