"""The closed vocabulary of reasons for which a probe gives no value, and whose fault each one is.

Codes: docs/probes.md; those that are ours are marked. Raw errno names and OpenSSL's words stay in a
reading's detail. `Failed` carries a reason from wherever it is found to the probe's own function, which turns it into
a reading; it never leaves this drawer.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from observer_agent.model import Fault


class Reason(StrEnum):
    """Every reason code but `unexpected_status:<code>`, which `unexpected_status` makes."""

    UNKNOWN_SOURCE_TYPE = "unknown_source_type"
    SOURCE_THREW = "source_threw"
    # the network
    REFUSED = "ECONNREFUSED"
    TIMED_OUT = "ETIMEDOUT"
    RESET = "ECONNRESET"
    NOT_FOUND = "ENOTFOUND"
    TRY_AGAIN = "EAI_AGAIN"
    HOST_UNREACHABLE = "EHOSTUNREACH"
    NET_UNREACHABLE = "ENETUNREACH"
    FORBIDDEN = "EACCES"
    NO_FILES = "EMFILE"
    NO_PORTS = "EADDRNOTAVAIL"
    NO_MEMORY = "ENOBUFS"
    DNS = "DNS"
    DNS_OVERLOADED = "dns_overloaded"  # ours
    POLICY_DENIED = "policy_denied"  # ours
    TCP_ERROR = "tcp_error"
    # secrets and TLS
    HEADER_REF_MISSING = "header_ref_missing"
    HEADER_REF_INVALID = "header_ref_invalid"
    TLS_VERIFY_FAILED = "tls_verify_failed"  # ours
    TLS_HANDSHAKE_FAILED = "tls_handshake_failed"  # ours
    MTLS_INCOMPLETE = "mtls_incomplete"
    MTLS_REF_MISSING = "mtls_ref_missing"
    MTLS_FILE_UNREADABLE = "mtls_file_unreadable"
    MTLS_CERT_PARSE_FAILED = "mtls_cert_parse_failed"
    MTLS_KEY_PARSE_FAILED = "mtls_key_parse_failed"
    MTLS_KEY_MISMATCH = "mtls_key_mismatch"  # ours
    MTLS_WEAK_KEY = "mtls_weak_key"
    MTLS_CERT_EXPIRED = "mtls_cert_expired"
    MTLS_CERT_NOT_YET_VALID = "mtls_cert_not_yet_valid"  # ours
    MTLS_SERVER_CERT_EXPIRED = "mtls_server_cert_expired"
    MTLS_SERVER_VERIFY_FAILED = "mtls_server_verify_failed"
    MTLS_CLIENT_CERT_REJECTED = "mtls_client_cert_rejected"
    MTLS_HANDSHAKE_FAILED = "mtls_handshake_failed"
    # http
    HTTP_ERROR = "http_error"
    INVALID_URL = "invalid_url"
    INVALID_URL_SCHEME = "invalid_url_scheme"
    TOO_MANY_REDIRECTS = "too_many_redirects"  # ours
    REDIRECT_DOWNGRADE = "redirect_downgrade"  # ours
    BODY_MISMATCH = "body_mismatch"
    BODY_TOO_LARGE = "body_too_large"  # ours
    JSON_BODY_TOO_LARGE = "json_body_too_large"
    JSON_PARSE_FAILED = "json_parse_failed"
    JSON_PATH_NO_MATCH = "json_path_no_match"
    JSON_PATH_MULTI_MATCH = "json_path_multi_match"
    JSON_PATH_NON_NUMERIC = "json_path_non_numeric"
    JSON_PATH_UNSUPPORTED_TYPE = "json_path_unsupported_type"
    # prometheus
    PROMETHEUS_URL_MISSING = "prometheus_url_missing"
    INVALID_PROMETHEUS_URL = "invalid_prometheus_url"
    PROMETHEUS_AUTH_CONFLICT = "prometheus_auth_conflict"
    PROMETHEUS_HEADERS_INVALID = "prometheus_headers_invalid"
    UNAUTHORIZED = "Unauthorized"
    BAD_QUERY = "BadQuery"
    PROM_UPSTREAM = "PromUpstream"
    PROM_NOT_FOUND = "prom_not_found"  # ours
    PROM_RATE_LIMITED = "prom_rate_limited"  # ours
    PROM_REDIRECT = "prom_redirect"  # ours
    PROM_BAD_RESPONSE = "prom_bad_response"  # ours
    NO_DATA_FOR_QUERY = "no_data_for_query"
    PROM_MULTIPLE_SERIES = "prom_multiple_series"
    AGENT_INTERNAL = "AgentInternal"


_UNEXPECTED = "unexpected_status:"
_ELSEWHERE: Final[Mapping[Fault, tuple[Reason, ...]]] = MappingProxyType(
    {
        Fault.RESOLVER: (Reason.TRY_AGAIN, Reason.DNS, Reason.DNS_OVERLOADED),
        Fault.PATH: (Reason.HOST_UNREACHABLE, Reason.NET_UNREACHABLE, Reason.FORBIDDEN, Reason.TCP_ERROR),
        Fault.POLICY: (Reason.POLICY_DENIED,),
        Fault.AGENT: (
            Reason.SOURCE_THREW,
            Reason.NO_FILES,
            Reason.NO_PORTS,
            Reason.NO_MEMORY,
            Reason.AGENT_INTERNAL,
        ),
        Fault.CONFIG: (
            Reason.UNKNOWN_SOURCE_TYPE,
            Reason.HEADER_REF_MISSING,
            Reason.HEADER_REF_INVALID,
            Reason.MTLS_INCOMPLETE,
            Reason.MTLS_REF_MISSING,
            Reason.MTLS_FILE_UNREADABLE,
            Reason.MTLS_CERT_PARSE_FAILED,
            Reason.MTLS_KEY_PARSE_FAILED,
            Reason.MTLS_KEY_MISMATCH,
            Reason.MTLS_WEAK_KEY,
            Reason.MTLS_CERT_EXPIRED,
            Reason.MTLS_CERT_NOT_YET_VALID,
            Reason.JSON_PATH_NO_MATCH,
            Reason.JSON_PATH_MULTI_MATCH,
            Reason.JSON_PATH_NON_NUMERIC,
            Reason.JSON_PATH_UNSUPPORTED_TYPE,
            Reason.PROMETHEUS_URL_MISSING,
            Reason.INVALID_PROMETHEUS_URL,
            Reason.PROMETHEUS_AUTH_CONFLICT,
            Reason.PROMETHEUS_HEADERS_INVALID,
            Reason.UNAUTHORIZED,
            Reason.BAD_QUERY,
            Reason.PROM_NOT_FOUND,
            Reason.NO_DATA_FOR_QUERY,
            Reason.PROM_MULTIPLE_SERIES,
        ),
    }
)
_FAULT_OF: Final[Mapping[str, Fault]] = MappingProxyType(
    {reason: fault for fault, reasons in _ELSEWHERE.items() for reason in reasons}
)
_OF_ERRNO: Final[Mapping[int, Reason]] = MappingProxyType(
    {
        errno.ECONNREFUSED: Reason.REFUSED,
        errno.ETIMEDOUT: Reason.TIMED_OUT,
        errno.ECONNRESET: Reason.RESET,
        errno.ECONNABORTED: Reason.RESET,
        errno.EPIPE: Reason.RESET,
        errno.ENOTCONN: Reason.RESET,
        errno.EHOSTUNREACH: Reason.HOST_UNREACHABLE,
        errno.EHOSTDOWN: Reason.HOST_UNREACHABLE,
        errno.ENETUNREACH: Reason.NET_UNREACHABLE,
        errno.ENETDOWN: Reason.NET_UNREACHABLE,
        errno.EAFNOSUPPORT: Reason.NET_UNREACHABLE,
        errno.EACCES: Reason.FORBIDDEN,
        errno.EPERM: Reason.FORBIDDEN,
        errno.EMFILE: Reason.NO_FILES,
        errno.ENFILE: Reason.NO_FILES,
        errno.EADDRNOTAVAIL: Reason.NO_PORTS,
        errno.ENOBUFS: Reason.NO_MEMORY,
        errno.ENOMEM: Reason.NO_MEMORY,
    }
)


def fault_of(reason: str) -> Fault:
    """Whose fault a reason is, unless the place where it is found knows better."""
    return _FAULT_OF.get(reason, Fault.TARGET)


def is_known(reason: str) -> bool:
    """Whether a reason belongs to the vocabulary."""
    return reason in _KNOWN or bool(re.fullmatch(rf"{_UNEXPECTED}\d{{3}}", reason))


def unexpected_status(status: int) -> str:
    """The reason for an HTTP status that was not expected."""
    return f"{_UNEXPECTED}{status}"


class Failed(Exception):
    """A probe gives no value: the reason, a text for the operator, whose fault it is, further detail."""

    def __init__(self, reason: str, text: str = "", fault: Fault | None = None, **detail: Any) -> None:
        super().__init__(text or reason)
        self.reason = str(reason)
        self.fault = fault or fault_of(reason)
        self.detail = {"error": text, **detail} if text else detail


def from_os_error(error: OSError, doing: str, other: Reason) -> Failed:
    """What an error of a plain socket means; `other` is the source type's own word for the rest."""
    if isinstance(error, TimeoutError) and error.errno is None:
        return timed_out(doing)
    reason = _OF_ERRNO.get(error.errno or 0, other)
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    fault = Fault.PATH if reason is other else None
    return Failed(reason, f"{error.strerror or name} while {doing}", fault, errno=name)


def timed_out(doing: str, fault: Fault | None = None) -> Failed:
    """The deadline has passed; `doing` ends the sentence."""
    return Failed(Reason.TIMED_OUT, f"no answer in time while {doing}", fault)


_KNOWN: Final = frozenset(reason.value for reason in Reason)
