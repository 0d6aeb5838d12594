"""Strict, typed reading of a `source_config`: raw JSON in, typed values out, every problem collected.

Null equals absent. An unknown key, a wrong type (a bool is no number) or a value out of range is a problem
`field: message`; values are never quoted, because they may be secrets. Pure; runs wherever definitions are read, in
agent and hub.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from observer_agent.errors import InvalidConfig
from observer_agent.resolver import parse_literal

MOST_PROBLEMS = 20
_ENV_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,255}")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HOST = re.compile(r"(?=.{1,253}\.?\Z)(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(?:\.(?!\Z)|\.?\Z))+")

T = TypeVar("T")


class Fields:
    """The fields of one configuration; each method takes one, `done` raises what was wrong."""

    def __init__(self, raw: object) -> None:
        if not isinstance(raw, Mapping):
            raise InvalidConfig("source_config: must be an object")
        self._raw = {key: value for key, value in raw.items() if value is not None}
        self._known: set[object] = set()
        self._problems: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._raw

    def problem(self, name: str, text: str) -> None:
        """Notes that a field is wrong."""
        self._problems.append(f"{name}: {text}")

    def done(self) -> None:
        """Raises InvalidConfig if anything was wrong or a key is not known."""
        for key in self._raw:
            if key not in self._known:
                self.problem(_shown(key), "is not a known field")
        if self._problems:
            more = len(self._problems) - MOST_PROBLEMS
            raise InvalidConfig(*self._problems[:MOST_PROBLEMS], *([f"and {more} more"] if more > 0 else []))

    def text(self, name: str, *, required: bool = False, longest: int = 65_536) -> str | None:
        """A text; where it is required it may not be empty."""
        value = self._take(name, required)
        if value is None:
            return None
        if not isinstance(value, str) or not encodable(value):
            self.problem(name, "must be a text")
        elif required and not value:
            self.problem(name, "must not be empty")
        elif len(value) > longest:
            self.problem(name, f"must be at most {longest} characters long")
        else:
            return value
        return None

    def parsed(self, name: str, parse: Callable[[str], T], *, required: bool = False) -> T | None:
        """A text that `parse` understands; its ValueError's text is the problem."""
        text = self.text(name, required=required)
        if text is None:
            return None
        try:
            return parse(text)
        except ValueError as error:
            self.problem(name, str(error))
            return None

    def whole(self, name: str, low: int, high: int, default: int | None) -> int:
        """A whole number from `low` to `high`; required where there is no default."""
        value = self._take(name, default is None)
        if value is None:
            return default or low
        if not _is_whole(value, low, high):
            self.problem(name, f"must be a whole number from {low} to {high}")
            return low
        return int(value)

    def wholes(self, name: str, low: int, high: int, default: int) -> frozenset[int]:
        """A whole number or a list of at least one."""
        value = self._take(name)
        if value is None:
            return frozenset((default,))
        values = value if isinstance(value, list | tuple) else [value]
        if not values or not all(_is_whole(item, low, high) for item in values):
            self.problem(name, f"must be a whole number from {low} to {high}, or a list of them")
            return frozenset()
        return frozenset(values)

    def timeout(self, default_ms: int) -> float:
        """`timeout_ms`, 1 to 60,000, as seconds."""
        return self.whole("timeout_ms", 1, 60_000, default_ms) / 1000

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._take(name)
        if value is not None and not isinstance(value, bool):
            self.problem(name, "must be true or false")
        return value if isinstance(value, bool) else default

    def choice(self, name: str, options: Collection[str], default: str) -> str:
        """One of a few words."""
        value = self._take(name)
        if value is None:
            return default
        if not isinstance(value, str) or value not in options:
            self.problem(name, f"must be one of {', '.join(options)}")
            return default
        return value

    def mapping(self, name: str, most: int) -> dict[str, str]:
        """An object of texts with at most `most` entries; a null entry equals an absent one."""
        value = self._take(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.problem(name, "must be an object")
            return {}
        if len(value) > most:
            self.problem(name, f"must have at most {most} entries")
            return {}
        out: dict[str, str] = {}
        for key, item in value.items():
            if item is None:
                continue
            if isinstance(key, str) and isinstance(item, str) and encodable(key) and encodable(item):
                out[key] = item
            else:
                self.problem(f"{name}.{_shown(key)}", "must be a text")
        return out

    def json_object(self, name: str, *, required: bool = False, largest: int = 65_536) -> dict[str, Any]:
        """Any JSON object that can be written as at most `largest` bytes; empty where there is none."""
        value = self._take(name, required)
        if value is None:
            return {}
        problem = _object_problem(value, largest)
        if problem:
            self.problem(name, problem)
        return {} if problem else dict(value)

    def objects(self, name: str, most: int) -> list[Mapping[str, Any]]:
        """A list of at most `most` objects; null entries in them equal absent ones."""
        value = self._take(name)
        if value is None:
            return []
        if not isinstance(value, list | tuple) or len(value) > most or not all(isinstance(i, Mapping) for i in value):
            self.problem(name, f"must be a list of at most {most} objects")
            return []
        return [{key: entry for key, entry in item.items() if entry is not None} for item in value]

    def texts(self, name: str, most: int, longest: int) -> tuple[str, ...]:
        """A list of at most `most` texts of 1 to `longest` characters."""
        value = self._take(name)
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or len(value) > most:
            self.problem(name, f"must be a list of at most {most} texts")
            return ()
        if not all(isinstance(item, str) and 0 < len(item) <= longest and encodable(item) for item in value):
            self.problem(name, f"must hold texts of 1 to {longest} characters")
            return ()
        return tuple(value)

    def tokens(self, name: str, most: int, longest: int) -> tuple[str, ...]:
        """A list of at most `most` words, as HTTP knows them; each at most `longest` characters."""
        value = self._take(name)
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or len(value) > most:
            self.problem(name, f"must be a list of at most {most} words")
            return ()
        if not all(isinstance(item, str) and len(item) <= longest and _TOKEN.fullmatch(item) for item in value):
            self.problem(name, f"must hold words of 1 to {longest} characters, without blanks or separators")
            return ()
        return tuple(value)

    def env_name(self, name: str) -> str | None:
        """The name of an environment variable."""
        return self.parsed(name, env_name)

    def _take(self, name: str, required: bool = False) -> Any:
        self._known.add(name)
        value = self._raw.get(name)
        if value is None and required:
            self.problem(name, "is required")
        return value


def env_name(text: str) -> str:
    """The name of an environment variable, 1 to 256 characters; raises ValueError."""
    if not _ENV_NAME.fullmatch(text):
        raise ValueError("must be the name of an environment variable (A to Z, 0 to 9, _)")
    return text


def host_name(text: str) -> str:
    """A host's name in ASCII and lower case, or the text of an IP literal; raises ValueError."""
    if parse_literal(text):
        return text.removeprefix("[").removesuffix("]")
    try:
        name = text if text.isascii() else text.encode("idna").decode("ascii")
    except UnicodeError:
        name = ""
    if not _HOST.fullmatch(name):
        raise ValueError("must be a host's name or an address")
    return name.lower()


def encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8 at all; JSON may hold half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _object_problem(value: object, largest: int) -> str:
    if not isinstance(value, Mapping):
        return "must be an object"
    try:
        size = len(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())
    except (TypeError, ValueError, RecursionError):
        return "must be plain JSON, without NaN and not too deep"
    return f"must have at most {largest} bytes" if size > largest else ""


def _is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _shown(key: object) -> str:
    return ascii(key)[1:-1][:64] if isinstance(key, str) else ascii(key)[:64]
