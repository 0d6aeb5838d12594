"""The agent's state as one JSON object: what `/api/state` and `status --json` show. Reads, changes nothing.

Texts from outside are redacted here and cut; no query, header or key is among them. Any thread may call.
"""

from __future__ import annotations

import math
import os
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from observer_agent import __version__
from observer_agent.clock import iso
from observer_agent.config import VARIABLES, Settings, masked, origin
from observer_agent.job import Job
from observer_agent.relay import Relay
from observer_agent.whole import Whole

OLDEST_MAX = 300.0  # seconds for which a sample may wait while everything is well
SILENCE_MAX = 90.0  # seconds without an answered heartbeat
TEXT_MAX = 200
SHOWN = (
    "AGENT_KEY_FILE CLOUD_SERVER_URL CLOUD_DIALECT DEFINITIONS_FILE PROMETHEUS_SERVER_URL "
    "PROMETHEUS_BASIC_AUTH_ENABLED PROBE_FAILURE_STATUS PROBE_ENV_ALLOW BUFFER_PATH BUFFER_MAX_ROWS BUFFER_MAX_BYTES "
    "BUFFER_MAX_AGE BUFFER_SYNC SKIP_SSL_VERIFICATION VERBOSE LOG_FORMAT BROADCAST_LOGS LOG_BROADCAST_LEVEL "
    "ENABLE_DEBUG_DASHBOARD DEBUG_DASHBOARD_HOST DEBUG_DASHBOARD_PORT"
).split()  # whose values are shown, masked; of secrets whether they are set, of all others nothing


def state(agent: Whole, history: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`{summary, counts, process, cloud, queue, otlp, relay, custom_probes, workers, definitions, losses, history,
    log, configuration}`.

    Seconds, bytes, ISO timestamps. docs/dashboard.md names every field.
    """
    definitions = [_job(agent, job) for each in agent.collectors().values() for job in each.jobs()]
    counts = Counter(each["status"] or "not_yet" for each in definitions)
    cloud = _cloud(agent)
    return {
        "summary": summary(cloud["problem"], trouble(agent), counts),
        "counts": dict(counts),
        "process": _process(agent),
        "cloud": cloud,
        "queue": _queue(agent),
        **_receivers(agent),
        "workers": [_worker(agent, name) for name in sorted(agent.supervisor.workers)],
        "definitions": definitions,
        "losses": agent.queue.lost(),
        "history": dict(history or {}),
        "log": agent.logs.tail(),
        "configuration": configuration(agent.settings),
    }


def summary(problem: str | None, unwell: str | None, counts: Mapping[str, int]) -> str:
    """The whole state in one sentence."""
    total = sum(counts.values())
    order = ("unhealthy", "degraded", "no_data", "healthy", "not_yet")
    parts = [f"{counts[name]:,} {name.replace('_', ' ')}" for name in order if counts.get(name)]
    known = f"{total:,} definition{'' if total == 1 else 's'}" + (f": {', '.join(parts)}" if parts else "")
    head = f"NOT delivering: {problem}" if problem else "Delivering"
    return f"{head}{f', but {unwell}' if unwell and not problem else ''}. {known}."


def problem(agent: Whole) -> str | None:
    """Why the agent is not delivering, in one line; None when it is."""
    for find in (_fenced, _file, _heartbeats, _samples, _waiting):
        line = find(agent)
        if line:
            return agent.logs.redact(line)
    return None


def unwell(agent: Whole) -> str | None:
    """Which workers do not work, in one line; None when all do."""
    dead, hung = dead_workers(agent), hung_workers(agent)
    lines = [f"workers that do not run: {', '.join(dead)}"] if dead else []
    lines += [f"workers that hang: {', '.join(hung)}"] if hung else []
    return "; ".join(lines) or None


def trouble(agent: Whole) -> str | None:
    """What else is wrong with the agent, in one line: it sees nothing, workers do not work, there is too much to do."""
    return agent.lookout.blindness() or unwell(agent) or agent.tally.overload()


def line(agent: Whole) -> str:
    """How it is, for `systemctl status`: what waits, the last push, and why it does not deliver."""
    pushed = f"last push {_when(agent.sender.last_push)}" if agent.sender.last_push else "no push yet"
    why = problem(agent)
    return f"{agent.queue.depth} of {agent.queue.capacity} wait, {pushed}" + (f"; NOT delivering: {why}" if why else "")


def dead_workers(agent: Whole) -> list[str]:
    """The names of workers whose thread does not run."""
    return [name for name, worker in list(agent.supervisor.workers.items()) if not worker.alive]


def hung_workers(agent: Whole) -> list[str]:
    """The names of workers whose turn takes longer than any may."""
    return [name for name, worker in list(agent.supervisor.workers.items()) if worker.alive and worker.hung]


def configuration(settings: Settings) -> dict[str, str]:
    """The settings of the allow-list with their values masked; secrets as set or unset."""
    values = masked(settings)
    shown = {name: mask(values[name]) for name in SHOWN}
    secrets = {name: values[name] for name, row in VARIABLES.items() if row.secret}
    return {name: value for name in VARIABLES if (value := shown.get(name) or secrets.get(name))}


def mask(value: str) -> str:
    """First four and last four characters; nothing of a value of at most eight."""
    if not value:
        return "(unset)"
    return f"{value[:4]}…{value[-4:]}" if len(value) > 8 else "****"


# -- what may be wrong, the nearest cause first


def _fenced(agent: Whole) -> str | None:
    by = agent.sender.fenced_by
    return f"another process, started at {by}, uses this agent's key" if by else None


def _file(agent: Whole) -> str | None:
    kept, _ = agent.keeper.waiting()
    return f"the queue file takes no verdicts; the newest of {kept} definitions wait in memory" if kept else None


def _heartbeats(agent: Whole) -> str | None:
    orders, last = agent.heartbeat.last_orders, agent.heartbeat.heard_at
    if orders is None:
        return "no heartbeat has been answered yet"
    if not orders.ok:
        what = "this key" if orders.status in (401, 403) else "heartbeats"
        return f"the cloud does not take {what} ({_said(orders.status, orders.text)})"
    silent = agent.clock.monotonic() - last if last is not None else 0.0
    return f"no heartbeat has been answered for {silent:.0f} s" if silent > SILENCE_MAX else None


def _samples(agent: Whole) -> str | None:
    if agent.sender.failing_since is None:
        return None
    answer = agent.sender.last_answer
    return f"the cloud does not take samples ({_said(answer.status, answer.text)})" if answer else "no answer"


def _waiting(agent: Whole) -> str | None:
    age, depth = agent.queue.oldest_age(), agent.queue.depth
    return f"{depth} samples wait, the oldest for {age:.0f} s" if depth and age > OLDEST_MAX else None


def _said(status: int, text: str) -> str:
    return f"status {status}: {text}" if status else text or "no answer"


# -- the parts


def _process(agent: Whole) -> dict[str, Any]:
    return {
        "version": __version__,
        "pid": os.getpid(),
        "hostname": socket.gethostname(),
        "started_at": agent.started_at,
        "uptime_seconds": round(agent.uptime(), 3),
        "now": iso(agent.clock.now()),
    }


def _cloud(agent: Whole) -> dict[str, Any]:
    why, redact = problem(agent), agent.logs.redact
    beat, sender, definitions = agent.heartbeat, agent.sender, agent.definitions
    failing = sender.failing_since
    return {
        "url": origin(agent.settings.cloud_server_url),
        "dialect": agent.settings.cloud_dialect,
        "delivering": why is None,
        "problem": why,
        "last_push_at": _when(sender.last_push),
        "failing_for_seconds": round(agent.clock.monotonic() - failing, 3) if failing is not None else 0,
        "fenced_by": sender.fenced_by,
        "heartbeats": beat.sent,
        "last_heartbeat_at": _when(beat.last_ok),
        "definitions_version": definitions.version,
        "last_definitions_at": _when(definitions.last_ok),
        "definitions_problem": redact(definitions.last_text) or None,
    }


def _queue(agent: Whole) -> dict[str, Any]:
    queue = agent.queue
    ledgers = queue.ledgers()
    return {
        "path": str(queue.file),
        "depth": queue.depth,
        "capacity": queue.capacity,
        "bytes": queue.size_bytes,
        "oldest_age_seconds": round(queue.oldest_age(), 3),
        "queue_id": queue.queue_id,
        "given": sum(ledger.given for ledger in ledgers),
        "accepted": sum(ledger.accepted for ledger in ledgers),
        "lost": queue.lost(),
        "kept_in_memory": agent.keeper.waiting()[0],
    }


def _receivers(agent: Whole) -> dict[str, Any]:
    """What else comes in on this machine: points, pings, the operator's own probes; null for what is not in use."""
    redact, looking = agent.logs.redact, agent.looking
    relay: Relay | None = getattr(agent, "relay", None)  # the other dialect's agent has none
    found = {"otlp": looking.otlp.state(), "relay": relay.state() if relay else None}
    for each in found.values():
        if each and each["problem"]:
            each["problem"] = redact(each["problem"])[:TEXT_MAX]
    custom = looking.custom
    refused = [{"origin": redact(origin), "problem": redact(text)[:TEXT_MAX]} for origin, text in custom.complaints]
    names = [redact(each["name"]) for each in custom.descriptors()]
    return {**found, "custom_probes": {"names": names, "refused": refused}}


def _worker(agent: Whole, name: str) -> dict[str, Any]:
    worker = agent.supervisor.workers[name]
    busy = worker.busy_since
    return {
        "name": name,
        "alive": worker.alive,
        "hung": worker.hung,
        "restarts": worker.restarts,
        "turns": worker.turns,
        "busy_seconds": round(agent.clock.monotonic() - busy, 3) if busy is not None else 0,
    }


def _job(agent: Whole, job: Job) -> dict[str, Any]:
    definition, reading, verdict = job.definition, job.reading, job.verdict
    redact = agent.logs.redact
    return {
        "id": definition.id,
        "title": redact(definition.title)[:TEXT_MAX],
        "source_type": definition.source_type,
        "status": verdict.status if verdict else None,
        "value": reading.value if reading and _is_finite(reading.value) else None,
        "reason": (reading.reason or (verdict.reason if verdict else None)) if reading else None,
        "fault": reading.fault if reading else None,
        "detail": {k: redact(str(v))[:TEXT_MAX] for k, v in reading.detail.items()} if reading else {},
        "phases": dict(reading.phases) if reading else {},
        "duration_ms": reading.duration_ms if reading else None,
        "interval_seconds": definition.interval,
        "slots": {"due": job.slots.due, **asdict(job.slots)},
        "last_run_at": job.stamp or None,
        "next_run_in_seconds": round(max(0.0, job.due - agent.clock.monotonic()), 3),
        "problem": redact(definition.problem.text) if definition.problem else None,
    }


def _is_finite(value: float | None) -> bool:
    """JSON has no word for the others."""
    return value is not None and math.isfinite(value)


def _when(moment: float | None) -> str | None:
    return iso(moment) if moment is not None else None
