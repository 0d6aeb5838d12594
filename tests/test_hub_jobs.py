"""Jobs that tell by pings that they ran: tokens, pings through an agent's relay, silence, what the hub concludes."""

from __future__ import annotations

import io
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observer_agent import document
from observer_agent.agent import Agent
from observer_agent.clock import Clock, iso
from observer_agent.config import load
from observer_agent.errors import InvalidConfig, UsageError
from observer_agent.hub import apply, schema
from observer_agent.hub.job_store import EVERY, PAUSE, Jobs
from observer_agent.hub.jobs import SETTLE, Job, Ping, Rule, parse, pinged, verdict
from observer_agent.hub.ticker import Ticker
from observer_agent.logs import Redactor, configure
from tests.watch import Watch
from tests.wire_hub import HubProcess, TestHub, memory_hub, served

DAY = 86_400.0
CONFIG = "{period_seconds: 86400, grace_seconds: 600, max_runtime_seconds: 3600}"
DOCUMENT = f"""
apiVersion: observer/v1
metrics:
  - key: backup
    title: Nightly backup
    source_type: heartbeat
    source_config: {CONFIG}
"""
BEAT: dict[str, Any] = {"queue_depth": 0, "queue_oldest_age_seconds": 0}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    with memory_hub(tmp_path) as made:
        made.clock.advance(SETTLE)  # it has been there for a while
        yield made


@pytest.fixture
def token(hub: TestHub) -> str:
    put(hub)
    return hub.store.jobs.create_token("cli:me", "backup")


def put(hub: TestHub, text: str = DOCUMENT) -> Any:
    return apply.apply(hub.store, document.read(text, "d.yaml", apply.check), apply.Options())


def ping(hub: TestHub, token: str, kind: str = "success", ago: float = 0.0, **more: Any) -> Any:
    """One ping that the agent hands on now, `ago` seconds after it came."""
    now = hub.clock.now()
    given = {"token": token, "kind": kind, "exit_code": None, "received_at": iso(now - ago), **more}
    return relay(hub, [given])


def relay(hub: TestHub, pings: list[Any], sent_at: float | None = None) -> Any:
    sent = iso(hub.clock.now() if sent_at is None else sent_at)
    answer = hub.post("heartbeat-relay", {"sent_at": sent, "pings": pings})
    assert answer.status_code == 200, answer.text
    return answer.json


def passes(hub: TestHub, seconds: float, beats: bool = True) -> tuple[str, str | None]:
    """Time goes by, heartbeats of the agent come or do not; how the job is then."""
    hub.clock.advance(seconds)
    if beats:
        hub.beat(BEAT)
    assert hub.store.jobs.step() == EVERY
    return state(hub)


def state(hub: TestHub) -> tuple[str, str | None]:
    (found,) = hub.store.jobs.all()
    return found["status"], found["reason"]


def told(hub: TestHub) -> list[tuple[str, str]]:
    """Every change of status, oldest first."""
    events = [each["data"] for each in hub.get("events")["events"] if each["event_type"] == "metric.status_changed"]
    return [(each["old_status"], each["new_status"]) for each in reversed(events)]


# -- pure: configurations, pings, verdicts


def test_configurations() -> None:
    assert parse({"period_seconds": 60}) == Rule(60.0, 300.0, None)
    assert parse({"period_seconds": 60, "grace_seconds": 0, "max_runtime_seconds": 1}) == Rule(60.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "period_seconds"),
        ({"period_seconds": 59}, "period_seconds"),
        ({"period_seconds": 2_678_401}, "period_seconds"),
        ({"period_seconds": "60"}, "period_seconds"),
        ({"period_seconds": True}, "period_seconds"),
        ({"period_seconds": 60, "grace_seconds": -1}, "grace_seconds"),
        ({"period_seconds": 60, "grace_seconds": 604_801}, "grace_seconds"),
        ({"period_seconds": 60, "max_runtime_seconds": 0}, "max_runtime_seconds"),
        ({"period_seconds": 60, "token": "x"}, "token"),
    ],
)
def test_a_configuration_that_is_refused_names_its_field(config: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidConfig, match=f"^{field}: "):
        parse(config)


KINDS = st.sampled_from(["start", "success", "fail"])
# Two pings of one moment have no order that a replay could keep.
TIMES = st.lists(st.tuples(st.integers(0, 5000), KINDS), max_size=12, unique_by=lambda each: each[0])


@given(TIMES, st.integers(0, 11), st.integers(0, 11))
def test_pings_that_come_again_change_nothing(times: list[tuple[int, str]], first: int, last: int) -> None:
    pings = [Ping("t", kind, None, float(at), float(at)) for at, kind in sorted(set(times))]
    once, again = Job(), Job()
    for each in pings:
        once = pinged(once, each, "a")
    for each in (*pings[:last], *pings[first:last], *pings):
        again = pinged(again, each, "a")
    assert again == once


@given(TIMES, st.integers(0, 100_000), st.sampled_from([None, 30.0]))
def test_the_verdict_is_what_its_words_say(times: list[tuple[int, str]], now: int, runtime: float | None) -> None:
    rule, job = Rule(600.0, 60.0, runtime), Job()
    for at, kind in sorted(set(times)):
        job = pinged(job, Ping("t", kind, None, float(at), float(at)), "a")
    found = verdict(job, rule, float(now))
    good = job.finished_at is not None and not job.failed
    if found.status == "healthy":
        assert good and now <= (job.finished_at or 0) + 660 and found.reason is None
    assert (found.reason == "job_failed") == job.failed
    if good and found.status == "unhealthy":
        assert now > (job.finished_at or 0) + 660 or now > (job.started_at or 0) + (runtime or 0)


# -- the document


def test_a_job_needs_no_thresholds_and_no_agent_gets_it(hub: TestHub) -> None:
    assert not put(hub).remarks
    answer = hub.client().get("/api/agent/metrics-definitions", headers={"Agent-Key": hub.key})
    assert answer.json == []
    (listed,) = hub.get("metrics")["metrics"]
    assert (listed["key"], listed["source_type"], listed["status"]) == ("backup", "heartbeat", None)


def test_what_the_document_refuses(hub: TestHub) -> None:
    text = DOCUMENT.replace("86400", "5")
    outcome = put(hub, text)
    said = "d.yaml:7: metric 'backup' is left out: source_config: period_seconds: must be a whole number from 60 to"
    assert outcome.refused and said in str(outcome.remarks[0])


def test_an_objective_of_a_job_is_evaluated(hub: TestHub) -> None:
    slo = "services:\n  - key: s\n    slos: [{key: o, metric: backup, target_pct: 99, window_days: 30}]\n"
    assert not put(hub, DOCUMENT + slo).remarks


# -- tokens


def test_a_token_is_shown_once_and_the_one_before_ends(hub: TestHub, token: str) -> None:
    assert len(token) == 32 and token.isalnum() and token.isascii()
    assert ping(hub, token)["accepted"] == 1
    newer = hub.store.jobs.create_token("cli:me", "backup")
    assert ping(hub, token)["rejected"] == [{"index": 0, "code": "not_found"}]
    assert ping(hub, newer)["accepted"] == 1
    with hub.database.read() as conn:
        kept = "".join(row.body + row.key for row in conn.execute(schema.objects.select()))
        actions = [row.action for row in conn.execute(schema.audit.select())]
    assert token not in kept and newer not in kept and actions.count("job.token") == 2
    assert hub.store.jobs.all()[0]["token"] == f"{newer[:4]}…"


def test_a_token_for_nothing(hub: TestHub) -> None:
    with pytest.raises(UsageError, match="no metric 'backup' of the source type heartbeat"):
        hub.store.jobs.create_token("cli:me", "backup")


def test_a_job_that_is_pruned_takes_no_ping_until_it_is_back(hub: TestHub, token: str) -> None:
    empty = document.read("apiVersion: observer/v1\nmetrics: []\n", "d.yaml", apply.check)
    apply.apply(hub.store, empty, apply.Options(prune=True))
    assert ping(hub, token)["rejected"] == [{"index": 0, "code": "not_found"}]
    assert hub.store.jobs.step() == EVERY
    put(hub)
    assert ping(hub, token)["accepted"] == 1


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path)
    assert hub.command("job", "token", "backup").returncode == 1
    (tmp_path / "d.yaml").write_text(DOCUMENT)
    assert hub.command("apply", "--file", str(tmp_path / "d.yaml")).returncode == 0
    made = hub.command("job", "token", "backup").stdout.splitlines()[-1]
    assert len(made) == 32
    assert json.loads(hub.command("job", "token", "backup", "--json").stdout)["key"] == "backup"
    assert "no ping yet" in hub.command("job", "list").stdout
    (listed,) = json.loads(hub.command("job", "list", "--json").stdout)["jobs"]
    assert (listed["key"], listed["status"], listed["last_ping_at"]) == ("backup", None, None)


# -- pings


def test_before_the_first_ping_there_is_no_data_however_long(hub: TestHub, token: str) -> None:
    assert passes(hub, 5) == ("no_data", "no_ping_yet")
    assert passes(hub, 40 * DAY) == ("no_data", "no_ping_yet")
    assert told(hub) == []


def test_a_run_with_start_and_end(hub: TestHub, token: str) -> None:
    passes(hub, 5)
    ping(hub, token, "start")
    assert state(hub) == ("no_data", "no_ping_yet")
    hub.clock.advance(90)
    ping(hub, token, exit_code=0)
    assert state(hub) == ("healthy", None)
    (newest, *_) = hub.pushes(document.metric_id("backup"))
    assert (newest["value"], newest["status"], newest["agent_id"]) == (90.0, "healthy", "hub")
    assert told(hub) == [("no_data", "healthy")]


@pytest.mark.parametrize("code", [None, 3])
def test_a_failure_is_told_at_once_and_a_success_ends_it(hub: TestHub, token: str, code: int | None) -> None:
    ping(hub, token)
    ping(hub, token, "fail", exit_code=code, received_at=iso(hub.clock.now() + 1))
    assert state(hub) == ("unhealthy", "job_failed")
    assert hub.store.jobs.all()[0]["exit_code"] == code
    hub.clock.advance(60)
    ping(hub, token, "start")
    assert state(hub) == ("unhealthy", "job_failed")
    hub.clock.advance(60)
    ping(hub, token)
    assert told(hub) == [("healthy", "unhealthy"), ("unhealthy", "healthy")]


def test_each_end_of_a_run_is_in_the_history_once(hub: TestHub, token: str) -> None:
    now = hub.clock.now()
    pings = [
        {"token": token, "kind": kind, "received_at": iso(now - 100 + n)}
        for n, kind in enumerate(["start", "success", "start", "success"])
    ]
    for _ in range(3):  # the answer was lost twice
        assert relay(hub, pings) == {"accepted": 4, "rejected": []}
    rows = hub.pushes(document.metric_id("backup"))
    assert [row["value"] for row in rows] == [1.0, 1.0, 0.0]  # the first start is the first verdict


def test_what_is_said_to_each_ping(hub: TestHub, token: str) -> None:
    good = {"token": token, "kind": "success", "received_at": iso(hub.clock.now())}
    bad = [{**good, "kind": "maybe"}, {**good, "token": "short"}, {**good, "received_at": "soon"}, 7]
    answer = relay(hub, [*bad, {**good, "token": "k" * 32}, good])
    assert answer["accepted"] == 1
    assert [each["code"] for each in answer["rejected"]] == ["invalid"] * 4 + ["not_found"]
    assert [each["index"] for each in answer["rejected"]] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("off", [-7200.0, 7200.0])
def test_the_agent_s_clock_does_not_matter(hub: TestHub, token: str, off: float) -> None:
    now = hub.clock.now() + off
    relay(hub, [{"token": token, "kind": "success", "received_at": iso(now - 100)}], sent_at=now)
    assert hub.store.jobs.all()[0]["last_ping_at"] == iso(hub.clock.now() - 100)


def test_a_ping_that_waited_counts_for_when_it_came(hub: TestHub, token: str) -> None:
    ping(hub, token)
    assert passes(hub, DAY + 601) == ("unhealthy", "job_overdue")
    ping(hub, token, ago=3600)  # in time, by an agent that could not send
    assert state(hub) == ("healthy", None)
    assert passes(hub, DAY - 3600 + 600) == ("healthy", None)
    assert passes(hub, 1) == ("unhealthy", "job_overdue")
    ping(hub, token, ago=DAY / 2)
    ping(hub, token, ago=DAY - 10)  # older than what is known
    assert passes(hub, DAY / 2 + 590) == ("healthy", None)


def test_a_job_that_moves_to_another_machine(hub: TestHub, token: str) -> None:
    """The other agent's clock is an hour behind; its pings count all the same."""
    ping(hub, token)
    job = Job(agent_id="a", stamp=5000.0, kind="success", finished_at=5000.0)
    moved = pinged(job, Ping("t", "fail", None, 1500.0, 5100.0), "b")
    assert (moved.agent_id, moved.failed) == ("b", True)
    assert pinged(job, Ping("t", "fail", None, 9000.0, 4000.0), "b") is job


# -- silence


def test_silence(hub: TestHub, token: str) -> None:
    ping(hub, token)
    assert passes(hub, DAY + 600) == ("healthy", None)
    assert passes(hub, 1) == ("unhealthy", "job_overdue")
    ping(hub, token)
    assert told(hub) == [("healthy", "unhealthy"), ("unhealthy", "healthy")]


def test_a_run_that_takes_too_long(hub: TestHub, token: str) -> None:
    ping(hub, token)
    hub.clock.advance(10)
    ping(hub, token, "start")
    assert passes(hub, 3600) == ("healthy", None)
    assert passes(hub, 1) == ("unhealthy", "job_runs_too_long")
    ping(hub, token)
    assert state(hub) == ("healthy", None)


def test_a_relay_that_is_silent_says_nothing_about_the_job(hub: TestHub, token: str) -> None:
    ping(hub, token)
    assert passes(hub, DAY + 700, beats=False) == ("no_data", "relay_silent")
    assert passes(hub, 3600, beats=False) == ("no_data", "relay_silent")
    assert passes(hub, 5) == ("no_data", "relay_silent")  # it is back, and its pings are on their way
    ping(hub, token, ago=3600)
    assert state(hub) == ("healthy", None)
    assert told(hub) == [("healthy", "no_data"), ("no_data", "healthy")]


def test_a_relay_that_comes_back_without_pings(hub: TestHub, token: str) -> None:
    ping(hub, token)
    passes(hub, DAY + 700, beats=False)
    for _ in range(3):
        assert passes(hub, 30) == ("no_data", "relay_silent")
    assert passes(hub, 30) == ("unhealthy", "job_overdue")
    assert passes(hub, 3600, beats=False) == ("unhealthy", "job_overdue")  # that it was late stays true


def test_a_hub_that_has_just_begun_waits_for_pings(hub: TestHub, token: str) -> None:
    ping(hub, token)
    passes(hub, 5)
    hub.store.jobs.stop()
    hub.clock.advance(2 * DAY)
    hub.beat(BEAT)
    began = Jobs(hub.database, hub.clock, hub.store.partitions)
    began.step()
    assert state(hub) == ("healthy", None)
    hub.clock.advance(SETTLE)
    hub.beat(BEAT)
    began.step()
    assert state(hub) == ("unhealthy", "job_overdue")


def test_the_verdict_is_written_down_again_each_push_interval(hub: TestHub, token: str) -> None:
    ping(hub, token)
    for _ in range(60):
        passes(hub, 30)
    rows = hub.pushes(document.metric_id("backup"))
    assert [row["status"] for row in rows] == ["healthy"] * 7  # the ping, and then every five minutes
    (listed,) = hub.get("metrics")["metrics"]
    assert listed["status"] == "healthy"


def test_one_hub_process_at_a_time_judges_silence(hub: TestHub, token: str) -> None:
    assert hub.store.jobs.step() == EVERY
    other = Jobs(hub.database, hub.clock, hub.store.partitions)
    assert other.step() == PAUSE
    hub.store.jobs.stop()
    assert other.step() == EVERY


@pytest.mark.slow
def test_a_thousand_jobs_are_looked_at_quickly(hub: TestHub) -> None:
    metrics = [f"  - {{key: job-{n}, source_type: heartbeat, source_config: {CONFIG}}}" for n in range(1000)]
    put(hub, "\n".join(["apiVersion: observer/v1", "metrics:", *metrics]))
    hub.store.jobs.step()
    watch = Watch()
    hub.store.jobs.step()
    assert watch.seconds < 1.0
    assert {each["status"] for each in hub.store.jobs.all()} == {"no_data"}


# -- what is shown


def test_the_console_shows_a_job(hub: TestHub, token: str) -> None:
    ping(hub, token, "fail", exit_code=2)
    metric = document.metric_id("backup")
    for path in ("/", "/console/metrics", f"/console/metric?id={metric}", "/console/events"):
        answer = hub.client().get(path)
        assert answer.status_code == 200, (path, answer.text)
    page = hub.client().get(f"/console/metric?id={metric}").text
    assert "Nightly backup" in page and "job_failed" in page


def test_the_ticker_looks_at_jobs(hub: TestHub, token: str) -> None:
    ticker = Ticker(hub.store, hub.clock)
    steps: dict[str, Any] = {}
    ticker.also = lambda name, step: steps.__setitem__(name, step)  # type: ignore[method-assign]
    ticker._courier.worker.start = lambda: None  # type: ignore[method-assign]
    ticker.start()
    assert steps["jobs"] == hub.store.jobs.step


# -- end to end


def test_a_cron_job_behind_an_agent_s_relay(hub: TestHub, token: str, tmp_path: Path) -> None:
    """A ping into the agent's relay, over the wire, into the hub's verdict."""
    with served(hub.app) as url:
        env = {"AGENT_KEY": hub.key, "CLOUD_SERVER_URL": url, "BUFFER_PATH": str(tmp_path / "b.db")}
        clock = Clock()
        logs = configure("text", True, clock, Redactor(), io.StringIO())
        relaying = {"HEARTBEAT_RELAY_ENABLED": "true", "HEARTBEAT_RELAY_PORT": "0"}
        agent = Agent(load({**env, **relaying}), clock, logs, {})
        agent.start()
        try:
            place = until(lambda: agent.relay.at if agent.relay else None)
            for path, wanted in (("start", None), ("0", "healthy"), ("7", "unhealthy")):
                with urllib.request.urlopen(f"http://{place}/heartbeat/{token}/{path}", timeout=10) as answer:
                    assert answer.status == 202
                until(lambda wanted=wanted: wanted is None or state(hub)[0] == wanted)  # type: ignore[misc]
            (listed,) = hub.store.jobs.all()
            assert (listed["reason"], listed["exit_code"], listed["last_kind"]) == ("job_failed", 7, "fail")
            assert told(hub)[-1] == ("healthy", "unhealthy")
        finally:
            agent.stop()
            logs.close()


def until(what: Any) -> Any:
    alarm = Clock().alarm()
    for _ in range(400):
        if found := what():
            return found
        alarm.wait(0.05)
    raise AssertionError("not within twenty seconds")
