"""The source type `tcp`: how long a connection takes, in milliseconds, name resolution included.

Rules: docs/probes.md. Nothing is sent or read; the connection is closed at once. Runs on a probe thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from observer_agent.model import Reading
from observer_agent.probes._config import Fields, host_name
from observer_agent.probes._net import connect
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tools import Run, Tools


@dataclass(frozen=True, slots=True)
class TcpConfig:
    """Where to connect; `timeout` is seconds."""

    host: str
    port: int
    timeout: float


def parse(raw: object) -> TcpConfig:
    """The typed configuration; raises InvalidConfig."""
    fields = Fields(raw)
    host = fields.parsed("host", host_name, required=True)
    port = fields.whole("port", 1, 65_535, None)
    timeout = fields.timeout(2_000)
    fields.done()
    return TcpConfig(host or "", port, timeout)


def probe(config: TcpConfig, deadline: float, tools: Tools) -> Reading:
    """One connection; value is milliseconds from the start to the connect, with three decimals."""
    run = Run(tools, deadline, Reason.TCP_ERROR)
    try:
        stream = connect(config.host, config.port, run)
        value = run.ms()
        run.enter("")
        stream.close()
    except Failed as failure:
        return run.failed(failure)
    return run.gave(value)
