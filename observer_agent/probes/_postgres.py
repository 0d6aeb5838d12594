"""PostgreSQL for the source type `database`, on pg8000's protocol code over our own connection.

The guard: the query runs in a transaction that is READ ONLY, through the extended protocol, which takes one statement
and no more; the server ends it by statement_timeout, and sends two rows at most. Runs on the probe's thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from observer_agent.probes._dbwire import BROKEN, Table, Wire, broken, check_iterations, unavailable
from observer_agent.probes._dsn import DISABLE, PREFER, Dsn
from observer_agent.probes._reasons import Failed, Reason

ROWS: Final = 2
_SSL_REQUEST: Final = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
_TERMINATE: Final = b"X\x00\x00\x00\x04"
_BOOL: Final = 16
_INTEGERS: Final = (20, 21, 23, 26)

# By SQLSTATE, the longest beginning first.
_REASONS: Final[Mapping[str, Reason]] = MappingProxyType(
    {
        "57014": Reason.DB_TIMEOUT,
        "55P03": Reason.DB_TIMEOUT,
        "25006": Reason.DB_QUERY_NOT_ALLOWED,
        "25001": Reason.DB_QUERY_NOT_ALLOWED,
        "42501": Reason.DB_ACCESS_DENIED,
        "42": Reason.DB_SYNTAX_ERROR,
        "28": Reason.DB_AUTH_FAILED,
        "08": Reason.DB_CONNECTION_FAILED,
        "57P": Reason.DB_CONNECTION_FAILED,
        "53300": Reason.DB_CONNECTION_FAILED,
    }
)
_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "57014": "the statement took too long",
        "25006": "the query wants to write, and the transaction is read only",
        "25001": "the query wants to leave the read-only transaction",
        "42501": "the user may not do that",
        "42601": "syntax error",
        "42P01": "there is no such table",
        "42703": "there is no such column",
        "42883": "there is no such function",
        "28P01": "wrong user or password",
        "28000": "the user is not let in",
        "3D000": "there is no such database",
        "53300": "the server has no connection left",
        "57P03": "the server is starting or stopping",
        "22012": "division by zero",
    }
)


def login(dsn: Dsn, wire: Wire) -> Callable[[str, float], Table]:
    """Signs in; what it returns runs one query with a number of seconds for the statement. Raises Failed."""
    try:
        session = _session_type()
    except ImportError:
        raise unavailable("pg8000", "observer-agent") from None
    if dsn.tls != DISABLE:
        _upgrade(dsn, wire)
    connection = session(dsn, wire)
    wire.goodbye = _TERMINATE
    return lambda query, seconds: _guarded(wire, lambda: _run(connection, query, seconds))


def _upgrade(dsn: Dsn, wire: Wire) -> None:
    wire.sendall(_SSL_REQUEST)
    answer = wire.read(1)
    if answer == b"S":
        wire.secure(dsn)
    elif answer != b"N":
        raise broken("the server does not answer like a PostgreSQL")
    elif dsn.tls != PREFER:
        raise Failed(Reason.TLS_HANDSHAKE_FAILED, "the server has no TLS, and the connection string wants it")


def _session_type() -> Callable[[Dsn, Wire], Any]:
    from pg8000.core import CoreConnection

    class Session(CoreConnection):  # type: ignore[misc]
        """A connection that signs in over a Wire and keeps values as the server's text."""

        def __init__(self, wire: Wire) -> None:
            self.wire = wire

        def sign_in(self, dsn: Dsn) -> None:
            super().__init__(
                dsn.user,
                database=dsn.database or None,
                password=dsn.password,
                application_name="observer-agent",
                ssl_context=False,
                sock=self.wire,
            )

        def handle_AUTHENTICATION_REQUEST(self, data: bytes, context: Any) -> None:
            code = int.from_bytes(data[:4], "big")
            if code and not self.password:
                raise Failed(Reason.DB_AUTH_FAILED, "the server wants a password, and the connection string has none")
            if code == 3 and not hasattr(self.wire.stream.sock, "cipher"):
                text = "the server wants the password in clear over a connection that is not encrypted: use sslmode"
                raise Failed(Reason.DB_AUTH_FAILED, text)
            if code == 11:
                check_iterations(data[4:], self.wire.run)
            super().handle_AUTHENTICATION_REQUEST(data, context)

    def make(dsn: Dsn, wire: Wire) -> Session:
        session = Session(wire)
        _guarded(wire, lambda: session.sign_in(dsn))
        return session

    return make


def _guarded(wire: Wire, step: Callable[[], Any]) -> Any:
    """Runs a step of the driver; everything that it may raise becomes Failed."""
    from pg8000.exceptions import DatabaseError, InterfaceError
    from scramp import ScramException

    try:
        return step()
    except DatabaseError as error:
        raise _refused(error.args[0] if error.args else None) from None
    except ScramException:
        raise Failed(Reason.DB_AUTH_FAILED, "the server's SCRAM answers do not hold: is it the right server?") from None
    except (InterfaceError, *BROKEN):
        raise broken("the server does not speak PostgreSQL as expected") from None


def _run(connection: Any, query: str, seconds: float) -> Table:
    ms = max(1, int(seconds * 1000))
    # Not as startup options: a pooler between us and the server refuses those, or lends the session to others.
    connection.execute_simple(
        "BEGIN TRANSACTION READ ONLY; SET LOCAL standard_conforming_strings = on; "
        f"SET LOCAL statement_timeout = {ms}; SET LOCAL lock_timeout = {ms}; "
        f"SET LOCAL idle_in_transaction_session_timeout = {ms}"
    )
    context = _extended(connection, query)
    columns = context.columns or []
    oids = [column["type_oid"] for column in columns]
    rows = [tuple(map(_typed, oids, row)) for row in context.rows or []]
    return Table(len(columns), rows)


def _extended(connection: Any, query: str) -> Any:
    """Parse, bind, describe, execute for two rows, sync: one round trip."""
    from pg8000 import core

    connection.pg_types = _AsText()
    context = core.Context(query)
    connection.send_PARSE(core.NULL_BYTE, query)
    connection.send_BIND(core.NULL_BYTE, ())
    connection._send_message(core.DESCRIBE, core.PORTAL + core.NULL_BYTE)
    connection._send_message(core.EXECUTE, core.NULL_BYTE + core.i_pack(ROWS))
    connection._sock.write(core.SYNC_MSG)
    connection._sock.flush()
    connection.handle_messages(context)
    return context


class _AsText(dict[int, Callable[[str], str]]):
    """For pg8000: every type stays the server's text, so that no value can break a converter."""

    def __missing__(self, oid: int) -> Callable[[str], str]:
        return str


def _typed(oid: int, text: str | None) -> object:
    if text is None:
        return None
    if oid == _BOOL:
        return text == "t"
    return int(text) if oid in _INTEGERS else text


def _refused(message: object) -> Failed:
    state = message.get("C", "") if isinstance(message, dict) else ""
    if not re.fullmatch(r"[0-9A-Z]{5}", state):
        return broken("the server refused it without a code")
    reason = next((_REASONS[state[:n]] for n in (5, 3, 2) if state[:n] in _REASONS), Reason.DB_ERROR)
    return Failed(reason, f"{_WORDS.get(state, 'the server refused it')} (SQLSTATE {state})", sqlstate=state)
