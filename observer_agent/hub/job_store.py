"""Jobs in the database: their tokens, the pings that agents hand on, and a worker that judges silence.

A job and its token are rows of `objects`, kinds `job` and `job_token`; its verdicts are pushes of the agent `hub`,
which is none. `take` runs on the threads of the server, `step` on the worker `jobs` of one hub process at a time;
whoever changes a job holds its row.
"""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, select

from observer_agent.clock import Clock, iso
from observer_agent.document import HEARTBEAT
from observer_agent.errors import InvalidConfig, UsageError
from observer_agent.hub import audit, schema
from observer_agent.hub.database import Database
from observer_agent.hub.database import insert as upsert
from observer_agent.hub.events import NO_DATA, STATUS_CHANGED, Event, emit
from observer_agent.hub.jobs import OVERDUE, SETTLE, START, TOO_LONG, Job, Ping, Rule, Verdict, parse, pinged, verdict
from observer_agent.hub.keys import digest
from observer_agent.hub.lease import Lease
from observer_agent.hub.machines import OFFLINE_SECONDS
from observer_agent.hub.partitions import Partitions
from observer_agent.model import Status

HUB = "hub"  # the agent of the verdicts that are made here
JOB, TOKEN = "job", "job_token"
INVALID, NOT_FOUND = "invalid", "not_found"
LETTERS = string.ascii_letters + string.digits
LENGTH, HINT = 32, 4
EVERY, PAUSE, LEASE_SECONDS = 5.0, 10.0, 60.0
BLIND_EVERY = 60.0  # how often a relay's silence is noted again


class Metric(NamedTuple):
    """A metric of the kind: its names, what it asks, and the seconds after which its verdict is written down again."""

    id: str
    key: str
    title: str
    rule: Rule
    again: float


class Jobs:
    """See the module."""

    def __init__(self, database: Database, clock: Clock, partitions: Partitions) -> None:
        self._database = database
        self._clock = clock
        self._partitions = partitions
        self._lease = Lease(database, "jobs", LEASE_SECONDS)
        self._began = clock.now()

    # -- tokens

    def create_token(self, actor: str, key: str) -> str:
        """A new token of the job with this key, shown this once; the one before ends. Raises UsageError."""
        token = "".join(secrets.choice(LETTERS) for _ in range(LENGTH))
        self._database.run(lambda conn: self._set_token(conn, actor, key, token))
        return token

    def _set_token(self, conn: Connection, actor: str, key: str, token: str) -> None:
        found = next((each for each in _metrics(conn) if each.key == key), None)
        if found is None:
            raise UsageError(
                f"there is no metric {key!r} of the source type {HEARTBEAT}: apply a document with it first"
            )
        job, objects = _locked(conn, [found.id]).get(found.id, Job()), schema.objects
        conn.execute(delete(objects).where(objects.c.kind == TOKEN, objects.c.key == job.digest))
        _put(conn, TOKEN, digest(token), {"metric_id": found.id})
        _put(conn, JOB, found.id, asdict(replace(job, digest=digest(token), hint=token[:HINT])))
        audit.record(conn, self._clock.now(), actor, action="job.token", subject=key)

    def all(self) -> list[dict[str, Any]]:
        """Every job, by key, as it may be shown."""
        with self._database.read() as conn:
            metrics = _metrics(conn)
            known = _read(conn, [each.id for each in metrics])
        return [_shown(each, known.get(each.id, Job())) for each in sorted(metrics, key=lambda each: each.key)]

    # -- pings

    def take(self, agent_id: str, found: Sequence[Ping | None]) -> list[str | None]:
        """Takes the pings of a request; what is said against each, None where it was taken."""
        self._partitions.ensure(self._clock.now())
        return self._database.share(lambda conn: self._take(conn, agent_id, found))

    def _take(self, conn: Connection, agent_id: str, found: Sequence[Ping | None]) -> list[str | None]:
        owners = _owners(conn, {digest(each.token) for each in found if each})
        metrics = {each.id: each for each in _metrics(conn, set(owners.values()))}
        jobs = _locked(conn, metrics)
        codes: list[str | None] = []
        for ping in found:
            metric_id = owners.get(digest(ping.token)) if ping else None
            job = jobs.get(metric_id or "")
            codes.append(None if ping and job else NOT_FOUND if ping else INVALID)
            if ping and job and metric_id:
                after = pinged(job, ping, agent_id)
                told = after is not job and ping.kind != START
                jobs[metric_id] = self._judge(conn, metrics[metric_id], (job, after), told)
        return codes

    # -- silence

    def step(self) -> float:
        """One look at every job."""
        if not self._lease.take(self._clock.now()):
            return PAUSE
        with self._database.read() as conn:
            metrics = _metrics(conn)
            jobs, beats = _read(conn, [each.id for each in metrics]), _beats(conn)
        now = self._clock.now()
        due = [each for each in metrics if self._is_due(each, jobs.get(each.id), beats, now)]
        if due:
            self._partitions.ensure(now)
        for each in due:
            self._database.run(lambda conn, metric=each: self._look(conn, metric, beats))  # type: ignore[misc]
        return EVERY

    def stop(self) -> None:
        """Lets another process go on at once."""
        self._lease.release()

    def _is_due(self, metric: Metric, job: Job | None, beats: Mapping[str, float | None], now: float) -> bool:
        if job is None or now - job.pushed_at >= metric.again:
            return True
        job = _blinded(job, beats, now)
        found = self._verdict(metric, job, now)
        return (found.status, found.reason) != (job.status, job.reason) or job.blind_at == now

    def _look(self, conn: Connection, metric: Metric, beats: Mapping[str, float | None]) -> None:
        """Judges anew what stands in the row once it is held: a ping may have come since the look."""
        now = self._clock.now()
        job = _locked(conn, [metric.id]).get(metric.id, Job())
        self._judge(conn, metric, (job, _blinded(job, beats, now)), now - job.pushed_at >= metric.again)

    # -- judging, the row of the job held

    def _verdict(self, metric: Metric, job: Job, now: float) -> Verdict:
        """How a job is; while this hub has just begun, pings that waited for it may still come."""
        found = verdict(job, metric.rule, now)
        if job.status and found.reason in (OVERDUE, TOO_LONG) and now - self._began < SETTLE:
            return found._replace(status=Status(job.status), reason=job.reason)
        return found

    def _judge(self, conn: Connection, metric: Metric, change: tuple[Job, Job], told: bool) -> Job:
        """Keeps what has become of a job, and its verdict where that is new or `told` asks for it."""
        now, (before, job) = self._clock.now(), change
        found = self._verdict(metric, job, now)
        moved = (found.status.value, found.reason) != (before.status, before.reason)
        if moved or told:
            job = replace(job, status=found.status.value, reason=found.reason, pushed_at=now)
            _push(conn, metric, job)
        if job != before:
            _put(conn, JOB, metric.id, asdict(job))
        if before.status != job.status:
            _state(conn, metric, job)
            if before.status:
                _tell(conn, metric, before, job)
        return job


def _blinded(job: Job, beats: Mapping[str, float | None], now: float) -> Job:
    """The job, with the moment noted where the agent that relays its pings is silent."""
    if job.agent_id is None or now - (beats.get(job.agent_id) or 0.0) < OFFLINE_SECONDS:
        return job
    noted = job.blind_at is not None and now - job.blind_at < BLIND_EVERY
    return job if noted else replace(job, blind_at=now)


# -- the tables


def _metrics(conn: Connection, ids: Iterable[str] | None = None) -> list[Metric]:
    """The metrics of the kind; of some ids alone where they are named."""
    metrics = schema.metrics
    query = select(metrics).where(metrics.c.managed.is_(True), metrics.c.source_type == HEARTBEAT)
    if ids is not None:
        query = query.where(metrics.c.id.in_(list(ids)))
    found = []
    for row in conn.execute(query):
        wire = json.loads(row.definition)
        with suppress(InvalidConfig):  # of a version that judged it otherwise
            rule, again = parse(wire["source_config"]), float(wire["interval_agent_push"]) * 60
            found.append(Metric(row.id, row.key, row.title or row.key, rule, again))
    return found


def _owners(conn: Connection, digests: Iterable[str]) -> dict[str, str]:
    """The ids of metrics by the digests of their tokens."""
    objects = schema.objects
    query = select(objects.c.key, objects.c.body).where(objects.c.kind == TOKEN, objects.c.key.in_(list(digests)))
    return {row.key: json.loads(row.body)["metric_id"] for row in conn.execute(query)}


def _read(conn: Connection, ids: Iterable[str], hold: bool = False) -> dict[str, Job]:
    objects = schema.objects
    query = select(objects.c.key, objects.c.body).where(objects.c.kind == JOB, objects.c.key.in_(list(ids)))
    rows = conn.execute(query.order_by(objects.c.key).with_for_update() if hold else query)
    return {row.key: Job(**json.loads(row.body)) for row in rows}


def _locked(conn: Connection, ids: Iterable[str]) -> dict[str, Job]:
    """The jobs, their rows held until the transaction ends; in the order of their ids, as everybody takes them."""
    return _read(conn, ids, hold=True)


def _beats(conn: Connection) -> dict[str, float | None]:
    agents = schema.agents
    return {row.id: row.last_heartbeat_at for row in conn.execute(select(agents.c.id, agents.c.last_heartbeat_at))}


def _put(conn: Connection, kind: str, key: str, body: Mapping[str, Any]) -> None:
    text = json.dumps(body)
    fresh = upsert(conn, schema.objects).values(kind=kind, key=key, body=text)
    conn.execute(fresh.on_conflict_do_update(index_elements=["kind", "key"], set_={"body": text}))


def _push(conn: Connection, metric: Metric, job: Job) -> None:
    """The verdict as a row of the history, and as the latest one."""
    said = {"value": job.ran, "timestamp": job.pushed_at, "status": job.status, "reason": job.reason}
    row = {"metric_id": metric.id, "agent_id": HUB, "received_at": job.pushed_at, **said}
    conn.execute(schema.pushes.insert().values(row))
    same = {name: row[name] for name in (*said, "received_at")}
    latest = upsert(conn, schema.latest).values(row)
    conn.execute(latest.on_conflict_do_update(index_elements=["metric_id", "agent_id"], set_=same))


def _state(conn: Connection, metric: Metric, job: Job) -> None:
    """The status in force: at once, because a grace has been waited for already."""
    row = {"status": job.status, "since": job.pushed_at, "candidate": None, "candidate_since": None}
    fresh = upsert(conn, schema.states).values(metric_id=metric.id, agent_id=HUB, **row)
    conn.execute(fresh.on_conflict_do_update(index_elements=["metric_id", "agent_id"], set_=row))


def _tell(conn: Connection, metric: Metric, before: Job, job: Job) -> None:
    names = {"metric_id": metric.id, "metric_title": metric.title, "agent_id": HUB, "agent_name": HUB}
    moment = {"timestamp": iso(job.pushed_at)}
    changed = {**names, "old_status": before.status, "new_status": job.status, "value": job.ran, **moment}
    emit(conn, Event(STATUS_CHANGED, job.pushed_at, changed, metric_id=metric.id))
    if job.status == Status.NO_DATA:
        emit(conn, Event(NO_DATA, job.pushed_at, {**names, "reason": job.reason, **moment}, metric_id=metric.id))


def _shown(metric: Metric, job: Job) -> dict[str, Any]:
    last = max((each for each in (job.finished_at, job.started_at) if each is not None), default=None)
    return {
        "key": metric.key,
        "title": metric.title,
        "status": job.status or None,
        "reason": job.reason,
        "token": f"{job.hint}…" if job.hint else None,
        "last_ping_at": None if last is None else iso(last),
        "last_kind": job.kind or None,
        "exit_code": job.exit_code,
        "relayed_by": job.agent_id,
    }
