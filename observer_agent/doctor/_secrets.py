"""Everything that must not be seen, told to the one redactor: keys, tokens, passwords, credentials in URLs, headers.

Places are read that may hold secrets; nothing leaves but what the redactor now knows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from observer_agent.config import VARIABLES
from observer_agent.doctor._place import Known, Place
from observer_agent.doctor._sources import references

_SECRET_NAME = re.compile(r"(?i)key|token|secret|passw|pwd|credential|auth|cookie|dsn|headers|probe_|tenant|username")
_PUBLIC = {
    "AGENT_KEY_FILE",
    "CREDENTIALS_DIRECTORY",
    "OLDPWD",
    "PWD",
    "PROBE_ENV_ALLOW",
    "PROBE_FAILURE_STATUS",
    "PROMETHEUS_BASIC_AUTH_ENABLED",
    "SSH_AUTH_SOCK",
    "XAUTHORITY",
}
_URL = re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s\"'<>]+")
# Fields of a definition's configuration whose texts are the operator's own.
_FIELDS = (
    "headers",
    "query",
    "body_match",
    "body",
    "labels",
    "password",
    "token",
    "username",
    "dsn",
    "statement",
    "url",
)
_SHORT = 6  # shorter texts of definitions and names are words like `up`, and no secrets


def teach(place: Place, known: Known) -> None:
    """Tells the redactor what the service's environment, files and keys hold."""
    place.redact.add(known.key, *_of_env(place.env), *_of_env(known.env), *_of_env(known.given))
    files = [place.folder / "agent_key", *(copy / "agent_key" for copy in place.copies)]
    files += [Path(known.given["AGENT_KEY_FILE"])] if known.given.get("AGENT_KEY_FILE") else []
    for file in files:
        place.redact.add(*_of_key_file(file))


def teach_definitions(place: Place, known: Known, rows: Iterable[Any]) -> None:
    """Tells the redactor what definitions hold: header values, queries, credentials, values that they refer to."""
    for row in rows:
        if not isinstance(row, Mapping):
            continue
        config = row.get("source_config")
        place.redact.add(*(known.env.get(name, "").strip() for _, name in references(config)))
        texts = [*_of_config(config), str(row.get("query") or "")]
        place.redact.add(*(text for text in texts if len(text) >= _SHORT))


def _of_env(env: Mapping[str, str]) -> Iterator[str]:
    for name, text in env.items():
        if name in _PUBLIC:
            continue
        row = VARIABLES.get(name)
        if row.secret if row else _SECRET_NAME.search(name):
            yield from (text, text.strip(), quote(text, safe=""))
            yield from (line.strip() for line in text.splitlines() if len(line.strip()) >= _SHORT)
            yield from _parts(text)
        elif name in ("PROMETHEUS_TENANT_ID", "PROMETHEUS_USERNAME") and len(text) >= _SHORT:
            yield text
        for url in _URL.findall(text):
            yield from _of_url(url)


def _parts(text: str) -> Iterator[str]:
    """The values inside a text of headers: JSON or `Name: value` lines."""
    if ":" in text:
        yield from (part for part in re.split(r"[\s,:;{}\"]+", text) if len(part) >= _SHORT)


def _of_url(url: str) -> Iterator[str]:
    """User, password, query and fragment of a URL, as written and decoded."""
    try:
        parts = urlsplit(url)
        pieces = [parts.username, parts.password, parts.query, parts.fragment]
    except ValueError:
        return
    pieces += [value.partition("=")[2] for value in parts.query.split("&")]
    for piece in pieces:
        if piece and len(piece) >= 4:
            yield from (piece, unquote(piece))


def _of_config(config: object) -> Iterator[str]:
    """The texts of a configuration that may be secrets."""
    if not isinstance(config, Mapping):
        return
    for field, value in config.items():
        if field == "header_refs":
            continue
        known = str(field) in _FIELDS or _SECRET_NAME.search(str(field))
        for text in _texts(value):
            yield from (part for url in _URL.findall(text) for part in _of_url(url))
            if known and not str(field).endswith(("_ref", "_url")) and field != "url":
                yield text


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _of_key_file(file: Path) -> Iterator[str]:
    try:
        if os.path.isfile(file) and file.stat().st_size <= 65_536:
            text = file.read_text(encoding="utf-8", errors="replace")
            yield from (text.strip(), *text.split())
    except OSError:
        return
