"""Why a look gave nothing, in words that say nothing about the target but that: closed lists, keyed by reason codes.

A reading in, a few words out. Texts of a reading's detail are used only where our own code has made them of constants
(docs/lighthouse-checks.md, "What leaves"). Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from observer_agent.model import Fault, Reading
from observer_agent.probes import Reason

_PLAIN: Final[Mapping[str, str]] = MappingProxyType(
    {
        Reason.REFUSED: "connection refused",
        Reason.RESET: "connection closed by the other side",
        Reason.NOT_FOUND: "no such host",
        Reason.TRY_AGAIN: "the resolver does not answer",
        Reason.DNS: "the name cannot be resolved",
        Reason.HOST_UNREACHABLE: "no route to host",
        Reason.NET_UNREACHABLE: "network is unreachable",
        Reason.FORBIDDEN: "not permitted by the agent's system",
        Reason.TOO_MANY_REDIRECTS: "too many redirects",
        Reason.REDIRECT_DOWNGRADE: "redirected from https to http",
        Reason.INVALID_URL: "redirected to something that is no URL",
        Reason.INVALID_URL_SCHEME: "redirected to something else than http(s)",
        Reason.NO_CERT: "no peer certificate",
        Reason.BAD_CERT_DATE: "the certificate's dates cannot be read",
        Reason.REPLY_MISMATCH: "the answer does not hold the expected text",
        Reason.DNS_FORMERR: "server returned FORMERR",
        Reason.DNS_SERVFAIL: "server returned SERVFAIL",
        Reason.DNS_NOTIMP: "server returned NOTIMP",
        Reason.DNS_REFUSED: "server returned REFUSED",
        Reason.DNS_BADRESP: "the server's answer is malformed",
    }
)
_DOING: Final = (
    "resolving the name",
    "connecting",
    "shaking hands (TLS)",
    "waiting for the answer",
    "reading the body",
)
_UNTRUSTED: Final[Mapping[int, str]] = MappingProxyType(  # OpenSSL's X509_V_ERR_*
    {
        9: "it is not valid yet",
        10: "it has expired",
        18: "it is self-signed",
        19: "its authority is not known",
        20: "its authority is not known",
        21: "its authority is not known",
        62: "it is for another host",
        64: "it is for another address",
    }
)
_CONSTANT: Final = (Reason.HTTP_ERROR, Reason.TCP_ERROR, Reason.UDP_ERROR, Reason.TLS_ERROR, Reason.DNS_ERROR)
_OPENSSL: Final = re.compile(r": ([a-z0-9 ]{1,60})\Z")
_RULE: Final = re.compile(r"\(((?:networks|hosts|ports|source_types|limits)\.[a-z_]+)[^()]*\)\Z")
_RATE: Final = "limits.rate_per_target"
_NOTHING_ASKED: Final = (Reason.DNS_OVERLOADED,)


def says_nothing(reading: Reading) -> bool:
    """Whether a look says nothing about its target: the agent's own trouble, or that nothing was asked."""
    if reading.value is not None:
        return False
    if reading.fault is Fault.POLICY and _rule(reading) == _RATE:
        return True
    return reading.fault is Fault.AGENT or reading.reason in _NOTHING_ASKED


def not_checked(reading: Reading) -> str:
    """Why the operator or the configuration keeps a look from being taken."""
    if reading.fault is Fault.POLICY:
        return f"the agent's policy does not allow it ({_rule(reading) or 'metadata service'})"
    return (reading.reason or "").replace("_", " ")


def why(reading: Reading) -> str:
    """The words for a reading without a value."""
    reason, error = reading.reason or "", str(reading.detail.get("error", ""))
    if reason == Reason.TIMED_OUT:
        doing = error.rpartition(" while ")[2]
        return f"timed out while {doing}" if doing in _DOING else "timed out"
    if reason == Reason.TLS_VERIFY_FAILED:
        about = _UNTRUSTED.get(reading.detail.get("verify_code", 0))
        return f"the certificate is not trusted{f': {about}' if about else ''}"
    if reason == Reason.TLS_HANDSHAKE_FAILED:
        name = _OPENSSL.search(error)
        return f"TLS handshake failed{f': {name[1]}' if name else ''}"
    if reason in _CONSTANT and error:
        return error
    return _PLAIN.get(reason, reason.replace("_", " "))


def _rule(reading: Reading) -> str:
    """The policy's rule that forbids it, without the host or port that it names."""
    found = _RULE.search(str(reading.detail.get("error", "")))
    return found[1] if found else ""
