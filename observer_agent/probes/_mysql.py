"""MySQL and MariaDB for the source type `database`, on PyMySQL's protocol code over our own connection.

The guard: the session and its transaction are READ ONLY, several statements in one text are off, the server ends the
statement (MAX_EXECUTION_TIME, max_statement_time on MariaDB), two rows are read. Runs on the probe's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ssl import PROTOCOL_TLS_CLIENT, SSLContext
from types import MappingProxyType
from typing import Any, Final

from observer_agent.probes._dbwire import BROKEN, Table, Wire, broken, unavailable
from observer_agent.probes._dsn import DISABLE, PREFER, Dsn
from observer_agent.probes._reasons import Failed, Reason

ROWS: Final = 2
_QUIT: Final = b"\x01\x00\x00\x00\x01"
_BIT: Final = 16
_INTEGERS: Final = (1, 2, 3, 8, 9, 13)
_NO_TLS: Final = 2026

_REASONS: Final[Mapping[int, Reason]] = MappingProxyType(
    {
        **dict.fromkeys((3024, 1317, 1969, 1205), Reason.DB_TIMEOUT),
        **dict.fromkeys((1792, 1290, 1836), Reason.DB_QUERY_NOT_ALLOWED),
        **dict.fromkeys((1045, 1044, 1698, 1251, 1862, 1820, 2059, 4151), Reason.DB_AUTH_FAILED),
        **dict.fromkeys((1142, 1143, 1227, 1370, 1419), Reason.DB_ACCESS_DENIED),
        **dict.fromkeys((1064, 1054, 1146, 1305, 1049, 1327, 1630), Reason.DB_SYNTAX_ERROR),
        **dict.fromkeys((1040, 1053, 1129, 1130, 1203, 2006, 2013, 1226), Reason.DB_CONNECTION_FAILED),
        _NO_TLS: Reason.TLS_HANDSHAKE_FAILED,
    }
)
_WORDS: Final[Mapping[int, str]] = MappingProxyType(
    {
        3024: "the statement took too long",
        1317: "the statement was interrupted",
        1969: "the statement took too long",
        1792: "the query wants to write, and the transaction is read only",
        1045: "wrong user or password",
        1044: "the user may not use the database",
        1142: "the user may not do that",
        1227: "the user may not do that",
        1064: "syntax error",
        1054: "there is no such column",
        1146: "there is no such table",
        1305: "there is no such function",
        1049: "there is no such database",
        1040: "the server has no connection left",
        1130: "this machine may not connect",
        2026: "the server has no TLS, and the connection string wants it",
    }
)


def login(dsn: Dsn, wire: Wire) -> Callable[[str, float], Table]:
    """Signs in; what it returns runs one query with a number of seconds for the statement. Raises Failed."""
    try:
        connection = _connection(dsn, wire)
    except ImportError:
        raise unavailable("PyMySQL", "observer-agent") from None
    _guarded(lambda: _sign_in(connection, wire))
    wire.goodbye = _QUIT
    return lambda query, seconds: _guarded(lambda: _run(connection, query, seconds))


def _connection(dsn: Dsn, wire: Wire) -> Any:
    from pymysql.connections import Connection

    tls: dict[str, Any] = {"ssl_disabled": True} if dsn.tls == DISABLE else {"ssl": SSLContext(PROTOCOL_TLS_CLIENT)}
    connection = Connection(
        user=dsn.user,
        password=dsn.password.encode(),
        host=dsn.host,
        database=dsn.database or None,
        charset="utf8mb4",
        conv=dict[Any, Any](),
        autocommit=None,
        defer_connect=True,
        program_name="observer-agent",
        # Never asks a server for its public key: whoever is in between would answer.
        server_public_key=b"none",
        auth_plugin_map=dict.fromkeys(("mysql_clear_password", "dialog", "sha256_password"), _InClear),
        **tls,
    )
    connection.ctx = _Upgrade(dsn, wire)
    connection._ssl_required = dsn.tls not in (DISABLE, PREFER)
    return connection


class _Upgrade:
    """Stands where PyMySQL has its TLS context: the handshake is ours, under the deadline."""

    def __init__(self, dsn: Dsn, wire: Wire) -> None:
        self._dsn = dsn
        self._wire = wire

    def wrap_socket(self, sock: object, server_hostname: str) -> Wire:
        self._wire.secure(self._dsn)
        return self._wire


class _InClear:
    """Ways to sign in that send the password as it is: over TLS alone."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def authenticate(self, packet: Any) -> Any:
        if not self._connection._secure:
            text = "the server wants the password in clear over a connection that is not encrypted: use TLS"
            raise Failed(Reason.DB_AUTH_FAILED, text)
        self._connection.write_packet(self._connection.password + b"\0")
        return self._connection._read_packet()


def _sign_in(connection: Any, wire: Wire) -> None:
    try:
        connection.connect(wire)
    except (RuntimeError, ValueError):
        text = "the server's way to sign in is not supported, or needs TLS (caching_sha2_password does)"
        raise Failed(Reason.DB_AUTH_FAILED, text) from None


def _guarded(step: Callable[[], Any]) -> Any:
    """Runs a step of the driver; everything that it may raise becomes Failed."""
    from pymysql.err import Error

    try:
        return step()
    except Error as error:
        raise _refused(error.args[0] if error.args else None) from None
    except BROKEN:
        raise broken("the server does not speak MySQL as expected") from None


def _run(connection: Any, query: str, seconds: float) -> Table:
    _say(connection, _timeout(str(connection.get_server_info()), seconds))
    _say(connection, "SET SESSION TRANSACTION READ ONLY")
    _say(connection, "START TRANSACTION READ ONLY")
    return _rows(connection, query)


def _timeout(version: str, seconds: float) -> str:
    if "mariadb" in version.lower():
        return f"SET SESSION max_statement_time = {max(seconds, 0.001):.3f}"
    return f"SET SESSION MAX_EXECUTION_TIME = {max(1, int(seconds * 1000))}"


def _say(connection: Any, statement: str) -> None:
    connection.query(statement)


def _rows(connection: Any, query: str) -> Table:
    from pymysql.cursors import SSCursor

    cursor = SSCursor(connection)
    try:
        cursor.execute(query)
        if cursor.description is None:
            return Table(0, [])
        kinds = [column[1] for column in cursor.description]
        return Table(len(kinds), [tuple(map(_typed, kinds, row)) for row in cursor.fetchmany(ROWS)])
    finally:
        # Else the driver would read the rest of the rows when it lets go of them.
        if connection._result is not None:
            connection._result.unbuffered_active = False


def _typed(kind: int, value: Any) -> object:
    if value is None:
        return None
    if kind == _BIT:
        return int.from_bytes(value, "big")
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return int(text) if kind in _INTEGERS else text


def _refused(code: object) -> Failed:
    if not isinstance(code, int) or not code:
        return broken("the server's answer is not what it should be")
    reason = _REASONS.get(code, Reason.DB_ERROR)
    return Failed(reason, f"{_WORDS.get(code, 'the server refused it')} (error {code})", code=code)
