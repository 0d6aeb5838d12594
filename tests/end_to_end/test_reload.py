"""Reload and rotation in a real agent: settings and key change under way, phases and samples stay."""

from __future__ import annotations

import itertools
import os
import signal

import pytest

from observer_agent.clock import parse_iso
from tests.site import Site, metric

pytestmark = pytest.mark.slow


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    made.close()


def define(site, interval="1s"):
    site.open_hub(
        [metric("tcp", "tcp", {"host": "127.0.0.1", "port": site.listen()}, interval=interval, push=interval)]
    )


def start(site, **env):
    """An agent as the unit runs it: the key in a file, a folder of the run into which a reload puts fresh copies."""
    run = site.folder / "run"
    run.mkdir(exist_ok=True)
    site.start_agent(AGENT_KEY="", RUNTIME_DIRECTORY=str(run), **env)
    site.until(site.state)


def reload(site):
    count = site.log.count("The settings")
    site.agent.send_signal(signal.SIGHUP)
    site.until(lambda: site.log.count("The settings") > count)


def test_a_wrong_key_is_no_end_and_the_right_one_is_found_without_a_reload(site):
    define(site)
    key = site.folder / "key"
    key.write_text("obs_live_wrong")
    (site.folder / "definitions.yaml").write_text(site.document.read_text())
    start(site, AGENT_KEY_FILE=str(key), DEFINITIONS_FILE=str(site.folder / "definitions.yaml"))
    state = site.until(lambda: (s := site.state()) and s["queue"]["depth"] >= 2 and s)
    assert "401" in state["cloud"]["problem"] and not state["cloud"]["delivering"]
    pid = site.agent.pid
    key.write_text(site.key)
    site.until(lambda: site.state()["cloud"]["delivering"] and site.pushes(), 60)
    assert site.agent.poll() is None and site.agent.pid == pid
    assert "the one that has taken its place is used" in site.log
    assert site.key not in site.log and "obs_live_wrong" not in site.log
    assert site.hub_agent()["restarts"] == 0


def test_the_copy_that_a_reload_brings_wins_over_the_credential(site):
    define(site)
    credentials = site.folder / "credentials"
    credentials.mkdir()
    (credentials / "agent_key").write_text(site.key)
    start(site, CREDENTIALS_DIRECTORY=str(credentials))
    site.until(lambda: site.state()["cloud"]["delivering"])
    other = site.hub.create_key("other")
    (site.folder / "run" / "agent_key").write_text(other)
    reload(site)
    assert "AGENT_KEY changed" in site.log
    site.until(lambda: len([a for a in site.hub_agents() if a["last_heartbeat_at"]]) == 2, 10)
    assert other not in site.log


def test_a_reload_changes_settings_and_keeps_phases(site):
    define(site, interval="3s")
    start(site, AGENT_KEY_FILE=str(write_key(site)))
    first = site.until(lambda: [d for d in site.state()["definitions"] if d["last_run_at"]])[0]
    (site.folder / "run" / "agent.env").write_text('# by hand\nBUFFER_MAX_ROWS=77\nVERBOSE="true"\nLOG_FORMAT=json\n')
    reload(site)
    state = site.state()
    assert state["queue"]["capacity"] == 77
    assert "BUFFER_MAX_ROWS, VERBOSE changed" in site.log
    assert "LOG_FORMAT changed: restart the agent for it" in site.log
    assert state["definitions"][0]["last_run_at"] >= first["last_run_at"], "the job has not begun afresh"
    assert state["process"]["pid"] == site.agent.pid
    rows = site.until(lambda: (r := site.pushes()) and len(r) >= 3 and r)
    stamps = sorted(parse_iso(row["timestamp"]) for row in rows)
    steps = [later - earlier for earlier, later in itertools.pairwise(stamps)]
    assert all(abs(step - 3 * round(step / 3)) < 0.5 and step > 1 for step in steps), f"the grid has moved: {steps}"


def test_a_reload_with_a_wrong_setting_changes_nothing(site):
    define(site)
    start(site, AGENT_KEY_FILE=str(write_key(site)))
    site.until(lambda: site.state()["cloud"]["delivering"])
    (site.folder / "run" / "agent.env").write_text("BUFFER_MAX_ROWS=many\nCLOUD_SERVER_URL=http://127.0.0.1:1\n")
    reload(site)
    assert "could not be read again (BUFFER_MAX_ROWS='many'" in site.log
    rows = len(site.pushes())
    site.until(lambda: len(site.pushes()) > rows)


def write_key(site):
    file = site.folder / "key"
    file.write_text(site.key)
    os.chmod(file, 0o600)
    return file
