"""Redis for the source type `database`: one command of a list of readers, in and out by RESP, written out here.

The guard is the list: Redis has no read-only session and no statement timeout. Runs on the probe's thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from observer_agent.probes._dbwire import Table, Wire, broken
from observer_agent.probes._dsn import DISABLE, Dsn
from observer_agent.probes._reasons import Failed, Reason

LONGEST_LINE: Final = 4_096
LONGEST_NUMBER: Final = 1_000

_PIECE = re.compile(r"'([^']*)'|\"((?:[^\"\\]|\\.)*)\"|([^\s'\"]+)|\s+")

# How many words each takes, the command included; None is any number from two.
_COMMANDS: Final[Mapping[str, int | None]] = MappingProxyType(
    {
        "DBSIZE": 1, "EXISTS": None, "LLEN": 2, "SCARD": 2, "ZCARD": 2, "HLEN": 2, "STRLEN": 2, "TTL": 2, "PTTL": 2,
        "BITCOUNT": None, "GET": 2,
    }
)  # fmt: skip
_REASONS: Final[Mapping[str, Reason]] = MappingProxyType(
    {
        "NOAUTH": Reason.DB_AUTH_FAILED,
        "WRONGPASS": Reason.DB_AUTH_FAILED,
        "NOPERM": Reason.DB_ACCESS_DENIED,
        "LOADING": Reason.DB_CONNECTION_FAILED,
    }
)
_SYNTAX: Final = (b"unknown command", b"unknown subcommand", b"wrong number", b"syntax error")
_LOGIN: Final = (b"invalid password", b"no password", b"AUTH <password>", b"AUTH called")


def parse_command(text: str) -> tuple[str, ...]:
    """The words of a command that only reads; raises ValueError."""
    if "\r" in text or "\n" in text or "\0" in text:
        raise ValueError("must be one line")
    words = _words(text)
    if not words:
        raise ValueError("must not be empty")
    name = words[0].upper()
    if name not in _COMMANDS:
        raise ValueError(f"must be one of {', '.join(_COMMANDS)}")
    wanted = _COMMANDS[name]
    if wanted != len(words) if wanted else len(words) < 2:
        raise ValueError(f"gives {name} the wrong number of arguments")
    return name, *words[1:]


def _words(text: str) -> list[str]:
    """The words of a line, without their quotes."""
    words: list[str] = []
    at, joined = 0, False
    while at < len(text):
        match = _PIECE.match(text, at)
        if not match:
            raise ValueError("has a quote that is not closed")
        single, double, plain = match.groups()
        if double is not None:
            plain = re.sub(r"\\(.)", r"\1", double)
        piece = single if single is not None else plain
        if piece is not None:
            words[-1:] = [words[-1] + piece] if joined else [*words[-1:], piece]
        joined = piece is not None
        at = match.end()
    return words


def login(dsn: Dsn, wire: Wire) -> Callable[[tuple[str, ...], float], Table]:
    """Signs in; what it returns runs one command. Raises Failed."""
    if dsn.tls != DISABLE:
        wire.secure(dsn)
    if dsn.password:
        user = (dsn.user,) if dsn.user else ()
        _ask(wire, ("AUTH", *user, dsn.password), signing_in=True)
    number = dsn.options.get("db", dsn.database) or "0"
    if number != "0":
        _ask(wire, ("SELECT", number))
    return lambda words, seconds: Table(1, [(_ask(wire, words),)])


def _ask(wire: Wire, words: tuple[str, ...], signing_in: bool = False) -> object:
    parts = [word.encode() for word in words]
    wire.sendall(b"".join([b"*%d\r\n" % len(parts), *(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)]))
    line = wire.line(LONGEST_LINE)
    kind, rest = line[:1], line[1:]
    if kind == b"-":
        raise _refused(rest, signing_in)
    if kind == b"+":
        return rest.decode("utf-8", "replace")
    if kind == b":":
        return _whole(rest)
    if kind == b"$":
        return _bulk(wire, _whole(rest))
    if kind in (b"*", b"%", b"~"):
        raise Failed(Reason.DB_NON_NUMERIC, "the answer is a list, not a number")
    raise broken("the server does not speak RESP")


def _bulk(wire: Wire, length: int) -> str | None:
    if length == -1:
        return None
    if not 0 <= length <= LONGEST_NUMBER:
        raise Failed(Reason.DB_NON_NUMERIC, f"the value is no number (len={length})")
    return wire.read(length + 2)[:-2].decode("utf-8", "replace")


def _whole(digits: bytes) -> int:
    if not re.fullmatch(rb"[+-]?[0-9]{1,19}", digits):
        raise broken("the server does not speak RESP")
    return int(digits)


def _refused(line: bytes, signing_in: bool) -> Failed:
    """What an error means; only its code is shown, because the rest may quote the command."""
    first = line.split(b" ", 1)[0].decode("ascii", "replace")
    code = first if re.fullmatch(r"[A-Z]{2,20}", first) else "ERR"
    reason = _REASONS.get(code, Reason.DB_ERROR)
    if signing_in or any(text in line for text in _LOGIN):
        reason = Reason.DB_AUTH_FAILED
    elif any(text in line for text in _SYNTAX):
        reason = Reason.DB_SYNTAX_ERROR
    return Failed(reason, f"the server answered {code}", code=code)
