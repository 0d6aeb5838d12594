"""Checks of the console become definitions of our own probes.

A `CheckDef` in, a `Definition` out; what cannot be looked at becomes the definition's problem, which names the check's
field and the fix and never quotes a value. Runs on whatever thread brings the checks; pure but for a log line.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from observer_agent import probes
from observer_agent.clouds._lighthouse_wire import CheckDef, encode_check
from observer_agent.errors import InvalidConfig
from observer_agent.lighthouse.targets import Unusable, domain, host_port, passwords, split_user
from observer_agent.model import Definition, Operation, Problem, Thresholds
from observer_agent.probes._expect import EXACT, MATCHES, PRESENT, ExpectedHeader
from observer_agent.probes._headers import Pairs, frames, is_token, looks_like_credential, problem_of

log = logging.getLogger(__name__)

INTERVAL, INTERVAL_FLOOR = 60, 5
TIMEOUT, TIMEOUT_MAX = 5, 60  # seconds
NEVER: Final = 366 * 86_400.0  # seconds: nothing is pushed for its own sake
REDIRECTS: Final = 10
BODY: Final = 1_048_576  # bytes that a keyword is looked for in
USER_AGENT: Final = "Lighthouse-Agent"
CONTAINS: Final = "contains:"  # in front of an expected DNS value of which a part is enough
UNKNOWN: Final = "unknown_source_type"
_COMMON: Final = frozenset("host user-agent accept accept-language content-type cache-control origin referer".split())
ANY_VALUE: Final = Thresholds(Operation.OVER, -1.0, Operation.UNDER, 0.0)  # certificates: expired is below 0 days

_FIELD_OF: Final[Mapping[str, str]] = MappingProxyType(
    {
        "url": "url",
        "host": "url",
        "port": "url",
        "domain": "url",
        "method": "method",
        "body_match": "keyword_check",
        "body_absent": "keyword_check",
        "expect": "keyword_check",
        "body": "request_body",
        "send": "request_body",
        "expected_status": "expected_status_code",
        "record_type": "dns_record_type",
        "expected_values": "dns_expected_ips",
        "expected_parts": "dns_expected_ips",
        "resolver_name": "dns_resolver",
    }
)


def definitions(checks: Iterable[CheckDef]) -> list[Definition]:
    """Every check as a definition, in order."""
    return [definition(check) for check in checks]


def definition(check: CheckDef) -> Definition:
    """One check as a definition; `interval` and the probe's timeout are the check's, within their bounds."""
    make = _MAKERS.get(check.type.strip().lower())
    config, problem = None, None
    if make is None:
        problem = Problem(UNKNOWN, f'unknown check type "{_plain_word(check.type)}"')
        source_type = "unknown"
    else:
        source_type = _SOURCES[check.type.strip().lower()]
        try:
            config = make(check)
        except InvalidConfig as error:
            problem = Problem("invalid_config", "; ".join(map(_renamed, error.problems)))
        except Unusable as error:
            problem = Problem("invalid_config", str(error))
    return Definition(
        id=check.id,
        source_type=source_type,
        interval=float(_interval(check)),
        push_interval=NEVER,
        fingerprint=_fingerprint(check),
        config=config,
        thresholds=ANY_VALUE,
        problem=problem,
        title=check.name[:200],
    )


def secrets(check: CheckDef) -> tuple[str, ...]:
    """What of a check must never be shown, for the redactor: values of headers, a password in the URL, the body."""
    found = [check.request_body, *passwords(check.url), split_user(check.url)[1]]
    for key, value in check.request_headers:
        if looks_like_credential(key) or (key.strip().lower() not in _COMMON and len(value) >= 8):
            found += [value, value.strip(), *value.split(maxsplit=1)[1:]]
    return tuple(dict.fromkeys(text for text in found if text))


# -- one kind of check each


def _http(check: CheckDef) -> Any:
    url, user = split_user(check.url)
    raw: dict[str, Any] = {
        "url": url,
        "method": check.method.strip().upper() or "GET",
        "expected_status": check.expected_status_code or 200,
        "timeout_ms": _timeout_ms(check),
        "body_match" if check.keyword_present else "body_absent": check.keyword_check or None,
        "body_limit": BODY,
        "max_redirects": REDIRECTS,
        "redirect_rules": "browser",
        "verify_tls": not check.skip_tls_verify,
        "body": check.request_body or None,
    }
    config = probes.parse("http", raw)
    return replace(config, headers=_headers(check, user), expected_headers=_expected(check))


def _headers(check: CheckDef, user: str) -> Pairs:
    """What is sent: doubles are joined, what frames the message is the agent's own and left away."""
    found: dict[str, tuple[str, str]] = {"user-agent": ("User-Agent", USER_AGENT)}
    if user:
        found["authorization"] = ("Authorization", user)
    seen: set[str] = set()
    for n, (given, raw) in enumerate(check.request_headers):
        name, value = given.strip(), raw.strip()
        low = name.lower()
        if not name:
            continue
        if is_token(name) and frames(name):
            log.warning("Check %s: the header %s is the agent's own and is not sent as written", check.id, name)
            continue
        if problem := problem_of(name, value):
            raise Unusable(f"request_headers[{n}]", problem)
        if low in seen and low != "host":
            value = f"{found[low][1]}{'; ' if low == 'cookie' else ', '}{value}"
        found[low] = (name, value)
        seen.add(low)
    return tuple(found.values())


def _expected(check: CheckDef) -> tuple[ExpectedHeader, ...]:
    found = []
    for n, (key, value, given) in enumerate(check.expected_headers):
        match = given.strip().lower() or PRESENT
        if not key.strip():
            continue
        if not is_token(key.strip()):
            raise Unusable(f"expected_headers[{n}].key", "is not a header's name")
        if match not in MATCHES:
            raise Unusable(f"expected_headers[{n}].match", f"is not known: write one of {', '.join(MATCHES)}")
        found.append(ExpectedHeader(key.strip(), match, value.strip() if match == EXACT else value))
    return tuple(found)


def _tcp(check: CheckDef) -> Any:
    return probes.parse("tcp", _talk(check))


def _udp(check: CheckDef) -> Any:
    raw = _talk(check)
    if "expect" not in raw:
        raw.update(silence_ok=True, attempts=1)
    return probes.parse("udp", raw)


def _talk(check: CheckDef) -> dict[str, Any]:
    host, port = host_port(check.url, None)
    raw: dict[str, Any] = {"host": host, "port": port, "timeout_ms": _timeout_ms(check)}
    if check.request_body:
        raw["send"] = check.request_body
    if check.keyword_check:
        if not check.keyword_present:
            raise Unusable("keyword_present", "must be true here: that a text is absent can be asked of http alone")
        raw["expect"] = check.keyword_check
    return raw


def _ssl(check: CheckDef) -> Any:
    host, port = host_port(check.url, 443)
    return probes.parse("tls_cert", {"host": host, "port": port, "timeout_ms": _timeout_ms(check), "verify_tls": False})


def _dns(check: CheckDef) -> Any:
    record_type = check.dns_record_type.strip().upper() or "A"
    wanted = [text.strip() for text in check.dns_expected_ips if text.strip()]
    raw: dict[str, Any] = {
        "domain": domain(check.url),
        "record_type": record_type,
        "expected_values": [_unquoted(record_type, text) for text in wanted if not text.startswith(CONTAINS)],
        "expected_parts": [text.removeprefix(CONTAINS) for text in wanted if text.startswith(CONTAINS)],
        "timeout_ms": _timeout_ms(check),
        "search": True,
    }
    if check.dns_resolver.strip():
        raw["resolver_name"] = _bracketed(check.dns_resolver.strip())
    return probes.parse("dns", raw)


def _unquoted(record_type: str, text: str) -> str:
    """Texts as zone files write them have quotes that are not part of the record."""
    if record_type == "CAA":
        return text.replace('"', "")
    return text[1:-1] if record_type == "TXT" and len(text) > 2 and text[0] == text[-1] == '"' else text


def _bracketed(resolver: str) -> str:
    """An IPv6 address without a port may stand without brackets."""
    return f"[{resolver}]" if resolver.count(":") > 1 and not resolver.startswith("[") else resolver


_MAKERS: Final[Mapping[str, Callable[[CheckDef], Any]]] = MappingProxyType(
    {"http": _http, "https": _http, "tcp": _tcp, "udp": _udp, "ssl": _ssl, "dns": _dns}
)
_SOURCES: Final[Mapping[str, str]] = MappingProxyType(
    {"http": "http", "https": "http", "tcp": "tcp", "udp": "udp", "ssl": "tls_cert", "dns": "dns"}
)


# -- all kinds


def _interval(check: CheckDef) -> int:
    return max(INTERVAL_FLOOR, check.interval_seconds if check.interval_seconds > 0 else INTERVAL)


def _timeout_ms(check: CheckDef) -> int:
    return 1000 * min(TIMEOUT_MAX, check.timeout_seconds if check.timeout_seconds > 0 else TIMEOUT)


def _fingerprint(check: CheckDef) -> str:
    """Changes exactly when the job has to start afresh: the name is for people."""
    facts = {name: value for name, value in encode_check(check).items() if name != "name"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _renamed(problem: str) -> str:
    """A probe's complaint with the check's name for the field."""
    field, colon, text = problem.partition(": ")
    return f"{_FIELD_OF.get(field.partition('[')[0], field)}{colon}{text}"


def _plain_word(text: str) -> str:
    return "".join(c for c in text[:40] if c.isascii() and c.isprintable() and c not in '"\\')
