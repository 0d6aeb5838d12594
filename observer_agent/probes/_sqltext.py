"""The second line of defence for SQL: a look at the text before a server sees it. Pure.

The first line is the read-only session; this one refuses what such a session lets through (functions that wait, lock,
read files or reach other servers), and whatever it cannot read exactly as the engine would (docs/probes/database.md,
W16, W17). A text in, nothing out, or ValueError with a text that quotes nothing of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple, NoReturn

_LEADING: Final = frozenset(
    "INSERT UPDATE DELETE TRUNCATE DROP ALTER CREATE GRANT REVOKE COPY CALL DO MERGE EXEC EXECUTE SET LOCK UNLOCK "
    "BEGIN COMMIT ROLLBACK VACUUM REINDEX CLUSTER REFRESH REPLACE SHOW EXPLAIN VALUES TABLE".split()
)
_FORBIDDEN: Final = frozenset("INSERT UPDATE DELETE MERGE INTO".split())
_PAIRS: Final = frozenset(
    (
        ("FOR", "SHARE"),
        ("FOR", "KEY"),
        ("FOR", "NO"),
        ("LOCK", "IN"),
        ("NEXT", "VALUE"),
        ("PREVIOUS", "VALUE"),
        ("PROCEDURE", "ANALYSE"),
    )
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_UNREADABLE: Final = "has a quote or comment that is not closed or hides text, a backslash in a quote, or a parameter"

# Words, quoted names, literals and single characters; whatever begins like a quote or comment and does not end is BAD.
_POSTGRES = re.compile(
    r"(?P<skip>[ \t\r\n]+|--[^\r\n]*|/\*(?:(?!/\*|\*/).)*\*/)"
    r"|(?P<bad>\$\w*\$|\$[0-9]|[Uu]&['\"]|/\*)"
    r"|(?P<literal>'(?:[^'\\]|'')*')"
    r'|(?P<name>"(?:[^"\\]|"")*")'
    r"|(?P<word>[^\W\d][\w$]*)"
    r"|(?P<other>[0-9][\w.]*|[^'\"])",
    re.DOTALL,
)
_MYSQL = re.compile(
    r"(?P<skip>[ \t\r\n]+|--(?=[ \t\r\n]|\Z)[^\n]*|\#[^\n]*|/\*(?![!+]|[Mm]!)(?:(?!/\*|\*/).)*\*/)"
    r"|(?P<bad>/\*|\*/)"
    r"|(?P<literal>'(?:[^'\\]|'')*'|\"(?:[^\"\\]|\"\")*\")"
    r"|(?P<name>`(?:[^`]|``)*`)"
    r"|(?P<word>[^\W\d][\w$]*)"
    r"|(?P<other>[0-9][\w.]*|[^'\"`])",
    re.DOTALL,
)

# PostgreSQL: of the functions pg_... only these, which read sizes, states and positions.
_PG_READERS = re.compile(
    r"pg_(?:(?:database|table|total_relation|relation|indexes|tablespace|column)_size|size_(?:bytes|pretty)"
    r"|is_in_recovery|last_xact_replay_timestamp|last_wal_(?:receive|replay)_lsn|current_wal(?:_insert|_flush)?_lsn"
    r"|wal_lsn_diff|postmaster_start_time|conf_load_time|backend_pid|blocking_pids|typeof|is_wal_replay_paused"
    r"|stat_get_\w+|get_(?:indexdef|constraintdef|expr|userbyid|viewdef|partkeydef|replication_slots)|partition_root"
    r"|partition_tree|has_role|table_is_visible|encoding_to_char|relation_filenode|age|lock_status|show_all_settings)"
)
_PG_DENIED = re.compile(
    r"pg_.*|_pg_.*|lo_.*|lo(?:read|write|creat|create|unlink)|dblink.*|setval|nextval|set_config|.*_to_xml.*|ts_stat"
    r"|ts_rewrite|crosstab.*|connectby|binary_upgrade_.*|postgres_fdw_.*|http_.*|plpgsql_.*|cron_.*|schedule|txid_.*"
)
_PG_HARMLESS: Final = frozenset(("txid_current_if_assigned", "txid_current_snapshot", "txid_snapshot_xmin"))
_MYSQL_DENIED = re.compile(
    r"load_file|sleep|benchmark|.*_lock|.*_locks|release_all_locks|.*_pos_wait|.*_gtid.*|wait_.*|nextval|setval|sys_.*"
    r"|lib_mysqludf.*|group_replication_.*|asynchronous_.*|keyring_.*|extractvalue|updatexml|set_.*|mysql_.*|audit_log_.*"
)


class Token(NamedTuple):
    """A word, a quoted name, a literal or a character of a statement; words are upper case, names without quotes."""

    kind: str
    text: str


def check_sql(kind: str, text: str) -> None:
    """Raises ValueError where a text is not plainly one reading statement of `postgres` or `mysql`."""
    if _CONTROL.search(text):
        _refuse("must not hold control characters")
    tokens = list(_tokens(_MYSQL if kind == "mysql" else _POSTGRES, text))
    while tokens and tokens[-1].text == ";":
        tokens.pop()
    if not tokens:
        _refuse("must not be empty")
    _check_shape(tokens)
    _check_functions(kind, tokens)


def _tokens(pattern: re.Pattern[str], text: str) -> Iterator[Token]:
    at = 0
    while at < len(text):
        match = pattern.match(text, at)
        if not match or match.lastgroup == "bad":
            _refuse(_UNREADABLE)
        at = match.end()
        kind = match.lastgroup or ""
        if kind == "word":
            yield Token(kind, match[0].upper())
        elif kind == "name":
            yield Token(kind, match[0][1:-1])
        elif kind != "skip":
            yield Token(kind, match[0])


def _check_shape(tokens: list[Token]) -> None:
    first = tokens[0].text if tokens[0].kind == "word" else ""
    if first not in ("SELECT", "WITH"):
        named = f", not with {first}" if first in _LEADING else ""
        _refuse(f"must begin with SELECT or WITH{named}")
    if any(token == ("other", ";") for token in tokens):
        _refuse("must be one statement")
    words = [token.text if token.kind == "word" else "" for token in tokens]
    if "SELECT" not in words:
        _refuse("must hold a SELECT")
    for word in words:
        if word in _FORBIDDEN:
            _refuse(f"must not use {word}")
    for pair in pairwise(words):
        if pair in _PAIRS:
            _refuse(f"must not use {' '.join(pair)}")


def _check_functions(kind: str, tokens: list[Token]) -> None:
    for token, after in pairwise(tokens):
        if after == ("other", "(") and token.kind in ("word", "name") and _denied(kind, token.text.lower()):
            _refuse("calls a function that writes, waits, locks, reads files or reaches other servers")


def _denied(kind: str, name: str) -> bool:
    if kind == "mysql":
        return bool(_MYSQL_DENIED.fullmatch(name))
    return bool(_PG_DENIED.fullmatch(name)) and not _PG_READERS.fullmatch(name) and name not in _PG_HARMLESS


def _refuse(text: str) -> NoReturn:
    raise ValueError(text)
