"""The header maps `headers` and `header_refs` of a configuration (docs/probes.md, mended by W18).

Raw fields in, pairs out; names are tokens, values have no line breaks, what frames a message is the agent's own, and
an inline name that looks like a credential is refused: secrets come from the environment. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from observer_agent.probes._config import Fields, env_name
from observer_agent.probes._url import parse_authority

MOST: Final = 32
LONGEST: Final = 8_192

Pairs = tuple[tuple[str, str], ...]

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_FORBIDDEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_OURS: Final = frozenset(
    (
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
_CREDENTIALS: Final = frozenset(("cookie", "set-cookie"))
_SIGNS: Final = ("token", "secret", "password", "passwd", "auth", "session")
_HARMLESS: Final = frozenset(
    "author authors authored authority coauthor donkey hockey hotkey jockey monkey turkey whiskey".split()
)


def parse_headers(fields: Fields) -> Pairs:
    """The inline `headers`."""
    given = fields.mapping("headers", MOST)
    for name, value in given.items():
        problem = _name_problem(name) or _inline_problem(name, value)
        if problem:
            fields.problem(f"headers.{ascii(name)[1:-1][:64]}", problem)
    _refuse_doubles(fields, "headers", given)
    return tuple(given.items())


def parse_refs(fields: Fields, inline: Pairs = ()) -> Pairs:
    """The `header_refs`: header names to names of environment variables; none may also stand inline."""
    given = fields.mapping("header_refs", MOST)
    taken = {name.lower() for name, _ in inline}
    for name, ref in given.items():
        where = f"header_refs.{ascii(name)[1:-1][:64]}"
        problem = _name_problem(name)
        if name.lower() == "host":
            problem = "is not a secret: give it in headers"
        if name.lower() in taken:
            problem = "stands in headers too"
        try:
            env_name(ref)
        except ValueError as error:
            problem = problem or str(error)
        if problem:
            fields.problem(where, problem)
    _refuse_doubles(fields, "header_refs", given)
    return tuple(given.items())


def is_token(name: str) -> bool:
    """Whether a text can be a header's name."""
    return bool(_TOKEN.fullmatch(name))


def frames(name: str) -> bool:
    """Whether a header of this name is about how the message is sent, which is the agent's own."""
    return name.lower() in _OURS


def problem_of(name: str, value: str) -> str:
    """Why a header cannot be sent; empty where it can. Secrets may be."""
    return _name_problem(name) or _value_problem(name, value)


def looks_like_credential(name: str) -> bool:
    """Whether a header of this name is likely to carry a secret; `X-Author` and `X-Monkey` are not."""
    plain = name.strip().lower()
    words = [word for word in re.split(r"[^a-z0-9]+", plain) if word and word not in _HARMLESS]
    if plain in _CREDENTIALS or any(sign in word for word in words for sign in _SIGNS):
        return True
    return bool(words) and plain.endswith("key") and words[-1].endswith("key")


def _name_problem(name: str) -> str:
    if not is_token(name):
        return "is not a header's name"
    return "is set by the agent itself" if frames(name) else ""


def _inline_problem(name: str, value: str) -> str:
    if looks_like_credential(name):
        return "looks like a credential: put the value into an environment variable and use header_refs"
    return _value_problem(name, value)


def _value_problem(name: str, value: str) -> str:
    if _FORBIDDEN.search(value):
        return "must not hold control characters or line breaks"
    if len(value) > LONGEST:
        return f"must be at most {LONGEST} characters long"
    if name.lower() == "host":
        try:
            parse_authority(value)
        except ValueError as error:
            return str(error)
    return ""


def _refuse_doubles(fields: Fields, where: str, given: Mapping[str, str]) -> None:
    if len({name.lower() for name in given}) < len(given):
        fields.problem(where, "names a header twice")
