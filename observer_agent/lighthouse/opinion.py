"""What the console is told of one look: up or down, in how many milliseconds, and why not.

A definition that was a check and its reading in, an `Opinion` out. Pure. The messages are made here from closed lists
of words and the check's own configuration: nothing that a target or a resolver has said is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from observer_agent.clouds._lighthouse_wire import State
from observer_agent.lighthouse.plain import Redact, plain, word
from observer_agent.lighthouse.words import not_checked, says_nothing, why
from observer_agent.model import Definition, Fault, Reading
from observer_agent.probes import Reason


class Opinion(NamedTuple):
    """`state` is None where the look says nothing about the target (the agent's own trouble): nothing is reported.

    `days_to_expiry` is set where a certificate was read, also for one that has ended.
    """

    state: State | None
    response_time_ms: int | None = None
    status_code: int | None = None
    error_message: str | None = None
    days_to_expiry: int | None = None


def opinion(definition: Definition, reading: Reading, redact: Redact | None = None) -> Opinion:
    """The verdict of this dialect; `redact` knows the secrets of the agent and of the checks."""
    found = _opinion(definition, reading)
    message = found.error_message
    return found if message is None else found._replace(error_message=plain(message, redact))


def _opinion(definition: Definition, reading: Reading) -> Opinion:
    problem = definition.problem
    if problem:
        return Opinion(State.DOWN, error_message=_of_problem(problem.reason, problem.text))
    if says_nothing(reading):
        return Opinion(None)
    if reading.value is None and reading.fault in (Fault.CONFIG, Fault.POLICY):
        return Opinion(State.DOWN, error_message=f"not checked: {not_checked(reading)}")
    return _KINDS[definition.source_type](definition, reading)


def _of_problem(reason: str, text: str) -> str:
    if reason == Reason.UNKNOWN_SOURCE_TYPE:
        return text
    if reason == Reason.POLICY_DENIED:
        return "not checked: there are more checks than the agent's policy allows (limits.definitions)"
    return f"not checked: {text}"


# -- one kind of check each


def _http(definition: Definition, reading: Reading) -> Opinion:
    status = reading.detail.get("status")
    took = _took(reading) if status else None
    if reading.value is not None:
        return Opinion(State.UP, took, status)
    return Opinion(State.DOWN, took, status, _http_message(definition, reading))


def _http_message(definition: Definition, reading: Reading) -> str:
    config, detail, reason = definition.config, reading.detail, reading.reason or ""
    if reason.startswith("unexpected_status:"):
        return f"status {detail['status']}, want {', '.join(map(str, sorted(config.expected_status)))}"
    if reason == Reason.HEADER_MISMATCH:
        return _HEADERS[detail["expected"]].format(word(detail["header"]))
    if reason == Reason.BODY_MISMATCH:
        return f'keyword "{_keyword(config.body_match)}" not found in body'
    if reason == Reason.BODY_UNEXPECTED:
        return f'keyword "{_keyword(config.body_absent)}" unexpectedly present'
    return f"request failed: {why(reading)}"


def _tcp(definition: Definition, reading: Reading) -> Opinion:
    if reading.value is not None:
        return Opinion(State.UP, int(reading.value))
    where = "read tcp" if "first_byte" in reading.phases else "dial tcp"
    return Opinion(State.DOWN, error_message=f"{where} {_target(definition)}: {why(reading)}")


def _udp(definition: Definition, reading: Reading) -> Opinion:
    if reading.value is not None:
        return Opinion(State.UP, int(reading.value) if reading.detail.get("answered") else None)
    if "first_byte" in reading.phases:
        return Opinion(State.DOWN, error_message=f"udp read: {why(reading)}")
    return Opinion(State.DOWN, error_message=f"dial udp {_target(definition)}: {why(reading)}")


def _ssl(definition: Definition, reading: Reading) -> Opinion:
    if reading.value is None:
        where = "tls" if "tls" in reading.phases else "tls dial"
        return Opinion(State.DOWN, error_message=f"{where} {_target(definition)}: {why(reading)}")
    days, took = int(reading.value), _took(reading)
    if days >= 0:
        return Opinion(State.UP, took, days_to_expiry=days)
    return Opinion(State.DOWN, took, None, f"certificate expired {-days} days ago", days)


def _dns(definition: Definition, reading: Reading) -> Opinion:
    kind, reason = definition.config.record_type, reading.reason
    took = _took(reading, but=("resolve",)) if "rcode" in reading.detail else None
    if reading.value is not None:
        return Opinion(State.UP, took)
    if reason == Reason.DNS_NODATA:
        message = f"No {kind} records found"
    elif reason == Reason.EXPECTED_VALUE_MISMATCH:
        message = f"Expected {kind} record(s) {', '.join(map(word, reading.detail['missing']))} not found"
    elif reason == Reason.NOT_FOUND and "rcode" in reading.detail:
        message = f"DNS {kind} lookup failed: NXDOMAIN"
    elif "first_byte" not in reading.phases:
        message = f"DNS {kind} lookup failed: the resolver cannot be reached: {why(reading)}"
    else:
        message = f"DNS {kind} lookup failed: {why(reading)}"
    return Opinion(State.DOWN, took, error_message=message)


_KINDS: Final[Mapping[str, Callable[[Definition, Reading], Opinion]]] = MappingProxyType(
    {"http": _http, "tcp": _tcp, "udp": _udp, "tls_cert": _ssl, "dns": _dns}
)
_HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "present": 'response missing header "{}"',
        "exact": 'header "{}" is not the expected text',
        "contains": 'header "{}" does not contain the expected text',
    }
)


def _took(reading: Reading, but: Collection[str] = ("body",)) -> int:
    """Whole milliseconds of a look, some phases left out: what was read after the answer, finding the resolver."""
    return int(sum(ms for phase, ms in reading.phases.items() if phase not in but))


def _target(definition: Definition) -> str:
    """The check's own host and port."""
    host, port = definition.config.host, definition.config.port
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _keyword(text: bytes) -> str:
    return word(text.decode())
