"""`status --watch` as a process: blocks below one another, lines of JSON, and a terminal of its own."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from observer_agent.dashboard import Page, Server
from observer_agent.demo.stage import clean_env, free_port
from tests.states import definition, state


@pytest.fixture
def page():
    """A page that says what `told` holds."""
    told = {"state": state([definition(n) for n in range(60)], summary="Delivering. 60 definitions.")}
    server = Server(
        "127.0.0.1", 0, {"/api/state": lambda: Page(200, "text/plain", json.dumps(told["state"]).encode())}, None
    )
    server.start()
    server.told = told
    yield server
    server.stop()


@pytest.fixture
def watch(tmp_path):
    made = []

    def start(port, *words, out=subprocess.PIPE):
        command = [sys.executable, "-m", "observer_agent", "status", *words]
        env = clean_env({"DEBUG_DASHBOARD_PORT": str(port), "BUFFER_PATH": str(tmp_path / "b.db"), "TERM": "xterm"})
        made.append(subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.PIPE, start_new_session=True))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.communicate()


def end(process, number=signal.SIGINT):
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    return process.returncode, out.decode() if out else "", err.decode()


def test_each_turn_is_a_block_where_there_is_no_terminal(watch, page):
    process = watch(page.server_port, "--watch", "--interval", "0.2")
    seen = 0
    while seen < 3:
        seen += process.stdout.readline().startswith(b"Delivering")
    code, rest, err = end(process)
    assert (code, err) == (0, "") and "\x1b" not in rest


def test_each_turn_is_a_line_of_json_and_the_code_is_that_of_the_last(watch, page):
    process = watch(page.server_port, "--watch", "--interval", "0.2", "--json")
    assert json.loads(process.stdout.readline())["summary"].startswith("Delivering")
    page.told["state"] = state([], cloud={**page.told["state"]["cloud"], "delivering": False})
    while json.loads(process.stdout.readline())["cloud"]["delivering"]:
        pass
    assert end(process, signal.SIGTERM)[0] == 1


def test_it_waits_for_an_agent_that_comes(watch, page):
    process = watch(free_port(), "--watch", "--interval", "0.2")
    assert process.stdout.readline() == b"observer-agent is not running\n"
    assert end(process)[0] == 3


def test_on_a_terminal_it_draws_in_place_and_leaves_the_last_state_behind(watch, page):
    ours, theirs = pty.openpty()
    process = watch(page.server_port, "--watch", "--interval", "0.2", out=theirs)
    os.close(theirs)
    seen = read_until(ours, lambda text: text.count("\x1b[H\x1b[2J") >= 3)
    assert seen.startswith("\x1b[?1049h")
    screen = seen.split("\x1b[H\x1b[2J")[1]
    assert screen.count("\n") < 24 and "more lines" in screen
    process.send_signal(signal.SIGINT)
    rest = read_until(ours, lambda text: "... and 10 more: --all" in text.rpartition("\x1b[?1049l")[2])
    assert re.match(r"Delivering\. 60 definitions", rest.rpartition("\x1b[?1049l")[2])
    os.close(ours)
    assert process.wait(20) == 0


def read_until(fd, done):
    text, deadline = "", time.monotonic() + 20
    while not done(text):
        assert time.monotonic() < deadline, text
        if select.select([fd], [], [], 0.2)[0]:
            text += os.read(fd, 65536).decode()
    return text


def test_once_verbose_and_all(watch, page):
    code, text, _ = run(watch(page.server_port))
    assert code == 0 and text.count("\nok ") == 50 and text.endswith("... and 10 more: --all\n")
    code, text, _ = run(watch(page.server_port, "--all", "-v"))
    assert text.count("\nok ") == 60 and text.count("resolve 0.1 ms, connect 0.4 ms") == 60
    assert "last run 5 s ago, took 0.5 ms; next in 13 s" in text
    code, text, err = run(watch(free_port()))
    assert (code, text, err) == (3, "", "observer-agent is not running\n")


def run(process):
    out, err = process.communicate(timeout=20)
    return process.returncode, out.decode(), err.decode()


def test_a_watcher_is_one_thread(watch, page):
    process = watch(page.server_port, "--watch", "--interval", "0.2")
    process.stdout.readline()
    assert len(os.listdir(f"/proc/{process.pid}/task")) == 1
    assert end(process)[0] == 0
