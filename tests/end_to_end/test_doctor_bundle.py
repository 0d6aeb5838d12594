"""The bundle, and sixty secrets that nobody may see: in it, on the local page, in logs, commands and processes."""

from __future__ import annotations

import http.client
import json
import secrets
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from urllib.parse import quote

import pytest

from observer_agent.demo.stage import clean_env
from observer_agent.doctor import Place, examine, save
from tests.cloud import LocalCloud
from tests.doctor_bench import UNIT
from tests.end_to_end.test_doctor import delivering, doctor, env_of, site, targets, web
from tests.servers import Server, answer, read_request
from tests.site import Site

__all__ = ["site", "web"]  # fixtures

pytestmark = pytest.mark.slow


def members(file: Path) -> dict[str, str]:
    with tarfile.open(file) as tar:
        return {each.name.rpartition("/")[2]: tar.extractfile(each).read().decode() for each in tar.getmembers()}


def test_the_bundle(site, web, tmp_path):
    site.open_hub(targets(site, web))
    site.start_agent()
    delivering(site)
    file = tmp_path / "bundle.tar.gz"
    file.write_bytes(b"an older one")
    code, out = doctor(env_of(site), "--bundle", str(file))
    assert code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = members(file)
    assert set(found) == set(
        "doctor.json doctor.txt configuration.txt state.json log.txt queue.json system.txt".split()
    )
    assert all(name in out for name in found)
    assert json.loads(found["doctor.json"])["ok"]
    assert json.loads(found["state.json"])["cloud"]["delivering"]
    assert json.loads(found["queue.json"])["verify"]["ok"]
    assert "observer-agent" in found["log.txt"] and "AGENT_KEY = (" in found["configuration.txt"]
    assert f"BUFFER_PATH = {site.buffer}" in found["configuration.txt"]
    assert site.key not in "".join(found.values())
    refused = subprocess.run(
        [sys.executable, "-m", "observer_agent", "doctor", "--bundle", str(tmp_path / "no" / "b.tar.gz")],
        env=env_of(site), capture_output=True, text=True,
    )  # fmt: skip
    assert refused.returncode == 2 and "cannot be written" in refused.stderr


class Canaries:
    """Random secrets, each with the place where it was planted."""

    def __init__(self) -> None:
        self.planted: dict[str, str] = {}

    def __call__(self, where: str, head: str = "c", tail: str = "") -> str:
        text = head + secrets.token_hex(12) + tail
        self.planted[text] = where
        return text

    def seen_in(self, text: str) -> set[str]:
        """Where those come from that a text holds, as they are or percent-encoded."""
        return {where for secret, where in self.planted.items() if secret in text or quote(secret) in text}


def test_no_canary_is_seen_anywhere(tmp_path, web):
    plant = Canaries()
    env, etc = planted(plant, tmp_path, web)
    own = "\n".join(plant.planted)  # what the doctor must know of itself, wherever it may appear
    rows = definitions(plant, web)
    assert len(plant.planted) >= 60
    cloud = Echo()
    cloud.definitions = rows
    site = Site(tmp_path)
    try:
        env |= {"CLOUD_SERVER_URL": cloud.url, "DEBUG_DASHBOARD_PORT": str(site.page)}
        site.start_agent(**env)
        token = env["DEBUG_DASHBOARD_TOKEN"]

        def seen() -> dict:
            return json.loads(page(site.page, "/api/state", token) or "{}")

        def looked() -> bool:
            jobs = seen().get("definitions")
            return bool(jobs) and all(each["last_run_at"] for each in jobs)

        site.until(looked)
        state = page(site.page, "/api/state", token)
        cloud.broken = True
        site.until(lambda: not seen().get("cloud", {"delivering": True})["delivering"])
        texts = {path: page(site.page, path, token) for path in ("/", "/api/state", "/metrics", "/healthz", "/readyz")}
        texts |= commands(site, {**clean_env({}), **env}, tmp_path)
        for name, broken in (("sound", False), ("broken", True)):
            cloud.broken = broken
            texts |= {f"{name} {key}": text for key, text in inside(env, etc, tmp_path, own).items()}
        texts["the log"] = site.log
        texts["cmdlines"] = cmdlines()
        site.stop_agent()
        texts |= {f"without an agent {key}": text for key, text in inside(env, etc, tmp_path, own).items()}
        assert "[redacted]" in texts["without an agent log.txt"]
    finally:
        site.close()
        cloud.close()
    assert len(state) > 500 and texts["cmdlines"].count("observer_agent") >= 1
    leaks = {place: plant.seen_in(text) for place, text in texts.items() if plant.seen_in(text)}
    assert leaks == {}


class Echo(LocalCloud):
    """A cloud that, when it is broken, says in its answer everything that it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = False

    def handle_error(self, request, client_address):
        """A client may go away in the middle."""

    def finish_request(self, request, client_address):
        if not self.broken:
            super().finish_request(request, client_address)
            return
        asked = read_request(request)
        request.sendall(answer(b"error: " + asked, 500, Connection="close"))


def planted(plant: Canaries, folder: Path, web: Server) -> tuple[dict[str, str], Path]:
    """The environment of the agent and the folder of settings, full of secrets."""
    key = folder / "the-key"
    key.write_text(plant("key file", "obs_test_"))
    key.chmod(0o600)
    etc = folder / "etc"
    etc.mkdir()
    (etc / "agent_key").write_text(plant("agent_key"))
    lines = [f"PROBE_FILE_{n}={plant(f'agent.env {n}')}" for n in range(5)]
    (etc / "agent.env").write_text("\n".join([*lines, f"PROMETHEUS_BEARER_TOKEN='{plant('agent.env token')}'"]))
    config = folder / "config.toml"
    config.write_text(f'OBSERVER_OTLP_BEARER_TOKEN = "{plant("TOML")}"\nPROMETHEUS_USERNAME = "{plant("TOML user")}"\n')
    env = {
        "AGENT_KEY": "",
        "AGENT_KEY_FILE": str(key),
        "DEBUG_DASHBOARD_TOKEN": plant("DEBUG_DASHBOARD_TOKEN"),
        "PROMETHEUS_PASSWORD": plant("PROMETHEUS_PASSWORD", tail="/+%&"),
        "PROMETHEUS_HEADERS": json.dumps({f"X-H{n}": plant(f"PROMETHEUS_HEADERS {n}") for n in range(4)}),
        "PROMETHEUS_TENANT_ID": plant("PROMETHEUS_TENANT_ID"),
        "PROMETHEUS_SERVER_URL": web.url,
        "HTTPS_PROXY": f"http://{plant('proxy user')}:{plant('proxy password')}@127.0.0.1:1",
        "PROBE_ENV_ALLOW": "MY_API_TOKEN",
        "MY_API_TOKEN": plant("PROBE_ENV_ALLOW"),
        "VERBOSE": "true",
        "ENABLE_DEBUG_DASHBOARD": "true",
        **{f"PROBE_SECRET_{n}": plant(f"PROBE_SECRET {n}") for n in range(8)},
    }
    return env, etc


def definitions(plant: Canaries, web: Server) -> list[dict]:
    rules = {"healthy_operation": "under", "healthy_value": 5, "unhealthy_operation": "over", "unhealthy_value": 9}
    fast = {"interval": 1 / 60, "interval_agent_push": 1 / 60, **rules}
    http = [
        {
            "url": f"{web.url}/?token={plant(f'query string {n}')}",
            "headers": {"X-Trace": plant(f"header {n}")},
            "header_refs": {"X-Token": f"PROBE_SECRET_{n}"},
            "body_match": plant(f"body_match {n}"),
        }
        for n in range(5)
    ]
    http += [
        {"url": f"http://u:{plant('userinfo of a definition')}@127.0.0.1:1/"},
        {"url": f"ftp://127.0.0.1/?k={plant('query of a strange URL')}"},
        {"url": web.url, "headers": {"Authorization": plant("an inline credential")}},
        {"url": web.url, "method": plant("a wrong method")},
        {"url": web.url, "timeout_ms": plant("a wrong timeout")},
        {"url": web.url, "password": plant("an unknown field")},
        {"url": web.url, "header_refs": {"X-A": f"NO_{plant('a strange name')}"}},
        {"url": web.url, "header_refs": {"X-A": "MY_API_TOKEN"}, "json_path": f"$.{plant('json_path')}"},
    ]
    prometheus = [{"query": f'up{{secret="{plant(f"PromQL {n}")}"}}'} for n in range(5)]
    user, password = plant("user in a prometheus_url"), plant("password in a prometheus_url")
    prometheus += [{"query": "up", "prometheus_url": f"http://{user}:{password}@127.0.0.1:1/"}]
    prometheus += [{"query": plant("PromQL elsewhere"), "prometheus_url": f"http://127.0.0.1:1/?a={plant('prom url')}"}]
    prometheus += [{"scrape_url": web.url, "metric": "x", "labels": {"a": plant("label")}}]
    tcp = [{"host": "127.0.0.1", "port": plant("a wrong port")}]
    found = [("http", each) for each in http] + [("prometheus", e) for e in prometheus] + [("tcp", e) for e in tcp]
    found += [("telepathy", {"token": plant("an unknown source type")})]
    return [{"id": f"m{n}", "source_type": kind, "source_config": c, **fast} for n, (kind, c) in enumerate(found)]


def page(port: int, path: str, token: str) -> str:
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        conn.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        return conn.getresponse().read().decode()
    except OSError:
        return ""
    finally:
        conn.close()


def commands(site: Site, env: dict[str, str], folder: Path) -> dict[str, str]:
    """What the commands say of this agent."""
    out = {}
    file = folder / "by-command.tar.gz"
    for words in (
        ["status", "--verbose", "--all"],
        ["status", "--json"],
        ["doctor"],
        ["doctor", "--json"],
        ["doctor", "--bundle", str(file)],
    ):
        command = [sys.executable, "-m", "observer_agent", *words, "--config", str(folder / "config.toml")]
        done = subprocess.run(command, env={**env, "BUFFER_PATH": str(site.buffer)}, capture_output=True, text=True)
        out[" ".join(words[:2])] = done.stdout + done.stderr
    assert "NOT delivering" in out["status --verbose"] and "contract.server_error" in out["doctor --json"]
    return out | {f"bundle {name}": text for name, text in members(file).items()}


def inside(env: dict[str, str], etc: Path, folder: Path, told: str) -> dict[str, str]:
    """The doctor with a folder of settings of its own, a unit with secrets in it, and a journal full of them."""
    secret = (etc / "agent_key").read_text()
    shown = "\n".join(f"{k}={v}" for k, v in {**UNIT, "Environment": f"PROBE_UNIT={secret}x"}.items())
    unit = f"[Service]\nEnvironment=A={secret}\nSetCredential=agent_key:{secret}\n# {told}\n"
    said = {"show": shown, "cat": unit, "-u": told}
    buffer = str(folder / "buffer.db")
    place = Place(
        env={**env, "BUFFER_PATH": buffer},
        file=folder / "config.toml",
        folder=etc,
        copies=(etc,),
        command=lambda command: said[command[1]],
    )
    result = examine(place)
    assert save(folder / "bundle.tar.gz", place, result)
    report = result.report
    return {"text": report.text(), "json": json.dumps(report.facts), **members(folder / "bundle.tar.gz")}


def cmdlines() -> str:
    """The command lines of all processes of this machine."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)
