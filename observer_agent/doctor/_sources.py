"""The steps `definitions` and `sources`: is every definition understood, and does one of each source type give a value.

Rows enter; each is read as the agent reads it. The probes run side by side, once each, under one deadline.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from observer_agent import probes
from observer_agent.definitions import Store, understand_all
from observer_agent.doctor._place import Known, Place
from observer_agent.doctor._report import Check, Finding, checked, skipped
from observer_agent.doctor._together import Together
from observer_agent.model import Definition, Fault, Reading
from observer_agent.probes._secrets import may_refer
from observer_agent.resolver import Resolver

SHOWN = 5
GRACE = 0.2  # a probe ends within 50 ms of its deadline
AGENT_S_OWN = ("otlp", "custom")  # points come to the running agent alone; functions of the operator's run there alone


class Set(NamedTuple):
    """The definitions that the steps look at, and where they come from."""

    rows: tuple[Any, ...]
    source: str


def choose(known: Known, fetched: tuple[Any, ...] | None) -> Set | None:
    """DEFINITIONS_FILE, else what the cloud has just answered, else the last good set on disk; None without any."""
    if known.rows is not None:
        return Set(known.rows, "DEFINITIONS_FILE")
    if fetched is not None:
        return Set(fetched, "the cloud")
    if known.settings is None:
        return None
    file = known.settings.buffer_path
    stored = file.with_name(file.name + ".definitions")
    return Set(tuple(Store(stored).load()), "the last good set on disk") if os.access(stored, os.R_OK) else None


def check_definitions(known: Known, chosen: Set | None) -> tuple[Check, list[Definition]]:
    """What the agent makes of every row."""
    if chosen is None or (not chosen.rows and "settings.definitions_file" in known.told):
        return skipped("definitions", "there are none to be had"), []
    found = understand_all(chosen.rows, probes.parse, probes.SOURCES)
    rows = {row["id"]: row for row in reversed(chosen.rows) if isinstance(row, Mapping) and _is_text(row.get("id"))}
    findings = [*_broken(found), *_missing(known, found, rows)]
    nameless = len(chosen.rows) - sum(isinstance(row, Mapping) and _is_text(row.get("id")) for row in chosen.rows)
    if nameless:
        cause = f"{nameless} of {len(chosen.rows)} definitions have no usable id and are left out"
        findings.append(Finding("definitions.no_id", cause, "give each definition an id of 1 to 128 characters"))
    if not chosen.rows:
        fix = "define a metric at the cloud for this agent, or set DEFINITIONS_FILE"
        findings.append(Finding("definitions.none", f"{chosen.source} has no definitions: nothing is watched", fix))
    return checked("definitions", f"{len(found)} from {chosen.source}", _few(findings)), found


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= 128


def _few(findings: list[Finding]) -> list[Finding]:
    """The first of each kind in full, and how many more there are."""
    out: list[Finding] = []
    for id_ in dict.fromkeys(each.id for each in findings):
        same = [each for each in findings if each.id == id_]
        out += same[:SHOWN]
        if len(same) > SHOWN:
            out.append(Finding(id_, f"... and {len(same) - SHOWN} more definitions likewise", same[0].fix))
    return out


def _name(definition: Definition) -> str:
    return f"{definition.id} {definition.title[:60]!r}" if definition.title else definition.id


def _broken(found: Iterable[Definition]) -> Iterator[Finding]:
    for each in found:
        if each.problem is None:
            continue
        cause = f"the definition {_name(each)} is not understood: {each.problem.text}"
        if each.problem.reason == "unknown_source_type":
            fix = f"upgrade the agent, or choose one of: {', '.join(sorted(probes.SOURCES))}"
            yield Finding("definitions.unknown_type", cause, fix, {"id": each.id})
        else:
            fix = "mend that field where the definition is made (docs/probes.md names every field)"
            yield Finding("definitions.invalid", cause, fix, {"id": each.id})


def _missing(known: Known, found: Iterable[Definition], rows: Mapping[str, Any]) -> Iterator[Finding]:
    """Environment variables that a definition refers to and that the service does not have."""
    allowed = known.settings.probe_env_allow if known.settings else ()
    for each in found:
        if each.problem:
            continue
        for field, name in references(rows[each.id].get("source_config")):
            cause = f"the definition {_name(each)} refers to {name} in {field}, "
            if not may_refer(name, allowed):
                fix = f"rename it to PROBE_..., or add {name} to PROBE_ENV_ALLOW; the agent's own variables never"
                yield Finding("definitions.missing_env", f"{cause}which it may not", fix, {"id": each.id})
            elif not known.env.get(name, "").strip():
                fix = f"add {name}=... to /etc/observer-agent/agent.env, then: systemctl restart observer-agent"
                yield Finding("definitions.missing_env", f"{cause}which is not set", fix, {"id": each.id})


def references(config: object, path: str = "") -> Iterator[tuple[str, str]]:
    """The fields of a configuration that name environment variables: `*_ref`, and the values of `header_refs`."""
    if not isinstance(config, Mapping):
        return
    for field, value in config.items():
        where = f"{path}{field}"
        if isinstance(value, Mapping):
            yield from references(value, f"{where}.")
        elif isinstance(value, str) and (str(field).endswith("_ref") or path.endswith("header_refs.")):
            yield where, value


# -- one look for each source type


def usable(
    known: Known, found: Iterable[Definition], check: Check, state: Mapping[str, Any] | None
) -> list[Definition]:
    """One definition for each source type: one that gives no value now where the agent says so, else the first."""
    told = {each.detail.get("id") for each in check.findings}
    failing = {job.get("id") for job in (state or {}).get("definitions", ()) if job.get("reason")}
    chosen: dict[str, Definition] = {}
    for each in found:
        if each.problem or each.id in told:
            continue
        before = chosen.get(each.source_type)
        if before is None or (each.id in failing and before.id not in failing):
            chosen[each.source_type] = each
    return list(chosen.values())


def _told(state: Mapping[str, Any] | None) -> dict[str, Reading]:
    """The running agent's last readings of the definitions that it alone can look at."""
    jobs = [job for job in (state or {}).get("definitions", ()) if job.get("source_type") in AGENT_S_OWN]
    return {
        job["id"]: Reading(
            job["value"], job["reason"], Fault(job["fault"]) if job["fault"] else None, detail=job["detail"]
        )
        for job in jobs
        if job["last_run_at"]
    }


def check_sources(
    place: Place, known: Known, usable: list[Definition], until: float, *, state: Mapping[str, Any] | None
) -> Check:
    """Looks once with each, or takes the agent's word.

    Target faults are warnings, they are what the agent is there to tell.
    """
    told = _told(state)
    chosen = [each for each in usable if each.source_type not in AGENT_S_OWN or each.id in told]
    if not chosen or known.settings is None:
        return skipped("sources", "there is no usable definition")
    tools = probes.Tools(
        clock=place.clock,
        resolver=Resolver(place.clock, place.lookup),
        env=known.env,
        redact=place.redact,
        settings=known.settings,
        policy=known.policy,
    )
    prober, together = probes.Prober(tools), Together(place.clock)
    left = max(until - place.clock.monotonic() - GRACE, 0.1)
    ours = [each for each in chosen if each.id not in told]
    for each in ours:
        together.start(each.id, _look(prober, each, min(each.config.timeout, left)))
    together.wait([each.id for each in ours], until)
    findings: list[Finding] = []
    for each in chosen:
        reading = told.get(each.id) or together.result(each.id)
        findings += _judge(each, reading, min(each.config.timeout, left))
    return checked("sources", ", ".join(sorted(each.source_type for each in chosen)), findings)


def _look(prober: probes.Prober, definition: Definition, seconds: float) -> Any:
    return lambda: prober.look(definition.source_type, definition.config, seconds)


def _judge(definition: Definition, reading: Reading | None, seconds: float) -> Iterator[Finding]:
    name = f"{definition.source_type} ({_name(definition)})"
    again = f"observer-agent probe {definition.source_type} ... shows each phase; then look at the target itself"
    if reading is None:
        yield Finding("sources.hung", f"{name} did not answer within {seconds:.1f} s and did not end", again)
        return
    if reading.value is not None:
        return
    why = reading.detail.get("error") or reading.reason
    if reading.reason == "ETIMEDOUT":
        why = f"did not answer within {seconds:.1f} s"
    cause = f"{name} gives no value: {reading.reason}, {why}"
    if reading.fault is Fault.CONFIG:
        yield Finding("sources.config", cause, "mend the definition, or the variable or file that it refers to")
    elif reading.fault is Fault.AGENT:
        yield Finding("sources.agent", cause, "the agent itself is at fault: see its limits (ulimit -n), or report it")
    else:
        yield Finding("sources.target", cause, again)
