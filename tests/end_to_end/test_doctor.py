"""The doctor as a command, beside real agents and a real hub: it finds, and it disturbs nobody."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from observer_agent.demo.stage import clean_env, free_port
from tests.servers import Server, answer, read_request
from tests.site import Site, metric
from tests.watch import Watch

pytestmark = pytest.mark.slow
ADDED = 0.7  # what a busy machine may add to the five seconds by starting Python


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    made.close()


def env_of(site: Site, **more: str) -> dict[str, str]:
    return clean_env(
        {
            "AGENT_KEY": site.key,
            "CLOUD_SERVER_URL": f"http://127.0.0.1:{site.hub.port}",
            "BUFFER_PATH": str(site.buffer),
            "DEBUG_DASHBOARD_PORT": str(site.page),
            **more,
        }
    )


def doctor(env: dict[str, str], *words: str) -> tuple[int, str]:
    """Exit code and output of the command; in time."""
    watch = Watch()
    command = [sys.executable, "-X", "dev", "-m", "observer_agent", "doctor", *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
    assert watch.seconds < 5.0 + ADDED
    assert done.stderr == ""
    return done.returncode, done.stdout


def first(env: dict[str, str]) -> dict:
    code, out = doctor(env, "--json")
    report = json.loads(out)
    assert report["exit_code"] == code
    return report["findings"][0]


def targets(site: Site, web: Server) -> list[dict]:
    return [
        metric("tcp", "tcp", {"host": "127.0.0.1", "port": site.listen()}),
        metric("web", "http", {"url": web.url}),
    ]


@pytest.fixture
def web():
    def handler(conn, server):
        conn.sendall(answer(read_request(conn)))  # an echo of everything that it was sent

    with Server(handler) as server:
        yield server


def delivering(site: Site):
    return site.until(lambda: (found := site.state()) and found["cloud"]["last_push_at"] and found)


def test_a_host_in_order_and_nobody_is_disturbed(site, web):
    site.open_hub(targets(site, web))
    site.start_agent()
    before = delivering(site)
    names = sorted(os.listdir(site.folder))
    for _ in range(3):
        code, out = doctor(env_of(site), "--json")
        report = json.loads(out)
        assert (code, report["ok"], report["findings"]) == (0, True, []), out
    by_name = {each["name"]: each["outcome"] for each in report["checks"]}
    wanted = {"settings", "key", "disk", "queue", "agent", "resolver", "tcp", "clock", "contract", "authentication"}
    assert {name for name, outcome in by_name.items() if outcome == "ok"} >= wanted | {"definitions", "sources"}
    code, out = doctor(env_of(site))
    assert code == 0 and "0 broken, 0 warnings in" in out.splitlines()[-1]
    assert "\x1b" not in out and out.isascii()
    # the agent goes on delivering, and the hub has seen nothing that it would count
    later = site.until(lambda: (s := site.state()) and s["queue"]["accepted"] > before["queue"]["accepted"] + 3 and s)
    assert later["cloud"]["delivering"] and later["losses"] == {}
    assert (site.hub_agent()["restarts"], site.hub_agent()["duplicate_key"]) == (0, False)
    assert sorted(os.listdir(site.folder)) == names


def test_an_agent_without_a_page_is_asked_about_at_the_hub(site, web):
    site.open_hub(targets(site, web))
    site.start_agent(ENABLE_DEBUG_DASHBOARD="false")
    site.until(lambda: site.hub_agent()["taken"])
    code, out = doctor(env_of(site, ENABLE_DEBUG_DASHBOARD="false"), "--json")
    assert (code, json.loads(out)["findings"]) == (0, []), out
    facts = {each["name"]: each["fact"] for each in json.loads(out)["checks"]}
    assert facts["duplicate"] == "an empty batch is answered with status 200"
    taken = site.hub_agent()["taken"]
    site.until(lambda: site.hub_agent()["taken"] > taken + 2)
    assert (site.hub_agent()["restarts"], site.hub_agent()["duplicate_key"]) == (0, False)


def test_a_wrong_key_is_the_cause_and_not_what_follows_from_it(site, web):
    site.open_hub(targets(site, web))
    site.key = "obs_live_" + "w" * 43
    site.start_agent()
    site.until(lambda: (s := site.state()) and "401" in str(s["cloud"]["problem"]))
    code, out = doctor(env_of(site), "--json")
    report = json.loads(out)
    assert code == 2
    assert [each["id"] for each in report["findings"] if each["severity"] == "broken"] == ["authentication.refused"]


def test_two_agents_with_one_key(site, web, tmp_path):
    site.open_hub(targets(site, web))
    site.start_agent()
    delivering(site)
    folder = tmp_path / "other"
    folder.mkdir()
    other = Site(folder)
    other.hub.port, other.key = site.hub.port, site.key
    try:
        other.start_agent()
        delivering(other)
        site.until(lambda: (s := site.state()) and s["cloud"]["fenced_by"])
        newest = site.hub_agent()["agent_started_at"]
        assert first(env_of(site))["id"] == "duplicate.fenced"
        # the same without the local page: the start time is in the queue file
        assert first(env_of(site, ENABLE_DEBUG_DASHBOARD="false"))["id"] == "duplicate.fenced"
        code, out = doctor(env_of(other), "--json")
        assert (code, json.loads(out)["findings"]) == (0, []), out
        assert site.hub_agent()["agent_started_at"] == newest
        assert not other.state()["cloud"]["fenced_by"]
    finally:
        other.close()


def test_a_hub_that_is_away(site, web):
    site.open_hub(targets(site, web))
    site.start_agent()
    delivering(site)
    site.hub.kill()
    site.until(lambda: (s := site.state()) and not s["cloud"]["delivering"])
    report = json.loads(doctor(env_of(site), "--json")[1])
    assert [each["id"] for each in report["findings"]] == ["tcp.refused"], report


def test_an_agent_that_was_stopped_in_the_middle(site, web):
    site.open_hub(targets(site, web))
    site.start_agent()
    delivering(site)
    site.agent.send_signal(signal.SIGSTOP)
    assert first(env_of(site))["id"] == "agent.frozen"


def test_the_command_without_anything(tmp_path):
    env = clean_env({"BUFFER_PATH": str(tmp_path / "b.db"), "DEBUG_DASHBOARD_PORT": str(free_port())})
    env["CLOUD_SERVER_URL"] = "https://use.observer.invalid"
    report = json.loads(doctor(env, "--json")[1])
    assert [each["check"] for each in report["findings"]] == ["key", "resolver"]
    assert os.listdir(tmp_path) == []
