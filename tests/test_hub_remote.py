"""Remote write: what is sent, what an answer means, and a real Prometheus that takes it."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import cramjam
import pytest
from sqlalchemy import select, update

from observer_agent.clock import Clock, iso
from observer_agent.demo.stage import end_process, free_port
from observer_agent.hub import schema
from observer_agent.hub.lease import Lease
from observer_agent.hub.remote import CURSOR, LOST, Exporter, Target
from tests.servers import Server, answer
from tests.wire_hub import TestHub, define, memory_hub, row


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    with memory_hub(tmp_path) as made:
        yield made


def counter(hub: TestHub, name: str) -> int | None:
    with hub.database.read() as conn:
        return conn.scalar(select(schema.counters.c.n).where(schema.counters.c.name == name))


class Receiver:
    """Answers with the statuses in turn, the last one for ever; keeps heads and bodies."""

    def __init__(self, *statuses: int, **headers: str) -> None:
        self.statuses = list(statuses)
        self.headers = headers
        self.bodies: list[bytes] = []
        self.heads: list[str] = []

    def __call__(self, conn, server) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += conn.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(next(x for x in head.lower().split(b"\r\n") if x.startswith(b"content-length")).split(b":")[1])
        while len(body) < length:
            body += conn.recv(65536)
        self.heads.append(head.decode())
        self.bodies.append(body)
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        conn.sendall(answer(b"", status, **self.headers))


def exporter(hub: TestHub, server: Server, **more) -> Exporter:
    made = Exporter(hub.database, hub.clock, Target(server.url, {"Authorization": "Bearer canary"}, **more))
    made.step()
    return made


def test_only_what_comes_after_the_first_step_is_sent_and_only_once(hub: TestHub) -> None:
    receiver = Receiver(204)
    hub.push([row()], "1")
    with Server(receiver) as server:
        made = exporter(hub, server)
        hub.push([row(1, metric_id="m1"), row(2, metric_id="m1", status="no_data")], "2-3")
        made.step()
        assert receiver.bodies == [], "rows that are this young may stand behind others that are not committed yet"
        hub.clock.advance(3)
        assert made.step() > 0
        made.step()
    (body,) = receiver.bodies
    plain = bytes(cramjam.snappy.decompress_raw(body))
    assert b"observer_metric_value" in plain and b"m1" in plain and b"unhealthy" in plain
    head = receiver.heads[0].lower()
    assert "content-encoding: snappy" in head and "x-prometheus-remote-write-version: 0.1.0" in head
    assert "authorization: bearer canary" in head


def test_a_row_of_a_hub_whose_clock_is_ahead_is_not_passed(hub: TestHub) -> None:
    receiver = Receiver(204)
    with Server(receiver) as server:
        made = exporter(hub, server)
        hub.push([row(1), row(2)], "1-2")
        pushes = schema.pushes
        with hub.database.write() as conn:
            older = update(pushes).where(pushes.c.row_id == 2).values(received_at=hub.clock.now() - 60)
            assert conn.execute(older).rowcount == 1
        made.step()
        assert receiver.bodies == [] and counter(hub, CURSOR) == 0
        hub.clock.advance(3)
        made.step()
    assert len(receiver.bodies) == 1 and counter(hub, CURSOR) == 2


@pytest.mark.parametrize(
    ("status", "headers", "wait"), [(500, {}, 2.0), (429, {"Retry-After": "40"}, 40.0), (302, {"Location": "/x"}, 2.0)]
)
def test_what_is_not_taken_is_sent_again(hub: TestHub, status: int, headers: dict, wait: float, caught) -> None:
    receiver = Receiver(status, 204, **headers)
    with Server(receiver) as server:
        made = exporter(hub, server)
        hub.push([row()], "1")
        hub.clock.advance(3)
        assert made.step() == wait
        made.step()
    assert len(receiver.bodies) == 2 and receiver.bodies[0] == receiver.bodies[1]
    assert counter(hub, LOST) is None
    assert "canary" not in caught.text


def test_a_refusal_is_final_and_counted(hub: TestHub) -> None:
    receiver = Receiver(400, 204)
    with Server(receiver) as server:
        made = exporter(hub, server)
        hub.push([row()], "1")
        hub.clock.advance(3)
        made.step()
        assert (counter(hub, LOST), counter(hub, CURSOR)) == (1, 1)
        made.step()
    assert len(receiver.bodies) == 1


def test_what_is_too_far_behind_is_skipped_and_counted(hub: TestHub) -> None:
    receiver = Receiver(204)
    with Server(receiver) as server:
        made = exporter(hub, server, rows_max=3)
        hub.push([row(n) for n in range(10)], "1-10")
        hub.clock.advance(3)
        made.step()
    assert (counter(hub, LOST), counter(hub, CURSOR)) == (7, 10)


def test_nobody_listens(hub: TestHub) -> None:
    with Server(Receiver(204)) as server:
        made = exporter(hub, server)
    hub.push([row()], "1")
    hub.clock.advance(3)
    assert [made.step() for _ in range(3)] == [2.0, 4.0, 8.0]


def test_one_process_at_a_time(hub: TestHub) -> None:
    first, second = Lease(hub.database, "job", 60), Lease(hub.database, "job", 60)
    now = hub.clock.now()
    assert first.take(now) and not second.take(now)
    assert first.take(now + 50) and not second.take(now + 70)
    assert second.take(now + 111), "the first one has died"
    assert not first.take(now + 112)
    second.release()
    assert first.take(now + 113)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed")
def test_a_real_prometheus_holds_the_verdicts(hub: TestHub, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "prometheus.yml").write_text("{}")
    command = [
        "prometheus",
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--web.enable-remote-write-receiver",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    pause = threading.Event()
    try:
        real = Clock()
        define(hub.store, [{"id": "m0", "title": "The shop", "source_type": "tcp", "source_config": {}}])
        made = Exporter(hub.database, hub.clock, Target(f"http://127.0.0.1:{port}/api/v1/write"))
        made.step()
        stamp = iso(real.now())
        hub.push([row(metric_id="m0", value=12.5, timestamp=stamp)], "1")
        hub.clock.advance(3)
        end = real.monotonic() + 30
        while counter(hub, CURSOR) != 1 and real.monotonic() < end:
            made.step()
            pause.wait(0.2)
        query = urllib.parse.quote('observer_metric_value{metric_id="m0",title="The shop",agent="agent"}')
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?query={query}") as reply:
            (found,) = json.load(reply)["data"]["result"]
        assert found["value"][1] == "12.5"
        assert counter(hub, LOST) is None
    finally:
        end_process(process)
