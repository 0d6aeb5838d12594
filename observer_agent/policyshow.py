"""`policy show` and `policy test`: the operator's policy as text, and what it says of one target.

A target is a URL, `host:port` or a host. Nothing is connected to; the name is resolved as a probe would.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from observer_agent import commands, config, policy
from observer_agent.clock import Clock
from observer_agent.errors import UsageError
from observer_agent.resolver import ResolveError, Resolver

SECONDS = 5.0
PORTS: Mapping[str, int] = {
    "http": 80,
    "https": 443,
    "ws": 80,
    "wss": 443,
    "postgres": 5432,
    "postgresql": 5432,
    "mysql": 3306,
    "mariadb": 3306,
    "redis": 6379,
    "rediss": 6379,
    "mongodb": 27017,
    "ldap": 389,
    "ftp": 21,
}


def show(file: Path | None) -> dict[str, Any]:
    """The rules that count, as JSON-like data; `file` is None where there is no policy file."""
    rules = _load(file).rules
    shown: dict[str, Any] = {"file": str(rules.file) if rules.file else None}
    for field in fields(rules):
        value = getattr(rules, field.name)
        if field.name.endswith("_ports"):
            value = [str(low) if low == high else f"{low}-{high}" for low, high in value]
        elif isinstance(value, tuple):
            value = [str(item) for item in value]
        if field.name != "file":
            shown[field.name] = value
    return shown


def test(target: str, source_type: str | None, file: Path | None) -> dict[str, Any]:
    """What the policy says of a target: `{allowed, host, port, complaint, addresses: [{address, complaint}]}`.

    Raises UsageError where the target cannot be understood, ConfigError where the policy is wrong.
    """
    host, port = split(target)
    rules, clock = _load(file), Clock()
    complaint = (rules.of_type(source_type) if source_type else None) or rules.of_host(host)
    report: dict[str, Any] = {"target": f"{host}:{port}" if port else host, "host": host, "port": port}
    report["complaint"] = complaint
    try:
        found = Resolver(clock).resolve(host, clock.monotonic() + SECONDS)
    except ResolveError as error:
        return {**report, "allowed": False, "complaint": complaint or f"the name gives no address ({error.reason})"}
    addresses = [{"address": each.host, "complaint": rules.of_address(each, port)} for each in found]
    allowed = complaint is None and any(each["complaint"] is None for each in addresses)
    return {**report, "addresses": addresses, "allowed": allowed}


def split(target: str) -> tuple[str, int | None]:
    """Host and port of a URL, of `host:port`, of `[address]:port` or of a host; raises UsageError."""
    try:
        parts = urlsplit(target if "://" in target else f"//{_bracketed(target)}")
        host, port = parts.hostname or "", parts.port or PORTS.get(parts.scheme)
    except ValueError as error:
        raise UsageError(f"{target[:200]!r} is neither a URL nor host:port: {error}") from None
    if not re.fullmatch(r"[^\s/?#@\\]{1,260}", host):
        raise UsageError(f"{target[:200]!r} is neither a URL nor host:port")
    return host, port


def _bracketed(target: str) -> str:
    return f"[{target}]" if target.count(":") > 1 and not target.startswith("[") else target


def _load(file: Path | None) -> policy.Policy:
    commands.join_service()
    return policy.load(config.load(os.environ, file or config.usual_file(), to_run=False).policy_file)


def rules_text(shown: Mapping[str, Any]) -> str:
    """The rules for a person."""
    return "\n".join(_rule_lines(shown))


def _rule_lines(shown: Mapping[str, Any]) -> Iterator[str]:
    yield shown["file"] or f"There is no policy file ({policy.USUAL}); these are the defaults:"
    for name, value in shown.items():
        if name != "file":
            text = ", ".join(value) if isinstance(value, list) else "no limit" if value is None else str(value).lower()
            yield f"  {name:<16}  {text if text else '(none)'}"


def verdict_text(report: Mapping[str, Any]) -> str:
    """What the policy says of a target, for a person."""
    lines = [f"{report['target']}: {'allowed' if report['allowed'] else 'denied'}"]
    if report["complaint"]:
        lines.append(f"  {report['complaint']}")
    lines += [f"  {each['address']}  {each['complaint'] or 'allowed'}" for each in report.get("addresses", ())]
    return "\n".join(lines)
