"""The front door as a process: exit codes, one-line complaints, JSON, and how little it imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from observer_agent import __version__, commands
from observer_agent.dashboard import Page, Server
from observer_agent.demo.stage import clean_env, free_port

KEY = "obs_live_" + "k" * 43


@pytest.fixture
def command(tmp_path):
    def run(*words, **env):
        settings = {"BUFFER_PATH": str(tmp_path / "b.db"), "DEBUG_DASHBOARD_PORT": str(free_port()), **env}
        return subprocess.run(
            [sys.executable, "-m", "observer_agent", *words],
            env=clean_env(settings),
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_version_and_help(command):
    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"observer-agent {__version__}\n")
    assert command("--help").returncode == 0


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["--version"]])
def test_the_front_door_imports_nothing_heavy(words):
    code = (
        "import sys\nfrom observer_agent.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        "heavy = {'requests', 'persistqueue', 'flask', 'urllib3', 'prometheus_client', 'ssl', 'sqlite3', 'asyncio'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", ["run", "check"])
@pytest.mark.parametrize(
    ("env", "parts"),
    [
        ({}, ["AGENT_KEY=(unset)", "AGENT_KEY_FILE"]),
        ({"AGENT_KEY": KEY, "BUFFER_MAX_ROWS": "many"}, ["BUFFER_MAX_ROWS='many'", "positive whole number"]),
        ({"AGENT_KEY": KEY, "DEFINITIONS_FILE": "/nonexistent.yaml"}, ["DEFINITIONS_FILE=", "cannot be read"]),
    ],
)
def test_a_wrong_setting_is_exit_78_and_one_line(command, verb, env, parts):
    done = command(verb, LOG_FORMAT="text", **env)
    assert done.returncode == 78
    complaints = [line for line in done.stderr.splitlines() if line.startswith("observer-agent: ")]
    assert len(complaints) == 1 and done.stdout == ""
    for part in parts:
        assert part in complaints[0]
    assert KEY not in done.stderr


def test_check_shows_the_settings_without_secrets(command):
    done = command("check", "--json", AGENT_KEY=KEY, PROMETHEUS_PASSWORD="hunter22")
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["ok"]
    assert report["settings"]["AGENT_KEY"] == "(set)"
    assert KEY not in done.stdout and "hunter22" not in done.stdout
    assert "BUFFER_MAX_ROWS" in command("check", AGENT_KEY=KEY).stdout


def test_a_command_takes_on_the_environment_of_the_installed_service(tmp_path, monkeypatch):
    """Its proxies, its file of CAs and its secrets count for `check --connect` and `probe`; what is set here wins."""
    (tmp_path / "agent.env").write_text("HTTPS_PROXY=http://proxy:3128\nPROBE_TOKEN=t0\nREQUESTS_CA_BUNDLE=/ca.pem\n")
    for name in ("HTTPS_PROXY", "PROBE_TOKEN"):
        monkeypatch.setenv(name, "before")
        monkeypatch.delenv(name)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/mine.pem")
    commands.join_service(tmp_path)
    assert os.environ["HTTPS_PROXY"] == "http://proxy:3128"
    assert os.environ["PROBE_TOKEN"] == "t0"
    assert os.environ["REQUESTS_CA_BUNDLE"] == "/mine.pem"


def test_check_connect_says_that_the_cloud_does_not_answer(command):
    url = f"http://127.0.0.1:{free_port()}"
    done = command("check", "--connect", "--json", AGENT_KEY=KEY, CLOUD_SERVER_URL=url)
    assert done.returncode == 1
    cloud = json.loads(done.stdout)["cloud"]
    assert (cloud["ok"], cloud["text"]) == (False, "connection refused")


def test_check_reads_the_document(command, tmp_path):
    document = {
        "apiVersion": "observer/v1",
        "metrics": [
            {
                "key": "a",
                "source_type": "tcp",
                "source_config": {"host": "h", "prot": 1},
                "thresholds": {
                    "healthy_operation": "over",
                    "healthy_value": 1,
                    "unhealthy_operation": "under",
                    "unhealthy_value": 0,
                },
            }
        ],
    }
    (tmp_path / "d.yaml").write_text(json.dumps(document))
    done = command("check", "--json", AGENT_KEY=KEY, DEFINITIONS_FILE=str(tmp_path / "d.yaml"))
    found = json.loads(done.stdout)["definitions"]
    assert found["count"] == 1 and "prot" in found["broken"][0]["problem"]


# -- probe


@pytest.fixture
def page():
    server = Server("127.0.0.1", 0, {"/": lambda: Page(200, "application/json", b'{"a": {"b": 7}}')}, None)
    server.start()
    yield server
    server.stop()


def test_probe_with_a_reading(command, page):
    done = command("probe", "http", f"url={page.url}/", "json_path=$.a.b", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert (found["source_type"], found["status"], found["value"], found["reason"]) == ("http", None, 7, None)
    assert found["duration_ms"] > 0 and {"connect", "first_byte"} <= set(found["phases"])


def test_probe_with_thresholds(command, page):
    rules = ["healthy_operation=over", "healthy_value=5", "unhealthy_operation=under", "unhealthy_value=1"]
    done = command("probe", "http", f"url={page.url}/", "json_path=$.a.b", *rules, "--json")
    assert json.loads(done.stdout)["status"] == "healthy"
    assert "[healthy]" in command("probe", "http", f"url={page.url}/", "json_path=$.a.b", *rules).stdout


def test_probe_without_a_reading_is_exit_1(command):
    done = command("probe", "tcp", "host=127.0.0.1", f"port={free_port()}", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["value"], found["reason"]) == (1, None, "ECONNREFUSED")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["probe"], "give TYPE"),
        (["probe", "tcp", "--file", "x"], "give TYPE"),
        (["probe", "pigeon"], "not known"),
        (["probe", "tcp", "host"], "not key=value"),
        (["probe", "tcp", "host=h"], "port"),
        (["probe", "tcp", "host=h", "port=1", "nonsense=1"], "nonsense"),
        (["probe", "tcp", "host=h", "port=1", "healthy_value=5"], "healthy_operation"),
        (["probe", "--file", "/nonexistent", "--key", "a"], "/nonexistent"),
        (["demo", "--seconds", "5"], "20"),
        (["nonsense"], "nonsense"),
        (["queue", "stats"], "does not exist"),
    ],
)
def test_wrong_usage_is_exit_2_with_a_line_that_helps(command, words, part):
    done = command(*words)
    assert done.returncode == 2
    assert part in done.stderr and "Traceback" not in done.stderr


def test_probe_of_a_document(command, page, tmp_path):
    document = {
        "apiVersion": "observer/v1",
        "metrics": [
            {
                "key": "shop",
                "source_type": "http",
                "source_config": {"url": f"{page.url}/", "json_path": "$.a.b"},
                "thresholds": {
                    "healthy_operation": "equal",
                    "healthy_value": 7,
                    "unhealthy_operation": "under",
                    "unhealthy_value": 0,
                },
            }
        ],
    }
    file = tmp_path / "o.yaml"
    file.write_text(json.dumps(document))
    done = command("probe", "--file", str(file), "--key", "shop", "--json")
    assert json.loads(done.stdout)["status"] == "healthy"
    done = command("probe", "--file", str(file), "--key", "shpo")
    assert done.returncode == 2 and "it has: shop" in done.stderr


def test_status_when_nothing_runs_and_when_something_else_listens(command, page):
    assert command("status").returncode == 3
    port = page.url.rpartition(":")[2]
    done = command("status", DEBUG_DASHBOARD_PORT=port)
    assert done.returncode == 2 and "another program" in done.stderr
