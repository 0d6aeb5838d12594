"""`observer-agent why`: the evidence of a metric's last transitions, for a person or as JSON.

Enters: settings or the path of the file, a metric's id or title; leaves: a `Report`. Reads that file alone, whether
an agent runs or not. Runs on the main thread of a command.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from observer_agent import show
from observer_agent.commands import look_at
from observer_agent.evidencefile import find, newest, path_of
from observer_agent.queueaccess import Report


def report(name: str, last: int, file: Path | None) -> Report:
    """The newest `last` transitions of the metric `name`; raises UsageError, QueueError."""
    return of(path_of(look_at(file).buffer_path), name, last)


def of(evidence: Path, name: str, last: int) -> Report:
    """The same from a file of evidence."""
    metric = find(evidence, name)
    found, kept = newest(evidence, metric.id, last) if metric else ([], 0)
    facts: dict[str, Any] = {
        "path": str(evidence),
        "metric_id": metric.id if metric else None,
        "title": metric.title if metric else None,
        "source_type": metric.source_type if metric else None,
        "kept": kept,
        "transitions": found,
    }
    if not metric or not found:
        text = f"no change of status of {name} is kept: it has had none, or there is no metric of this id or title"
        return Report(facts, show.clean(text), 1)
    lines = [f"{metric.title or metric.id} ({metric.source_type}), id {metric.id}"]
    for each in found:
        lines += ["", *_transition(each)]
    if kept > len(found):
        lines += ["", f"{kept - len(found)} older ones are kept: --last {kept}"]
    return Report(facts, show.clean("\n".join(line.replace("\n", " ") for line in lines)))


# -- a row may be of a later version or damaged: whatever is missing or odd is left out


def _transition(row: Mapping[str, Any]) -> Iterator[str]:
    before = row.get("before") or "nothing known"
    yield f"{row.get('at')}  {_word(before)} -> {_word(row.get('status'))}  {_said(row)}".rstrip()
    facts = dict(_facts(row))
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        first, *more = value if isinstance(value, list) else [value]
        yield f"    {name:<{width}}  {first}"
        yield from (f"    {'':<{width}}  {line}" for line in more)


def _facts(row: Mapping[str, Any]) -> Iterator[tuple[str, str | list[str]]]:
    detail = _map(row, "detail")
    if error := detail.get("error"):
        yield "error", str(error)
    if rules := _map(row, "thresholds"):
        yield "thresholds", ", ".join(f"{name} {rule}" for name, rule in rules.items())
    if phases := _map(row, "phases"):
        yield "phases", ", ".join(f"{name} {_ms(ms)}" for name, ms in phases.items())
    if address := row.get("address"):
        yield "address", str(address)
    if tried := _list(row, "tried"):
        yield "in vain", [f"{each.get('address')} {each.get('reason')}" for each in tried]
    if hops := _list(row, "hops"):
        yield "hops", [f"{each.get('status')} {each.get('origin')} at {each.get('address')}" for each in hops]
    yield from _tls(_map(row, "tls"))
    if others := {name: value for name, value in detail.items() if name != "error"}:
        yield "detail", show.plain(others)
    if body := row.get("body"):
        yield "body", str(body)
    if past := _list(row, "readings_before"):
        yield "before", [_past(each) for each in reversed(past)]


def _tls(tls: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if version := tls.get("version"):
        yield "tls", f"{version} {tls.get('cipher')}"
    cert = _map(tls, "certificate")
    if "error" in cert:
        yield "certificate", str(cert["error"])
    elif cert:
        names = ", ".join(map(str, cert.get("names") or ()))
        text = f"{cert.get('subject') or '(no name)'} for {names or 'no name'}, by {cert.get('issuer') or '(no name)'}"
        yield "certificate", f"{text}, from {cert.get('not_before')} until {cert.get('not_after')}"


def _past(row: Mapping[str, Any]) -> str:
    return f"{row.get('at')}  {_word(row.get('status'))}  {_said(row)}"


def _said(row: Mapping[str, Any]) -> str:
    """Value or reason, whose fault, and how long it took."""
    value, reason, fault = row.get("value"), row.get("reason"), row.get("fault")
    parts = [f"{value:.10g}"] if isinstance(value, int | float) else []
    parts += [str(reason)] if reason else []
    parts += [f"(fault: {fault})"] if fault else []
    return " ".join([*parts, f"in {_ms(row.get('duration_ms'))}"])


def _word(status: object) -> str:
    return str(status).replace("_", " ")


def _ms(value: object) -> str:
    return f"{value:.1f} ms" if isinstance(value, int | float) else "?"


def _map(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = row.get(name)
    return found if isinstance(found, Mapping) else {}


def _list(row: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    found = row.get(name)
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []
