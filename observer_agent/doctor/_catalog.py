"""Every finding that the doctor knows: its id, how bad it is, and the order in which findings are blamed.

An id is `check.what`; docs/doctor.md has a row for each. Pure data.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Severity(StrEnum):
    """How bad a finding is: `broken` means that something does not work, `warning` that it may not for long."""

    BROKEN = "broken"
    WARNING = "warning"


# In the order of the walk, which is the order of the report.
CHECKS: Final = (
    "unit",
    "user",
    "settings",
    "key",
    "disk",
    "queue",
    "agent",
    "resolver",
    "tcp",
    "proxy",
    "tls",
    "clock",
    "contract",
    "authentication",
    "duplicate",
    "definitions",
    "sources",
)

# What explains the others comes first: a unit that failed because of a wrong setting is not the cause.
BLAME: Final = (
    "settings",
    "key",
    "user",
    "disk",
    "queue",
    "unit",
    "clock",
    "resolver",
    "proxy",
    "tcp",
    "tls",
    "contract",
    "authentication",
    "duplicate",
    "definitions",
    "agent",
    "sources",
)

NETWORK: Final = ("resolver", "tcp", "proxy", "tls", "clock", "contract", "authentication")

# What is more often a consequence than a cause.
LATE: Final = frozenset(
    (
        "queue.full",
        "queue.filling",
        "queue.old",
        "queue.dead_letters",
        "agent.not_delivering",
        "agent.silent",
        "agent.relay_waits",
    )
)

_BROKEN = """
    unit.masked unit.not_loaded unit.failed unit.looping unit.condition unit.inactive
    user.missing user.owner
    settings.unreadable settings.not_toml settings.unknown settings.wrong settings.definitions_file settings.policy_file
    settings.dashboard_open
    key.missing key.empty key.unreadable key.ill_formed key.not_reloaded
    disk.missing disk.read_only disk.full disk.no_inodes disk.not_writable disk.failed
    queue.newer_format queue.foreign queue.damaged queue.unreadable queue.full
    agent.frozen agent.dead_worker agent.hung_worker agent.not_delivering agent.silent agent.otlp agent.relay
    agent.custom_probe
    clock.wrong
    resolver.not_found resolver.failed resolver.silent
    tcp.refused tcp.unreachable tcp.silent
    proxy.not_found proxy.unreachable proxy.refused proxy.login proxy.not_a_proxy proxy.unsupported
    tls.ca_missing tls.ca_unreadable tls.ca_not_pem tls.expired tls.not_yet_valid tls.self_signed tls.unknown_issuer
    tls.wrong_name tls.not_verified tls.not_tls tls.refused tls.silent tls.closed tls.failed
    authentication.refused authentication.suspended authentication.forbidden
    duplicate.fenced
    contract.redirect contract.missing contract.html contract.not_definitions contract.server_error
    contract.captive_portal contract.silent contract.closed contract.not_http contract.unexpected
    definitions.invalid definitions.unknown_type definitions.missing_env
    sources.config sources.agent
"""
_WARNINGS = """
    unit.disabled unit.stale
    user.cannot_read
    settings.unknown_env settings.plain_http settings.no_verify
    key.world_readable key.newer
    disk.low disk.few_inodes disk.slow
    queue.corrupt_aside queue.filling queue.old queue.dead_letters
    agent.not_running agent.no_page agent.other_program agent.token agent.relay_waits
    clock.off
    resolver.slow
    contract.busy
    definitions.none definitions.no_id
    sources.target
"""


def _table() -> dict[str, Severity]:
    table = {name: Severity.BROKEN for name in _BROKEN.split()}
    table |= {name: Severity.WARNING for name in _WARNINGS.split()}
    for check in CHECKS:
        table[f"{check}.hung"] = table[f"{check}.crashed"] = Severity.BROKEN
    return table


FINDINGS: Final[Mapping[str, Severity]] = MappingProxyType(_table())


def blame(finding_id: str) -> tuple[bool, bool, int]:
    """Sorts findings: what is broken first, then what explains the others."""
    check = finding_id.partition(".")[0]
    return FINDINGS[finding_id] is Severity.WARNING, finding_id in LATE, BLAME.index(check)
