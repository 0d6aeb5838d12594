"""The source type `mtls_http`, deprecated: `http` that must have a client certificate (docs/probes/mtls_http.md).

Everything is `http`'s: configuration in, reading out. Runs on a probe thread.
"""

from __future__ import annotations

from collections.abc import Mapping

from observer_agent.errors import InvalidConfig
from observer_agent.model import Reading
from observer_agent.probes import http
from observer_agent.probes._tools import Tools
from observer_agent.probes.http import HttpConfig

REQUIRED = ("client_cert_ref", "client_key_ref")


def parse(raw: object) -> HttpConfig:
    """The typed configuration; raises InvalidConfig."""
    missing = [f"{name}: is required" for name in REQUIRED if isinstance(raw, Mapping) and raw.get(name) is None]
    try:
        config = http.parse(raw)
    except InvalidConfig as error:
        others = [text for text in error.problems if not (missing and text.startswith("client_cert_ref: needs"))]
        raise InvalidConfig(*missing, *others) from None
    if missing:
        raise InvalidConfig(*missing)
    return config


def probe(config: HttpConfig, deadline: float, tools: Tools) -> Reading:
    """One request, as `http` does it."""
    return http.probe(config, deadline, tools)
