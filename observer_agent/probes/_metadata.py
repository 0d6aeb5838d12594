"""The maps `metadata` and `metadata_refs` of a gRPC configuration, and the values that the latter name.

Raw fields in, pairs out; keys go out in lower case, as HTTP/2 wants them. An inline key that looks like a credential is
refused. Parsing is pure; `secrets` runs on the probe's thread, before any connection.
"""

from __future__ import annotations

import re
from typing import Final

from observer_agent.probes._config import Fields, env_name
from observer_agent.probes._headers import LONGEST, MOST, Pairs, looks_like_credential
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._secrets import look_up
from observer_agent.probes._tools import Tools

_KEY = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_VALUE = re.compile(r"[\x20-\x7e]*")
_OURS: Final = frozenset(("connection", "content-type", "host", "te", "transfer-encoding", "upgrade", "user-agent"))


def parse_metadata(fields: Fields) -> tuple[Pairs, Pairs]:
    """Inline metadata, and keys with the names of environment variables."""
    inline, refs = fields.mapping("metadata", MOST), fields.mapping("metadata_refs", MOST)
    for key, value in inline.items():
        problem = _key_problem(key) or _value_problem(key, value)
        if problem:
            fields.problem(f"metadata.{_shown(key)}", problem)
    taken = {key.lower() for key in inline}
    for key, ref in refs.items():
        problem = _key_problem(key) or ("stands in metadata too" if key.lower() in taken else "") or _ref_problem(ref)
        if problem:
            fields.problem(f"metadata_refs.{_shown(key)}", problem)
    for name, given in (("metadata", inline), ("metadata_refs", refs)):
        if len({key.lower() for key in given}) < len(given):
            fields.problem(name, "names a key twice")
    return _lower(inline), _lower(refs)


def secrets(refs: Pairs, tools: Tools) -> Pairs:
    """Secret metadata as (key, value); the redactor learns each value. Raises Failed for the first that is wrong."""
    out = []
    for key, name in refs:
        try:
            value = look_up(name, tools, Reason.METADATA_REF_MISSING)
        except Failed as failure:
            failure.detail["metadata_key"] = key
            raise
        tools.redact.add(value)
        if not _VALUE.fullmatch(value):
            text = f"the value of {name} holds something else than printable ASCII"
            raise Failed(Reason.METADATA_REF_INVALID, text, metadata_key=key, env=name)
        out.append((key, value))
    return tuple(out)


def _key_problem(key: str) -> str:
    if not _KEY.fullmatch(key):
        return "is not a key of gRPC metadata"
    if key.lower().startswith("grpc-") or key.lower().endswith("-bin"):
        return "must not begin with grpc- or end with -bin"
    return "is set by the agent itself" if key.lower() in _OURS else ""


def _value_problem(key: str, value: str) -> str:
    if looks_like_credential(key):
        return "looks like a credential: put the value into an environment variable and use metadata_refs"
    if len(value) > LONGEST:
        return f"must be at most {LONGEST} characters long"
    return "" if _VALUE.fullmatch(value) else "must be printable ASCII"


def _ref_problem(ref: str) -> str:
    try:
        env_name(ref)
    except ValueError as error:
        return str(error)
    return ""


def _shown(key: str) -> str:
    return ascii(key)[1:-1][:64]


def _lower(given: dict[str, str]) -> Pairs:
    return tuple((key.lower(), value) for key, value in given.items())
