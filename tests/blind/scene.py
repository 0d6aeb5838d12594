"""Plays one fault on the real agent and prints what the cloud was told, as JSON. Run by `test_blindness.py`:

    unshare --net --mount python -m tests.blind.scene FAULT

Everything listens on 127.0.0.0/8 of a new network namespace, so that its network can be taken away.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import dns.message
import dns.rrset

from observer_agent.clock import Clock, parse_iso
from observer_agent.verdict import first_delay
from tests.cloud import LocalCloud

TARGETS = 50
TIMEOUT_MS = 400
PAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
CLOCK = Clock()


class Target:
    """A listener that answers HTTP; `mute` takes connections and says nothing, `close` refuses them."""

    def __init__(self, port: int = 0) -> None:
        self.mute = False
        self._open()
        self.port = self.listener.getsockname()[1]

    def _open(self, port: int = 0) -> None:
        self.listener = socket.create_server(("127.0.0.1", port), backlog=64)
        threading.Thread(target=self._serve, args=(self.listener,), daemon=True).start()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                conn, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(conn,), daemon=True).start()

    def _answer(self, conn: socket.socket) -> None:
        with conn:
            conn.settimeout(3)
            try:
                if conn.recv(4096) and not self.mute:
                    conn.sendall(PAGE)
                elif self.mute:
                    conn.recv(1)
            except OSError:
                return

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def reopen(self) -> None:
        self._open(self.port)


class Names:
    """A DNS server for *.scene.test on 127.0.0.1:53; `off` says nothing any more."""

    def __init__(self) -> None:
        self.off = False
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            data, sender = self._sock.recvfrom(4096)
            if self.off:
                continue
            question = dns.message.from_wire(data)
            answer = dns.message.make_response(question)
            asked = question.question[0]
            if dns.rdatatype.to_text(asked.rdtype) == "A":
                answer.answer.append(dns.rrset.from_text(asked.name, 0, "IN", "A", "127.0.0.1"))
            with contextlib.suppress(OSError):
                self._sock.sendto(answer.to_wire(), sender)


class Scene:
    """The agent with its fifty definitions, and the moments of what is done to it."""

    def __init__(self, folder: Path, strict: bool) -> None:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        resolv = folder / "resolv.conf"
        resolv.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        subprocess.run(["mount", "--bind", resolv, os.path.realpath("/etc/resolv.conf")], check=True)
        self.names = Names()
        self.targets = [Target() for _ in range(TARGETS)]
        self.cloud = LocalCloud()
        self.cloud.definitions = [self.definition(n) for n in range(TARGETS)]
        env = {"PATH": os.environ["PATH"], "AGENT_KEY": "key-of-the-test", "CLOUD_SERVER_URL": self.cloud.url}
        env |= {"BUFFER_PATH": str(folder / "b.db"), "LOG_FORMAT": "text", "ENABLE_DEBUG_DASHBOARD": "false"}
        env |= {"PROBE_FAILURE_STATUS": "unhealthy"} if strict else {}
        self.log = (folder / "log").open("w+")
        words = [sys.executable, "-m", "observer_agent", "run"]
        self.agent = subprocess.Popen(words, env=env, stderr=self.log, cwd=Path(__file__).parents[2])

    def definition(self, n: int) -> dict:
        """Half HTTP and half TCP, half by name and half by address; due each second."""
        port = self.targets[n].port
        host = f"t{n}.scene.test" if n % 4 < 2 else "127.0.0.1"
        config = {"url": f"http://{host}:{port}/"} if n % 2 else {"host": host, "port": port}
        rules = {
            "healthy_operation": "under",
            "healthy_value": 300,
            "unhealthy_operation": "over",
            "unhealthy_value": 350,
        }
        made = next(f"m{n}-{k}" for k in range(10_000) if first_delay(f"m{n}-{k}") < 1.5)
        kind = "http" if n % 2 else "tcp"
        config["timeout_ms"] = TIMEOUT_MS
        return {"id": made, "source_type": kind, "source_config": config, "interval": 1 / 60, **rules}

    def metric(self, n: int) -> str:
        return self.cloud.definitions[n]["id"]

    def begin(self) -> None:
        """Waits until all fifty are healthy and a heartbeat has come."""
        self.until(lambda: {row["metric_id"] for row in self.healthy()} == {d["id"] for d in self.cloud.definitions})
        self.until(lambda: self.cloud.beats)
        pause(4)

    def healthy(self) -> list[dict]:
        return [row for row in self.cloud.rows if row["status"] == "healthy"]

    def until(self, what, seconds: float = 30.0) -> None:
        end = CLOCK.monotonic() + seconds
        while not what():
            assert CLOCK.monotonic() < end, f"it did not come: {self.told(0)[-5:]}"
            pause(0.05)

    def told(self, since: float) -> list[dict]:
        """The rows whose looks ended after a moment, with their age."""
        return [row | {"after": round(parse_iso(row["timestamp"]) - since, 3)} for row in self.cloud.rows
                if parse_iso(row["timestamp"]) >= since]  # fmt: skip

    def settled(self) -> bool:
        """Whether the last word about every metric is healthy."""
        last = {row["metric_id"]: row["status"] for row in self.cloud.rows}
        return set(last.values()) == {"healthy"}


def pause(seconds: float) -> None:
    CLOCK.alarm().wait(seconds)


def targets_off(scene: Scene) -> dict:
    """Ten refuse, ten of the HTTP ones say nothing; the others answer."""
    refusing = [n for n in range(0, 20, 2)]
    mute = [n for n in range(1, 21, 2)]
    for n in refusing:
        scene.targets[n].close()
    for n in mute:
        scene.targets[n].mute = True
    return {"expected": [scene.metric(n) for n in refusing + mute]}


def network_off(scene: Scene) -> dict:
    subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
    pause(6)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    return {}


def network_silent(scene: Scene) -> dict:
    """Nothing comes back: every packet is dropped."""
    subprocess.run(["iptables", "-A", "INPUT", "-j", "DROP"], check=True)
    pause(6)
    subprocess.run(["iptables", "-D", "INPUT", "-j", "DROP"], check=True)
    return {}


def resolver_off(scene: Scene) -> dict:
    scene.names.off = True
    pause(6)
    scene.names.off = False
    return {}


def stopped(scene: Scene) -> dict:
    scene.agent.send_signal(signal.SIGSTOP)
    pause(5)
    scene.agent.send_signal(signal.SIGCONT)
    return {}


def hog(scene: Scene) -> dict:
    """Sixteen processes that do nothing but run, on the agent's processor; the targets have one for themselves."""
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cpus[1:] or cpus)
    for task in os.listdir(f"/proc/{scene.agent.pid}/task"):
        os.sched_setaffinity(int(task), cpus[:1])
    burn = [sys.executable, "-c", f"import os\nos.sched_setaffinity(0, [{cpus[0]}])\nwhile True: pass"]
    hogs = [subprocess.Popen(burn) for _ in range(16)]
    pause(8)
    for each in hogs:
        each.kill()
        each.wait()
    return {}


def files(scene: Scene) -> dict:
    """No descriptor is left to the agent."""
    pid = scene.agent.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")), before[1]))
    pause(6)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    return {}


def both(scene: Scene) -> dict:
    """Two targets die while the network is gone: they are blamed once it is back."""
    subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
    pause(3)
    for n in (3, 4):
        scene.targets[n].close()
    pause(3)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    return {"expected": [scene.metric(3), scene.metric(4)], "since": CLOCK.now()}


FAULTS = (targets_off, network_off, network_silent, resolver_off, stopped, hog, files, both)


def main(name: str) -> None:
    fault = next(each for each in FAULTS if each.__name__ == name)
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder), strict=fault is both)
        try:
            scene.begin()
            since = CLOCK.now()
            found = fault(scene)
            if not found:
                scene.until(scene.settled)
                pause(3)
            else:
                pause(5)
            scene.log.seek(0)
            out = {"rows": scene.told(since), "since": since, **found, "log": scene.log.read()}
            print(json.dumps(out))
        finally:
            scene.agent.kill()
            scene.agent.wait()
            scene.log.close()


if __name__ == "__main__":
    main(sys.argv[1])
