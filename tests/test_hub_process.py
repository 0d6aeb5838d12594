"""The hub as a process: commands, exit codes, an end in time, and a kill in the middle of pushes."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
import requests

from observer_agent import __version__
from tests.watch import Watch
from tests.wire_hub import QUEUE, HubProcess, row

pytestmark = pytest.mark.slow


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    found = HubProcess(tmp_path)
    yield found
    if found.process is not None and found.process.poll() is None:
        found.end(signal.SIGKILL)


def test_a_key_is_shown_once_and_kept_as_its_hash(hub: HubProcess) -> None:
    made = hub.command("key", "create", "prod-01")
    key = made.stdout.splitlines()[-1]
    assert made.returncode == 0
    assert re.fullmatch(r"obs_live_[A-Za-z0-9_-]{43}", key)
    assert all(key.encode() not in file.read_bytes() for file in hub.folder.iterdir())


def test_a_name_is_taken_once(hub: HubProcess) -> None:
    hub.key("prod-01")
    again = hub.command("key", "create", "prod-01")
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == "observer-hub: there is a key for 'prod-01' already; choose another name\n"


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 129])
def test_a_name_must_be_one(hub: HubProcess, name: str) -> None:
    assert hub.command("key", "create", name).returncode == 1


def test_version(hub: HubProcess) -> None:
    assert hub.command("--version").stdout == f"observer-hub {__version__}\n"


@pytest.mark.parametrize(
    ("env", "words", "said"),
    [
        ({}, ["--host", "0.0.0.0"], r"--host=0\.0\.0\.0: .*OBSERVER_HUB_TOKEN"),
        ({}, ["--host", "hub.example"], r"--host=hub\.example: .*OBSERVER_HUB_TOKEN"),
        ({"DATABASE_URL": "mysql://u:canary@h/d"}, [], r"DATABASE_URL=mysql://u:\*\*\*@h/d: .*neither SQLite nor"),
        ({"DATABASE_URL": "nonsense"}, [], r"DATABASE_URL=\[not shown\]: .*sqlite:///"),
        ({"DATABASE_URL": "sqlite://"}, [], r"DATABASE_URL=sqlite://: .*file"),
        ({"DATABASE_URL": "sqlite:////nowhere/at/all.db"}, [], r"DATABASE_URL=sqlite:////nowhere/at/all\.db: "),
        ({"LOG_FORMAT": "xml"}, [], r"LOG_FORMAT=xml: must be one of"),
        ({}, ["--config", "/nowhere.yaml"], r"/nowhere\.yaml cannot be read"),
    ],
)
def test_a_wrong_setting_is_78_and_one_line(tmp_path: Path, env: dict[str, str], words: list[str], said: str) -> None:
    ended = HubProcess(tmp_path, **env).command("serve", "--port", "0", *words)
    assert ended.returncode == 78
    assert re.search(said, ended.stderr)
    assert len(ended.stderr.splitlines()) == 1
    assert "canary" not in ended.stderr
    assert ended.stdout == ""


def test_a_database_that_is_away_is_tried_again_by_whoever_has_started_us(tmp_path: Path) -> None:
    """Not 78, with which the unit stays down: a server that restarts must not end the hub for ever."""
    hub = HubProcess(tmp_path, DATABASE_URL="postgresql://u:canary@127.0.0.1:1/d")
    for words in (("serve", "--port", "0"), ("serve", "--port", "0", "--server", "gunicorn"), ("key", "list")):
        ended = hub.command(*words)
        assert (ended.returncode, len(ended.stderr.splitlines()), ended.stdout) == (1, 1, "")
        assert re.search(r"DATABASE_URL=postgresql://u:\*\*\*@127.*cannot be opened", ended.stderr)
        assert "canary" not in ended.stderr


def test_a_port_in_use_is_one_line(hub: HubProcess) -> None:
    hub.start()
    ended = hub.command("serve", "--port", str(hub.port))
    assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1)
    assert f"127.0.0.1 port {hub.port}" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_time_whoever_holds_on(hub: HubProcess, number: signal.Signals) -> None:
    """An idle connection that is kept, half a request line, half a body: none of them holds up the end."""
    url = hub.start()
    with requests.Session() as kept, open_sockets(hub.port, 3) as sockets:
        assert kept.get(f"{url}/api/v1/agents", timeout=5).status_code == 200
        sockets[0].sendall(b"POST /api/age")
        sockets[1].sendall(b"POST /api/agent/receiver/batch HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n[")
        watch = Watch()
        assert hub.end(number) == 0
        assert watch.seconds < 5
    assert "Traceback" not in hub.log()


@contextmanager
def open_sockets(port: int, count: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5)) for _ in range(count)]


def test_connections_are_kept_between_requests(hub: HubProcess) -> None:
    hub.start()
    with closing(HTTPConnection("127.0.0.1", hub.port, timeout=5)) as conn:
        conn.connect()
        first = conn.sock
        for _ in range(3):
            conn.request("GET", "/api/v1/agents")
            assert conn.getresponse().read() == b'{"agents":[]}\n'
            assert conn.sock is first


def test_what_waitress_refuses_is_json_too(hub: HubProcess) -> None:
    hub.start()
    with socket.create_connection(("127.0.0.1", hub.port), timeout=5) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"] == "bad_request"


class Pusher:
    """Pushes rows of rising ids; after a cut it sends again what was not answered."""

    def __init__(self, hub: HubProcess, key: str) -> None:
        self._hub = hub
        self._key = key
        self.answered = 0

    def until_cut(self, kill_after: int, go: threading.Event) -> int:
        """Sends batches without a pause, says when `kill_after` were answered, ends when the hub is gone."""
        count = 0
        with requests.Session() as session:
            while True:
                try:
                    self.push(session)
                except requests.RequestException:
                    return count
                count += 1
                if count == kill_after:
                    go.set()

    def push(self, session: requests.Session) -> dict[str, int]:
        first, last = self.answered + 1, self.answered + 20
        headers = {"Agent-Key": self._key, "Push-Sequence": f"{QUEUE};{first}-{last}"}
        url = f"http://127.0.0.1:{self._hub.port}/api/agent/receiver/batch"
        answer = session.post(url, json=[row(i) for i in range(first, last + 1)], headers=headers, timeout=10)
        answer.raise_for_status()
        self.answered = last
        found: dict[str, int] = answer.json()
        return found


def test_killed_while_pushing_nothing_is_doubled_and_nothing_is_missing(hub: HubProcess) -> None:
    pusher = Pusher(hub, hub.key("prod-01"))
    for kill_after in (1, 5, 13):
        hub.start()
        go = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            pushing = pool.submit(pusher.until_cut, kill_after, go)
            assert go.wait(20)
            assert hub.end(signal.SIGKILL) == -signal.SIGKILL
            assert pushing.result(20) >= kill_after
    url = hub.start()
    with requests.Session() as session:
        pusher.push(session)
        found = session.get(f"{url}/api/v1/metrics/m/pushes?limit=10000", timeout=10).json()["pushes"]
        agent = session.get(f"{url}/api/v1/agents", timeout=10).json()["agents"][0]
    ids = [push["row_id"] for push in found]
    assert ids == [*range(pusher.answered, 0, -1)]
    assert [push["value"] for push in found] == ids
    assert agent["taken"] == len(ids)


def test_neither_key_nor_token_nor_body_is_logged(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path, OBSERVER_HUB_TOKEN="token-of-the-operator", VERBOSE="true")
    key = hub.key("prod-01")
    url = hub.start()
    head = {"Agent-Key": key, "Authorization": "Bearer token-of-the-operator"}
    for path, body in (("receiver/batch", "[{secret-body"), ("heartbeat", "[]"), ("log", '{"message": "secret-body"}')):
        requests.post(f"{url}/api/agent/{path}", data=body, headers=head, timeout=5)
    assert requests.get(f"{url}/api/v1/agents", headers=head, timeout=5).status_code == 200
    assert hub.end() == 0
    assert not any(secret in hub.log() for secret in (key, "token-of", "secret-body"))


@pytest.mark.parametrize("server", ["waitress", "gunicorn"])
def test_systemd_is_told_once_it_listens(server: str, tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        hub = HubProcess(tmp_path, NOTIFY_SOCKET=manager.getsockname())
        base = hub.start("--server", server)
        try:
            assert manager.recv(1000).startswith(b"READY=1")
            assert requests.get(f"{base}/metrics", timeout=10).status_code == 200
        finally:
            hub.end(signal.SIGKILL)
