"""The source type `tls_cert`: how many whole days a server's certificate has left, negative once it has ended.

Rules: docs/probes/tls_cert.md, mended by W24. The value needs no trust: whether the certificate is trusted, fits the
host and is strong is detail. Nothing is sent but the handshake. Runs on a probe thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from observer_agent.model import Reading
from observer_agent.probes import _certificate
from observer_agent.probes._certificate import MOST_NAMES, Certificate
from observer_agent.probes._config import Fields, host_name
from observer_agent.probes._handshakes import Peer, shake
from observer_agent.probes._mtls import Given, load
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tools import Run, Tools
from observer_agent.resolver import parse_literal


@dataclass(frozen=True, slots=True)
class TlsCertConfig:
    """Whose certificate; `timeout` is seconds. The days only choose the word `level` in the detail."""

    host: str
    port: int
    warn_days: int
    critical_days: int
    server_name: str
    timeout: float
    verify_tls: bool = True
    ca_cert_ref: str | None = None


def parse(raw: object) -> TlsCertConfig:
    """The typed configuration; raises InvalidConfig."""
    fields = Fields(raw)
    host = fields.parsed("host", host_name, required=True) or ""
    config = TlsCertConfig(
        host=host,
        port=fields.whole("port", 1, 65_535, 443),
        warn_days=fields.whole("warn_days", 1, 365, 30),
        critical_days=fields.whole("critical_days", 1, 365, 7),
        server_name=fields.parsed("server_name", host_name) or host,  # ours
        timeout=fields.timeout(10_000),  # ours
        verify_tls=fields.flag("verify_tls", True),  # ours
        ca_cert_ref=fields.env_name("ca_cert_ref"),  # ours
    )
    if config.warn_days < config.critical_days:
        fields.problem("warn_days", "must be at least critical_days")
    fields.done()
    return config


def probe(config: TlsCertConfig, deadline: float, tools: Tools) -> Reading:
    """One handshake, or two; value is days."""
    run = Run(tools, deadline, Reason.TLS_ERROR)
    known: dict[str, Any] = {}
    try:
        trust = load(Given(ca_cert_ref=config.ca_cert_ref), run) if config.verify_tls else None
        peer = shake(config.host, config.port, config.server_name, run, trust=trust)
        run.enter("")
        known = _connection(config, peer)
        if not peer.chain:
            raise Failed(Reason.NO_CERT, "the server shows no certificate")
        leaf = _certificate.read(peer.chain[0])
        now = tools.clock.now()
        known |= _trust(config, peer, leaf, now) | leaf.shown(now) | _chain(peer, leaf, now)
    except Failed as failure:
        return run.failed(failure, **known)
    return run.gave(float(leaf.days(now)), **known)


def _connection(config: TlsCertConfig, peer: Peer) -> dict[str, Any]:
    sni = None if parse_literal(config.server_name) else config.server_name
    return {"address": peer.address, "sni": sni, "protocol": peer.protocol, "cipher": peer.cipher}


def _trust(config: TlsCertConfig, peer: Peer, leaf: Certificate, now: float) -> dict[str, Any]:
    """What a careful client makes of it; nothing where nobody was to be careful."""
    out: dict[str, Any] = {"verified": peer.doubt is None} if config.verify_tls else {}
    if peer.doubt:
        out["verify_error"] = peer.doubt.detail["error"]
        out["verify_code"] = peer.doubt.detail.get("verify_code")
    out["host_match"] = (config.verify_tls and peer.doubt is None) or _certificate.fits(
        peer.chain[0], config.server_name
    )
    out["not_yet_valid"] = leaf.not_before > now
    out["self_signed"] = leaf.self_signed
    out["level"] = _level(config, leaf.days(now))
    return out


def _level(config: TlsCertConfig, days: int) -> str:
    if days < 0:
        return "expired"
    if days < config.critical_days:
        return "critical"
    return "warning" if days < config.warn_days else "ok"


def _chain(peer: Peer, leaf: Certificate, now: float) -> dict[str, Any]:
    """The certificates behind the leaf, and what is weak about any of them."""
    weak = list(leaf.weak)
    shown: list[dict[str, Any]] = []
    for der in peer.chain[1:]:
        try:
            cert = _certificate.read(der)
        except Failed as failure:
            shown.append({"error": str(failure)})
            continue
        weak += [f"{cert.subject}: {complaint}" for complaint in cert.weak]
        shown.append(cert.shown(now))
    if peer.protocol in ("SSLv3", "TLSv1", "TLSv1.1"):
        weak.append(f"the server speaks {peer.protocol}")
    days = [row["days"] for row in shown if "days" in row]
    return {
        "names": list(leaf.names[:MOST_NAMES]),
        "serial": leaf.serial,
        "chain": shown,
        "chain_days": min([leaf.days(now), *days]),
        "weak": weak,
    }
