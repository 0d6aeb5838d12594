"""Jobs that tell by pings that they ran: what a metric of the kind `heartbeat` asks of them, and whether they keep it.

Pure: a configuration, pings and the hub's clock in, verdicts out. `job_store.py` keeps them, docs/relay.md has the
rules. All moments are seconds since 1970 by the hub's clock, but for `stamp`, which is the relaying agent's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from observer_agent.errors import InvalidConfig
from observer_agent.model import Status

PERIOD = (60, 2_678_400)
GRACE = (0, 604_800)
RUNTIME = (1, 604_800)
GRACE_SECONDS = 300
SETTLE = 120.0  # seconds that a relay which comes back, or a hub that starts, has for the pings that waited
START, SUCCESS, FAIL = "start", "success", "fail"
NO_PING, FAILED, OVERDUE = "no_ping_yet", "job_failed", "job_overdue"
TOO_LONG, NO_RELAY = "job_runs_too_long", "relay_silent"


class Rule(NamedTuple):
    """How often a job is to succeed, how late it may be, how long it may run; seconds."""

    period: float
    grace: float = GRACE_SECONDS
    runtime: float | None = None


class Ping(NamedTuple):
    """One ping: `stamp` is the relaying agent's, `at` the same moment by the hub's clock."""

    token: str
    kind: str
    exit_code: int | None
    stamp: float
    at: float


@dataclass(frozen=True, slots=True)
class Job:
    """What is known of a job. `finished_at` is its last success or fail, `started_at` a start that has no end yet.

    `status` and `reason` are the verdict in force, `pushed_at` is when it was last written down.
    """

    digest: str = ""
    hint: str = ""
    agent_id: str | None = None
    stamp: float = 0.0
    kind: str = ""
    exit_code: int | None = None
    started_at: float | None = None
    finished_at: float | None = None
    failed: bool = False
    ran: float = 0.0
    blind_at: float | None = None
    status: str = ""
    reason: str | None = None
    pushed_at: float = 0.0


class Verdict(NamedTuple):
    """How a job is at a moment."""

    status: Status
    reason: str | None


def parse(config: Mapping[str, Any]) -> Rule:
    """The rule that a `source_config` holds; raises InvalidConfig."""
    problems = [f"{name}: is not known" for name in config if name not in _BOUNDS]
    for name, (low, high) in _BOUNDS.items():
        value = config.get(name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is None and name == "period_seconds":
            problems.append(f"{name}: is required")
        elif value is not None and not (whole and low <= value <= high):
            problems.append(f"{name}: must be a whole number from {low} to {high}")
    if problems:
        raise InvalidConfig(*problems)
    period, grace, runtime = (config.get(name) for name in _BOUNDS)
    return Rule(float(period or 0), float(GRACE_SECONDS if grace is None else grace), runtime and float(runtime))


_BOUNDS = {"period_seconds": PERIOD, "grace_seconds": GRACE, "max_runtime_seconds": RUNTIME}


def pinged(job: Job, ping: Ping, agent_id: str) -> Job:
    """The job after a ping; one that is older than the last, or comes a second time, changes nothing."""
    same_relay = job.agent_id == agent_id
    known = ping.stamp < job.stamp or (ping.stamp == job.stamp and ping.kind == job.kind)
    if (same_relay and known) or (not same_relay and ping.at < max(job.finished_at or 0.0, job.started_at or 0.0)):
        return job
    job = replace(job, agent_id=agent_id, stamp=ping.stamp, kind=ping.kind, exit_code=ping.exit_code)
    if ping.kind == START:
        return replace(job, started_at=ping.at)
    ran = max(0.0, ping.at - job.started_at) if job.started_at is not None else 0.0
    return replace(job, started_at=None, finished_at=ping.at, failed=ping.kind == FAIL, ran=round(ran, 3))


def verdict(job: Job, rule: Rule, now: float) -> Verdict:
    """How the job is. What is late while its pings cannot arrive says nothing about the job."""
    heard = job.finished_at if job.finished_at is not None else job.started_at
    if heard is None:
        return Verdict(Status.NO_DATA, NO_PING)
    if job.failed:
        return Verdict(Status.UNHEALTHY, FAILED)
    late = _late(job, rule, heard, now)
    blind = job.blind_at is not None and now - job.blind_at < SETTLE
    if late and blind and job.status != Status.UNHEALTHY:
        return Verdict(Status.NO_DATA, NO_RELAY)
    if late:
        return Verdict(Status.UNHEALTHY, late)
    return Verdict(Status.NO_DATA, NO_PING) if job.finished_at is None else Verdict(Status.HEALTHY, None)


def _late(job: Job, rule: Rule, heard: float, now: float) -> str | None:
    if rule.runtime is not None and job.started_at is not None and now > job.started_at + rule.runtime:
        return TOO_LONG
    return OVERDUE if now > heard + rule.period + rule.grace else None
