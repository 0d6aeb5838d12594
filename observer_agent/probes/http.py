"""The source type `http`: how long a server takes to answer, or a number out of what it answers.

Rules: docs/probes.md, mended by W9, W10, W13 to W15, W18, W31 and W39. Value: milliseconds from the start to the
headers of the last hop, redirects included; with `json_path` the number that the path picks. The body is part of the
deadline but not of the value. Phases of several hops add up. Runs on a probe thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from observer_agent.model import Reading
from observer_agent.probes import _evidence, _extract, _mtls, _secrets
from observer_agent.probes._config import Fields
from observer_agent.probes._expect import ExpectedHeader, check_headers, parse_expected
from observer_agent.probes._headers import Pairs, parse_headers, parse_refs
from observer_agent.probes._hops import BROWSER, STRICT, Hops
from observer_agent.probes._http import Response
from observer_agent.probes._jsonpath import Path, parse_path
from observer_agent.probes._reasons import Failed, Reason, unexpected_status
from observer_agent.probes._tools import Run, Tools
from observer_agent.probes._url import Url, parse_url

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
HOPS, MOST_HOPS = 5, 10
MATCH_LIMIT: Final = 65_536
LARGEST: Final = 1_048_576  # bytes of a body, sent or looked through
COURTESY: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig:
    """What to ask and what to expect; `timeout` is seconds."""

    url: Url
    method: str
    expected_status: frozenset[int]
    timeout: float
    headers: Pairs = field(repr=False)
    header_refs: Pairs
    body_match: bytes
    follow_redirects: bool
    verify_tls: bool
    json_path: Path | None
    client_cert_ref: str | None
    client_key_ref: str | None
    ca_cert_ref: str | None
    body: bytes = field(default=b"", repr=False)
    body_absent: bytes = b""
    body_limit: int = MATCH_LIMIT
    expected_headers: tuple[ExpectedHeader, ...] = ()
    max_redirects: int = HOPS
    redirect_rules: str = STRICT


def parse(raw: object) -> HttpConfig:
    """The typed configuration; raises InvalidConfig."""
    fields = Fields(raw)
    url = fields.parsed("url", parse_url, required=True)
    headers = parse_headers(fields)
    config = HttpConfig(
        url=url or Url("http", "", 80, "/"),
        method=fields.choice("method", METHODS, "GET"),
        expected_status=fields.wholes("expected_status", 100, 599, 200),
        timeout=fields.timeout(5_000),
        headers=headers,
        header_refs=parse_refs(fields, headers),
        body_match=(fields.text("body_match", longest=MATCH_LIMIT) or "").encode(),
        follow_redirects=fields.flag("follow_redirects", True),
        verify_tls=fields.flag("verify_tls", True),
        json_path=fields.parsed("json_path", parse_path),
        client_cert_ref=fields.env_name("client_cert_ref"),
        client_key_ref=fields.env_name("client_key_ref"),
        ca_cert_ref=fields.env_name("ca_cert_ref"),
        body=(fields.text("body", longest=LARGEST) or "").encode(),
        body_absent=(fields.text("body_absent", longest=MATCH_LIMIT) or "").encode(),
        body_limit=fields.whole("body_limit", 1, LARGEST, MATCH_LIMIT),
        expected_headers=parse_expected(fields),
        max_redirects=fields.whole("max_redirects", 1, MOST_HOPS, HOPS),
        redirect_rules=fields.choice("redirect_rules", (STRICT, BROWSER), STRICT),
    )
    _cross_check(fields, config)
    fields.done()
    return config


def _cross_check(fields: Fields, config: HttpConfig) -> None:
    if config.method == "HEAD":
        for name in ("body_match", "body_absent", "json_path"):
            if getattr(config, name):
                fields.problem(name, "cannot be used with method HEAD, whose answers have no body")
    if bool(config.client_cert_ref) != bool(config.client_key_ref):
        fields.problem("client_cert_ref", "needs client_key_ref and the other way round")


def probe(config: HttpConfig, deadline: float, tools: Tools) -> Reading:
    """One request, its redirects, and what was asked of the answer."""
    run = Run(tools, deadline, Reason.HTTP_ERROR)
    known: dict[str, Any] = {}
    try:
        secrets = _secrets.headers(config.header_refs, tools)
        identity = _mtls.load(config, run)
        if identity.warning:
            known["cert_expiry_warning"] = identity.warning
        run.restart()
        with Hops(config, secrets, identity, run).walk(known) as response:
            return _judge(config, response, run, known)
    except Failed as failure:
        return run.failed(failure, **known)


def _judge(config: HttpConfig, response: Response, run: Run, known: dict[str, Any]) -> Reading:
    took = run.ms()
    known["status"] = response.status
    if response.status not in config.expected_status:
        _glimpse(response, run)
        raise Failed(unexpected_status(response.status), f"the server answered {response.status}")
    check_headers(config.expected_headers, response.headers)
    if config.json_path is not None:
        return _number(config, response, run, {**known, "response_time_ms": took})
    if config.body_match or config.body_absent:
        _match(config, response, run, *response.searchable(config.body_limit))
    else:
        _take_rest(response, run)
    return run.gave(took, **known)


def _number(config: HttpConfig, response: Response, run: Run, known: dict[str, Any]) -> Reading:
    known["content_type"] = response.media_type
    body = response.plain_body(_extract.BODY_LIMIT)
    _match(config, response, run, body)
    try:
        return run.gave(_extract.number(body, config.json_path or (), run), **known)
    except Failed as failure:
        _evidence.add_body(response, run, body)
        return run.failed(failure, **known)


def _match(config: HttpConfig, response: Response, run: Run, body: bytes, broken: Failed | None = None) -> None:
    """`broken` is why the body ends where it ends, if it does so early: what has come may be enough."""
    body, where = body[: config.body_limit], f"in the first {config.body_limit} bytes of the body"
    if config.body_match not in body:
        _evidence.add_body(response, run, body)
        raise broken or Failed(Reason.BODY_MISMATCH, f"the text is not {where}")
    if config.body_absent and config.body_absent in body:
        _evidence.add_body(response, run, body)
        raise Failed(Reason.BODY_UNEXPECTED, f"the text that must not be there is {where}")
    if config.body_absent and broken:
        raise broken


def _glimpse(response: Response, run: Run) -> None:
    """Takes the beginning of a body that is not judged, as evidence, briefly."""
    silent = run.silent
    run.hurry(COURTESY)
    _evidence.add_body(response, run, response.glimpse(_evidence.WINDOW))
    run.silent = silent  # what the body does is no news about the target


def _take_rest(response: Response, run: Run) -> None:
    """Reads what follows, briefly: a server whose answer is cut off logs an error each time."""
    run.hurry(COURTESY)
    try:
        response.body(MATCH_LIMIT)
    except Failed:
        pass  # the value stands: the body is no part of it
