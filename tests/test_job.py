"""How a job's next look is judged beforehand: quick, instant, or nothing of the kind."""

from __future__ import annotations

from observer_agent.job import INSTANT_MS, QUICK_MS, Job
from observer_agent.model import Definition, Reading, Status, Verdict

FINE = Verdict(Status.HEALTHY, 1.0, None)


def a_job() -> Job:
    return Job(Definition("a", "tcp", 1.0, 60.0, "a"), 0.0)


def looked(job: Job, took_ms: float, times: int = 1) -> Job:
    for _ in range(times):
        job.reading = Reading(1.0, duration_ms=took_ms)
        job.remember(0.0, job.reading, FINE)
    return job


def test_a_job_is_judged_by_its_best_look_of_late() -> None:
    assert not a_job().quick and not a_job().instant
    assert looked(a_job(), INSTANT_MS / 2).instant
    assert looked(a_job(), QUICK_MS / 2).quick and not looked(a_job(), QUICK_MS / 2).instant
    job = looked(a_job(), INSTANT_MS / 2)
    assert looked(job, 50.0).instant, "one look may have had to wait for other threads"
    assert not looked(job, 50.0, times=10).instant


def test_a_look_that_took_no_time_at_all_is_forgotten_like_any_other() -> None:
    job = looked(a_job(), 0.0)
    assert job.instant
    assert not looked(job, 5000.0, times=30).quick


def test_a_job_whose_last_look_was_slow_is_not_quick_though_it_was_before() -> None:
    job = looked(a_job(), 0.1)
    job.slow = True
    assert not job.quick and not job.instant
