"""The source type `grpc`: what a server's health service says (grpc.health.v1.Health/Check), or how long it takes.

Rules: docs/probes/grpc.md, mended by W30 and W39. Value: 1 for SERVING and 0 for NOT_SERVING, or the milliseconds of
the call alone. Where it happens tells what a failure is called, never the server's words. Runs on a probe thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from observer_agent import __version__
from observer_agent.model import Reading
from observer_agent.probes import _health, _metadata, _mtls
from observer_agent.probes._config import Fields, host_name
from observer_agent.probes._h2call import Answer, Call, Conversation
from observer_agent.probes._headers import Pairs
from observer_agent.probes._mtls import Given
from observer_agent.probes._net import Stream, connect
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tls import wrap
from observer_agent.probes._tools import Run, Tools

MODES: Final = ("plaintext", "tls", "mtls")
INTERPRETATIONS: Final = ("health_state", "latency")
LONGEST_SERVICE: Final = 256

_OF_CODE: Final[Mapping[str, Reason]] = MappingProxyType(
    {
        "DEADLINE_EXCEEDED": Reason.GRPC_TIMEOUT,
        "NOT_FOUND": Reason.GRPC_SERVICE_UNKNOWN,
        "UNIMPLEMENTED": Reason.GRPC_UNIMPLEMENTED,
        "UNAUTHENTICATED": Reason.GRPC_UNAUTHENTICATED,
        "PERMISSION_DENIED": Reason.GRPC_PERMISSION_DENIED,
        "UNAVAILABLE": Reason.GRPC_UNAVAILABLE,
    }
)
_TLS: Final = (
    Reason.TLS_VERIFY_FAILED,
    Reason.TLS_HANDSHAKE_FAILED,
    Reason.MTLS_SERVER_CERT_EXPIRED,
    Reason.MTLS_SERVER_VERIFY_FAILED,
    Reason.MTLS_CLIENT_CERT_REJECTED,
    Reason.MTLS_HANDSHAKE_FAILED,
)
_NETWORK: Final = (
    Reason.REFUSED,
    Reason.RESET,
    Reason.NOT_FOUND,
    Reason.TRY_AGAIN,
    Reason.HOST_UNREACHABLE,
    Reason.NET_UNREACHABLE,
    Reason.FORBIDDEN,
)
_RENAMED: Final[Mapping[str, Reason]] = MappingProxyType(
    {
        **dict.fromkeys(_TLS, Reason.GRPC_TLS_FAILED),
        **dict.fromkeys(_NETWORK, Reason.GRPC_UNAVAILABLE),
        Reason.TIMED_OUT: Reason.GRPC_TIMEOUT,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcConfig:
    """Whom to ask and how; `timeout` is seconds."""

    host: str
    port: int
    service: str
    tls_mode: str
    client_cert_ref: str | None
    client_key_ref: str | None
    ca_cert_ref: str | None
    metadata: Pairs
    metadata_refs: Pairs
    timeout: float
    interpretation: str

    @property
    def target(self) -> str:
        """Host and port, IPv6 in brackets; no scheme can be smuggled in."""
        host = self.host.partition("%")[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def parse(raw: object) -> GrpcConfig:
    """The typed configuration; raises InvalidConfig."""
    fields = Fields(raw)
    metadata, refs = _metadata.parse_metadata(fields)
    config = GrpcConfig(
        host=fields.parsed("host", host_name, required=True) or "",
        port=fields.whole("port", 1, 65_535, None),
        service=fields.text("service", longest=LONGEST_SERVICE) or "",
        tls_mode=fields.choice("tls_mode", MODES, "plaintext"),
        client_cert_ref=fields.env_name("client_cert_ref"),
        client_key_ref=fields.env_name("client_key_ref"),
        ca_cert_ref=fields.env_name("ca_cert_ref"),
        metadata=metadata,
        metadata_refs=refs,
        timeout=fields.whole("timeout_ms", 100, 30_000, 5_000) / 1000,
        interpretation=fields.choice("interpretation", INTERPRETATIONS, "health_state"),
    )
    if bool(config.client_cert_ref) != bool(config.client_key_ref):
        fields.problem("client_cert_ref", "needs client_key_ref and the other way round")
    elif config.tls_mode == "mtls" and not config.client_cert_ref:
        fields.problem("client_cert_ref", "is required with tls_mode mtls")
    fields.done()
    return config


def probe(config: GrpcConfig, deadline: float, tools: Tools) -> Reading:
    """One Check."""
    run = Run(tools, deadline, Reason.GRPC_ERROR)
    known: dict[str, Any] = {
        "target": config.target,
        "service": config.service,
        "tls_mode": config.tls_mode,
        "interpretation": config.interpretation,
    }
    try:
        secrets = _metadata.secrets(config.metadata_refs, tools)
        identity = _identity(config, run)
        if identity and identity.warning:
            known["cert_expiry_warning"] = identity.warning
        return _check(config, (*config.metadata, *secrets), identity, (run, known))
    except Failed as failure:
        return run.failed(failure, **known)


def _identity(config: GrpcConfig, run: Run) -> _mtls.Identity | None:
    """What to show and whom to trust; None without TLS."""
    if config.tls_mode == "plaintext":
        return None
    mtls = config.tls_mode == "mtls"
    shown = _mtls.load(Given(config.client_cert_ref, config.client_key_ref) if mtls else Given(), run)
    if not config.ca_cert_ref:
        return shown
    try:
        trusted = _mtls.load(Given(ca_cert_ref=config.ca_cert_ref), run)
    except Failed as failure:
        if failure.reason.startswith("mtls_"):
            raise _renamed(failure, Reason.GRPC_CA_UNREADABLE) from None
        raise
    return shown._replace(authorities=trusted.authorities, authorities_mark=trusted.authorities_mark)


def _check(
    config: GrpcConfig, metadata: Pairs, identity: _mtls.Identity | None, at: tuple[Run, dict[str, Any]]
) -> Reading:
    run, known = at
    try:
        conversation = Conversation(_call(config, metadata, run))
        run.restart()
        stream = connect(config.host, config.port, run)
        try:
            if identity:
                run.enter("tls")
                _secure(stream, config, identity)
            run.enter("first_byte")
            began = run.ms()
            answer = conversation.hold(stream)
            known["latency_ms"] = round(run.ms() - began, 3)
        finally:
            stream.close()
    except Failed as failure:
        raise _renamed(failure, _RENAMED.get(failure.reason)) from None
    return run.gave(_judge(config, answer, known, run.tools.redact), **known)


def _secure(stream: Stream, config: GrpcConfig, identity: _mtls.Identity) -> None:
    wrap(stream, identity.tls(True, stream.run, "h2"), config.host)
    if getattr(stream.sock, "selected_alpn_protocol", lambda: None)() != "h2":
        raise Failed(Reason.GRPC_TLS_FAILED, "the server does not offer HTTP/2 in the TLS handshake (ALPN h2)")


def _call(config: GrpcConfig, metadata: Pairs, run: Run) -> Call:
    headers = (
        (":method", "POST"),
        (":scheme", "http" if config.tls_mode == "plaintext" else "https"),
        (":path", "/grpc.health.v1.Health/Check"),
        (":authority", config.target),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", f"observer-agent/{__version__}"),
        ("grpc-accept-encoding", "identity"),
        ("grpc-timeout", f"{math.ceil(run.left() * 1000)}m"),
        *metadata,
    )
    return Call(headers, _health.framed_request(config.service), _health.LARGEST)


def _judge(config: GrpcConfig, answer: Answer, known: dict[str, Any], redact: Callable[[str], str]) -> float:
    if answer.code != "OK":
        known["grpc_code"] = answer.code
        if answer.said:
            known["said"] = redact(answer.said)
        text = f"the server said {answer.code}" + (f": {answer.text}" if answer.text else "")
        raise Failed(_OF_CODE.get(answer.code, Reason.GRPC_ERROR), text)
    try:
        status = _health.framed_status(answer.message)
    except ValueError as error:
        raise Failed(Reason.GRPC_ERROR, str(error)) from None
    known["health_status"] = _health.NAMES[status] if status < len(_health.NAMES) else str(status)
    if config.interpretation == "latency":
        return float(known["latency_ms"])
    if status == _health.SERVICE_UNKNOWN:
        raise Failed(Reason.GRPC_SERVICE_UNKNOWN, "the server does not know the service")
    if status not in (_health.SERVING, _health.NOT_SERVING):
        raise Failed(Reason.GRPC_HEALTH_UNKNOWN, f"the server says {known['health_status']}")
    return 1.0 if status == _health.SERVING else 0.0


def _renamed(failure: Failed, name: Reason | None) -> Failed:
    """A failure under the name that this source type has for it; whose fault it is stays."""
    if name is None:
        return failure
    out = Failed(name, "", failure.fault, code=failure.reason)
    out.detail.update(failure.detail)
    return out
