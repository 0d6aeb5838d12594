"""A number out of a JSON body (docs/probes.md, mended): bytes and a path in, a float out, or Failed with a reason.

The values themselves never reach a text (W19). Pure but for the clock. Runs on the probe's thread.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, NoReturn

from observer_agent.probes._jsonpath import Path, find
from observer_agent.probes._reasons import Failed, Reason, timed_out
from observer_agent.probes._tools import Run

BODY_LIMIT: Final = 10_485_760
PARSE_RATE: Final = 8_000_000  # bytes a second of the worst documents; nothing can interrupt the parser

_DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_KINDS: Final = ((type(None), "null"), (list, "array"), (dict, "object"))


def number(body: bytes, path: Path, run: Run) -> float:
    """The one number that a path picks; raises Failed."""
    if len(body) >= BODY_LIMIT:
        raise Failed(Reason.JSON_BODY_TOO_LARGE, f"the body has {BODY_LIMIT} bytes or more", body_bytes=len(body))
    if run.left() < len(body) / PARSE_RATE:
        raise timed_out("reading the body")
    matches = find(path, document(body))
    if not matches:
        raise Failed(Reason.JSON_PATH_NO_MATCH, "the path leads to nothing in the body")
    if len(matches) > 1:
        raise Failed(Reason.JSON_PATH_MULTI_MATCH, f"the path leads to {len(matches)} values", count=len(matches))
    return _as_number(matches[0])


def document(body: bytes) -> Any:
    """A JSON document; NaN and Infinity are no JSON. Raises Failed."""
    try:
        return json.loads(body, parse_constant=_refuse, parse_int=float)
    except (ValueError, RecursionError):
        raise Failed(Reason.JSON_PARSE_FAILED, "the body is not JSON") from None


def decimal(text: str) -> float | None:
    """A finite number written in plain decimal; None for anything else (hexadecimal, `1_000`, `inf`)."""
    value = float(text) if len(text) <= 1_000 and _DECIMAL.fullmatch(text) else math.nan
    return value if math.isfinite(value) else None


def _as_number(value: Any) -> float:
    for kind, name in _KINDS:
        if isinstance(value, kind):
            raise Failed(Reason.JSON_PATH_UNSUPPORTED_TYPE, f"the path leads to {name}, not to a number")
    if isinstance(value, str):
        found = decimal(value.strip())
        if found is None:
            text = "an empty string" if not value.strip() else f"a text that is no number (len={len(value)})"
            raise Failed(Reason.JSON_PATH_NON_NUMERIC, f"the path leads to {text}")
        return found
    if not math.isfinite(value):
        raise Failed(Reason.JSON_PATH_NON_NUMERIC, "the path leads to a number that is too large")
    return float(value)


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)
