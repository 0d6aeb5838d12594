"""TLS with the cloud as the agent does it, and what a handshake that fails means.

A certificate that is not trusted is looked at once more without trust, to say whose it is and until when; nothing of
ours is sent on that connection but a bare HEAD for the server's clock.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import requests.utils
import urllib3.util.ssl_

from observer_agent.clock import Clock, iso
from observer_agent.doctor._report import Finding
from observer_agent.doctor._way import Stopped, Way, ask_date, speaks_http

WRONG = 60.0  # seconds of clock offset
OFF = 5.0
LOOK_SECONDS = 1.0
PLAIN_SECONDS = 0.5
_EXPIRED, _NOT_YET, _SELF, _WRONG_NAME = (10,), (9,), (18,), (62, 64)
_NO_ISSUER = (2, 19, 20, 21, 27)
_PLAIN = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "UNKNOWN_PROTOCOL", "HTTPS_PROXY_REQUEST")
MAIN_BUNDLE = "REQUESTS_CA_BUNDLE"

Open = Callable[[], socket.socket]


class Seen(NamedTuple):
    """An untrusted certificate: seconds since 1970, and the server's `Date`."""

    begins: float
    ends: float
    issuer: str
    names: tuple[str, ...]
    date: float | None


def bundle_of(env: Mapping[str, str]) -> tuple[str, str]:
    """The CA bundle that the agent uses, and the variable that names it (empty for the built-in one)."""
    for name in (MAIN_BUNDLE, "CURL_CA_BUNDLE"):
        if env.get(name):
            return env[name], name
    return str(requests.utils.DEFAULT_CA_BUNDLE_PATH), ""


def make_context(env: Mapping[str, str], verify: bool) -> ssl.SSLContext:
    """The context of the agent's connections; raises Stopped where the bundle is of no use."""
    context = urllib3.util.ssl_.create_urllib3_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = True
    path, name = bundle_of(env)
    name = name or "the built-in CA bundle"
    fix = f"set {MAIN_BUNDLE} to a PEM file of authorities, such as /etc/ssl/certs/ca-certificates.crt"
    if not os.path.exists(path):
        raise Stopped(Finding("tls.ca_missing", f"{name}={path}: there is no such file", fix))
    try:
        if os.path.isdir(path):
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(cafile=path)
    except ssl.SSLError:
        raise Stopped(Finding("tls.ca_not_pem", f"{name}={path} holds no certificates in PEM form", fix)) from None
    except OSError as error:
        why = (error.strerror or "no access").lower()
        raise Stopped(Finding("tls.ca_unreadable", f"{name}={path} cannot be read: {why}", f"ls -l {path}")) from None
    return context


def shake(sock: socket.socket, context: ssl.SSLContext, host: str, left: float) -> ssl.SSLSocket:
    """The handshake; raises OSError. The plain socket is closed by it in any case."""
    sock.settimeout(max(left, 0.05))
    return context.wrap_socket(sock, server_hostname=host)


def explain(error: OSError, way: Way, reopen: Open, clock: Clock) -> Stopped:
    """What a failed handshake means. `reopen` gives a fresh connection for the second look."""
    name = way.cloud.name
    if isinstance(error, ssl.SSLCertVerificationError):
        return _untrusted(error, way, _look(reopen, way, clock), clock)
    ended = isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ConnectionError)
    closed = ended or "EOF" in (getattr(error, "reason", None) or "")
    if (closed or isinstance(error, TimeoutError)) and _speaks_plainly(reopen, way, clock):
        return Stopped(_not_tls(name))
    if isinstance(error, TimeoutError):
        fix = "a firewall may hold TLS back: try from here: openssl s_client -connect " + name
        return Stopped(Finding("tls.silent", f"{name} took the connection and never answered in TLS", fix))
    reason = (getattr(error, "reason", None) or "").upper()
    if reason in _PLAIN:
        return Stopped(_not_tls(name))
    if "ALERT" in reason or "HANDSHAKE" in reason or "PROTOCOL" in reason:
        cause = f"{name} refuses the TLS handshake ({reason.lower().replace('_', ' ')})"
        return Stopped(Finding("tls.refused", cause, f"try from here: openssl s_client -connect {name}"))
    if closed:
        fix = "a firewall or proxy on the way may cut it: try from here: openssl s_client -connect " + name
        return Stopped(Finding("tls.closed", f"{name} closes the connection in the TLS handshake", fix))
    why = reason.lower().replace("_", " ") or type(error).__name__
    return Stopped(Finding("tls.failed", f"TLS with {name} fails: {why}", f"openssl s_client -connect {name}"))


def _not_tls(name: str) -> Finding:
    fix = "set CLOUD_SERVER_URL to the right port, or to http:// for a hub without TLS"
    return Finding("tls.not_tls", f"{name} does not speak TLS", fix)


def _speaks_plainly(reopen: Open, way: Way, clock: Clock) -> bool:
    """Whether the port answers in plain HTTP: such a server may wait for ever for the rest of a handshake."""
    try:
        with reopen() as sock:
            return speaks_http(sock, way.cloud.host, clock.monotonic() + PLAIN_SECONDS, clock)
    except (OSError, Stopped):
        return False


def _untrusted(error: ssl.SSLCertVerificationError, way: Way, seen: Seen | None, clock: Clock) -> Stopped:
    name, code = way.cloud.name, error.verify_code
    dated = code in _EXPIRED + _NOT_YET
    if dated and seen and seen.date is not None and seen.begins <= seen.date <= seen.ends:
        found = judge_clock(seen.date - clock.now())
        if found:
            return Stopped(found)
    if code in _EXPIRED:
        cause = f"the certificate of {name} has expired{_at(seen.ends if seen else None)}"
        return Stopped(Finding("tls.expired", cause, "have it renewed on the server; check this machine's clock: date"))
    if code in _NOT_YET:
        cause = f"the certificate of {name} is not valid yet{_at(seen.begins if seen else None)}"
        return Stopped(Finding("tls.not_yet_valid", cause, "check this machine's clock: date, timedatectl"))
    if code in _WRONG_NAME:
        names = f": it is for {', '.join(seen.names[:4])}" if seen and seen.names else ""
        cause = f"the certificate of {name} is for another name{names}"
        return Stopped(Finding("tls.wrong_name", cause, "set CLOUD_SERVER_URL to a name that the certificate holds"))
    trust = f"if it is yours, put its PEM into a file and set {MAIN_BUNDLE} to that; else somebody is in between"
    if code in _SELF:
        return Stopped(Finding("tls.self_signed", f"the certificate of {name} is signed by itself alone", trust))
    issuer = f" ({seen.issuer})" if seen and seen.issuer else ""
    if code in _NO_ISSUER:
        return Stopped(
            Finding("tls.unknown_issuer", f"nobody known vouches for the certificate of {name}{issuer}", trust)
        )
    cause = f"the certificate of {name} is not verified: {error.verify_message}"
    return Stopped(Finding("tls.not_verified", cause, trust))


def _at(moment: float | None) -> str:
    return f" ({iso(moment)[:10]})" if moment is not None else ""


def _look(reopen: Open, way: Way, clock: Clock) -> Seen | None:
    """The certificate as it is; None where there is no second look to be had."""
    until = clock.monotonic() + LOOK_SECONDS
    try:
        with shake(reopen(), make_context({}, False), way.cloud.host, LOOK_SECONDS) as sock:
            der = sock.getpeercert(binary_form=True)
            date = ask_date(sock, way.cloud.host, until, clock)
    except (OSError, Stopped):
        return None
    return _read(der, read_date(date)) if der else None


def _read(der: bytes, date: float | None) -> Seen | None:
    from asn1crypto import x509

    try:
        cert: Any = x509.Certificate.load(der)
        begins, ends = _seconds(cert.not_valid_before), _seconds(cert.not_valid_after)
        names = cert.subject_alt_name_value.native if cert.subject_alt_name_value else ()
        return Seen(begins, ends, cert.issuer.human_friendly, tuple(str(each) for each in names), date)
    except (ValueError, TypeError, KeyError):
        return None


def _seconds(moment: datetime) -> float:
    return moment.timestamp()


# -- the clock


def read_date(text: str | None) -> float | None:
    """An HTTP date as seconds since 1970."""
    try:
        return parsedate_to_datetime(text).timestamp() if text else None
    except (ValueError, TypeError, OverflowError):
        return None


def judge_clock(offset: float) -> Finding | None:
    """What it means that the cloud's clock is `offset` seconds ahead of ours."""
    if abs(offset) <= OFF + 1.0:  # a Date has whole seconds
        return None
    way = "behind" if offset > 0 else "ahead of"
    cause = f"this machine's clock is {_span(abs(offset))} {way} the cloud's"
    fix = "timedatectl set-ntp true (or start chrony), then: systemctl restart observer-agent"
    return Finding("clock.wrong" if abs(offset) > WRONG else "clock.off", cause, fix)


def _span(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.0f} h"
    )
