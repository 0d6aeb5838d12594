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
    AGENT_NETWORK = "agent_network"  # ours: this machine sees nothing
    AGENT_STALLED = "agent_stalled"  # ours: the agent was not let run
    SOURCE_UNAVAILABLE = "source_unavailable"  # ours
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
    UDP_ERROR = "udp_error"  # ours
    REPLY_MISMATCH = "reply_mismatch"  # ours
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
    BODY_UNEXPECTED = "body_unexpected"  # ours
    HEADER_MISMATCH = "header_mismatch"  # ours
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
    # database
    DB_DSN_MISSING = "db_dsn_missing"
    DB_DSN_INVALID = "db_dsn_invalid"  # ours
    DB_QUERY_NOT_ALLOWED = "db_query_not_allowed"
    DB_EMPTY_RESULT = "db_empty_result"
    DB_MULTI_ROW = "db_multi_row"
    DB_MULTI_COLUMN = "db_multi_column"
    DB_NULL_VALUE = "db_null_value"
    DB_NON_NUMERIC = "db_non_numeric"
    DB_TIMEOUT = "db_timeout"
    DB_ACCESS_DENIED = "db_access_denied"
    DB_AUTH_FAILED = "db_auth_failed"
    DB_SYNTAX_ERROR = "db_syntax_error"
    DB_CONNECTION_FAILED = "db_connection_failed"
    DB_ERROR = "db_error"
    # dns: the names of c-ares, but for ETIMEDOUT
    DNS_NODATA = "ENODATA"
    DNS_FORMERR = "EFORMERR"
    DNS_SERVFAIL = "ESERVFAIL"
    DNS_NOTIMP = "ENOTIMP"
    DNS_REFUSED = "EREFUSED"
    DNS_BADRESP = "EBADRESP"
    DNS_RESOLVER_INVALID = "dns_resolver_invalid"
    EXPECTED_VALUE_MISMATCH = "expected_value_mismatch"
    DNS_ERROR = "dns_error"
    # tls_cert
    NO_CERT = "no_cert"
    BAD_CERT_DATE = "bad_cert_date"
    TLS_ERROR = "tls_error"
    # icmp
    ICMP_PRIVILEGE_DENIED = "icmp_privilege_denied"
    ICMP_DNS_FAILED = "icmp_dns_failed"
    ICMP_UNAVAILABLE = "icmp_unavailable"
    ICMP_ERROR = "icmp_error"
    ICMP_ALL_TIMEOUT = "icmp_all_timeout"
    # loki
    LOKI_AUTH_REF_MISSING = "loki_auth_ref_missing"
    LOKI_UNAUTHORIZED = "loki_unauthorized"
    LOKI_QUERY_ERROR = "loki_query_error"
    LOKI_SERVER_ERROR = "loki_server_error"
    LOKI_TIMEOUT = "loki_timeout"
    LOKI_UNREACHABLE = "loki_unreachable"
    LOKI_ERROR = "loki_error"
    LOKI_NOT_AGGREGATION = "loki_not_aggregation"
    LOKI_NO_DATA = "loki_no_data"
    LOKI_MULTIPLE_SERIES = "loki_multiple_series"
    LOKI_BAD_RESPONSE = "loki_bad_response"
    # elasticsearch
    ES_AUTH_REF_MISSING = "es_auth_ref_missing"
    ES_UNAUTHORIZED = "es_unauthorized"
    ES_INDEX_NOT_FOUND = "es_index_not_found"
    ES_QUERY_ERROR = "es_query_error"
    ES_SERVER_ERROR = "es_server_error"
    ES_TIMEOUT = "es_timeout"
    ES_UNREACHABLE = "es_unreachable"
    ES_ERROR = "es_error"
    ES_AGG_NOT_FOUND = "es_agg_not_found"
    ES_AGG_UNSUPPORTED = "es_agg_unsupported"
    ES_NO_DATA = "es_no_data"
    ES_SHARDS_FAILED = "es_shards_failed"  # ours
    # cloudwatch
    CLOUDWATCH_NO_DATA = "cloudwatch_no_data"
    CLOUDWATCH_ACCESS_DENIED = "cloudwatch_access_denied"
    CLOUDWATCH_THROTTLED = "cloudwatch_throttled"
    CLOUDWATCH_INVALID_PARAMETER = "cloudwatch_invalid_parameter"
    CLOUDWATCH_RESOURCE_NOT_FOUND = "cloudwatch_resource_not_found"
    CLOUDWATCH_EXPIRED_CREDENTIALS = "cloudwatch_expired_credentials"
    CLOUDWATCH_SERVER_ERROR = "cloudwatch_server_error"
    CLOUDWATCH_ERROR = "cloudwatch_error"
    CLOUDWATCH_CREDENTIALS_MISSING = "cloudwatch_credentials_missing"  # ours
    CLOUDWATCH_TIMEOUT = "cloudwatch_timeout"  # ours
    CLOUDWATCH_UNREACHABLE = "cloudwatch_unreachable"  # ours
    # custom
    CUSTOM_PROBE_NOT_FOUND = "custom_probe_not_found"
    CUSTOM_PROBE_CONFIG_INVALID = "custom_probe_config_invalid"
    CUSTOM_PROBE_TIMEOUT = "custom_probe_timeout"
    CUSTOM_PROBE_ERROR = "custom_probe_error"
    CUSTOM_PROBE_BAD_RETURN = "custom_probe_bad_return"
    # otlp
    OTLP_RECEIVER_DISABLED = "otlp_receiver_disabled"
    OTLP_NO_SAMPLES = "otlp_no_samples"
    OTLP_STALE = "otlp_stale"
    OTLP_AGGREGATION_UNAVAILABLE = "otlp_aggregation_unavailable"
    PUSH_SOURCE_INIT_FAILED = "push_source_init_failed"
    # grpc
    METADATA_REF_MISSING = "metadata_ref_missing"
    METADATA_REF_INVALID = "metadata_ref_invalid"
    GRPC_CA_UNREADABLE = "grpc_ca_unreadable"
    GRPC_TLS_FAILED = "grpc_tls_failed"
    GRPC_TIMEOUT = "grpc_timeout"
    GRPC_SERVICE_UNKNOWN = "grpc_service_unknown"
    GRPC_UNIMPLEMENTED = "grpc_unimplemented"
    GRPC_UNAUTHENTICATED = "grpc_unauthenticated"
    GRPC_PERMISSION_DENIED = "grpc_permission_denied"
    GRPC_UNAVAILABLE = "grpc_unavailable"
    GRPC_HEALTH_UNKNOWN = "grpc_health_unknown"
    GRPC_ERROR = "grpc_error"
    # websocket
    WS_OPEN_FAILED = "ws_open_failed"
    WS_HANDSHAKE_TIMEOUT = "ws_handshake_timeout"
    WS_REPLY_TIMEOUT = "ws_reply_timeout"
    WS_CLOSED_EARLY = "ws_closed_early"
    WS_REPLY_MISMATCH = "ws_reply_mismatch"
    # host
    HOST_CPU_UNAVAILABLE = "host_cpu_unavailable"
    HOST_MEMORY_UNAVAILABLE = "host_memory_unavailable"
    HOST_FILESYSTEM_UNAVAILABLE = "host_filesystem_unavailable"
    HOST_NETWORK_UNAVAILABLE = "host_network_unavailable"
    HOST_UNSUPPORTED_PLATFORM = "host_metric_unsupported_platform"
    HOST_READ_ERROR = "host_read_error"


_UNEXPECTED = "unexpected_status:"
_ELSEWHERE: Final[Mapping[Fault, tuple[Reason, ...]]] = MappingProxyType(
    {
        Fault.RESOLVER: (
            Reason.TRY_AGAIN,
            Reason.DNS,
            Reason.DNS_OVERLOADED,
            Reason.DNS_FORMERR,
            Reason.DNS_SERVFAIL,
            Reason.DNS_NOTIMP,
            Reason.DNS_REFUSED,
            Reason.DNS_BADRESP,
            Reason.DNS_ERROR,
        ),
        Fault.PATH: (
            Reason.HOST_UNREACHABLE,
            Reason.NET_UNREACHABLE,
            Reason.FORBIDDEN,
            Reason.TCP_ERROR,
            Reason.UDP_ERROR,
            Reason.TLS_ERROR,
            Reason.ICMP_ERROR,
        ),
        Fault.POLICY: (Reason.POLICY_DENIED,),
        Fault.AGENT: (
            Reason.SOURCE_THREW,
            Reason.AGENT_NETWORK,
            Reason.AGENT_STALLED,
            Reason.SOURCE_UNAVAILABLE,
            Reason.NO_FILES,
            Reason.NO_PORTS,
            Reason.NO_MEMORY,
            Reason.AGENT_INTERNAL,
            Reason.HOST_CPU_UNAVAILABLE,
            Reason.HOST_MEMORY_UNAVAILABLE,
            Reason.HOST_UNSUPPORTED_PLATFORM,
            Reason.HOST_READ_ERROR,
            Reason.ICMP_PRIVILEGE_DENIED,
            Reason.ICMP_UNAVAILABLE,
            Reason.PUSH_SOURCE_INIT_FAILED,
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
            Reason.DNS_RESOLVER_INVALID,
            Reason.NO_DATA_FOR_QUERY,
            Reason.PROM_MULTIPLE_SERIES,
            Reason.DB_DSN_MISSING,
            Reason.DB_DSN_INVALID,
            Reason.DB_QUERY_NOT_ALLOWED,
            Reason.DB_EMPTY_RESULT,
            Reason.DB_MULTI_ROW,
            Reason.DB_MULTI_COLUMN,
            Reason.DB_NULL_VALUE,
            Reason.DB_NON_NUMERIC,
            Reason.DB_ACCESS_DENIED,
            Reason.DB_AUTH_FAILED,
            Reason.DB_SYNTAX_ERROR,
            Reason.METADATA_REF_MISSING,
            Reason.METADATA_REF_INVALID,
            Reason.GRPC_CA_UNREADABLE,
            Reason.GRPC_SERVICE_UNKNOWN,
            Reason.GRPC_UNIMPLEMENTED,
            Reason.GRPC_UNAUTHENTICATED,
            Reason.GRPC_PERMISSION_DENIED,
            Reason.LOKI_AUTH_REF_MISSING,
            Reason.LOKI_UNAUTHORIZED,
            Reason.LOKI_QUERY_ERROR,
            Reason.LOKI_NOT_AGGREGATION,
            Reason.LOKI_NO_DATA,
            Reason.LOKI_MULTIPLE_SERIES,
            Reason.ES_AUTH_REF_MISSING,
            Reason.ES_UNAUTHORIZED,
            Reason.ES_INDEX_NOT_FOUND,
            Reason.ES_QUERY_ERROR,
            Reason.ES_AGG_NOT_FOUND,
            Reason.ES_AGG_UNSUPPORTED,
            Reason.ES_NO_DATA,
            Reason.CLOUDWATCH_NO_DATA,
            Reason.CLOUDWATCH_ACCESS_DENIED,
            Reason.CLOUDWATCH_INVALID_PARAMETER,
            Reason.CLOUDWATCH_RESOURCE_NOT_FOUND,
            Reason.CLOUDWATCH_EXPIRED_CREDENTIALS,
            Reason.CLOUDWATCH_CREDENTIALS_MISSING,
            Reason.CUSTOM_PROBE_NOT_FOUND,
            Reason.CUSTOM_PROBE_CONFIG_INVALID,
            Reason.CUSTOM_PROBE_BAD_RETURN,
            Reason.OTLP_RECEIVER_DISABLED,
            Reason.OTLP_NO_SAMPLES,
            Reason.OTLP_AGGREGATION_UNAVAILABLE,
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


# What an operating system says when nothing comes back.
SILENT: Final = frozenset((Reason.TIMED_OUT, Reason.HOST_UNREACHABLE, Reason.NET_UNREACHABLE, Reason.FORBIDDEN))
_KNOWN: Final = frozenset(reason.value for reason in Reason)
