"""The doctor names the cause first, in five seconds, changes nothing and tells no secret."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from observer_agent.clock import Clock
from observer_agent.demo.stage import clean_env
from observer_agent.doctor import FINDINGS
from observer_agent.doctor._together import Together
from tests.doctor_bench import Bench, fill, json_answer, row, tunnel
from tests.doctor_faults import AUTHORITY, FAULTS, state, tls
from tests.servers import answer, scripted, tarpit
from tests.watch import Watch

ROOT = Path(__file__).parent.parent
BUDGET = 5.0
ADDED = 0.7  # what a busy machine may add by starting Python


@pytest.fixture
def bench(tmp_path):
    with ExitStack() as stack:
        yield Bench(tmp_path, stack)


# -- a host in order


def in_order(bench: Bench):
    report = bench.examine()
    assert (report.findings, report.code) == ([], 0), report.text()
    assert "0 broken, 0 warnings in " in report.text().splitlines()[-1]
    return {each.name: each for each in report.checks}


def test_a_host_in_order_has_no_finding(bench):
    checks = in_order(bench)
    assert checks["sources"].fact == "tcp" and checks["definitions"].fact == "1 from the cloud"


def test_the_request_carries_no_start_time(bench):
    """With a newer one the cloud would fence the running agent out of its own key."""
    cloud = bench.answers(json_answer([]))
    bench.examine()
    (request,) = cloud.requests
    assert request.startswith(b"GET /api/agent/metrics-definitions ") and b"Agent-Key: " in request
    assert b"started-at" not in request.lower()


def test_tls_with_an_authority_of_ones_own(bench):
    bench.trust(AUTHORITY)
    tls(bench, AUTHORITY.server())
    checks = in_order(bench)
    assert checks["tls"].fact.startswith("TLSv1.3, certificate trusted")


def test_tls_through_a_proxy_with_a_login(bench):
    bench.trust(AUTHORITY)
    cloud = tls(bench, AUTHORITY.server("cloud.test"))
    through = bench.serve(tunnel(cloud.port))
    bench.env |= {"CLOUD_SERVER_URL": "https://cloud.test", "HTTPS_PROXY": f"http://u:p@127.0.0.1:{through.port}"}
    checks = in_order(bench)
    assert checks["proxy"].fact == f"through 127.0.0.1:{through.port}"
    assert "u:p" not in bench.examine().text()


def test_plain_http_through_a_proxy(bench):
    cloud = bench.answers(json_answer([row({"host": "127.0.0.1", "port": bench.target})]))
    through = bench.serve(tunnel(cloud.port))
    bench.env |= {"CLOUD_SERVER_URL": "http://127.0.0.2", "HTTP_PROXY": through.url}
    assert in_order(bench)["resolver"].outcome == "skipped"


def test_a_unit_that_runs(bench):
    bench.unit = {"UnitFileState": "enabled"}
    assert in_order(bench)["unit"].fact == "active (running), enabled"


def test_variables_of_the_unit_are_the_service_s(bench):
    bench.unit = {
        "Environment": 'PROBE_ONE=1 "PROBE_TWO=two words"',
        "EnvironmentFiles": f"{bench.tmp}/e (ignore_errors=no)",
    }
    (bench.tmp / "e").write_text("PROBE_THREE=3\n")
    web = bench.serve(scripted(json_answer({})))
    refs = {"X-A": "PROBE_ONE", "X-B": "PROBE_TWO", "X-C": "PROBE_THREE"}
    bench.answers(json_answer([row({"url": web.url, "header_refs": refs}, "http")]))
    in_order(bench)
    assert b"X-B: two words" in web.requests[0]


def test_the_caller_s_proxy_is_not_the_service_s(bench):
    bench.env |= {"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "", "no_proxy": ""}
    assert bench.examine().findings[0].id == "proxy.unreachable"
    bench.unit = {"UnitFileState": "enabled"}
    in_order(bench)


OTLP = row({"metric_name": "jobs"}, "otlp", id="o1")
CUSTOM = row({"probe_name": "answer"}, "custom", id="c1")


def seen(row_, **reading):
    """What the local page tells of a definition."""
    made = {"id": row_["id"], "source_type": row_["source_type"], "last_run_at": "2030-01-01T00:00:00.000Z"}
    return made | {"value": 1.0, "reason": None, "fault": None, "detail": {}} | reading


def test_what_only_the_agent_can_look_at_is_taken_from_it(bench):
    bench.answers(json_answer([OTLP, CUSTOM]))
    assert in_order(bench)["sources"].fact == "there is no usable definition"
    state(bench, definitions=[seen(OTLP), seen(CUSTOM)])
    assert in_order(bench)["sources"].fact == "custom, otlp"
    failed = {"value": None, "reason": "custom_probe_error", "fault": "target", "detail": {"error": "it raised X"}}
    state(bench, definitions=[seen(OTLP), seen(CUSTOM, **failed)])
    (finding,) = bench.examine().findings
    assert finding.id == "sources.target" and "it raised X" in finding.cause


def test_a_document_of_definitions(bench):
    metric = {"key": "a", "source_type": "tcp", "source_config": {"host": "127.0.0.1", "port": bench.target}}
    metric["thresholds"] = {k: v for k, v in row({}).items() if "healthy" in k}
    file = bench.tmp / "d.yaml"
    file.write_text(json.dumps({"apiVersion": "observer/v1", "metrics": [metric]}))
    bench.env["DEFINITIONS_FILE"] = str(file)
    assert in_order(bench)["definitions"].fact == "1 from DEFINITIONS_FILE"


def test_nothing_is_changed(bench):
    fill(bench, 20, 100)
    before = {file.name: file.read_bytes() for file in bench.state.iterdir()}
    in_order(bench)
    assert {file.name: file.read_bytes() for file in bench.state.iterdir()} == before


# -- a fault


def cases():
    return [pytest.param(f, id=name, marks=[pytest.mark.slow] if f.slow else []) for name, f in FAULTS.items()]


@pytest.mark.parametrize("fault", cases())
def test_the_cause_is_named_first(bench, fault):
    fault.bring(bench)
    watch = Watch()
    report = bench.examine()
    took = watch.seconds
    named = [each.id for each in report.findings]
    assert named[:1] == [fault.id], report.text()
    assert report.code == fault.code, report.text()
    assert took < BUDGET
    for each in report.findings:
        assert each.cause and each.fix and "\n" not in each.cause + each.fix


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a setting that is no number", "a failed unit"),
        ("no key", "a unit whose condition is not met"),
        ("a queue of a newer version", "a unit that restarts"),
        ("a name that does not exist", "a nearly full queue"),
        ("a closed port", "an old queue"),
        ("a key that is not known", "an agent that does not deliver"),
        ("a clock that is an hour behind", "dead letters"),
        ("a web page", "plain http to another machine"),
        ("a masked unit", "a closed port"),
    ],
)
def test_of_two_faults_the_cause_comes_first(bench, one, other):
    for name in (other, one):
        FAULTS[name].bring(bench)
    report = bench.examine()
    assert report.findings[0].id == FAULTS[one].id, report.text()


def test_the_clock_of_a_login_page_says_nothing(bench):
    bench.answers(answer(b"<html>", Content_Type="text/html", Date="Thu, 01 Jan 1970 00:00:00 GMT"))
    assert [each.id for each in bench.examine().findings] == ["contract.html"]


def test_every_wrong_setting_is_named_at_once(bench):
    FAULTS["several wrong settings"].bring(bench)
    causes = " ".join(each.cause for each in bench.examine().findings)
    assert all(name in causes for name in ("BUFFER_MAX_AGE", "VERBOSE", "LOG_FORMAT"))


def test_many_broken_definitions_are_summed_up(bench):
    bad = [row({"host": "127.0.0.1", "port": 0}, id=f"m{n}") for n in range(500)]
    bench.answers(json_answer(bad))
    report = bench.examine()
    assert [each.id for each in report.findings] == ["definitions.invalid"] * 6
    assert report.findings[-1].cause == "... and 495 more definitions likewise"


def test_a_hostile_title_stays_one_line(bench):
    evil = {**row({"host": "127.0.0.1", "port": 0}), "title": "x\nbroken: all\x1b[31m", "id": "a\r\nb"}
    bench.answers(json_answer([evil]))
    text = bench.examine().text()
    assert "\x1b" not in text and "\nbroken: all" not in text


def test_a_redirect_names_no_more_than_where_to(bench):
    FAULTS["a redirect"].bring(bench)
    text = bench.examine().text()
    assert "https://login.example.org" in text and "next=x" not in text


# -- the command


def command(env: dict[str, str], *words: str, **options) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "observer_agent", "doctor", *words]
    return subprocess.run(line, env=clean_env(env), capture_output=True, text=True, timeout=30, **options)


@pytest.mark.slow
def test_whatever_hangs_it_ends_in_time(bench):
    FAULTS["a queue file that cannot be read to its end, ever"].bring(bench)
    FAULTS["a tarpit"].bring(bench)
    bench.env |= {"ENABLE_DEBUG_DASHBOARD": "true", "DEBUG_DASHBOARD_PORT": str(bench.serve(tarpit).port)}
    watch = Watch()
    done = command(bench.env, "--json")
    assert watch.seconds < BUDGET + ADDED
    report = json.loads(done.stdout)
    assert (done.returncode, report["exit_code"], done.stderr) == (2, 2, "")
    assert {each["id"] for each in report["findings"]} >= {"queue.hung", "contract.silent"}


@pytest.mark.slow
def test_colours_are_for_terminals(bench):
    plain = command(bench.env).stdout
    assert plain.isascii() and "ok   settings" in plain
    shown = on_terminal(bench.env)
    assert "\x1b[32m✓\x1b[0m settings" in shown
    shown = on_terminal({**bench.env, "NO_COLOR": "1"})
    assert "✓ settings" in shown and "\x1b[3" not in shown


def on_terminal(env: dict[str, str]) -> str:
    leader, follower = pty.openpty()
    line = [sys.executable, "-m", "observer_agent", "doctor"]
    env = clean_env({**env, "PYTHONIOENCODING": "utf-8"})
    data = b""
    with subprocess.Popen(line, env=env, stdout=follower, stderr=follower, stdin=follower):
        os.close(follower)
        try:
            while more := os.read(leader, 65536):
                data += more
        except OSError:  # the other end is closed
            pass
    os.close(leader)
    return data.decode()


AS_ANOTHER = """
import json, os, sys
from pathlib import Path
from observer_agent.doctor import Place, examine
os.setgroups([]), os.setgid(65534), os.setuid(65534)
report = examine(Place(env=json.loads(sys.argv[1]), folder=Path(sys.argv[2]), command=lambda c: None)).report
print(json.dumps(report.facts))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.slow
def test_a_user_who_may_not_read_is_told_so(bench):
    for folder in (bench.tmp, *bench.tmp.parents[:2]):
        folder.chmod(0o755)
    bench.etc.chmod(0o700)
    bench.state.chmod(0o755)
    fill(bench, 3, 100)
    bench.buffer.chmod(0o600)
    line = [sys.executable, "-c", AS_ANOTHER, json.dumps(bench.env), str(bench.etc)]
    done = subprocess.run(line, env=clean_env({}), capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    named = [each["id"] for each in report["findings"]]
    assert "user.cannot_read" in named and not any(name.startswith("queue.") for name in named), report


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.slow
def test_another_user_blames_nothing_on_an_installed_host(bench):
    for folder in (bench.tmp, *bench.tmp.parents[:2]):
        folder.chmod(0o755)
    fill(bench, 3, 100)
    (bench.etc / "agent_key").write_text(bench.env["AGENT_KEY"])
    (bench.etc / "config.toml").write_text(f'BUFFER_PATH = "{bench.buffer}"\n')
    for folder in (bench.etc, bench.state):
        folder.chmod(0o700)
    line = [sys.executable, "-c", AS_ANOTHER, "{}", str(bench.etc)]
    done = subprocess.run(line, env=clean_env({}), capture_output=True, text=True, cwd="/")
    report = json.loads(done.stdout)
    assert [each["id"] for each in report["findings"]] == ["user.cannot_read"], report
    assert report["exit_code"] == 1


# -- steps side by side


def test_a_step_that_breaks_is_not_one_that_hangs():
    together, gate = Together(Clock()), threading.Event()

    def breaks():
        raise ValueError("this step is at fault")

    together.start("good", lambda: 7)
    together.start("bad", breaks)
    together.start("slow", gate.wait)
    assert together.wait(["good", "bad"], Clock().monotonic() + 5)
    assert not together.wait(["slow"], Clock().monotonic() + 0.05)
    assert (together.result("good"), together.crashed("bad"), together.hangs("slow")) == (7, True, True)
    gate.set()
    assert together.wait(["slow"], Clock().monotonic() + 5)


# -- the page about it


def test_every_finding_is_documented_with_cause_and_fix():
    text = (ROOT / "docs" / "doctor.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \| (broken|warning) \|", text, re.M))
    single = {name: severity.value for name, severity in FINDINGS.items() if not name.endswith((".hung", ".crashed"))}
    assert rows == single
    assert "`<check>.hung`" in text and "`<check>.crashed`" in text


def test_every_finding_of_the_catalogue_is_used_and_no_other():
    code = "".join(file.read_text() for file in (ROOT / "observer_agent" / "doctor").glob("_*.py"))
    used = set(re.findall(r'"([a-z]+\.[a-z_]+)"', code))
    single = {name for name in FINDINGS if not name.endswith((".hung", ".crashed"))}
    assert single <= used


def test_the_matrix_is_large_and_its_findings_are_known():
    assert len(FAULTS) >= 100 and {fault.id for fault in FAULTS.values()} <= set(FINDINGS)
