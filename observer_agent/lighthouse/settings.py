"""What the second dialect makes of the settings: where the console is, who this agent is, what is left to be said.

Settings and environment in, plain values out. Runs at the start and at a reload.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from observer_agent import lighthousefile
from observer_agent.config import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Console:
    """What the dialect has to know."""

    url: str
    token: str
    wire: str
    instance_id: str
    verify: bool


def console(settings: Settings, instance_id: str) -> Console:
    """The console that the settings name."""
    url, token = settings.cloud_server_url, settings.agent_key
    return Console(url, token, settings.lighthouse_wire, instance_id, not settings.skip_ssl_verification)


def in_cluster(env: Mapping[str, str]) -> bool:
    """Whether this process runs in a Kubernetes pod."""
    return bool(env.get("KUBERNETES_SERVICE_HOST"))


def runtime(env: Mapping[str, str]) -> str:
    """The word for it that the console is told."""
    return "kubernetes" if in_cluster(env) else "bare_metal"


def looks(settings: Settings) -> bool:
    """Whether this agent runs checks at all: one for host metrics alone does not (W18)."""
    return settings.lighthouse_role == "central"


def tell_unknown(settings: Settings) -> None:
    """Names the keys of the original's file that mean nothing, here as there."""
    if settings.lighthouse_config:
        for each in lighthousefile.read(Path(settings.lighthouse_config)).unknown:
            log.warning("%s, %s: it is ignored", settings.lighthouse_config, each)
