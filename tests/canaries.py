"""Planted secrets and the search for them: in bytes as they are, and with their parts taken apart.

`Canaries` plants and finds; `tee` keeps what an agent says; `Stay` runs a real agent, asks it for its pages and has
every command tell what it knows; `Captured` is all that was left behind. Used by the canary tests of both dialects.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import cramjam

from observer_agent.demo.stage import clean_env, end_process, free_port
from observer_agent.sentlog import older, path_of, read
from tests.servers import Server, answer, read_request

DEPTH = 3
AWKWARD = '"\\/+%&<é'  # what JSON, URLs, HTML and base64 write in other ways
STORED = (".console", ".relay", ".definitions")  # files beside the queue that hold what was received
OWN = "own "  # how the places of the agent's own secrets begin: settings, environment, accounts
PAGES = ("/", "/api/state", "/metrics", "/healthz", "/readyz")


class Canaries:
    """Secrets by the place where they are planted. What is looked for is the part of letters and digits."""

    def __init__(self) -> None:
        self.at: dict[str, str] = {}

    def plant(self, place: str, head: str = "", tail: str = "") -> str:
        """A new secret, between two texts that belong to it."""
        assert place not in self.at, place
        self.at[place] = f"cnry{secrets.token_hex(8)}"
        return head + self.at[place] + tail

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
    """What the data holds in URL's, JSON's, base64's, hexadecimal and compressed forms."""
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


def unpacked(wire: list[bytes]) -> Iterator[bytes]:
    """What the bodies on the wire hold that came as a block of snappy."""
    for said in wire:
        for found in re.finditer(rb"(?i)content-encoding: snappy\r\n", said):
            head = said.rindex(b"POST ", 0, found.start())
            begin = said.index(b"\r\n\r\n", head) + 4
            size = re.search(rb"(?i)content-length: (\d+)", said[head:begin])
            assert size
            yield bytes(cramjam.snappy.decompress_raw(said[begin : begin + int(size[1])]))


def saying(*said: bytes):
    """A target that answers each request on a connection of its own with the next of these; the last one stays."""
    count = iter(range(10**9))

    def handler(conn: socket.socket, server: Server) -> None:
        request = read_request(conn)
        server.requests.append(request)
        conn.sendall(said[min(next(count), len(said) - 1)])

    return handler


def echoing(status: int, more: bytes = b""):
    """A target that answers with everything that it was asked, in its body and in headers."""

    def handler(conn: socket.socket, server: Server) -> None:
        request = read_request(conn)
        server.requests.append(request)
        line = base64.b64encode(request).decode()[:2000]
        plain = b" ".join(request.split())[:2000].decode("latin-1")
        conn.sendall(
            answer(request + more, status, X_Asked=plain, X_Coded=line, WWW_Authenticate=f'Basic realm="{plain}"')
        )

    return handler


def hostile(canaries: Canaries, where: str, status: int) -> bytes:
    """An answer that is full of secrets."""
    names = ("X-Internal", "Set-Cookie", "WWW-Authenticate", "Server")
    headers = {name: f"a={canaries.plant(f'{where} answer {name}')}" for name in names}
    return answer(f'{{"secret": "{canaries.plant(f"{where} answer body")}", "n": 5}}', status, **headers)


class Allowed(NamedTuple):
    """What the contract lets stay or leave: places and parts that begin with these, because of `why`.

    Without a word for places it is all but the agent's own secrets.
    """

    places: str
    parts: tuple[str, ...]
    why: str


class Captured:
    """What an agent left behind: bytes on the wire, its log, its pages, its files, what commands print."""

    def __init__(self, folder: Path, wire: list[bytes], key: str) -> None:
        buffer = next(each for each in folder.iterdir() if each.suffix == ".db")
        self.buffer, record = buffer.name, path_of(buffer)
        self.requests = read(record)
        self.parts = {
            "wire": b"\n".join([*wire, *unpacked(wire)]),
            "log": (folder / "agent.log").read_bytes(),
            "page": b"".join(each.read_bytes() for each in folder.glob("page-*")),
            "record": b"".join(each.read_bytes() for each in (record, older(record)) if each.exists()),
            "queue": queue_of(buffer) + (folder / "while.queue").read_bytes(),
            "states": b"".join(each.read_bytes() for each in folder.glob("*.states")),
            "evidence": b"".join(each.read_bytes() for each in folder.glob("*.evidence*")),
            "processes": (folder / "cmdlines").read_bytes(),
            **{f"{each.stem} (command)": each.read_bytes() for each in folder.glob("*.said")},
            **{f"stored {each.suffix}": each.read_bytes() for each in folder.glob("*.db.*") if each.suffix in STORED},
            **bundled(folder),
        }
        self.private = [each for each in folder.iterdir() if each.name.startswith(f"{buffer.name}.")]
        self.key = key

    def check(self, canaries: Canaries, allowed: tuple[Allowed, ...]) -> None:
        """None of the secrets is in any of it but where it may be, and the key is in its header alone."""
        empty = {part for part, data in self.parts.items() if not data}
        assert empty <= {"states"}, "nothing was captured"
        found = {
            part: [p for p in canaries.found_in(data) if not any(may(rule, p, part) for rule in allowed)]
            for part, data in self.parts.items()
        }
        leaks = {part: {each: canaries.at[each] for each in places} for part, places in found.items() if places}
        assert not leaks, json.dumps(leaks, indent=1)
        self._check_key()
        # What holds checks, definitions, pings and evidence as they came is for this user alone.
        assert {each.name for each in self.private if each.stat().st_mode & 0o077} <= {f"{self.buffer}.lock"}
        bodies = [request for request in self.requests if request.request.startswith("POST")]
        assert bodies and self.parts["log"].count(b"Request ") >= len(bodies), "every body is printed"

    def _check_key(self) -> None:
        key = self.key.encode()
        allowed = {b"Authorization: Bearer " + key, b"Agent-Key: " + key}
        lines = {line for line in self.parts["wire"].split(b"\r\n") if key in line}
        assert lines and lines <= allowed
        assert not [part for part, data in self.parts.items() if part != "wire" and key in b"\0".join(views(data))]


def queue_of(buffer: Path) -> bytes:
    """The bytes of the queue file and of those that belong to it."""
    return b"".join(each.read_bytes() for each in (buffer, *buffer.parent.glob(f"{buffer.name}-*")))


def may(rule: Allowed, place: str, part: str) -> bool:
    """Whether the rule is about this secret in this part."""
    is_about = place.startswith(rule.places) if rule.places else not place.startswith(OWN)
    return is_about and part.startswith(rule.parts)


def bundled(folder: Path) -> dict[str, bytes]:
    """The members of the support bundle, where one was made."""
    if not (folder / "bundle.tar.gz").exists():
        return {}
    with tarfile.open(folder / "bundle.tar.gz") as tar:
        members = {each.name.rpartition("/")[2]: tar.extractfile(each) for each in tar.getmembers() if each.isfile()}
        return {f"bundle {name}": member.read() for name, member in members.items() if member}


class Stay:
    """A real agent in `folder` with debug lines; `settings` are its environment, `page` its local page."""

    def __init__(self, folder: Path, settings: Mapping[str, str], before: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.page, self.page_token = free_port(), settings.get("DEBUG_DASHBOARD_TOKEN", "")
        self.buffer = settings.get("BUFFER_PATH", "")
        self.env = clean_env({**settings, "DEBUG_DASHBOARD_PORT": str(self.page)})
        self._before = before

    def run(self, during: Callable[[], object], told: Callable[[], list[str]]) -> None:
        """Runs the agent through `during()`; then pages and commands tell what they know, `why` of `told()`."""
        command = [*self._before, sys.executable, "-m", "observer_agent", "run", "--log-level", "debug"]
        with (self.folder / "agent.log").open("wb") as log:
            agent = subprocess.Popen(
                [*command, "--config", "/dev/null"], env=self.env, stderr=log, stdout=log, start_new_session=True
            )
        try:
            during()
            self._pages()
            (self.folder / "cmdlines").write_bytes(cmdlines())
            (self.folder / "while.queue").write_bytes(queue_of(next(self.folder.glob("*.db"))))
            self._commands("while", told())
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(60) == 0
            self._commands("after", told()[:2])
        finally:
            end_process(agent)

    def _pages(self) -> None:
        head = {"Authorization": f"Bearer {self.page_token}"} if self.page_token else {}
        for n, path in enumerate(PAGES):
            line = http.client.HTTPConnection("127.0.0.1", self.page, timeout=20)
            line.request("GET", path, headers=head)
            (self.folder / f"page-{n}").write_bytes(line.getresponse().read())
            line.close()

    def _commands(self, when: str, told: list[str]) -> None:
        """What each command prints; queue and doctor's bundle while it runs and after."""
        words = [
            ["sent"], ["sent", "--json"], ["status", "--verbose", "--all"], ["status", "--json"], ["check", "--json"],
            ["doctor"], ["doctor", "--json"], ["doctor", "--bundle", str(self.folder / "bundle.tar.gz")],
            ["queue", "stats", "--json"], ["queue", "export", "--jsonl"], ["queue", "rejected", "list", "--json"],
            *[["why", "--json", metric] for metric in told],
        ]  # fmt: skip
        for each in words:
            command = [sys.executable, "-m", "observer_agent", *each, "--config", "/dev/null"]
            done = subprocess.run(command, env=self.env, capture_output=True, timeout=120, check=False)
            assert b"Traceback" not in done.stderr, done.stderr
            name = " ".join(each[:1] if each[0] in ("why", "doctor") else each[:2])
            with (self.folder / f"{name} {when}.said").open("ab") as out:
                out.write(done.stdout + done.stderr + b"\n")


def cmdlines() -> bytes:
    """The command lines of all processes of this machine."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(file.read_bytes())
    return b"\n".join(found)


def rows_of(text: bytes) -> list[dict]:
    """The rows of a command that prints a JSON document for each line."""
    return [json.loads(line) for line in text.splitlines() if line.startswith(b"{")]
