"""Sixty secrets are planted around a real agent of each dialect; none may turn up in what leaves, is logged or kept.

Real sockets throughout: targets that answer with secrets, definitions and checks that are full of them, a tee in front
of the cloud that keeps every byte. What was captured is searched as it is, and with its Base64, hexadecimal, URL, JSON
and compressed parts taken apart.
"""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

import pytest

from observer_agent.demo.stage import clean_env, end_process, free_port
from observer_agent.sentlog import older, path_of, read
from tests.cloud import LocalCloud
from tests.console import Console
from tests.servers import Authority, Server, answer, read_request, self_signed
from tests.udp import UdpServer, answering

DEPTH = 3
PUBLIC = ("dns ", "certificate ")


class Canaries:
    """Secrets by the place where they are planted."""

    def __init__(self) -> None:
        self.at: dict[str, str] = {}

    def plant(self, place: str) -> str:
        """A new secret, letters and digits alone."""
        assert place not in self.at
        self.at[place] = f"cnry{secrets.token_hex(8)}"
        return self.at[place]

    def found_in(self, data: bytes) -> list[str]:
        """The places whose secret can be read in the data, in whatever form."""
        seen = b"\0".join(views(data))
        return [place for place, secret in self.at.items() if secret.encode() in seen]


# -- taking data apart


def views(data: bytes, depth: int = DEPTH) -> Iterator[bytes]:
    """The data, and what its parts hold when they are taken apart."""
    yield data
    if depth:
        for made in decoded(data):
            if made and made != data:
                yield from views(made, depth - 1)


def decoded(data: bytes) -> Iterator[bytes]:
    if b"%" in data or b"+" in data:
        yield unquote_to_bytes(data.replace(b"+", b" "))
    if b"\\u" in data:
        yield re.sub(rb"\\u00([0-9a-fA-F]{2})", lambda found: bytes([int(found[1], 16)]), data)
    for run in re.findall(rb"[A-Za-z0-9+/_-]{16,}", data):
        text = run.replace(b"-", b"+").replace(b"_", b"/")
        for skip in range(4):
            part = text[skip:]
            yield base64.b64decode(part + b"A" * (-len(part) % 4))
    for run in re.findall(rb"(?:[0-9a-fA-F]{2}){8,}", data):
        yield bytes.fromhex(run.decode())
    for found in re.finditer(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]", data):
        stream = zlib.decompressobj(31 if data[found.start()] == 0x1F else 15)
        try:
            yield stream.decompress(data[found.start() :])
        except zlib.error:
            continue


@pytest.mark.parametrize(
    "hide",
    [
        bytes,
        lambda b: base64.b64encode(b),
        lambda b: base64.b64encode(b"x" + b),
        lambda b: base64.urlsafe_b64encode(b"xy" + b),
        lambda b: quote(b, safe="").encode().replace(b"c", b"%63"),
        lambda b: b"".join(b"\\u%04x" % each for each in b),
        lambda b: b.hex().encode(),
        gzip.compress,
        zlib.compress,
        lambda b: base64.b64encode(gzip.compress(b)),
        lambda b: gzip.compress(base64.b64encode(b)),
    ],
)
def test_a_secret_is_found_however_it_is_hidden(hide):
    canaries = Canaries()
    secret = canaries.plant("here")
    canaries.plant("not here")
    assert canaries.found_in(b'{"a":"' + hide(secret.encode()) + b'","b":1}') == ["here"]


# -- around an agent


def tee(upstream: int, kept: list[bytes]):
    """Carries bytes between a client and the cloud, and keeps what the client says."""

    def handler(conn: socket.socket, server: Server) -> None:
        kept.append(b"")
        mine = len(kept) - 1
        with socket.create_connection(("127.0.0.1", upstream), timeout=30) as other:
            while not server.stopping.is_set():
                ready, _, _ = select.select([conn, other], [], [], 0.2)
                for sock in ready:
                    data = sock.recv(65_536)
                    if not data:
                        return
                    if sock is conn:
                        kept[mine] += data
                    (other if sock is conn else conn).sendall(data)

    return handler


def saying(*said: bytes):
    """A target that answers each request on a connection of its own with the next of these; the last one stays."""
    count = iter(range(10**9))

    def handler(conn: socket.socket, server: Server) -> None:
        request = read_request(conn)
        server.requests.append(request)
        conn.sendall(said[min(next(count), len(said) - 1)])

    return handler


def hostile(canaries: Canaries, where: str, status: int) -> bytes:
    """An answer that is full of secrets."""
    names = ("X-Internal", "Set-Cookie", "WWW-Authenticate", "Server")
    headers = {name: f"a={canaries.plant(f'{where} answer {name}')}" for name in names}
    return answer(f'{{"secret": "{canaries.plant(f"{where} answer body")}", "n": 5}}', status, **headers)


class Captured:
    """What an agent left behind: bytes on the wire, its log, its pages, the record of what was sent."""

    def __init__(self, folder: Path, wire: list[bytes], key: str) -> None:
        buffer = next(folder.glob("*.db"))
        self.buffer, record = buffer.name, path_of(buffer)
        self.requests = read(record)
        self.parts = {
            "wire": b"\n".join(wire),
            "log": (folder / "agent.log").read_bytes(),
            "page": b"".join(each.read_bytes() for each in folder.glob("page-*")),
            "record": b"".join(each.read_bytes() for each in (record, older(record)) if each.exists()),
            "queue": b"".join(each.read_bytes() for each in (buffer, *folder.glob(f"{buffer.name}-*"))),
            "states": b"".join(each.read_bytes() for each in folder.glob("*.states")),
            "evidence": b"".join(each.read_bytes() for each in folder.glob("*.evidence*")),
        }
        self.private = [each for each in folder.iterdir() if each.name.startswith(f"{buffer.name}.")]
        self.key = key

    def check(self, canaries: Canaries) -> None:
        """None of the secrets is in any of it, and the key is in the one header where it belongs."""
        found = {part: canaries.found_in(data) for part, data in self.parts.items()}
        for part in (
            "page",
            "evidence",
        ):  # they show records and certificates as they came
            found[part] = [place for place in found[part] if not place.startswith(PUBLIC)]
        assert found == {part: [] for part in self.parts}
        # The last good definitions are kept as the cloud gave them, for this user alone.
        assert {each.name for each in self.private if each.stat().st_mode & 0o077} <= {f"{self.buffer}.lock"}
        key = self.key.encode()
        allowed = {b"Authorization: Bearer " + key, b"Agent-Key: " + key}
        lines = {line for line in self.parts["wire"].split(b"\r\n") if key in line}
        assert lines and lines <= allowed
        assert not [part for part, data in self.parts.items() if part != "wire" and key in b"\0".join(views(data))]
        bodies = [request for request in self.requests if request.request.startswith("POST")]
        assert bodies and self.parts["log"].count(b"Request ") >= len(bodies), "every body is printed"


def run(folder: Path, settings: dict[str, str], ready, page: int | None = None) -> None:
    """A real agent with debug lines, until `ready()` returns; then it is asked for its pages and stopped."""
    command = [sys.executable, "-m", "observer_agent", "run", "--log-level", "debug", "--config", "/dev/null"]
    with (folder / "agent.log").open("wb") as log:
        agent = subprocess.Popen(command, env=clean_env(settings), stderr=log, stdout=log, start_new_session=True)
    try:
        ready()
        for n, path in enumerate(("/", "/api/state", "/metrics") if page else ()):
            line = http.client.HTTPConnection("127.0.0.1", page, timeout=20)
            line.request("GET", path)
            (folder / f"page-{n}").write_bytes(line.getresponse().read())
            line.close()
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(60) == 0
    finally:
        end_process(agent)


# -- the second dialect


def checks_of(canaries: Canaries, stack: ExitStack, folder: Path, heard: list[Server]) -> list[dict]:
    """Checks of every type, that succeed and that fail, with secrets wherever one can be; `heard` are told some."""
    plant, checks = canaries.plant, []

    def add(name: str, kind: str, url: str, **more: object) -> None:
        common = {"id": f"check-{len(checks)}", "name": name, "interval_seconds": 5, "timeout_seconds": 3}
        checks.append({**common, "type": kind, "url": url, **more})

    for where, status in (("up", 200), ("down", 503)):
        target = stack.enter_context(Server(saying(hostile(canaries, where, status))))
        heard.append(target)
        user = f"{plant(f'{where} user')}:{plant(f'{where} password')}"
        headers = {
            "Authorization": f"Bearer {plant(f'{where} bearer')}",
            "X-Api-Key": plant(f"{where} key"),
            "Cookie": f"session={plant(f'{where} cookie')}",
            "X-Custom": plant(f"{where} header"),
        }
        add(
            where,
            "http",
            f"http://{user}@127.0.0.1:{target.port}/p?token={plant(f'{where} query')}#f",
            method="POST",
            request_body=f'{{"password":"{plant(f"{where} request body")}"}}',
            request_headers=[{"key": k, "value": v} for k, v in headers.items()],
        )
    for name, more in {
        "keyword": {"keyword_check": "certainly-missing", "keyword_present": True},
        "header": {"expected_headers": [{"key": "X-Internal", "value": "v", "match": "exact"}]},
    }.items():
        target = stack.enter_context(Server(saying(hostile(canaries, name, 200))))
        add(name, "http", f"{target.url}/?a={plant(f'{name} query')}", **more)
    plain = answer("", 302, Location=f"http://127.0.0.1:1/?x={plant('redirect query')}")
    add("redirect", "http", stack.enter_context(Server(saying(plain))).url)
    tls = stack.enter_context(Server(saying(answer("")), tls=self_signed(folder, f"{plant('certificate name')}.test")))
    add("tls", "https", f"{tls.url}/?q={plant('tls query')}")
    add("ssl", "ssl", f"127.0.0.1:{tls.port}")
    add("refused", "http", f"http://127.0.0.1:{free_port()}/?x={plant('refused query')}")
    add("tcp", "tcp", f"127.0.0.1:{tls.port}")
    add("tcp down", "tcp", f"127.0.0.1:{free_port()}")
    banner = plant("udp answer").encode()
    add("udp", "udp", f"127.0.0.1:{stack.enter_context(UdpServer(lambda data: [banner])).port}")
    for name, expected in (("dns up", []), ("dns down", ["203.0.113.9"])):
        record = f'{{}} 60 IN TXT "{plant(f"{name} answer")}"'
        resolver = stack.enter_context(UdpServer(answering(record)))
        extra = {"dns_expected_ips": expected} if expected else {}
        add(name, "dns", "name.example", dns_record_type="TXT", dns_resolver=resolver.at, **extra)
    add("unknown type", "gopher", f"gopher://x/{plant('unknown type url')}")
    add("bad url", "http", f"http://[{plant('bad url')}/")
    bad = {"key": "X-Bad", "value": f"{plant('bad header')}\r\nX: y"}
    add("bad header", "http", "http://127.0.0.1/", request_headers=[bad])
    add("bad type of body", "http", "http://127.0.0.1:1/", request_body={"x": plant("bad body")})
    return checks


@pytest.mark.slow
def test_none_of_them_leaves_an_agent_of_the_second_dialect(tmp_path):
    canaries, wire, heard = Canaries(), [], []
    token = "lh_" + secrets.token_hex(16)
    console = Console()
    with ExitStack() as stack:
        stack.callback(console.close)
        console.checks = checks_of(canaries, stack, tmp_path, heard)
        front = stack.enter_context(Server(tee(console.server_port, wire)))
        settings = {
            "CLOUD_DIALECT": "lighthouse",
            "LIGHTHOUSE_TOKEN": token,
            "LIGHTHOUSE_URL": front.url,
            "LIGHTHOUSE_DATA_DIR": str(tmp_path),
            "CANARY": canaries.plant("environment"),
            "PROMETHEUS_PASSWORD": canaries.plant("password in the environment"),
            "LOG_FORMAT": "text",
        }

        def ready() -> None:
            wanted = {check["id"] for check in console.checks}
            console.until(lambda: {row["check_id"] for row in console.events()} >= wanted, 90)
            console.until(lambda: console.bodies("heartbeat"), 60)

        run(tmp_path, settings, ready)
        states = {row["check_id"]: row["new_state"] for row in console.events()}
    assert len(canaries.at) >= 30
    assert set(states.values()) == {"up", "down"} and states["check-0"] == "up" and states["check-1"] == "down"
    assert console.bodies("shutdown")
    told = canaries.found_in(b"".join(request for target in heard for request in target.requests))
    parts = ("query", "bearer", "key", "cookie", "header", "request body")
    assert set(told) == {f"{where} {part}" for where in ("up", "down") for part in parts}, "it was used all the same"
    Captured(tmp_path, wire, token).check(canaries)


# -- the first dialect


def definitions_of(canaries: Canaries, stack: ExitStack, heard: list[Server], env: dict[str, str]) -> list[dict]:
    """Definitions of many source types, that succeed and that fail, with secrets wherever one can be."""
    plant, made = canaries.plant, []
    rules = {"healthy_operation": "under", "healthy_value": 500, "unhealthy_operation": "over", "unhealthy_value": 900}

    def add(source_type: str, config: dict) -> None:
        common = {"id": f"m{len(made)}", "title": f"metric {len(made)}", "interval": 1 / 60, "interval_agent_push": 1}
        made.append({**common, **rules, "source_type": source_type, "source_config": config})

    def secret(place: str) -> str:
        """The name of an environment variable that holds a new secret."""
        name = f"PROBE_{len(env)}"
        env[name] = plant(place)
        return name

    for where, status in (("http up", 200), ("http down", 500)):
        target = stack.enter_context(Server(saying(hostile(canaries, where, status))))
        heard.append(target)
        add(
            "http",
            {
                "url": f"{target.url}/p?token={plant(f'{where} query')}",
                "header_refs": {"Authorization": secret(f"{where} header"), "X-Api-Key": secret(f"{where} key")},
                "json_path": "$.n",
            },
        )
    for where, status in (("page", 200), ("metrics", 403)):
        target = stack.enter_context(Server(saying(hostile(canaries, where, status))))
        heard.append(target)
        add(
            "loki",
            {
                "base_url": target.url,
                "query": f'sum(count_over_time({{a="{plant(f"{where} loki query")}"}}[5m]))',
                "auth_mode": "bearer",
                "token_ref": secret(f"{where} loki token"),
            },
        )
        env.setdefault("PROMETHEUS_SERVER_URL", target.url)  # it alone gets the agent's own credentials
        add("prometheus", {"query": f'up{{a="{plant(f"{where} query")}"}}', "prometheus_url": target.url})
        search = {"aggs": {"a": {"avg": {"field": plant(f"{where} search")}}}}
        basic = {"auth_mode": "basic", "username": "u", "password_ref": secret(f"{where} search password")}
        add("elasticsearch", {"base_url": target.url, "index": "i", "query": search, "agg_name": "a", **basic})
    tls = stack.enter_context(Server(saying(answer("")), tls=Authority().expired()))
    add("tls_cert", {"host": "127.0.0.1", "port": tls.port})
    add("http", {"url": f"{tls.url}/?x={plant('tls query')}"})
    add("tcp", {"host": "127.0.0.1", "port": free_port()})
    resolver = stack.enter_context(UdpServer(answering(f'{{}} 60 IN TXT "{plant("dns answer")}"')))
    add("dns", {"domain": "name.example", "record_type": "TXT", "expected_value": "other", "resolver": resolver.at})
    add("http", {"url": f"ftp://x/{plant('bad url')}"})
    add("http", {"url": "http://127.0.0.1:1/", "header_refs": {"X": f"{plant('bad reference').upper()}"}})
    add("nonsense", {"url": f"http://x/{plant('unknown type')}"})
    return made


@pytest.mark.slow
def test_none_of_them_leaves_an_agent_of_the_first_dialect(tmp_path):
    canaries, wire, heard, page = Canaries(), [], [], free_port()
    key = "obs_live_" + secrets.token_hex(16)
    env = {
        "PROMETHEUS_PASSWORD": canaries.plant("prometheus password"),
        "DEBUG_DASHBOARD_TOKEN": "",
        "CANARY": canaries.plant("environment"),
        "PROMETHEUS_HEADERS": json.dumps({"X-Extra": canaries.plant("prometheus header")}),
    }
    cloud = LocalCloud()
    with ExitStack() as stack:
        stack.callback(cloud.close)
        cloud.definitions = definitions_of(canaries, stack, heard, env)
        front = stack.enter_context(Server(tee(cloud.server_port, wire)))
        settings = {
            "AGENT_KEY": key,
            "CLOUD_SERVER_URL": front.url,
            "BUFFER_PATH": str(tmp_path / "buffer.db"),
            "DEBUG_DASHBOARD_PORT": str(page),
            "BROADCAST_LOGS": "true",
            "LOG_BROADCAST_LEVEL": "DEBUG",
            "OBSERVER_OTLP_LISTEN_ADDR": "127.0.0.1:0",
            "LOG_FORMAT": "text",
            **env,
        }

        def ready() -> None:
            wanted = {definition["id"] for definition in cloud.definitions}
            cloud.until(lambda: {row["metric_id"] for row in cloud.rows} >= wanted, 90)
            cloud.until(lambda: cloud.beats and cloud.lines, 60)

        run(tmp_path, settings, ready, page)
    assert len(canaries.at) >= 30
    assert {row["status"] for row in cloud.rows} >= {"healthy", "no_data"}
    told = canaries.found_in(b"".join(request for target in heard for request in target.requests))
    assert {"http up query", "http down header", "http up key", "page loki query", "metrics loki token"} <= set(told)
    assert {"page query", "metrics search", "page search password", "prometheus header", "prometheus password"} <= set(
        told
    )
    Captured(tmp_path, wire, key).check(canaries)
