"""Values of `*_ref` fields: the name of an environment variable in, its value out, or Failed before any connection.

Only names that begin with `PROBE_` or that the operator has listed in PROBE_ENV_ALLOW may be referred to, and never a
variable of the agent itself: whoever writes definitions must not be able to have the agent's own secrets sent to a
server of theirs (docs/probes.md, W8). Runs on the probe's thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from observer_agent.config import VARIABLES
from observer_agent.policy import Rules
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tools import Tools

_OWN: Final = (
    "AGENT_",
    "BROADCAST_",
    "BUFFER_",
    "CLOUD_",
    "CREDENTIALS_DIRECTORY",
    "DATABASE_URL",
    "DEBUG_DASHBOARD_",
    "DEFINITIONS_FILE",
    "ENABLE_DEBUG_DASHBOARD",
    "HEARTBEAT_RELAY_",
    "LIGHTHOUSE_",
    "LOG_",
    "OBSERVER_",
    "PROBE_ENV_ALLOW",
    "PROBE_FAILURE_STATUS",
    "PROMETHEUS_",
)
_FORBIDDEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # docs/probes.md; a tab may be


def may_refer(name: str, allowed: Iterable[str], rules: Rules | None = None) -> bool:
    """Whether a definition may refer to the environment variable `name`; `rules` are the operator's policy."""
    rules = rules or Rules()
    if name in VARIABLES or name.startswith(_OWN):
        return False
    return name.startswith(rules.env_prefix) or name in rules.env_allow or name in allowed


def look_up(name: str, tools: Tools, reason: Reason) -> str:
    """The trimmed value of an environment variable; raises Failed with `reason` where there is none to be had."""
    rules = tools.policy.rules
    if not may_refer(name, tools.settings.probe_env_allow, rules):
        advice = f"rename it to {rules.env_prefix}..., or add it to PROBE_ENV_ALLOW; the agent's own variables never"
        raise Failed(reason, f"{name} may not be referred to: {advice}", env=name)
    value = tools.env.get(name, "").strip()
    if not value:
        raise Failed(reason, f"the environment variable {name} is not set", env=name)
    return value


def headers(refs: Iterable[tuple[str, str]], tools: Tools) -> tuple[tuple[str, str], ...]:
    """Secret headers as (name, value); the redactor learns each value. Raises Failed for the first that is wrong."""
    out = []
    for header, name in refs:
        try:
            value = look_up(name, tools, Reason.HEADER_REF_MISSING)
        except Failed as failure:
            failure.detail["header"] = header
            raise
        tools.redact.add(value)
        if _FORBIDDEN.search(value):
            text = f"the value of {name} holds control characters"
            raise Failed(Reason.HEADER_REF_INVALID, text, header=header, env=name)
        out.append((header, value))
    return tuple(out)
