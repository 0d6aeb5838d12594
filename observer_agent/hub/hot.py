"""Statements that nearly every request executes, compiled once for each dialect and handed to the driver as they are.

SQLAlchemy looks the compiled form up at each execution and prepares every parameter by name, which costs more than most
of these statements do in the database. A `Hot` is one statement, a `Bulk` puts many rows in with one call, a
`Chain` does several of them at once. They are made at import, hold no state, and are used inside a transaction of
`Database` by any thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Boolean, Connection, CursorResult, Double, Executable, Integer, Table
from sqlalchemy.dialects import postgresql, sqlite

from observer_agent.hub.database import POSTGRESQL

_DIALECTS: Mapping[str, Any] = {
    "sqlite": sqlite.dialect(),
    POSTGRESQL: postgresql.dialect(paramstyle="format"),  # type: ignore[no-untyped-call]
}
_KINDS = {Double: "float8", Integer: "int8", Boolean: "bool"}


Given = Mapping[str, Any]


class Hot:
    """One statement; `named` has another one for a dialect that needs its own."""

    def __init__(self, statement: Executable, **named: Executable) -> None:
        self._texts = {name: _compiled(named.get(name, statement), name) for name in _DIALECTS}
        self.text = self._texts[POSTGRESQL][0]

    def __call__(self, conn: Connection, given: Given) -> CursorResult[Any]:
        """Executes it with the parameters of these names."""
        text, names = self._texts[conn.dialect.name]
        return conn.exec_driver_sql(text, tuple([given[name] for name in names]))

    def parameters(self, given: Given) -> list[Any]:
        """Those of `text`, in their order."""
        return [given[name] for name in self._texts[POSTGRESQL][1]]


class Bulk:
    """Inserts rows that come as columns; with `keys` a row that stands under the same key is replaced.

    `shared` columns have one value for all rows, `once` columns are not replaced. One statement with the rows as JSON
    on PostgreSQL (psycopg takes long to write arrays); `executemany` on SQLite.
    """

    def __init__(
        self,
        table: Table,
        names: Sequence[str],
        *,
        shared: Sequence[str] = (),
        keys: Sequence[str] = (),
        once: Sequence[str] = (),
    ) -> None:
        every = [*shared, *names]
        listed = f"INSERT INTO {table.name} ({', '.join(every)})"
        replaced = [f"{name} = excluded.{name}" for name in every if name not in (*keys, *once)]
        ending = f" ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {', '.join(replaced)}" if keys else ""
        kinds = {name: _kind(table.c[name].type) for name in every}
        single = "".join(f"CAST(%s AS {kinds[name]}), " for name in shared)
        told = ", ".join(f'"{name}" {kinds[name]}' for name in names)
        self._names, self._shared = tuple(names), tuple(shared)
        self._values = f"{listed} VALUES ({', '.join('?' * len(every))}){ending}"
        self.text = f"{listed} SELECT {single}* FROM json_to_recordset(CAST(%s AS json)) AS told({told}){ending}"

    def __call__(self, conn: Connection, columns: Given) -> None:
        """Puts the rows in; every column is a sequence as long as the others, no key may come twice."""
        count = len(columns[self._names[0]])
        if count and conn.dialect.name == POSTGRESQL:
            conn.exec_driver_sql(self.text, tuple(self.parameters(columns)))
        elif count:
            same = [[columns[name]] * count for name in self._shared]
            others = [columns[name] for name in self._names]
            conn.exec_driver_sql(self._values, list(zip(*same, *others, strict=True)))

    def parameters(self, columns: Given) -> list[Any]:
        """Those of `text`, in their order."""
        rows = zip(*(columns[name] for name in self._names), strict=True)
        told = json.dumps([dict(zip(self._names, row, strict=True)) for row in rows], ensure_ascii=False)
        return [*(columns[name] for name in self._shared), told]

    def columns(self, rows: Sequence[Given]) -> dict[str, list[Any]]:
        """Rows that come as mappings, without the shared columns."""
        return {name: [row[name] for row in rows] for name in self._names}

    def rows(self, conn: Connection, rows: Sequence[Given]) -> None:
        """Puts rows in that come as mappings."""
        self(conn, self.columns(rows))


class Chain:
    """Several writes, none of which concerns a row of another: on PostgreSQL one statement, and so one round trip.

    `look` is a SELECT of what none of them writes.
    """

    def __init__(self, *parts: Hot | Bulk, look: Hot | None = None) -> None:
        self._parts = parts
        self._look = look
        listed = ", ".join(f"part_{n} AS ({part.text})" for n, part in enumerate(parts))
        self._text = f"WITH {listed} {look.text if look else 'SELECT 1'}"

    def __call__(self, conn: Connection, *given: Given) -> Iterable[Any]:
        """Executes them with the parameters of each, the look with those of the first; returns what the look found."""
        if conn.dialect.name == POSTGRESQL:
            all_parts = zip(self._parts, given, strict=True)
            listed = [each for part, own in all_parts for each in part.parameters(own)]
            listed += self._look.parameters(given[0]) if self._look else []
            return conn.exec_driver_sql(self._text, tuple(listed))
        for part, own in zip(self._parts, given, strict=True):
            part(conn, own)
        return self._look(conn, given[0]) if self._look else ()


def _compiled(statement: Executable, dialect: str) -> tuple[str, tuple[str, ...]]:
    found: Any = statement.compile(dialect=_DIALECTS[dialect])  # type: ignore[attr-defined]
    return str(found), tuple(found.positiontup or ())


def _kind(column: Any) -> str:
    return next((name for each, name in _KINDS.items() if isinstance(column, each)), "text")
