"""Log lines for a person: one line each, on stderr, redacted, repeats throttled.

`configure` builds the one handler. Every record passes through `Redactor` before it is written or broadcast, so no
other file has to think of secrets in lines; files that read a secret tell the redactor its value. Runs on whatever
thread logs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import TextIO
from urllib.parse import quote, quote_plus

from observer_agent.clock import Clock, iso

REPEAT_SECONDS = 60.0
HIDDEN = "[redacted]"

_USERINFO = re.compile(r"(?<=://)[^/\s?#]+@")
_URL_QUERY = re.compile(r"(\bhttps?://[^\s?#\"'<>]+)[?#][^\s\"'<>]*")
_KEY = re.compile(r"obs_live_[A-Za-z0-9_-]+")
_SCHEMES = ("basic", "bearer", "apikey")
_AUTH = re.compile(rf"(?i)\b({'|'.join(_SCHEMES)})\s+[A-Za-z0-9._~+/=-]{{6,}}")
_JOURNAL = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def query_label(query: object) -> str:
    """How a query may be named in a log line: `#<first 12 hex of its SHA-256>(len=N)`."""
    if not isinstance(query, str):
        return "#<invalid>"
    return f"#{hashlib.sha256(query.encode()).hexdigest()[:12]}(len={len(query)})"


class Redactor:
    """Takes known secrets, credentials in URLs, query strings and keys out of a text."""

    def __init__(self) -> None:
        self._secrets: tuple[str, ...] = ()
        self._lock = threading.Lock()

    def add(self, *values: str | None) -> None:
        """Remembers secret values, as they are and as JSON and URLs write them.

        Blanks and values under four characters are left alone.
        """
        fresh = {form for value in values if value and len(value) >= 4 for form in _forms(value)}
        with self._lock:
            if not fresh <= set(self._secrets):
                self._secrets = tuple(sorted(fresh | set(self._secrets), key=len, reverse=True))

    def __call__(self, text: str) -> str:
        """The text as it may be shown."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        if "://" in text:  # a search for a word costs a hundredth of one for a pattern
            text = _URL_QUERY.sub(r"\1?" + HIDDEN, _USERINFO.sub(HIDDEN + "@", text))
        if "obs_live_" in text:
            text = _KEY.sub("obs_live_" + HIDDEN, text)
        folded = text.casefold()
        return _AUTH.sub(rf"\1 {HIDDEN}", text) if any(word in folded for word in _SCHEMES) else text


def _forms(value: str) -> set[str]:
    """How a text may be written: itself for most, and escaped where it has quotes, blanks or letters beyond ASCII."""
    plain = value.encode("utf-8", "replace").decode()
    escaped = (json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1])
    return {value, *escaped, quote(plain, safe=""), quote(plain), quote_plus(plain)}


class Throttle:
    """Says whether a line about `key` may be written again, at most once every `seconds`."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._until: OrderedDict[str, float] = OrderedDict()

    def ready(self, key: str = "") -> bool:
        """True at most once per `seconds` and key."""
        now = self._clock.monotonic()
        if now < self._until.get(key, now):
            return False
        self._until[key] = now + self._seconds
        self._until.move_to_end(key)
        while len(self._until) > 1000:
            self._until.popitem(last=False)
        return True

    def reset(self, key: str = "") -> None:
        """The next line about `key` is written whenever it comes."""
        self._until.pop(key, None)


class _Repeats(logging.Filter):
    """Lets a line through once a minute; the next one says how many were held back."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._seen: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._clock.monotonic()
        text = record.getMessage()
        with self._lock:
            return self._admit(record, (record.name, text), now)

    def _admit(self, record: logging.LogRecord, key: tuple[str, str], now: float) -> bool:
        since, held = self._seen.get(key, (now - REPEAT_SECONDS, 0))
        if now - since < REPEAT_SECONDS:
            self._seen[key] = (since, held + 1)
            return False
        self._seen[key] = (now, 0)
        self._seen.move_to_end(key)
        while len(self._seen) > 500:
            self._seen.popitem(last=False)
        if held:
            record.msg, record.args = f"{key[1]} ({held} more since)", ()
        return True


class _Formatter(logging.Formatter):
    """One record as text, JSON or a journal line, redacted."""

    def __init__(self, form: str, redact: Redactor) -> None:
        super().__init__()
        self._form = form
        self._redact = redact

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message on one line: a name that holds a line break must not look like a line of ours."""
        return record.message.replace("\r", "\\r").replace("\n", "\\n")

    def format(self, record: logging.LogRecord) -> str:
        message = self._redact(super().format(record))
        who = record.name.rpartition(".")[2]
        level = level_name(record.levelno)
        if self._form == "json":
            line = {"time": iso(record.created), "level": level, "part": who, "message": message}
            return json.dumps(line, ensure_ascii=False)
        if self._form == "journald":
            prefix = f"<{_JOURNAL.get(record.levelno, 6)}>"
            return prefix + f"{who}: {message}".replace("\n", f"\n{prefix}")
        return f"{iso(record.created)} {level:<5} {who}: {message}"


class _Tail(logging.Handler):
    """Keeps the last lines for the local page, and hands lines on to a broadcaster."""

    def __init__(self, redact: Redactor, keep: int) -> None:
        super().__init__(logging.DEBUG)
        self.lines: deque[dict[str, str]] = deque(maxlen=keep)
        self.listener: Callable[[int, dict[str, str]], None] | None = None
        self._redact = redact

    def emit(self, record: logging.LogRecord) -> None:
        line = {
            "level": level_name(record.levelno),
            "message": self._redact(f"{record.name.rpartition('.')[2]}: {record.getMessage()}"),
            "timestamp": iso(record.created),
        }
        self.lines.append(line)
        if self.listener and not getattr(record, "local", False):
            self.listener(record.levelno, line)


class Logs:
    """The configured log: its redactor and its tail. `close` takes the handlers off again."""

    def __init__(self, redact: Redactor, handlers: tuple[logging.Handler, ...], tail: _Tail) -> None:
        self.redact = redact
        self._handlers = handlers
        self._tail = tail

    def verbose(self, on: bool) -> None:
        """Writes debug lines from now on, or no longer."""
        logging.getLogger("observer_agent").setLevel(logging.DEBUG if on else logging.INFO)

    def tail(self) -> list[dict[str, str]]:
        """The last lines, oldest first: level, message, timestamp."""
        return list(self._tail.lines)

    def listen(self, listener: Callable[[int, dict[str, str]], None] | None) -> None:
        """Hands every line that is not marked local to `listener(levelno, line)`; it must not block."""
        self._tail.listener = listener

    def close(self) -> None:
        """Ends the logging of this program."""
        for handler in self._handlers:
            logging.getLogger("observer_agent").removeHandler(handler)


def configure(form: str, verbose: bool, clock: Clock, redact: Redactor, stream: TextIO | None = None) -> Logs:
    """Sends the program's log lines to `stream` (stderr), in `form`: text, json, journald or auto."""
    stream = stream or sys.stderr
    root = logging.getLogger("observer_agent")
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    root.propagate = False
    repeats = _Repeats(clock)
    out = logging.StreamHandler(stream)
    out.setFormatter(_Formatter(_choose(form, stream), redact))
    tail = _Tail(redact, keep=200)
    for handler in (out, tail):
        root.addHandler(handler)
    out.addFilter(repeats)
    return Logs(redact, (out, tail), tail)


def level_name(levelno: int) -> str:
    """The wire's names: DEBUG, INFO, WARN, ERROR."""
    return {logging.WARNING: "WARN", logging.CRITICAL: "ERROR"}.get(levelno, logging.getLevelName(levelno))


def _choose(form: str, stream: TextIO) -> str:
    if form != "auto":
        return form
    if stream.isatty():
        return "text"
    return "journald" if _is_journal(stream) else "json"


def _is_journal(stream: TextIO) -> bool:
    """Whether systemd says that this stream is the journal (JOURNAL_STREAM holds its device and inode)."""
    from os import environ, fstat

    wanted = environ.get("JOURNAL_STREAM", "")
    try:
        facts = fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return wanted == f"{facts.st_dev}:{facts.st_ino}" and Path("/run/systemd").exists()
