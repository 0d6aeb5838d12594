"""The source type `tcp`: how long a connection takes, in milliseconds, name resolution included.

Rules: docs/probes.md. Nothing is sent or read unless the definition says so (ours); the connection is closed at once.
Runs on a probe thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from observer_agent.model import Reading
from observer_agent.probes._config import Fields, host_name
from observer_agent.probes._net import Stream, connect
from observer_agent.probes._payload import READ, parse_expect, parse_send
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tools import Run, Tools


@dataclass(frozen=True, slots=True)
class TcpConfig:
    """Where to connect, what to say there and what to hear; `timeout` is seconds."""

    host: str
    port: int
    timeout: float
    send: bytes = b""
    expect: bytes = b""


def parse(raw: object) -> TcpConfig:
    """The typed configuration; raises InvalidConfig."""
    fields = Fields(raw)
    host = fields.parsed("host", host_name, required=True)
    port = fields.whole("port", 1, 65_535, None)
    timeout = fields.timeout(2_000)
    config = TcpConfig(host or "", port, timeout, parse_send(fields), parse_expect(fields))
    fields.done()
    return config


def probe(config: TcpConfig, deadline: float, tools: Tools) -> Reading:
    """One connection; value is milliseconds from the start to the connect, or to the expected answer."""
    run = Run(tools, deadline, Reason.TCP_ERROR)
    try:
        stream = connect(config.host, config.port, run)
        value = run.ms()
        try:
            if config.send or config.expect:
                value = _talk(config, stream, run)
            run.enter("")
        finally:
            stream.close()
    except Failed as failure:
        return run.failed(failure)
    return run.gave(value)


def _talk(config: TcpConfig, stream: Stream, run: Run) -> float:
    """Says what is to be said, and listens until the expected text has come."""
    run.enter("first_byte")
    stream.send(config.send)
    heard = b""
    while config.expect not in heard:
        data = stream.receive() if len(heard) < READ else b""
        if not data:
            raise Failed(Reason.REPLY_MISMATCH, "the answer does not hold the expected text", heard_bytes=len(heard))
        heard = (heard + data)[:READ]
    return run.ms()
