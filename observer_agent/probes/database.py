"""The source type `database`: the one number that a read-only query gives (docs/probes/database.md).

PostgreSQL, MySQL and MariaDB, Redis, MongoDB. A new connection for each look: nothing is kept that could go stale, hold
a slot of the server or be used by two. The connection string comes from the environment and, like the query and the
server's own words, reaches no detail and no log. Runs on a probe thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from observer_agent.model import Reading
from observer_agent.probes import _mongodb, _mysql, _postgres, _redis
from observer_agent.probes._config import Fields
from observer_agent.probes._dbwire import Table, Wire
from observer_agent.probes._dsn import KINDS, Dsn, parse_dsn
from observer_agent.probes._extract import decimal
from observer_agent.probes._net import connect
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._secrets import look_up
from observer_agent.probes._sqltext import check_sql
from observer_agent.probes._tools import Run, Tools

LONGEST_QUERY: Final = 8_192
LARGEST: Final = 2**53 - 1
MARGIN: Final = 0.25  # seconds, at most: the server's word about a slow statement should come before our deadline


@dataclass(frozen=True, slots=True)
class DatabaseConfig:
    """What to ask and where; `query` is what the engine understands. `timeout` is seconds, for the whole look."""

    kind: str
    ref: str
    query: Any
    timeout: float


class Engine(NamedTuple):
    """One kind of database: how a query is checked, and how to sign in."""

    check: Callable[[str], Any]
    login: Callable[[Dsn, Wire], Callable[[Any, float], Table]]


def _sql(kind: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        check_sql(kind, text)
        return text

    return check


ENGINES: Final[Mapping[str, Engine]] = MappingProxyType(
    {
        "postgres": Engine(_sql("postgres"), _postgres.login),
        "mysql": Engine(_sql("mysql"), _mysql.login),
        "redis": Engine(_redis.parse_command, _redis.login),
        "mongodb": Engine(_mongodb.parse_count, _mongodb.login),
    }
)
_UNREACHED: Final = frozenset(
    (
        Reason.REFUSED,
        Reason.RESET,
        Reason.TIMED_OUT,
        Reason.NOT_FOUND,
        Reason.TRY_AGAIN,
        Reason.HOST_UNREACHABLE,
        Reason.NET_UNREACHABLE,
        Reason.FORBIDDEN,
    )
)


def parse(raw: object) -> DatabaseConfig:
    """The typed configuration; raises InvalidConfig."""
    fields = Fields(raw)
    if "kind" not in fields:
        fields.problem("kind", "is required")
    kind = fields.choice("kind", KINDS, KINDS[0])
    ref = fields.env_name("connection_string_ref")
    if "connection_string_ref" not in fields:
        fields.problem("connection_string_ref", "is required")
    query = fields.parsed("query", lambda text: _checked(kind, text), required=True)
    timeout = fields.whole("statement_timeout_ms", 100, 30_000, 5_000) / 1000
    fields.done()
    return DatabaseConfig(kind, ref or "", query, timeout)


def _checked(kind: str, text: str) -> Any:
    if len(text) > LONGEST_QUERY:
        raise ValueError(f"must be at most {LONGEST_QUERY} characters long")
    return ENGINES[kind].check(text)


def probe(config: DatabaseConfig, deadline: float, tools: Tools) -> Reading:
    """One query over a connection of its own; value is the number that it gives."""
    run = Run(tools, deadline, Reason.DB_CONNECTION_FAILED)
    about = {
        "kind": config.kind,
        "connection_string_ref": config.ref,
        "statement_timeout_ms": round(config.timeout * 1000),
    }
    try:
        table = _ask(config, run)
        shape = {"row_count": len(table.rows), "column_count": table.columns}
        return run.gave(_number(table), **about, **shape)
    except Failed as failure:
        return run.failed(failure, **about)


def _ask(config: DatabaseConfig, run: Run) -> Table:
    dsn = _dsn(config, run.tools)
    querying = False
    wire = None
    try:
        wire = Wire(connect(dsn.host, dsn.port, run))
        run.enter("login")
        ask = ENGINES[config.kind].login(dsn, wire)
        run.enter("query")
        querying = True
        left = run.left()
        return ask(config.query, min(config.timeout, left - min(MARGIN, left / 5)))
    except Failed as failure:
        raise _renamed(failure, querying) from None
    finally:
        if wire:
            wire.close()


def _dsn(config: DatabaseConfig, tools: Tools) -> Dsn:
    text = look_up(config.ref, tools, Reason.DB_DSN_MISSING)
    tools.redact.add(text)
    try:
        dsn = parse_dsn(config.kind, text)
    except ValueError as error:
        raise Failed(Reason.DB_DSN_INVALID, f"{config.ref} {error}", env=config.ref) from None
    tools.redact.add(dsn.password)
    return dsn


def _renamed(failure: Failed, querying: bool) -> Failed:
    """A failure of the network under the name that this source type has for it; whose fault it is stays."""
    if failure.reason not in _UNREACHED:
        return failure
    slow = querying and failure.reason == Reason.TIMED_OUT
    out = Failed(Reason.DB_TIMEOUT if slow else Reason.DB_CONNECTION_FAILED, "", failure.fault, code=failure.reason)
    out.detail.update(failure.detail)
    return out


def _number(table: Table) -> float:
    """The one value of a table as a number; raises Failed. The value itself is in no text (W19)."""
    shape: dict[str, Any] = {"row_count": len(table.rows), "column_count": table.columns}
    if not table.rows or not table.columns:
        raise Failed(Reason.DB_EMPTY_RESULT, "the query gives no row", **shape)
    if len(table.rows) > 1:
        raise Failed(Reason.DB_MULTI_ROW, "the query gives more than one row", **shape)
    if table.columns > 1:
        raise Failed(Reason.DB_MULTI_COLUMN, f"the query gives {table.columns} columns", **shape)
    value = table.rows[0][0]
    if value is None:
        raise Failed(Reason.DB_NULL_VALUE, "the query gives null", **shape)
    number = _as_number(value)
    if number is None:
        raise Failed(Reason.DB_NON_NUMERIC, f"the query gives no finite number ({_described(value)})", **shape)
    return number


def _as_number(value: object) -> float | None:
    if isinstance(value, int):
        return float(value) if -LARGEST <= value <= LARGEST else None
    if isinstance(value, float | Decimal):
        return float(value) if math.isfinite(value) else None
    return decimal(value.strip()) if isinstance(value, str) else None


def _described(value: object) -> str:
    return f"text, len={len(value)}" if isinstance(value, str) else type(value).__name__
