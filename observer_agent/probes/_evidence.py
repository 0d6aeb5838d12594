"""What a probe keeps as evidence beside its reading, and what may be shown of it.

While probing, raw facts go into `Run.evidence`, which costs next to nothing; `facts` makes them plain when a status has
changed, on the thread `evidence`. Whatever an answer repeats of what was sent is hidden: headers, path and query, in
every disguise that servers give them (percent, JSON, HTML, base64, a wrong character set), and the halves of Basic
credentials. What looks like a secret of the target's own is hidden as well. Nothing of a URL but its origin is kept.
"""

from __future__ import annotations

import base64
import binascii
import html
import itertools
import json
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from observer_agent.clock import iso
from observer_agent.logs import HIDDEN
from observer_agent.probes._reasons import Failed

if TYPE_CHECKING:
    from observer_agent.probes._http import Request, Response
    from observer_agent.probes._tools import Run

WINDOW: Final = 4_096  # bytes of a body that are kept in memory
SHOWN: Final = 512  # characters of it that are shown: a secret that the window cuts begins behind them
LEAST: Final = 4  # characters of a secret
RUN: Final = 8  # characters in a row of a secret that are hidden wherever they stand
LONGEST: Final = 1_024  # characters of a secret that are looked for in pieces
MOST_PARTS: Final = 100  # parts of a request's body that are looked for
_WORDS: Final = re.compile(r"""[\s,;:=&"'<>{}\[\]()]+""")
PIECE: Final = 6  # characters of a part of one; a shorter word is more likely the target's own
TOKEN: Final = re.compile(r"(?=.*[0-9]).{8,}|.{16,}")  # a part of a path that may be a secret, unlike `health`
SECRETS: Final = re.compile(  # no part of it may look twice at a long run: the text is a stranger's
    r"""(?isx)
    -----BEGIN[ ][A-Z ]{0,40}PRIVATE[ ]KEY-----.*?(?:-----END[ ]|\Z)
    | (?<![\w-])eyJ[\w-]{8,}\.[\w.-]+  # a JWT
    | (?<![A-Z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])
    | (?P<line>(?:authorization|cookie)["'\\]{0,2}\s{0,4}[=:]\s{0,4}["'\\]{0,2})[^"'<>\r\n\\]+
    | (?P<name>(?:passw(?:or)?d|passphrase|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|session|credential)
        [\w-]{0,32}["'\\]{0,2}\s{0,4}(?:=>|[=:>])\s{0,4})
      (?:(?P<mark>\\?["'])(?:(?!(?P=mark))(?:\\.|[^\\]))* | [^\s"'<>&;,}]+)
    """
)

Redact = Callable[[str], str]


class Hop(NamedTuple):
    """One answer on the way of a request that was redirected."""

    status: int
    address: str
    request: Request


class Body:
    """The beginning of an answer that was not as expected; `sent` are the requests that it may repeat."""

    __slots__ = ("head", "request", "whole")

    def __init__(self, body: bytes, request: Request) -> None:
        self.head = body[:WINDOW]
        self.whole = len(body) < WINDOW
        self.request = request


def add_hop(response: Response, run: Run) -> None:
    """Keeps an answer on the way."""
    if response.request:
        run.evidence.setdefault("hops", []).append(Hop(response.status, run.address, response.request))


def add_body(response: Response, run: Run, body: bytes) -> None:
    """Keeps the beginning of an answer's body."""
    if response.request and body:
        run.evidence["body"] = Body(body, response.request)


def facts(evidence: Mapping[str, Any], redact: Redact) -> dict[str, Any]:
    """The evidence of a reading as plain data without secrets: `{tried?, hops?, tls?, body?}`."""
    hops, body = evidence.get("hops", ()), evidence.get("body")
    hide = hider([hop.request for hop in hops] + ([body.request] if body else []), redact)
    found: dict[str, Any] = {}
    if tried := evidence.get("tried"):
        found["tried"] = [{"address": address, "reason": str(reason)} for address, reason in tried]
    if hops:
        found["hops"] = [
            {"status": hop.status, "origin": shown(_origin(hop.request), hide), "address": hop.address} for hop in hops
        ]
    if tls := _tls(evidence):
        found["tls"] = tls
    if body:
        found["body"] = shown(body.head.decode("utf-8", "surrogateescape"), hide, body.whole) or HIDDEN
    return found


def shown(text: str, redact: Redact, whole: bool = True) -> str:
    """The beginning of a text without secrets, every character escaped that steers a terminal or breaks a line.

    `whole` says that no part of it was cut off before.
    """
    seen = text[:WINDOW]
    found = redact(seen)
    if len(text) > len(seen) or not whole:
        # At the end may stand the beginning of a secret, too short to be known for one.
        found = found[: max(0, len(found) - len(seen) * (WINDOW - SHOWN) // WINDOW)]
    return "".join(each if each.isprintable() else _escaped(each) for each in found[:SHOWN])


def _escaped(char: str) -> str:
    lost = ord(char) - 0xDC00  # a byte that is no UTF-8 was read as a surrogate
    return f"\\x{lost:02x}" if 0x80 <= lost <= 0xFF else char.encode("unicode_escape").decode()


def _origin(request: Request) -> str:
    return f"{request.url.scheme}://{request.url.authority}"


def _tls(evidence: Mapping[str, Any]) -> dict[str, Any]:
    version, cipher = evidence.get("tls") or (None, None)
    found = {"version": version, "cipher": cipher} if version else {}
    der = evidence.get("certificate")
    return {**found, "certificate": _certificate(der)} if der else found


def _certificate(der: bytes) -> dict[str, Any]:
    from observer_agent.probes import _certificate

    try:
        cert = _certificate.read(der)
    except Failed as failure:
        return {"error": str(failure)}
    return {
        "subject": cert.subject,
        "issuer": cert.issuer,
        "not_before": iso(cert.not_before),
        "not_after": iso(cert.not_after),
        "names": list(cert.names[:10]),
        "serial": cert.serial,
    }


# -- what may not be shown


def hider(requests: Sequence[Request], redact: Redact) -> Redact:
    """Hides what was sent, then what looks like a secret, then what the redactor knows."""
    forms = {form for request in requests for text in _sent(request) for form in _disguises(text)}
    longest_first = sorted((form for form in forms if len(form) >= LEAST), key=len, reverse=True)
    known = re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE) if longest_first else None
    secrets = {value for request in requests for _, value in request.headers if redact(value) != value}
    runs = {run for value in secrets for form in _disguises(value[:LONGEST]) for run in _runs(form.lower())}

    def hide(text: str) -> str:
        text = redact(known.sub(HIDDEN, text) if known else text)
        return SECRETS.sub(_hidden, _without(text, runs) if runs else text)

    return hide


def _runs(text: str) -> Iterator[str]:
    return (text[at : at + RUN] for at in range(len(text) - RUN + 1))


def _without(text: str, runs: Container[str]) -> str:
    """Hides pieces of secrets: a server may cut what it repeats."""
    low = text.lower()
    low = low if len(low) == len(text) else text  # a few capital letters have two small ones
    out, done, until = [], 0, 0
    for at, run in enumerate(_runs(low)):
        if run not in runs:
            continue
        if at >= until:
            out += [text[done:at], HIDDEN]
        done = until = at + RUN
    return "".join([*out, text[done:]])


def _hidden(found: re.Match[str]) -> str:
    return f"{found['line'] or found['name'] or ''}{found['mark'] or ''}{HIDDEN}"


def _sent(request: Request) -> Iterator[str]:
    """What a server may repeat of a request: header values, path, query, and the parts of each."""
    for _, value in request.headers:
        yield value
        yield from _parts(value)
    if request.body:
        text = request.body[:WINDOW].decode("utf-8", "surrogateescape")
        yield text
        yield from itertools.islice((part for part in _WORDS.split(text) if len(part) >= PIECE), MOST_PARTS)
    path, _, query = request.url.target.partition("?")
    parts = (part for part in path.split("/") if TOKEN.fullmatch(part))
    values = (pair.partition("=")[2] or pair for pair in query.split("&"))
    for text in (request.url.target, path, query, *parts, *values):
        if len(text) >= PIECE:
            yield text
            yield unquote(text)
            yield unquote_plus(text)


def _parts(value: str) -> Iterator[str]:
    """`Bearer x`, `a=x; b=y`: each part; of `Basic x` also user and password."""
    for part in re.split(r"[\s,;:=\"']+", value):
        if len(part) >= PIECE:
            yield part
    scheme, _, coded = value.partition(" ")
    if scheme.lower() == "basic":
        try:
            pair = base64.b64decode(coded.strip(), validate=True).decode("utf-8", "surrogateescape")
        except (binascii.Error, ValueError):
            return
        yield pair
        yield from pair.split(":", 1)


def _disguises(text: str) -> Iterator[str]:
    """The text as servers write it."""
    raw = text.encode("utf-8", "surrogateescape")
    for form in (text, raw.decode("latin-1")):
        plain = form.encode("utf-8", "surrogateescape")
        yield form
        yield html.escape(form)
        yield html.escape(form, quote=False)
        yield quote(plain)
        yield quote(plain, safe="")
        yield quote_plus(plain)
        yield json.dumps(form)[1:-1]
        yield json.dumps(form, ensure_ascii=False)[1:-1]
        yield json.dumps(form)[1:-1].replace("/", "\\/")
        yield repr(form)[1:-1]
    for shift in (b"", b"x", b"xx"):  # it may stand anywhere in what was encoded
        yield base64.b64encode(shift + raw).decode().rstrip("=")[2 * len(shift) :]
        yield base64.urlsafe_b64encode(shift + raw).decode().rstrip("=")[2 * len(shift) :]
    yield raw.hex()
