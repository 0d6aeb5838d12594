"""What probes of HTTP backends with JSON answers share (`loki`, `elasticsearch`): logging in, asking, naming errors.

A configuration's fields in, headers and a decoded answer out, or Failed under the name that the source type has for
it. A server's own words reach `detail["said"]` alone, which no log line holds, without what they repeat of the request
or quote of the query. Runs on the probe's thread.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from observer_agent.probes import _evidence
from observer_agent.probes._config import Fields
from observer_agent.probes._extract import PARSE_RATE, document
from observer_agent.probes._headers import Pairs
from observer_agent.probes._http import Request, Response, exchange
from observer_agent.probes._mtls import Given, load
from observer_agent.probes._reasons import Failed, Reason, timed_out
from observer_agent.probes._secrets import look_up
from observer_agent.probes._tls import Tls
from observer_agent.probes._tools import Run, Tools
from observer_agent.probes._url import Url

BODY_LIMIT: Final = 1_048_576
ERROR_LIMIT: Final = 16_384
COURTESY: Final = 0.5  # seconds for the text of an error, which may be missing
TEXT_MAX: Final = 500
SHORTEST: Final = 3  # texts of a query that are shorter say nothing

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_QUOTED = re.compile(r"\"[^\"]*\"?|'[^']*'?|`[^`]*`?|\{[^}]*\}?|\[(?![\d:, ]*\])[^\]]*\]?")
_REF_OF: Final[Mapping[str, str]] = {"bearer": "token_ref", "basic": "password_ref", "api_key": "api_key_ref"}


class Words(NamedTuple):
    """The names that a source type has for what goes wrong on the way to an answer."""

    auth_ref_missing: Reason
    unauthorized: Reason
    query_error: Reason
    server_error: Reason
    timeout: Reason
    unreachable: Reason
    error: Reason
    not_found: Reason


class Auth(NamedTuple):
    """How to log in: the mode, the environment variable with the secret, and the user's name."""

    mode: str = "none"
    ref: str = ""
    username: str = ""


def parse_auth(fields: Fields, *modes: str) -> Auth:
    """`auth_mode`, one of `modes` or none, with the `*_ref` that it needs."""
    mode = fields.choice("auth_mode", ("none", *modes), "none")
    refs = {name: fields.env_name(_REF_OF[name]) for name in modes}
    username = fields.parsed("username", _user_name)
    if mode == "basic" and not username and "username" not in fields:
        fields.problem("username", "is required with auth_mode basic")
    if mode != "none" and _REF_OF[mode] not in fields:
        fields.problem(_REF_OF[mode], f"is required with auth_mode {mode}")
    return Auth(mode, refs.get(mode) or "", username or "")


def header_text(text: str) -> str:
    """A text that goes into a header, 1 to 256 characters; raises ValueError."""
    if not 1 <= len(text) <= 256 or _CONTROL.search(text):
        raise ValueError("must be 1 to 256 characters without control characters")
    return text


def _user_name(text: str) -> str:
    if ":" in text:
        raise ValueError("must not hold a colon")
    return header_text(text)


def log_in(auth: Auth, words: Words, tools: Tools) -> Pairs:
    """The header Authorization, if any; the redactor learns the secret. Raises Failed before any connection."""
    if auth.mode == "none":
        return ()
    try:
        secret = look_up(auth.ref, tools, words.auth_ref_missing)
    except Failed as failure:
        failure.detail["auth_ref"] = auth.ref
        raise
    tools.redact.add(secret)
    if _CONTROL.search(secret):
        text = f"the value of {auth.ref} holds control characters"
        raise Failed(Reason.HEADER_REF_INVALID, text, auth_ref=auth.ref)
    if auth.mode == "basic":
        secret = base64.b64encode(f"{auth.username}:{secret}".encode("utf-8", "surrogateescape")).decode()
        tools.redact.add(secret)
    scheme = {"bearer": "Bearer", "basic": "Basic", "api_key": "ApiKey"}[auth.mode]
    return (("Authorization", f"{scheme} {secret}"),)


def below(base: Url, path: str) -> Url:
    """A path under a base URL, whose own path is kept as a prefix; a query of the base stays."""
    prefix, _, rest = base.target.partition("?")
    return base._replace(target=prefix.rstrip("/") + path + (f"?{rest}" if rest else ""))


def shown(base: Url) -> str:
    """A base URL for a detail: a query may hold anything, and is left out."""
    return base._replace(target=base.target.partition("?")[0]).text


def trust(base: Url, ca_cert_ref: str | None, run: Run) -> Tls | None:
    """Whom to trust: an authority of one's own or the system's, nobody without TLS. Raises Failed."""
    return load(Given(ca_cert_ref=ca_cert_ref), run).tls(False, run) if base.scheme == "https" else None


def ask(request: Request, run: Run, words: Words, hide: Iterable[str], *, tls: Tls | None) -> dict[str, Any]:
    """The JSON object that the backend answers with; texts of `hide` are kept out of every error. Raises Failed."""
    with exchange(request, run, tls) as response:
        if not 200 <= response.status < 300:
            raise _refused(response, run, words, masker(request, run, hide))
        body = response.plain_body(BODY_LIMIT + 1)
    if len(body) > BODY_LIMIT:
        raise Failed(Reason.BODY_TOO_LARGE, f"the answer has more than {BODY_LIMIT} bytes")
    if run.left() < len(body) / PARSE_RATE:
        raise timed_out("reading the body")
    try:
        content = document(body)
    except Failed:
        content = None
    if not isinstance(content, dict):
        raise Failed(words.error, "the answer is not a JSON object: does the base_url lead to the right server?")
    return content


def renamed(failure: Failed, words: Words) -> Failed:
    """A failure under the name that the source type has for it; whose fault it is stays."""
    names: dict[str, Reason] = dict.fromkeys(
        (
            Reason.REFUSED, Reason.NOT_FOUND, Reason.TRY_AGAIN, Reason.DNS_OVERLOADED,
            Reason.HOST_UNREACHABLE, Reason.NET_UNREACHABLE,
        ),
        words.unreachable,
    )  # fmt: skip
    names |= {Reason.RESET: words.error, Reason.HTTP_ERROR: words.error}
    # The kernel's own ETIMEDOUT says that nobody is there; a deadline that has passed says that it is slow.
    names[Reason.TIMED_OUT] = words.unreachable if "errno" in failure.detail else words.timeout
    name = names.get(failure.reason)
    if name is None:
        return failure
    out = Failed(name, "", failure.fault, code=failure.reason)
    out.detail.update(failure.detail)
    return out


def masker(request: Request, run: Run, hide: Iterable[str]) -> Callable[[str], str]:
    """Makes a server's words fit to be shown locally, at most 500 characters: nothing of the query and nothing that
    they quote, nothing of the request in whatever form they repeat it."""
    longest_first = sorted((each for each in hide if len(each) >= SHORTEST), key=len, reverse=True)

    def mask(text: str) -> str:
        for secret in longest_first:
            text = text.replace(secret, "...")
        unquoted = _QUOTED.sub("...", text)
        return " ".join(_evidence.hider((request,), run.tools.redact)(unquoted).split())[:TEXT_MAX]

    return mask


def _refused(response: Response, run: Run, words: Words, mask: Callable[[str], str]) -> Failed:
    status = response.status
    by_status = {
        400: words.query_error,
        401: words.unauthorized,
        403: words.unauthorized,
        404: words.not_found,
        422: words.query_error,
    }
    reason = words.server_error if status >= 500 else by_status.get(status, words.error)
    if 300 <= status < 400:
        return Failed(reason, "the server redirects, which is not followed: use the final URL", http_status=status)
    said = mask(_said(response, run))
    facts: dict[str, Any] = {"http_status": status, **({"said": said} if said else {})}
    return Failed(reason, f"the server answered {status}", **facts)


def _said(response: Response, run: Run) -> str:
    """What the body of an error says, empty where it does not come: the status alone tells enough."""
    run.hurry(COURTESY)
    try:
        body = response.plain_body(ERROR_LIMIT)
    except Failed:
        return ""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return body.decode("utf-8", "replace")
    return _words_of(content) or body.decode("utf-8", "replace")


def _words_of(content: object) -> str:
    """`error.type: error.reason` of Elasticsearch, `error` or `message` of Loki."""
    if not isinstance(content, dict):
        return ""
    error = content.get("error", content.get("message"))
    if isinstance(error, dict):
        return ": ".join(str(error[name]) for name in ("type", "reason") if isinstance(error.get(name), str))
    return error if isinstance(error, str) else ""
