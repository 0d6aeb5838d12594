"""The source type `dns`: how long a server takes to answer a question, in milliseconds, repetitions included.

Rules: docs/probes/dns.md, mended by W23. The servers are those of /etc/resolv.conf or the one that the definition
names; the hosts file is not used, search domains only where the definition says so. Runs on a probe thread.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from observer_agent.model import Fault, Reading
from observer_agent.probes import _dnswords
from observer_agent.probes._config import Fields
from observer_agent.probes._dnsask import MOST, PORT, Asking, Server, Told, parse_server, suffixes, system_servers
from observer_agent.probes._dnswords import RECORD_TYPES, Question, domain_name
from observer_agent.probes._net import resolve
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tools import Run, Tools
from observer_agent.probes._url import parse_authority

RESOLV_CONF: Final = Path("/etc/resolv.conf")
SHOWN: Final = 20  # records in the detail
SHOWN_LENGTH: Final = 256
MOST_VALUES, LONGEST = 100, 4_096  # expected values, and characters of one


@dataclass(frozen=True, slots=True)
class DnsConfig:
    """What to ask, whom, and what to expect; `timeout` is seconds for everything. `resolver` is as it was written."""

    domain: str
    record_type: str
    expected_value: str
    resolver: str | None
    timeout: float
    expected_values: tuple[str, ...] = ()
    expected_parts: tuple[str, ...] = ()
    resolver_name: tuple[str, int] | None = None
    search: bool = False


def parse(raw: object) -> DnsConfig:
    """The typed configuration; raises InvalidConfig."""
    fields = Fields(raw)
    record_type = fields.choice("record_type", RECORD_TYPES, "A")
    config = DnsConfig(
        domain=fields.parsed("domain", lambda text: _domain(text, record_type), required=True) or ".",
        record_type=record_type,
        expected_value=fields.parsed("expected_value", lambda text: _dnswords.expected(record_type, text)) or "",
        resolver=fields.text("resolver", longest=256),
        timeout=fields.timeout(5_000),
        expected_values=_each(fields, "expected_values", record_type),
        expected_parts=fields.texts("expected_parts", MOST_VALUES, LONGEST),
        resolver_name=fields.parsed("resolver_name", _named),
        search=fields.flag("search", False) and not _is_whole(raw),
    )
    if config.resolver is not None and config.resolver_name:
        fields.problem("resolver_name", "cannot be used together with resolver")
    fields.done()
    return config


def _is_whole(raw: object) -> bool:
    """Whether the domain is written with a dot at the end: nothing is to be added to it."""
    return isinstance(raw, Mapping) and str(raw.get("domain")).strip().endswith(".")


def _each(fields: Fields, name: str, record_type: str) -> tuple[str, ...]:
    """A list of expected values in the form that records have."""
    found = []
    for text in fields.texts(name, MOST_VALUES, LONGEST):
        try:
            found.append(_dnswords.expected(record_type, text))
        except ValueError as error:
            fields.problem(name, str(error))
    return tuple(dict.fromkeys(found))


def _named(text: str) -> tuple[str, int]:
    host, port = parse_authority(text)
    return host, port or PORT


def _domain(text: str, record_type: str) -> str:
    """A domain; an address that is asked for its PTR record is turned into its name in the reverse tree."""
    if record_type == "PTR":
        try:
            return f"{ipaddress.ip_address(text).reverse_pointer}."
        except ValueError:
            pass
    return domain_name(text)


def probe(config: DnsConfig, deadline: float, tools: Tools, conf: Path = RESOLV_CONF) -> Reading:
    """One question; value is milliseconds from the first question to the answer that counts."""
    run = Run(tools, deadline, Reason.DNS_ERROR)
    known: dict[str, Any] = {}
    try:
        servers = _servers(config, conf, run)
        by_choice = bool(config.resolver is not None or config.resolver_name)
        run.restart()  # finding the server is not its time
        question, told = _ask(config, servers, conf, run)
        value = run.ms()
        known = _facts(told)
        _dnswords.judge(told.answer, question, by_choice)
        _expect(config, told)
    except Failed as failure:
        return run.failed(failure, **known)
    return run.gave(value, **known)


def _ask(config: DnsConfig, servers: tuple[Server, ...], conf: Path, run: Run) -> tuple[Question, Told]:
    """The answer to the first of the names that has one, else that to the last."""
    whose = Fault.RESOLVER if config.resolver is None and config.resolver_name is None else Fault.TARGET
    names = suffixes(conf, config.domain) if config.search else (config.domain,)
    for name in names:
        question = Question(name, config.record_type, secrets.randbelow(65_536))
        told = Asking(question, servers, run, whose).ask()
        if told.answer.code not in ("NOERROR", "NXDOMAIN") or told.answer.records:
            break
    return question, told


def _servers(config: DnsConfig, conf: Path, run: Run) -> tuple[Server, ...]:
    if config.resolver_name:
        host, port = config.resolver_name
        if complaint := run.tools.policy.of_host(host):
            raise Failed(Reason.POLICY_DENIED, complaint)
        found = tuple(Server(address, port) for address in resolve(host, run)[:MOST])
        run.enter("")
        return found
    if config.resolver is None:
        return system_servers(conf)
    try:
        return (parse_server(config.resolver),)
    except ValueError as error:
        raise Failed(Reason.DNS_RESOLVER_INVALID, f"resolver {error}") from None


def _expect(config: DnsConfig, told: Told) -> None:
    if config.expected_value and not _dnswords.matches(config.record_type, config.expected_value, told.answer):
        raise Failed(Reason.EXPECTED_VALUE_MISMATCH, f"no {config.record_type} record has the expected value")
    missing = [text for text in config.expected_values if not _dnswords.holds(text, told.answer, True)]
    missing += [text for text in config.expected_parts if not _dnswords.holds(text, told.answer, False)]
    if missing:
        text = f"{len(missing)} of the expected values are in no {config.record_type} record"
        raise Failed(Reason.EXPECTED_VALUE_MISMATCH, text, missing=missing)


def _facts(told: Told) -> dict[str, Any]:
    """What is shown locally."""
    answer = told.answer
    return {
        "server": str(told.server),
        "transport": "tcp" if told.over_tcp else "udp",
        "asked": told.asked,
        "rcode": answer.code,
        "records": [forms[0][:SHOWN_LENGTH] for forms in answer.records[:SHOWN]],
        "record_count": len(answer.records),
        "aliases": [alias[:SHOWN_LENGTH] for alias in answer.aliases],
        "ttl": answer.ttl,
        "authoritative": answer.authoritative,
        "authenticated": answer.authenticated,
    }
