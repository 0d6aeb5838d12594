"""docs/what-we-send.md is the whole truth: against the golden messages, both ways, and against a real agent."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from observer_agent.demo.stage import clean_env, end_process, free_port
from observer_agent.model import Loss
from tests.cloud import LocalCloud, _Handler
from tests.console import Console, check
from tests.lighthouse_golden import OURS as SECOND_OURS
from tests.servers import Server, answer, says
from tests.test_wire_agent import GOLDEN, NOT_OURS

DOC = (Path(__file__).parent.parent / "docs" / "what-we-send.md").read_text()
NOT_SENT = "not sent by this version"
OURS = {name: golden["request"] for name, golden in GOLDEN.items() if name not in NOT_OURS}


def table(text, title):
    """The rows of the table whose first column is called `title`: {name: the rest of the row}."""
    found = re.search(rf"^\| {title} \|.*\n\| ---.*\n((?:\|.*\n)*)", text + "\n", re.M)
    rows = [row.strip("| ").split(" | ", 1) for row in found[1].splitlines()] if found else []
    return {row[0].strip("` "): row[1] for row in rows}


def sections():
    """{endpoint: its fields}, from the headings that name one."""
    parts = re.split(r"^## (.*)\n", DOC, flags=re.M)
    return {h.strip("`"): table(text, "field") for h, text in zip(parts[1::2], parts[2::2], strict=True) if h[0] == "`"}


HEADERS, OF_HTTP = table(DOC, "header"), table(DOC, "header of HTTP")
ALL = sections()
ENDPOINTS = {endpoint: fields for endpoint, fields in ALL.items() if "/api/agent/" in endpoint}
SENT = {
    endpoint: {field for field, row in fields.items() if NOT_SENT not in row}
    for endpoint, fields in ENDPOINTS.items()
    if not fields or any(NOT_SENT not in row for row in fields.values())
}


def fields_of(value, path=""):
    """The names of a body: `a.b`, `a[].b`; the losses by reason are one name."""
    if isinstance(value, dict) and value:
        for name, each in value.items():
            known = "<reason>" if path.endswith(".lost") and name in set(Loss) else name
            known = "<check>" if path in ("check_latencies", "cert_expiry") else known
            yield from fields_of(each, f"{path}.{known}" if path else known)
    elif isinstance(value, list):
        for each in value:
            yield from fields_of(each, f"{path}[]" if path else "")
    elif not isinstance(value, dict):
        yield path


def endpoint_of(request):
    return f"{request['method']} {request['path']}"


# -- against the golden messages


def test_the_tables_are_read():
    assert len(HEADERS) == 5 and len(OF_HTTP) == 4
    assert len(ENDPOINTS) == 6 and len(ENDPOINTS["POST /api/agent/heartbeat"]) > 15
    assert set(ENDPOINTS) == set(SENT)


@pytest.mark.parametrize("name", OURS)
def test_what_a_golden_message_holds_is_in_the_doc(name):
    request = OURS[name]
    assert endpoint_of(request) in SENT
    assert set(request["headers"]) <= set(HEADERS)
    assert set(fields_of(request.get("body", {}))) <= set(ENDPOINTS[endpoint_of(request)])


def test_what_the_doc_names_is_in_a_golden_message():
    assert {endpoint_of(request) for request in OURS.values()} == set(SENT)
    assert {header for request in OURS.values() for header in request["headers"]} == set(HEADERS)
    for endpoint, fields in SENT.items():
        bodies = [request.get("body", {}) for request in OURS.values() if endpoint_of(request) == endpoint]
        assert fields <= {field for body in bodies for field in fields_of(body)}, endpoint


def test_the_examples_have_the_form_of_the_golden_messages():
    for endpoint, fields in ALL.items():
        for field, row in fields.items():
            assert row.startswith("`") or NOT_SENT in row, f"{endpoint} {field} has no example"


# -- the second dialect, against its golden messages

SECOND = {endpoint: fields for endpoint, fields in ALL.items() if endpoint not in ENDPOINTS}
SECOND_HEADERS, LABELS = table(DOC, "header of Lighthouse"), table(DOC, "label")
SECOND_SENT = {name: golden["request"] for name, golden in SECOND_OURS.items()}


def test_the_tables_of_the_second_dialect_are_read():
    assert len(SECOND_HEADERS) == 7 and len(LABELS) == 9
    assert {endpoint.rpartition("/")[2]: len(fields) for endpoint, fields in SECOND.items()} == {
        "register": 3,
        "heartbeat": 9,
        "events": 8,
        "discoveries": 15,
        "host-metrics": 0,
        "shutdown": 1,
    }


@pytest.mark.parametrize("name", SECOND_SENT)
def test_what_a_golden_message_of_the_second_dialect_holds_is_in_the_doc(name):
    request = SECOND_SENT[name]
    assert set(request["headers"]) <= set(SECOND_HEADERS)
    assert set(fields_of(request.get("body", {}))) <= set(SECOND[endpoint_of(request)])
    if "base64" in request:
        assert set(labels_of(base64.b64decode(request["base64"]))) <= set(LABELS)


def test_what_the_doc_names_of_the_second_dialect_is_in_a_golden_message():
    assert {endpoint_of(request) for request in SECOND_SENT.values()} == set(SECOND)
    assert {header for request in SECOND_SENT.values() for header in request["headers"]} == set(SECOND_HEADERS)
    for endpoint, fields in SECOND.items():
        bodies = [request.get("body", {}) for request in SECOND_SENT.values() if endpoint_of(request) == endpoint]
        assert {field for body in bodies for field in fields_of(body)} == set(fields), endpoint


def labels_of(block):
    """The names of labels in a golden write request: one literal of snappy, one series of protobuf."""
    assert block[2:5] == bytes([60 << 2, len(block) - 5, 0x0A]), "not as the golden message is written"
    raw, found, at = block[4:], [], 3
    while raw[at] == 0x0A:  # a label: its name, then its value
        found.append(raw[at + 4 : at + 4 + raw[at + 3]].decode())
        at += 2 + raw[at + 1]
    return found


# -- against a real agent

SECRETS = {
    "PROMETHEUS_PASSWORD": "canary-password",
    "PROMETHEUS_BEARER_TOKEN": "",
    "PROBE_TOKEN": "canary-header",
    "DEBUG_DASHBOARD_TOKEN": "canary-page",
    "CANARY": "canary-environment",
}
CANARIES = [*filter(None, SECRETS.values()), "canary_query", "canary-path", "canary-title", "canary-answer"]
CANARIES += ["canary-custom"]
TOKEN = "k3yOfANightlyBackup0001"
CUSTOM = """
from observer_agent.probes.custom import CustomProbe

def run(look):
    look.log("canary-custom")
    if look.config["fails"]:
        raise ValueError("canary-custom")
    return {"value": 1, "metadata": {"a": "canary-custom"}}

SCHEMA = {"type": "object", "properties": {"fails": {"type": "boolean", "default": False}}}
PROBES = CustomProbe("ours", run, "What it does", SCHEMA)
"""

# A program that notes every address that it talks to, and every program that it starts, before it becomes the agent.
WATCHED = """
import sys
out = open(sys.argv.pop(1), "w", buffering=1)
WANTED = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "subprocess.Popen", "os.exec")
def note(event, args):
    if event in WANTED:
        print(event, args[1] if event.startswith("socket.") and event != "socket.getaddrinfo" else args[:2], file=out)
sys.addaudithook(note)
from observer_agent.cli import main
main()
"""


class Recording(_Handler):
    """Keeps each request whole; rejects a row of the first batch, and after the third knows no batches."""

    def setup(self):
        super().setup()
        self.seen = self.server.seen

    def do_GET(self):
        self._keep(b"")
        super().do_GET()

    def do_POST(self):
        real, body = self.rfile, self.rfile.read(int(self.headers["Content-Length"]))
        self._keep(body)
        self.rfile = io.BytesIO(body)
        super().do_POST()
        self.rfile = real

    def _keep(self, body):
        with self.server.changed:
            self.seen.append((f"{self.command} {self.path}", dict(self.headers.items()), body))
            self.server.changed.notify_all()

    def _say(self, what, headers=()):
        if not self.path.endswith("/batch"):
            return super()._say(what, headers)
        before = sum(endpoint.endswith("/batch") for endpoint, _, _ in self.seen)
        if before > 3:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        return super()._say(
            {"rejected": [{"index": 0, "field": "value", "code": "out_of_range"}] if before == 1 else []}
        )


@pytest.fixture
def cloud():
    server = LocalCloud()
    server.seen = []
    server.RequestHandlerClass = Recording
    yield server
    server.close()


def definition(number, source_type, config):
    rules = {"healthy_operation": "under", "healthy_value": 500, "unhealthy_operation": "over", "unhealthy_value": 900}
    every = {"interval": 1 / 60, "interval_agent_push": 1 / 60}
    return (
        {"id": f"m{number}", "title": "canary-title", "source_type": source_type, "source_config": config}
        | rules
        | every
    )


@pytest.mark.slow
def test_a_real_agent_sends_this_and_nothing_else(cloud, tmp_path):
    closed = free_port()
    with Server(says(answer(b'{"canary-answer": 7, "n": 5}'))) as server:
        target = server.url
        query = {"query": "canary_query", "prometheus_url": f"http://127.0.0.1:{closed}"}
        cloud.definitions = [
            definition(
                1, "http", {"url": f"{target}/canary-path?x=canary-path", "header_refs": {"X-A": "PROBE_TOKEN"}}
            ),
            definition(2, "http", {"url": f"{target}/canary-path", "json_path": "$.n"}),
            definition(3, "tcp", {"host": "127.0.0.1", "port": closed}),
            definition(4, "prometheus", query),
            definition(5, "nonsense", {"url": "http://canary-path.example/"}),
            definition(6, "custom", {"probe_name": "ours"}),
            definition(7, "custom", {"probe_name": "ours", "probe_config": {"fails": True}}),
            definition(8, "otlp", {"metric_name": "canary_query", "attribute_filters": {"a": "canary-path"}}),
        ]
        talked = run_agent(cloud, tmp_path)
    check_requests(cloud.seen)
    hosts = {("127.0.0.1", int(url.rpartition(":")[2])) for url in (cloud.url, target)} | {("127.0.0.1", closed)}
    events = [line.partition(" ") for line in talked.splitlines()]
    assert {event for event, _, _ in events} == {"socket.connect"}
    assert {rest for _, _, rest in events} == {str(host) for host in hosts}


def run_agent(cloud, folder):
    """An agent with everything on, from its start to its end; returns what its process has talked to."""
    own, relay = folder / "probes.d", free_port()
    own.mkdir(mode=0o755)
    (own / "ours.py").write_text(CUSTOM)
    (own / "ours.py").chmod(0o644)
    settings = {
        "PROBE_CUSTOM_DIR": str(own),
        "AGENT_KEY": "obs_live_the_key",
        "CLOUD_SERVER_URL": cloud.url,
        "BUFFER_PATH": str(folder / "buffer.db"),
        "DEBUG_DASHBOARD_PORT": str(free_port()),
        "BROADCAST_LOGS": "true",
        "LOG_BROADCAST_LEVEL": "DEBUG",
        "VERBOSE": "true",
        "HEARTBEAT_RELAY_ENABLED": "true",
        "HEARTBEAT_RELAY_PORT": str(relay),
        "OBSERVER_OTLP_LISTEN_ADDR": "127.0.0.1:0",
        "PROMETHEUS_SERVER_URL": cloud.url,
        **SECRETS,
    }
    command = [sys.executable, "-c", WATCHED, str(folder / "talked"), "run", "--config", os.devnull]
    with (folder / "agent.log").open("wb") as log:
        agent = subprocess.Popen(command, env=clean_env(settings), stderr=log, start_new_session=True)
    try:
        cloud.until(lambda: any(path.endswith("/heartbeat") for path, _, _ in cloud.seen), 60)
        assert ping(relay) == 202
        cloud.until(lambda: any(path.endswith("/heartbeat-relay") for path, _, _ in cloud.seen), 60)
        cloud.until(lambda: sum(path.endswith("/receiver") for path, _, _ in cloud.seen) > 8, 60)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(30) == 0
    finally:
        end_process(agent)
    return (folder / "talked").read_text()


def ping(port, tries=50):
    """What the relay says to a ping, as soon as it is open."""
    while True:
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            line.request("POST", f"/heartbeat/{TOKEN}/0", b"done", {"User-Agent": "curl/7.88.1"})
            return line.getresponse().status
        except ConnectionRefusedError:
            tries -= 1
            assert tries > 0
            time.sleep(0.1)  # the heartbeat comes before the relay is open
        finally:
            line.close()


def check_requests(seen):
    assert {endpoint for endpoint, _, _ in seen} == set(SENT)
    assert {header for _, headers, _ in seen for header in headers} == set(HEADERS) | set(OF_HTTP)
    for endpoint, fields in SENT.items():
        bodies = [json.loads(body) for each, _, body in seen if each == endpoint and body]
        assert {field for body in bodies for field in fields_of(body)} == fields, endpoint
    for endpoint, headers, body in seen:
        text = f"{endpoint} {[v for k, v in headers.items() if k != 'Agent-Key']} {body.decode()}"
        assert "obs_live_the_key" not in text
        assert not [canary for canary in CANARIES if canary in text], text


# -- against a real agent of the second dialect


@pytest.mark.slow
def test_a_real_agent_of_the_second_dialect_sends_nothing_else(tmp_path):
    console, closed = Console(), free_port()
    console.registration["host_metrics"] = {"enabled": True, "interval_seconds": 5}
    try:
        with Server(says(answer(b"canary-answer", 503))) as target:
            console.checks = [
                check("c1", f"{target.url}/canary-path?x=canary_query", "http"),
                check("c2", f"127.0.0.1:{target.port}"),
                check("c3", f"127.0.0.1:{closed}"),
            ]
            talked = run_second(console, tmp_path)
        assert {endpoint for endpoint, _, _ in console.requests} == {
            "register", "heartbeat", "events", "host-metrics", "shutdown"
        }  # fmt: skip
        for endpoint, headers, body in console.requests:
            assert set(headers) <= set(SECOND_HEADERS) | set(OF_HTTP)
            known = set(SECOND[f"POST /api/lighthouse/v1/{endpoint}"])
            assert set(body) == {"raw"} if endpoint == "host-metrics" else set(fields_of(body)) <= known, endpoint
            text = f"{[v for k, v in headers.items() if k != 'Authorization']} {body}"
            assert "lh_the_token" not in text and not [canary for canary in CANARIES if canary in text], text
    finally:
        console.close()
    hosts = {("127.0.0.1", port) for port in (console.server_port, target.port, closed)}
    events = [line.partition(" ") for line in talked.splitlines()]
    assert {(event, rest) for event, _, rest in events} == {("socket.connect", str(host)) for host in hosts}


def run_second(console, folder):
    """An agent of the second dialect, from its start to its end; returns what its process has talked to."""
    settings = {
        "CLOUD_DIALECT": "lighthouse",
        "LIGHTHOUSE_TOKEN": "lh_the_token",
        "LIGHTHOUSE_URL": console.url,
        "LIGHTHOUSE_DATA_DIR": str(folder),
        "LIGHTHOUSE_HOST_METRICS": "true",
        "LIGHTHOUSE_LOG_LEVEL": "debug",
        "CANARY": "canary-environment",
    }
    command = [sys.executable, "-c", WATCHED, str(folder / "talked"), "run", "--config", os.devnull]
    with (folder / "agent.log").open("wb") as log:
        agent = subprocess.Popen(command, env=clean_env(settings), stderr=log, start_new_session=True)
    try:
        console.until(lambda: {row["check_id"] for row in console.events()} == {"c1", "c2", "c3"}, 60)
        console.until(lambda: console.bodies("heartbeat") and console.bodies("host-metrics"), 60)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(30) == 0
    finally:
        end_process(agent)
    return (folder / "talked").read_text()
