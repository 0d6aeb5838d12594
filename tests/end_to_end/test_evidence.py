"""`observer-agent why` against real agents: after kill -9, while one runs, and with secrets planted everywhere."""

from __future__ import annotations

import base64
import html
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import urllib.request
from contextlib import closing
from urllib.parse import quote

import pytest

from observer_agent import evidencefile
from observer_agent.demo.stage import clean_env, end_process, free_port
from observer_agent.errors import ObserverError
from tests.cloud import LocalCloud
from tests.servers import Server, answer, read_request, redirect, refused_port
from tests.test_agent import early

RULES = {"healthy_operation": "under", "healthy_value": 5000, "unhealthy_operation": "over", "unhealthy_value": 9000}


def definition(name, source_type, title="", **config):
    every = {"interval": 1 / 60, "interval_agent_push": 1}
    return {"id": early(name), "title": title, "source_type": source_type, "source_config": config, **RULES, **every}


@pytest.fixture
def cloud():
    made = LocalCloud()
    yield made
    made.close()


@pytest.fixture
def place(cloud, tmp_path):
    made = Place(cloud, tmp_path)
    yield made
    if made.agent:
        end_process(made.agent)


class Place:
    """An agent as a process, its files, and the command."""

    def __init__(self, cloud, folder):
        self.folder, self.file, self.agent, self.page = folder, folder / "b.db.evidence", None, free_port()
        self.env = {
            "AGENT_KEY": "obs_live_canary_key",
            "CLOUD_SERVER_URL": cloud.url,
            "BUFFER_PATH": str(folder / "b.db"),
            "DEBUG_DASHBOARD_PORT": str(self.page),
            "LOG_FORMAT": "text",
        }

    def start(self, **env):
        self.env |= env
        command = [sys.executable, "-X", "dev", "-m", "observer_agent", "run", "--config", os.devnull]
        with (self.folder / "agent.log").open("ab") as log:
            self.agent = subprocess.Popen(command, env=clean_env(self.env), stderr=log, start_new_session=True)

    def end(self, number):
        self.agent.send_signal(number)
        self.agent.wait(30)

    def why(self, *words):
        command = [sys.executable, "-m", "observer_agent", "why", *words]
        return subprocess.run(command, env=clean_env(self.env), capture_output=True, text=True, timeout=60)

    def rows(self, metric_id):
        try:
            return evidencefile.newest(self.file, metric_id, 100)[0]
        except ObserverError:
            return []  # not there yet

    def until(self, what, seconds=60):
        pause = threading.Event()
        for _ in range(seconds * 20):
            if found := what():
                return found
            pause.wait(0.05)
        raise AssertionError((self.folder / "agent.log").read_text()[-3000:])


def flapping(conn, server):
    """Healthy and broken by turns."""
    read_request(conn)
    with server._lock:
        server.requests.append(b"")
        well = len(server.requests) % 2
    conn.sendall(answer("well") if well else answer("the pool is empty", 503))


@pytest.mark.slow
def test_what_changed_is_shown_while_the_agent_runs_and_after_kill_9(cloud, place):
    with Server(flapping) as server, refused_port() as port:
        web = definition("web", "http", "Web shop", url=server.url + "/x", timeout_ms=3000)
        db = definition("db", "tcp", "Data", host="127.0.0.1", port=port)
        calm = definition("calm", "tcp", "Calm", host="127.0.0.1", port=server.port)
        cloud.definitions = [web, db, calm]
        place.start()
        place.until(lambda: len(place.rows(web["id"])) >= 3 and place.rows(db["id"]))
        running = place.why(web["id"], "--json", "--last", "1")
        seen = place.rows(web["id"])
        place.end(signal.SIGKILL)
    assert running.returncode == 0 and json.loads(running.stdout)["kept"] >= 3
    after = json.loads(place.why("web SHOP", "--json", "--last", "20").stdout)
    assert after["metric_id"] == web["id"] and after["title"] == "Web shop" and after["source_type"] == "http"
    assert after["transitions"][-len(seen) :] == seen
    statuses = [(row["before"], row["status"]) for row in seen]
    assert all(before != status for before, status in statuses)
    broken = next(row for row in seen if row["status"] == "no_data")
    assert (broken["reason"], broken["fault"], broken["body"]) == (
        "unexpected_status:503", "target", "the pool is empty",
    )  # fmt: skip
    assert broken["phases"].keys() >= {"connect", "first_byte"} and broken["address"].endswith(f":{server.port}")
    text = place.why("Data")
    assert text.returncode == 0 and f"127.0.0.1:{port} ECONNREFUSED" in text.stdout
    calm_one, unknown = place.why(calm["id"]), place.why("no such one")
    assert (calm_one.returncode, unknown.returncode) == (1, 1) and "no change of status" in unknown.stdout
    assert json.loads(place.why("no such one", "--json").stdout)["transitions"] == []


@pytest.mark.slow
def test_wrong_usage_is_exit_2(place):
    assert place.why("m").returncode == 2  # no file
    ring = evidencefile.Ring(place.file)
    ring.add([evidencefile.Record(each, "Same", "tcp", "no_data", "{}") for each in ("a", "b")])
    ring.close()
    both = place.why("same")
    assert both.returncode == 2 and "a, b" in both.stderr
    assert place.why("a").returncode == 0
    assert place.why("a", "--last", "0").returncode == 2
    assert place.why().returncode == 2


@pytest.mark.slow
def test_kills_at_random_moments_leave_a_sound_file_that_goes_on(cloud, place):
    chance = random.Random(6)
    with Server(flapping) as server:
        cloud.definitions = [definition(f"m{n}", "http", url=server.url, timeout_ms=3000) for n in range(10)]
        total = 0
        for _ in range(6):
            place.start()
            place.until(lambda before=total: count(place.file) > before)
            threading.Event().wait(chance.random())
            place.end(signal.SIGKILL)
            kept = count(place.file)
            assert kept > total
            total = kept
        with closing(sqlite3.connect(place.file)) as conn:
            assert conn.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        rows = [row for each in cloud.definitions for row in place.rows(each["id"])]
    assert len(rows) == total
    assert not list(place.folder.glob("*.evidence.corrupt*"))
    assert "evidence" not in (place.folder / "agent.log").read_text().replace("observer_agent/evidence", "")


def count(file):
    if not file.exists():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as conn:
            return conn.execute("SELECT count(*) FROM transitions").fetchone()[0]
    except sqlite3.OperationalError:
        return 0  # its tables are not made yet


# -- secrets

BASIC = "ann:canary-pass word"
SENT = {
    "PROBE_PLAIN": "canary-plain-1",
    "PROBE_BEARER": "Bearer canary.bearer-2",
    "PROBE_BASIC": "Basic " + base64.b64encode(BASIC.encode()).decode(),
    "PROBE_QUOTED": 'canary"quoted\\3',
    "PROBE_LATIN": "canäry-létters-4",
    "PROBE_MARKUP": "canary<5>&markup",
    "PROBE_PERCENT": "canary 6%/+?&percent",
    "PROBE_COOKIE": "session=canary-cookie-7; id=canary-cookie-8",
    "PROBE_LONG": "canary-long-" + "9" * 2000,
}
OTHERS = {"PROMETHEUS_PASSWORD": "canary-prom-10", "DEBUG_DASHBOARD_TOKEN": "canary-page-11"}
PATH, QUERY, ENCODED = "canary-path-12", "canary-query-13", "canary 14&encoded"
OWN = '{"password": "canary-own-15", "api_key":"canary-own-16"} token=canary-own-17'
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJjYW5hcnkiOiIxOCJ9.Y2FuYXJ5LTE4"
LOCATIONS = ("canary-location-19", "canary-location-20", "canary-user-21")


def marks():
    """What may stand nowhere: the secrets, and the parts of them that tell enough, in every form of writing."""
    plain = [*SENT.values(), *OTHERS.values(), PATH, QUERY, ENCODED, JWT, *LOCATIONS, "obs_live_canary_key", BASIC]
    plain += ["canary.bearer-2", "canary-pass", "canary-cookie-7", "canary-cookie-8", "9" * 10, "canary-own-"]
    plain += ["canary", "canäry", "létters", "percent", "markup", "quoted", "encoded"]
    for text in plain:
        raw = text.encode()
        yield from {text, quote(text), quote(text, safe=""), html.escape(text), json.dumps(text)[1:-1]}
        yield from {json.dumps(text, ensure_ascii=False)[1:-1], raw.decode("latin-1"), base64.b64encode(raw).decode()}


def echo(conn, server):
    """A 503 that repeats the request and more, in another way of writing each time."""
    request = read_request(conn)
    text = request.decode("latin-1")
    values = [line.partition(": ")[2] for line in text.split("\r\n")[1:]]
    with server._lock:
        server.requests.append(request)
        n = len(server.requests) % 10
    known = " ".join(OTHERS.values())
    ways = [
        request[:700], f"{OWN} {known} {JWT} obs_live_canary_key".encode(), json.dumps(text).encode(),
        json.dumps(request.decode(), ensure_ascii=False).encode(), html.escape(request.decode()).encode(),
        quote(" ".join(values)).encode(), quote(text, safe="").encode(), f"{BASIC} canary-pass word".encode(),
        b" ".join(base64.b64encode(value.encode("latin-1")) for value in values), request[-600:] * 9,
    ]  # fmt: skip
    conn.sendall(answer(ways[n], 503 if n % 2 else 500))


def astray(conn, server):
    read_request(conn)
    with server._lock:
        server.requests.append(b"")
        n = len(server.requests) % 3
    path, query, user = LOCATIONS
    to = (f"http://127.0.0.1:{server.port}/{path}", f"/x?k={query}", f"http://{user}:{user}@127.0.0.1:{server.port}/")
    conn.sendall(redirect(to[n]))


def blinking(handler):
    """Answers as it should now and then, so that the status changes again and again."""
    turn = iter(range(10**9))

    def by_turns(conn, server):
        with server._lock:
            well = next(turn) % 2
        if well:
            read_request(conn)
            conn.sendall(answer("well"))
        else:
            handler(conn, server)

    return by_turns


@pytest.mark.slow
def test_no_secret_is_in_the_file_or_shown(cloud, place):
    refs = {f"X-{name.removeprefix('PROBE_').title()}": name for name in SENT if name not in ("PROBE_BASIC",)}
    target = f"/hook/{PATH}?key={QUERY}&other={quote(ENCODED)}"
    with Server(blinking(echo)) as one, Server(blinking(echo)) as two, Server(blinking(astray)) as three:
        metrics = [
            definition("all", "http", "canary-plain-1", url=one.url + target, header_refs=refs, timeout_ms=3000),
            definition("basic", "http", url=two.url + target, header_refs={"Authorization": "PROBE_BASIC"}),
            definition("astray", "http", url=three.url + target, header_refs=refs, timeout_ms=3000),
        ]
        cloud.definitions = metrics
        place.start(**SENT, **OTHERS)
        place.until(lambda: all(len(place.rows(each["id"])) >= 20 for each in metrics), 120)
        state = page(place)
        place.end(signal.SIGKILL)
    check(place, metrics)  # with the WAL as the kill left it
    with closing(sqlite3.connect(place.file)) as conn:
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    check(place, metrics)
    assert "[redacted]" in place.why(metrics[0]["id"], "--last", "20").stdout
    bodies = [row["body"] for each in metrics for row in place.rows(each["id"]) if "body" in row]
    assert len(bodies) > 10 and "the server answered 503" in place.why(metrics[0]["id"], "--last", "20").stdout
    assert not [text for text in bodies if len(text) > 10 and text[:40] in state]  # the page shows what it did before


def page(place):
    headers = {"Authorization": f"Bearer {OTHERS['DEBUG_DASHBOARD_TOKEN']}"}
    request = urllib.request.Request(f"http://127.0.0.1:{place.page}/api/state", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as found:
        return found.read().decode()


def check(place, metrics):
    parts = [part for part in place.folder.iterdir() if ".evidence" in part.name]
    stored = b"\n".join(part.read_bytes() for part in parts)
    said = "".join(
        place.why(each["id"], "--last", "20", *more).stdout for each in metrics for more in ((), ("--json",))
    )
    for mark in set(marks()):
        assert mark.encode() not in stored, mark
        assert mark not in said, mark
