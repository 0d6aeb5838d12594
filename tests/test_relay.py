"""The heartbeat relay: pings of jobs in, onto the disk, to the cloud; every loss with a reason."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time

import pytest

from observer_agent import show, status
from observer_agent.clock import Clock
from observer_agent.errors import QueueError
from observer_agent.model import Answer, Fate, Reject
from observer_agent.relay import BATCH, Relay
from observer_agent.relaydoor import HANDLERS, IN_ALL, NoPing, Ping, Rates, read_ping
from observer_agent.relayqueue import Full, RelayQueue
from observer_agent.selfmetrics import SelfMetrics
from tests.conftest import eat
from tests.fakes import FakeClock
from tests.test_agent import cloud, start  # noqa: F401  fixtures

NOW = 1_800_000_000.0
TOKEN = "k3yOfANightlyBackup0001"
OTHER = "k3yOfTheHourlyImport0002"


class Cloud:
    """Answers from a list, else accepts; keeps what it was given."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.tried = []
        self.taken = []

    def relay(self, pings):
        self.tried.append(len(pings))
        answer = self.answers.pop(0) if self.answers else Answer(Fate.ACCEPTED, 200)
        if answer.fate is Fate.ACCEPTED:
            self.taken += [json.loads(ping) for ping in pings]
        return answer


class Bench:
    """A relay on a free port, with a real queue file."""

    def __init__(self, folder, *answers, clock=None, most=5000):
        self.clock = clock or FakeClock(NOW)
        self.cloud = Cloud(*answers)
        self.metrics = SelfMetrics("0")
        self.queue = RelayQueue(folder / "b.db.relay", self.clock, most)
        self.relay = Relay(self.queue, self.cloud, self.clock, place=("127.0.0.1", 0), metrics=self.metrics)

    def open(self):
        self.relay.step()
        return self

    def put(self, count=1):
        for n in range(count):
            self.queue.put(json.dumps({"token": TOKEN, "n": n}).encode())

    def ping(self, path=f"/heartbeat/{TOKEN}", method="GET", body=None, **headers):
        host, port = self.relay.at.split(":")
        line = http.client.HTTPConnection(host, int(port), timeout=20)
        try:
            line.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = line.getresponse()
            answer.read()
            return answer.status, dict(answer.getheaders())
        finally:
            line.close()

    def pings(self):
        return [json.loads(row.data) for row in self.queue.peek(5000)]

    def counted(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"observer_agent_relay_{name}", labels) or 0


@pytest.fixture
def bench(tmp_path):
    made = []

    def _bench(*answers, **options):
        made.append(Bench(tmp_path, *answers, **options))
        return made[-1]

    before = set(threading.enumerate())
    yield _bench
    for each in made:
        each.relay.stop()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive(), thread.name


# -- what a request means


@pytest.mark.parametrize(
    ("target", "kind", "code"),
    [
        ("", "success", None), ("/start", "start", None), ("/fail", "fail", None), ("/0", "success", 0),
        ("/1", "fail", 1), ("/255", "fail", 255), ("?exit=0", "success", 0), ("?exit=7", "fail", 7),
        ("/fail?exit=9", "fail", 9), ("?other=1", "success", None), ("/3?exit=0", "fail", 3), ("/007", "fail", 7),
    ],
)  # fmt: skip
def test_pings(target, kind, code):
    assert read_ping(f"/heartbeat/{TOKEN}{target}") == Ping(TOKEN, kind, code)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/", 404), ("/heartbeat", 404), ("/heartbeats/" + TOKEN, 404), (f"/heartbeat/{TOKEN}/stop", 404),
        (f"/heartbeat/{TOKEN}/", 404), (f"/heartbeat/{TOKEN}/start/now", 404), (f"/heartbeat/{TOKEN}/-1", 404),
        (f"/heartbeat/{TOKEN}/1000", 404), ("http://[bad/heartbeat", 404), ("/heartbeat/", 400),
        ("/heartbeat/" + "x" * 21, 400), ("/heartbeat/" + "x" * 65, 400), (f"/heartbeat/{TOKEN}-", 400),
        (f"/heartbeat/{TOKEN}%20", 400), (f"/heartbeat/{TOKEN}/256", 400), (f"/heartbeat/{TOKEN}?exit=", 400),
        (f"/heartbeat/{TOKEN}?exit=256", 400), (f"/heartbeat/{TOKEN}?exit=-1", 400),
        (f"/heartbeat/{TOKEN}?exit=x", 400),
    ],
)  # fmt: skip
def test_what_is_no_ping(target, status):
    with pytest.raises(NoPing) as found:
        read_ping(target)
    assert found.value.status == status


@pytest.mark.parametrize("length", [22, 64])
def test_the_lengths_of_tokens(length):
    assert read_ping("/heartbeat/" + "a" * length).token == "a" * length


def test_rates_of_one_token_and_of_all():
    clock = FakeClock()
    rates = Rates(clock)
    assert [rates.admit(TOKEN) for _ in range(61)] == [True] * 60 + [False]
    clock.advance(30)
    assert [rates.admit(f"{n}") for n in range(IN_ALL - 60)] == [True] * (IN_ALL - 60)
    assert not rates.admit("one more")
    clock.advance(30)
    assert rates.admit(TOKEN) and rates.admit("one more")
    clock.advance(60)
    assert rates.admit(TOKEN)
    assert len(rates._counts) == 1


# -- the door


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_202_is_on_the_disk(bench, method):
    made = bench().open()
    body = "fertig – ok".encode() if method == "POST" else None
    assert made.ping(f"/heartbeat/{TOKEN}/3", method, body, User_Agent="curl/7")[0] == 202
    with contextlib.closing(sqlite3.connect(made.queue.file)) as other:
        ((data,),) = other.execute("SELECT data FROM pings").fetchall()
    assert json.loads(data) == {
        "token": TOKEN, "kind": "fail", "exit_code": 3, "body": "fertig – ok" if body else None,
        "received_at": "2027-01-15T08:00:00.000Z", "user_agent": "curl/7",
    }  # fmt: skip
    assert made.counted("pings_queued_total") == made.counted("depth") == 1
    assert stat.S_IMODE(made.queue.file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/nowhere", "GET", 404),
        ("/heartbeat/short", "GET", 400),
        (f"/heartbeat/{TOKEN}/256", "POST", 400),
        (f"/heartbeat/{TOKEN}", "PUT", 405),
        (f"/heartbeat/{TOKEN}", "DELETE", 405),
        (f"/heartbeat/{TOKEN}", "OPTIONS", 405),
    ],
)
def test_what_is_turned_away(bench, path, method, status):
    made = bench().open()
    found, headers = made.ping(path, method)
    assert found == status
    assert ("Allow" in headers) is (status == 405)
    assert made.pings() == []
    assert made.counted("requests_refused_total", reason="malformed") == 1


@pytest.mark.parametrize("size", [10_240, 10_241, 3_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_ten_kibibytes_of_a_body_are_kept(bench, size, chunked):
    made = bench().open()
    body = b"x" * size
    assert made.ping(method="POST", body=iter([body]) if chunked else body)[0] == 202
    assert made.pings()[0]["body"] == "x" * 10_240


def test_bytes_that_are_no_text(bench):
    made = bench().open()
    assert made.ping(method="POST", body=b"\xff\x00ok")[0] == 202
    assert made.pings()[0]["body"] == "\ufffd\x00ok"


def test_a_body_that_ends_early_is_no_ping(bench):
    made = bench().open()
    with socket.create_connection(("127.0.0.1", int(made.relay.at.split(":")[1])), 10) as line:
        line.sendall(f"POST /heartbeat/{TOKEN} HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf".encode())
        line.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: line.recv(4096), b"")).startswith(b"HTTP/1.0 400 ")
    assert made.pings() == []


def test_429_and_when_to_come_again(bench, caught):
    made = bench().open()
    assert {made.ping()[0] for _ in range(60)} == {202}
    status, headers = made.ping()
    assert (status, headers["Retry-After"]) == (429, "60")
    assert made.ping(f"/heartbeat/{OTHER}")[0] == 202
    made.clock.advance(60)
    assert made.ping()[0] == 202
    assert made.counted("requests_refused_total", reason="rate_limited") == 1
    assert "k3yO…" in caught.text and TOKEN not in caught.text


def test_503_where_the_queue_is_full(bench, caught):
    made = bench(most=2).open()
    assert [made.ping()[0] for _ in range(3)] == [202, 202, 503]
    assert made.counted("requests_refused_total", reason="full") == 1
    assert "A ping of k3yO… could not be queued (2 pings wait already)" in caught.text
    assert TOKEN not in caught.text
    made.relay.step()
    assert made.ping()[0] == 202


def test_503_where_the_disk_is_full(disk):
    made = Bench(disk).open()
    try:
        assert made.ping()[0] == 202
        eat(disk)
        while made.ping(method="POST", body=b"x" * 9000)[0] == 202:
            pass
        assert made.counted("requests_refused_total", reason="disk") == 1
        kept = made.queue.depth
        os.unlink(disk / "stranger")
        assert made.ping()[0] == 202
        while made.queue.depth:
            made.relay.step()
        assert len(made.cloud.taken) == kept + 1
    finally:
        made.relay.stop()


def test_503_where_there_is_no_place(tmp_path):
    made = Bench(tmp_path / "missing")
    made.relay.step()
    try:
        assert made.ping()[0] == 503
        (tmp_path / "missing").mkdir()
        assert made.ping()[0] == 202
    finally:
        made.relay.stop()


def test_a_port_in_use_is_tried_again(bench, caught):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        made = bench()
        made.relay._place = taken.getsockname()
        assert made.relay.step() == 30
        assert made.relay.at is None
        assert "cannot listen on" in caught.text
    made.clock.advance(30)
    made.relay.step()
    assert made.relay.at is not None


def test_beyond_this_machine_is_said_once(bench, caught):
    made = bench()
    made.relay._place = ("0.0.0.0", 0)
    made.open()
    made.relay.step()
    assert len([line for line in caught.messages if line.startswith("The heartbeat relay listens beyond")]) == 1


@pytest.mark.slow
def test_clients_that_stall_hold_up_others_not_for_long(bench):
    made = bench(clock=Clock()).open()
    place = ("127.0.0.1", int(made.relay.at.split(":")[1]))
    lines = [socket.create_connection(place, 10) for _ in range(HANDLERS)]
    try:
        begun = time.monotonic()
        assert made.ping()[0] == 202
        assert time.monotonic() - begun < 8
    finally:
        for line in lines:
            line.close()


# -- to the cloud


def test_what_waits_goes_in_order_25_at_a_time(bench):
    made = bench()
    made.put(60)
    assert [made.relay.step() for _ in range(3)] == [0, 0, 0]
    assert made.relay.step() == 60
    assert made.cloud.tried == [25, 25, 10]
    assert [each["n"] for each in made.cloud.taken] == list(range(60))
    assert (made.queue.depth, made.counted("pings_accepted_total")) == (0, 60)


@pytest.mark.parametrize("status", [0, 302, 401, 403, 404, 405, 408, 425, 429, 500, 503])
def test_later_keeps_everything(bench, status):
    made = bench(Answer(Fate.LATER, status), Answer(Fate.LATER, status))
    made.put(3)
    first = made.relay.step()
    assert first == (30 if status in (404, 405) else 0.75)
    assert made.queue.depth == 3
    made.clock.advance(300)
    made.relay.step()
    made.clock.advance(300)
    assert made.relay.step() == 0
    assert [each["n"] for each in made.cloud.taken] == [0, 1, 2]


def test_a_fenced_agent_keeps_its_pings(bench):
    made = bench(Answer(Fate.FENCED, 409))
    made.put(2)
    assert made.relay.step() == 0.75
    made.clock.advance(1)
    assert made.relay.step() == 0
    assert len(made.cloud.taken) == 2


def test_the_waits_are_those_of_the_sender(bench):
    made = bench(*[Answer(Fate.LATER, 503)] * 40)
    made.put()
    waits = []
    while made.clock.monotonic() < 1200:
        waits.append(made.relay.step())
        made.clock.advance(waits[-1])
    assert waits[:5] == [0.75, 1.5, 3.0, 3.75, 3.75]
    assert waits[-1] == 22.5


def test_retry_after_counts_and_a_heartbeat_does_not_end_it(bench):
    made = bench(Answer(Fate.LATER, 429, retry_after=20.0))
    made.put()
    assert made.relay.step() == 20
    made.relay.heartbeat(True)
    made.clock.advance(19)
    assert made.relay.step() == 1
    assert made.cloud.tried == [1]
    made.clock.advance(1)
    assert made.relay.step() == 0


def test_a_heartbeat_ends_any_other_wait(bench):
    made = bench(*[Answer(Fate.LATER, 503)] * 3)
    woken = []
    made.relay.wake = lambda: woken.append(1)
    made.put()
    made.relay.step()
    made.relay.heartbeat(False)
    assert made.relay.step() > 0 and woken == []
    made.relay.heartbeat(True)
    made.relay.step()
    assert (made.cloud.tried, woken) == ([1, 1], [1])


def test_rejected_pings_are_dropped_and_named(bench, caught):
    rejects = (Reject(0, "None", "not_found"), Reject(1, "None", "rate_limited"), Reject(2, "None", "odd"))
    made = bench(Answer(Fate.ACCEPTED, 200, rejects=rejects))
    made.put(4)
    assert made.relay.step() == 0
    assert made.queue.depth == 0
    for reason in ("not_found", "rate_limited", "rejected"):
        assert made.counted("pings_lost_total", reason=reason) == 1
    assert made.counted("pings_accepted_total") == 1
    assert "A ping of k3yO… was dropped: the cloud says not_found" in caught.text
    assert TOKEN not in caught.text


def test_a_refused_ping_is_found_by_halves_and_goes_alone(bench):
    made = bench()
    made.put(30)

    def relay(pings):
        made.cloud.tried.append(len(pings))
        numbers = [json.loads(ping)["n"] for ping in pings]
        if 17 in numbers:
            return Answer(Fate.REFUSED, 422)
        made.cloud.taken += numbers
        return Answer(Fate.ACCEPTED, 200)

    made.relay._cloud.relay = relay
    while made.queue.depth:
        assert made.relay.step() == 0
    assert made.cloud.taken == [n for n in range(30) if n != 17]
    assert made.counted("pings_lost_total", reason="refused") == 1
    assert made.counted("pings_accepted_total") == 29


def test_413_halves_and_doubles_again(bench):
    made = bench(Answer(Fate.TOO_LARGE, 413))
    made.put(400)
    made.relay.step()
    made.clock.advance(1)
    while made.queue.depth:
        made.relay.step()
    assert made.cloud.tried[:12] == [BATCH, *[12] * 10, 24]
    assert len(made.cloud.taken) == 400


# -- the queue


@pytest.mark.slow
def test_what_was_acknowledged_survives_a_kill(tmp_path):
    program = """
import sys, os
from pathlib import Path
from observer_agent.clock import Clock
from observer_agent.relayqueue import RelayQueue
queue = RelayQueue(Path(sys.argv[1]), Clock())
n = 0
while True:
    queue.put(b'{"n": %d}' % n)
    os.write(1, b"%d\\n" % n)
    n += 1
"""
    file = tmp_path / "b.db.relay"
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", program, str(file)], stdout=subprocess.PIPE)
        lines = [process.stdout.readline() for _ in range(20)]
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().splitlines()
        process.wait(10)
        process.stdout.close()
        said = len(lines) + len(rest)
        queue = RelayQueue(file, Clock())
        rows = queue.peek(5000)
        assert [json.loads(row.data)["n"] for row in rows][:said] == list(range(said))
        assert said <= len(rows) <= said + 1
        queue.done([row.id for row in rows])
        queue.close()


def test_ids_are_never_given_twice(tmp_path):
    queue = RelayQueue(tmp_path / "q", Clock())
    queue.put(b"1")
    (row,) = queue.peek(5)
    queue.done([row.id])
    queue.put(b"2")
    assert queue.peek(5)[0].id > row.id
    queue.close()


def test_the_cap(tmp_path):
    queue = RelayQueue(tmp_path / "q", Clock(), 2)
    queue.put(b"1")
    queue.close()
    queue = RelayQueue(tmp_path / "q", Clock(), 2)
    queue.put(b"2")
    with pytest.raises(Full):
        queue.put(b"3")
    queue.close()
    with pytest.raises(QueueError, match="is closed"):
        queue.put(b"4")


def test_what_cannot_be_deleted_is_not_sent_again(tmp_path, caught):
    queue = RelayQueue(tmp_path / "q", Clock())
    for n in range(3):
        queue.put(b"%d" % n)
    first = queue.peek(1)
    queue._conn.execute("PRAGMA query_only = ON")
    queue.done([first[0].id])
    assert queue.depth == 2
    assert "cannot be taken out of" in caught.text
    assert [row.data for row in queue.peek(1)] == [b"1"]
    queue._conn.execute("PRAGMA query_only = OFF")
    assert [row.data for row in queue.peek(5)] == [b"1", b"2"]
    assert queue.depth == 2
    queue.close()


@pytest.mark.parametrize("when", ["before", "while it is open"])
def test_a_damaged_file_is_moved_aside_and_counted(bench, caught, when):
    made = bench()
    if when == "before":
        made.queue.file.write_bytes(b"no database at all, " * 500)
    else:
        made.put(40)
        with contextlib.closing(sqlite3.connect(made.queue.file)) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        made.queue._drop()
        size = made.queue.file.stat().st_size
        made.queue.file.write_bytes(b"\xff" * size)
    made.relay.step()
    assert made.counted("pings_lost_total", reason="damaged") == (1 if when == "before" else 40)
    assert "The relay's queue file cannot be used" in caught.text
    assert len(list(made.queue.file.parent.glob("b.db.relay.corrupt-*"))) == 1
    made.clock.advance(5)
    made.put()
    made.relay.step()
    assert len(made.cloud.taken) == 1


# -- the agent


def until(look, holds=bool):
    """What `look` finds, once it holds."""
    pause, end = threading.Event(), time.monotonic() + 20
    while not holds(found := look()):
        assert time.monotonic() < end, found
        pause.wait(0.01)
    return found


def relay_place(agent):
    host, port = until(lambda: agent.relay.at).split(":")
    return host, int(port)


def told(agent, what):
    """What the state says of the relay, once `what` is true of it."""
    return until(lambda: status.state(agent)["relay"], what)


def ask(place, path):
    line = http.client.HTTPConnection(*place, timeout=10)
    line.request("GET", path)
    status = line.getresponse().status
    line.close()
    return status


def test_an_agent_relays(start, cloud, tmp_path):  # noqa: F811
    agent = start(HEARTBEAT_RELAY_ENABLED="true", HEARTBEAT_RELAY_PORT="0")
    assert "relay" in agent.supervisor.workers
    place = relay_place(agent)
    assert ask(place, f"/heartbeat/{TOKEN}/0") == 202
    (message,) = cloud.until(lambda: list(cloud.pings))
    assert set(message) == {"sent_at", "pings"}
    assert (message["pings"][0]["token"], message["pings"][0]["kind"]) == (TOKEN, "success")
    agent.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(place, 5)


def test_the_state_tells_what_becomes_of_pings(start, cloud, tmp_path):  # noqa: F811
    cloud.failing = True
    agent = start(HEARTBEAT_RELAY_ENABLED="true", HEARTBEAT_RELAY_PORT="0")
    place = relay_place(agent)
    assert (ask(place, f"/heartbeat/{TOKEN}"), ask(place, "/none")) == (202, 404)
    said = told(agent, lambda relay: relay["problem"])
    assert "the cloud does not take pings (status 503" in said["problem"]
    assert (said["listens_on"], said["waiting"], said["taken"]) == (agent.relay.at, 1, 1)
    assert (said["delivered"], said["lost"], said["refused"]) == (0, {}, {"malformed": 1})
    shown = show.status(status.state(agent))
    assert f"on {said['listens_on']}: 0 of 1 pings delivered, 1 wait, turned away: malformed 1; the cloud" in shown
    cloud.failing = False
    assert told(agent, lambda relay: relay["delivered"] == 1)["waiting"] == 0
    assert status.state(agent)["relay"]["problem"] is None


def test_the_state_tells_that_the_door_is_shut(start, cloud):  # noqa: F811
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        agent = start(HEARTBEAT_RELAY_ENABLED="true", HEARTBEAT_RELAY_PORT=str(port))
        said = told(agent, lambda relay: relay["problem"])
        assert said["problem"] == f"it cannot listen on 127.0.0.1:{port} (Address already in use)"
        assert said["listens_on"] is None


def test_pings_wait_for_the_next_start_of_the_agent(start, cloud, tmp_path):  # noqa: F811
    cloud.failing = True
    agent = start(HEARTBEAT_RELAY_ENABLED="true", HEARTBEAT_RELAY_PORT="0")
    assert ask(relay_place(agent), f"/heartbeat/{TOKEN}/1") == 202
    agent.stop()
    assert (tmp_path / "b.db.relay").exists()
    cloud.failing = False
    start(HEARTBEAT_RELAY_ENABLED="true", HEARTBEAT_RELAY_PORT="0")
    (message,) = cloud.until(lambda: list(cloud.pings))
    assert message["pings"][0]["exit_code"] == 1


def test_without_the_setting_there_is_none(start, cloud, tmp_path):  # noqa: F811
    agent = start()
    assert "relay" not in agent.supervisor.workers
    cloud.until(lambda: cloud.beats)
    agent.stop()
    assert not (tmp_path / "b.db.relay").exists()
