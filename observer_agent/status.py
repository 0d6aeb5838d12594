"""The agent's state as one JSON object: what `/api/state` and `status --json` show. Reads, changes nothing."""

from __future__ import annotations

import os
import socket
from typing import Any

from observer_agent import __version__
from observer_agent.agent import Agent
from observer_agent.clock import iso
from observer_agent.collector import Job
from observer_agent.config import origin


def state(agent: Agent) -> dict[str, Any]:
    """`{process, cloud, queue, workers, definitions, losses}`; seconds, bytes, ISO timestamps."""
    return {
        "process": _process(agent),
        "cloud": _cloud(agent),
        "queue": _queue(agent),
        "workers": [_worker(agent, name) for name in sorted(agent.supervisor.workers)],
        "definitions": [_job(agent, job) for each in agent.collectors().values() for job in each.jobs()],
        "losses": agent.queue.lost(),
    }


def problem(agent: Agent) -> str | None:
    """Why the agent is not delivering, in one line; None when it is."""
    orders = agent.heartbeat.last_orders
    if agent.sender.fenced_by:
        return f"another process, started at {agent.sender.fenced_by}, uses this agent's key"
    if orders is None:
        return "no heartbeat has been answered yet"
    if not orders.ok:
        return f"the cloud does not take heartbeats (status {orders.status}: {orders.text})"
    if agent.sender.failing_since is not None:
        answer = agent.sender.last_answer
        return f"the cloud does not take samples (status {answer.status}: {answer.text})" if answer else "no answer"
    return None


def dead_workers(agent: Agent) -> list[str]:
    """The names of workers whose thread does not run."""
    return [name for name, worker in list(agent.supervisor.workers.items()) if not worker.alive]


def _process(agent: Agent) -> dict[str, Any]:
    return {
        "version": __version__,
        "pid": os.getpid(),
        "hostname": socket.gethostname(),
        "started_at": agent.started_at,
        "uptime_seconds": round(agent.uptime(), 3),
    }


def _cloud(agent: Agent) -> dict[str, Any]:
    why = problem(agent)
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
        "definitions_problem": definitions.last_text or None,
    }


def _queue(agent: Agent) -> dict[str, Any]:
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


def _worker(agent: Agent, name: str) -> dict[str, Any]:
    worker = agent.supervisor.workers[name]
    busy = worker.busy_since
    return {
        "name": name,
        "alive": worker.alive,
        "restarts": worker.restarts,
        "turns": worker.turns,
        "busy_seconds": round(agent.clock.monotonic() - busy, 3) if busy is not None else 0,
    }


def _job(agent: Agent, job: Job) -> dict[str, Any]:
    definition, reading, verdict = job.definition, job.reading, job.verdict
    return {
        "id": definition.id,
        "title": definition.title,
        "source_type": definition.source_type,
        "status": verdict.status if verdict else None,
        "value": reading.value if reading else None,
        "reason": reading.reason if reading else None,
        "fault": reading.fault if reading else None,
        "detail": {k: str(v)[:200] for k, v in reading.detail.items()} if reading else {},
        "phases": dict(reading.phases) if reading else {},
        "duration_ms": reading.duration_ms if reading else None,
        "last_run_at": job.stamp or None,
        "next_run_in_seconds": round(max(0.0, job.due - agent.clock.monotonic()), 3),
        "problem": definition.problem.text if definition.problem else None,
    }


def _when(moment: float | None) -> str | None:
    return iso(moment) if moment is not None else None
