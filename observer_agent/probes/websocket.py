"""The source type `websocket`: how long a WebSocket takes to open or to answer a message, or whether it does at all.

Rules: docs/probes/websocket.md, mended by W13, W14 and W29: messages are collected until the expected one or the
deadline, a greeting is no reply, TLS has the options that http has. The redirects of a server are not followed. Runs
on a probe thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from observer_agent.model import Fault, Reading
from observer_agent.probes import _mtls, _secrets
from observer_agent.probes._config import Fields
from observer_agent.probes._headers import Pairs, parse_headers, parse_refs
from observer_agent.probes._net import Stream, connect
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tls import wrap
from observer_agent.probes._tools import Run, Tools
from observer_agent.probes._url import Url, parse_url
from observer_agent.probes._wstalk import Opening, Talk

PING_MODES: Final = ("none", "message")
HANDSHAKE, ROUND_TRIP, SUCCESS = INTERPRETATIONS = ("handshake_latency", "round_trip_latency", "connection_success")
LONGEST_TEXT: Final = 8_192
PROTOCOLS_MOST: Final = 16
PROTOCOL_LONGEST: Final = 128

_OWN_PREFIX: Final = "sec-websocket-"
_SCHEMES: Final[Mapping[str, str]] = MappingProxyType({"ws": "http", "wss": "https"})
_OPEN_FAILED: Final = frozenset(
    (
        Reason.REFUSED,
        Reason.RESET,
        Reason.NOT_FOUND,
        Reason.TRY_AGAIN,
        Reason.HOST_UNREACHABLE,
        Reason.NET_UNREACHABLE,
        Reason.FORBIDDEN,
        Reason.TLS_VERIFY_FAILED,
        Reason.TLS_HANDSHAKE_FAILED,
        Reason.MTLS_SERVER_CERT_EXPIRED,
        Reason.MTLS_SERVER_VERIFY_FAILED,
        Reason.MTLS_CLIENT_CERT_REJECTED,
        Reason.MTLS_HANDSHAKE_FAILED,
        Reason.WS_CLOSED_EARLY,
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebsocketConfig:
    """Where to connect, what to say and what to expect; `timeout` is seconds. The URL's scheme is http(s)."""

    url: Url
    protocols: tuple[str, ...]
    headers: Pairs
    header_refs: Pairs
    ping_mode: str
    send_message: str
    expect_message: str
    timeout: float
    interpretation: str
    verify_tls: bool
    client_cert_ref: str | None
    client_key_ref: str | None
    ca_cert_ref: str | None


def parse(raw: object) -> WebsocketConfig:
    """The typed configuration; raises InvalidConfig."""
    fields = Fields(raw)
    url = fields.parsed("url", _parse_url, required=True)
    headers = parse_headers(fields)
    config = WebsocketConfig(
        url=url or Url("http", "", 80, "/"),
        protocols=fields.tokens("protocols", PROTOCOLS_MOST, PROTOCOL_LONGEST),
        headers=headers,
        header_refs=parse_refs(fields, headers),
        ping_mode=fields.choice("ping_mode", PING_MODES, "none"),
        send_message=fields.text("send_message", longest=LONGEST_TEXT) or "",
        expect_message=fields.text("expect_message", longest=LONGEST_TEXT) or "",
        timeout=fields.whole("timeout_ms", 100, 30_000, 10_000) / 1000,
        interpretation=fields.choice("interpretation", INTERPRETATIONS, HANDSHAKE),
        verify_tls=fields.flag("verify_tls", True),
        client_cert_ref=fields.env_name("client_cert_ref"),
        client_key_ref=fields.env_name("client_key_ref"),
        ca_cert_ref=fields.env_name("ca_cert_ref"),
    )
    _cross_check(fields, config)
    fields.done()
    return config


def _cross_check(fields: Fields, config: WebsocketConfig) -> None:
    for where, pairs in (("headers", config.headers), ("header_refs", config.header_refs)):
        for name, _ in pairs:
            if name.lower().startswith(_OWN_PREFIX):
                fields.problem(f"{where}.{name}", "is set by the agent itself; for protocols there is a field")
    if config.interpretation == ROUND_TRIP and config.ping_mode != "message":
        fields.problem("ping_mode", "must be message with interpretation round_trip_latency")
    if (config.interpretation == ROUND_TRIP or config.ping_mode == "message") and not config.send_message:
        fields.problem("send_message", "is required with ping_mode message")
    if bool(config.client_cert_ref) != bool(config.client_key_ref):
        fields.problem("client_cert_ref", "needs client_key_ref and the other way round")


def _parse_url(text: str) -> Url:
    scheme, colon, rest = text.strip().partition("://")
    if scheme.lower() not in _SCHEMES or not colon:
        raise ValueError("must be a ws or wss URL")
    return parse_url(f"{_SCHEMES[scheme.lower()]}://{rest}")


def probe(config: WebsocketConfig, deadline: float, tools: Tools) -> Reading:
    """One connection and, with ping_mode message, one message and the reply to it."""
    run = Run(tools, deadline, Reason.WS_OPEN_FAILED)
    known: dict[str, Any] = {"interpretation": config.interpretation}
    try:
        secrets = _secrets.headers(config.header_refs, tools)
        identity = _mtls.load(config, run)
        if identity.warning:
            known["cert_expiry_warning"] = identity.warning
        talk = Talk()
        run.restart()
        stream = _open(config, (*config.headers, *secrets), identity, (run, known, talk))
    except Failed as failure:
        return _failed(config, failure, run, known)
    try:
        return _converse(config, stream, talk, known)
    finally:
        stream.close()


def _open(
    config: WebsocketConfig, headers: Pairs, identity: _mtls.Identity, at: tuple[Run, dict[str, Any], Talk]
) -> Stream:
    """A stream with an open WebSocket on it; raises Failed under the names of this source type."""
    run, known, talk = at
    known["status"] = "open_failed"
    try:
        stream = connect(config.url.host, config.url.port, run)
        try:
            if config.url.scheme == "https":
                run.enter("tls")
                wrap(stream, identity.tls(True, run), config.url.host)
            run.enter("first_byte")
            talk.open(Opening(config.url, config.protocols, headers), stream)
        except BaseException:
            stream.close()
            raise
    except Failed as failure:
        if failure.reason == Reason.TIMED_OUT:
            known["status"] = "timeout"
            raise _renamed(failure, Reason.WS_HANDSHAKE_TIMEOUT) from None
        raise _renamed(failure, Reason.WS_OPEN_FAILED) if failure.reason in _OPEN_FAILED else failure from None
    known.update(status="opened", handshake_ms=run.ms())
    return stream


def _converse(config: WebsocketConfig, stream: Stream, talk: Talk, known: dict[str, Any]) -> Reading:
    run = stream.run
    values = {HANDSHAKE: known["handshake_ms"], SUCCESS: 1.0}
    try:
        if config.ping_mode == "message":
            run.enter("body")
            values[ROUND_TRIP] = known["round_trip_ms"] = _round_trip(config, stream, talk)
            known["status"] = "round_trip"
    except Failed as failure:
        if talk.close_code is not None:
            known["close_code"] = talk.close_code
        talk.hang_up(stream)
        return _failed(config, failure, run, known)
    run.enter("")
    talk.leave(stream)
    return run.gave(values[config.interpretation], **known)


def _round_trip(config: WebsocketConfig, stream: Stream, talk: Talk) -> float:
    """Milliseconds from the message to its reply.

    With `expect_message` the reply is the first text that holds it. Without, it is the first message after the pong to
    a ping that is sent along: what came before was on its way already. Should no pong come, the first message counts.
    """
    run, began, first, others, ponged = stream.run, stream.run.ms(), None, 0, False
    try:
        talk.say(config.send_message, stream, ping=not config.expect_message)
        for heard in talk.listen(stream):
            took = round(run.ms() - began, 3)
            if heard.text is None:
                ponged = True
            elif config.expect_message:
                if config.expect_message in heard.text:
                    return took
                others += 1
            elif ponged:
                return took
            else:
                first = took if first is None else first
        raise AssertionError("listening ends with a failure")
    except Failed as failure:
        if first is not None and not ponged:
            return first
        raise _no_reply(failure, others) from None


def _no_reply(failure: Failed, others: int) -> Failed:
    """Why there was no reply; `others` is how many messages came instead of it."""
    timed_out = failure.reason == Reason.TIMED_OUT
    if others and (timed_out or failure.reason in (Reason.WS_CLOSED_EARLY, Reason.RESET)):
        text = f"{others} messages came, none of them holds the expected text; then: {failure}"
        return Failed(Reason.WS_REPLY_MISMATCH, text, messages=others)
    if timed_out:
        return Failed(Reason.WS_REPLY_TIMEOUT, "no reply came in time")
    return _renamed(failure, Reason.WS_CLOSED_EARLY) if failure.reason in _OPEN_FAILED else failure


_STATUS: Final[Mapping[str, str]] = MappingProxyType(
    {
        Reason.WS_REPLY_MISMATCH: "reply_mismatch",
        Reason.WS_REPLY_TIMEOUT: "timeout",
        Reason.WS_CLOSED_EARLY: "closed_early",
    }
)


def _failed(config: WebsocketConfig, failure: Failed, run: Run, known: dict[str, Any]) -> Reading:
    """No value; but with connection_success a fault of the target is one: 0."""
    if failure.reason in _STATUS:
        known["status"] = _STATUS[failure.reason]
    if config.interpretation == SUCCESS and failure.fault is Fault.TARGET and "status" in known:
        return run.gave(0.0, **{**known, **failure.detail, "reason": failure.reason})
    return run.failed(failure, **known)


def _renamed(failure: Failed, name: Reason) -> Failed:
    """A failure under the name that this source type has for it; whose fault it is stays."""
    if failure.reason == name:
        return failure
    out = Failed(name, "", failure.fault, code=failure.reason)
    out.detail.update(failure.detail)
    return out
