"""Probes with a new connection each against Debian's `prometheus-blackbox-exporter`: CPU of each process for a probe.

Both look at the same target. The exporter is asked over one kept connection for each thread; only its own CPU counts.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import trustme

from benchmarks import targets
from benchmarks.measure import median
from observer_agent import config, probes
from observer_agent.clock import Clock
from observer_agent.logs import Redactor
from observer_agent.resolver import Resolver

EXPORTER = "prometheus-blackbox-exporter"
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
COUNT, THREADS, ROUNDS = 1500, 8, 5
MODULES = """modules:
  http: {prober: http, timeout: 5s, http: {preferred_ip_protocol: ip4, valid_http_versions: ["HTTP/1.1"]}}
  https: {prober: http, timeout: 5s, http: {preferred_ip_protocol: ip4, fail_if_not_ssl: true}}
  tcp: {prober: tcp, timeout: 5s, tcp: {preferred_ip_protocol: ip4}}
"""


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Exporter:
    """The exporter as a process of its own."""

    def __init__(self, folder: Path) -> None:
        (folder / "blackbox.yml").write_text(MODULES)
        self.port = free_port()
        words = [EXPORTER, f"--config.file={folder}/blackbox.yml", f"--web.listen-address=127.0.0.1:{self.port}"]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                time.sleep(0.05)
        raise SystemExit("the exporter does not listen")

    def probe(self, module: str, target: str, count: int) -> None:
        """Probes one after another over a kept connection; each must succeed."""
        conn = http.client.HTTPConnection("127.0.0.1", self.port)
        for _ in range(count):
            conn.request("GET", f"/probe?module={module}&target={target}")
            if b"\nprobe_success 1" not in conn.getresponse().read():
                raise SystemExit(f"blackbox_exporter's {module} probe failed")
        conn.close()


def figures() -> Iterator[tuple[str, str]]:
    """Lines of the report."""
    if not shutil.which(EXPORTER):
        yield EXPORTER, "is not installed: nothing to compare with"
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tls = _trusted(folder)
        (plain, port), (secure, tls_port) = targets.start(), targets.start(tls)
        exporter = Exporter(folder)
        try:
            yield from _compare(exporter, port, tls_port)
        finally:
            for process in (plain, secure, exporter.process):
                process.terminate()


def _trusted(folder: Path) -> tuple[str, str]:
    """A certificate that the system's bundle vouches for, with one authority added to a copy of it."""
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())
    bundle = folder / "bundle.pem"
    bundle.write_bytes(BUNDLE.read_bytes() + authority.cert_pem.bytes())
    os.environ["SSL_CERT_FILE"] = str(bundle)
    return str(cert), str(key)


def _compare(exporter: Exporter, port: int, tls_port: int) -> Iterator[tuple[str, str]]:
    clock = Clock()
    settings = config.load({}, to_run=False)
    tools = probes.Tools(clock=clock, resolver=Resolver(clock), env=os.environ, redact=Redactor(), settings=settings)
    look = probes.Prober(tools).look
    kinds: dict[str, tuple[str, dict[str, Any], str, float]] = {
        "http": ("http", {"url": f"http://127.0.0.1:{port}/"}, f"http://127.0.0.1:{port}/", 0.25),
        "https": ("http", {"url": f"https://127.0.0.1:{tls_port}/"}, f"https://127.0.0.1:{tls_port}/", 0.9),
        "tcp": ("tcp", {"host": "127.0.0.1", "port": port}, f"127.0.0.1:{port}", 0.12),
    }
    for name, (kind, fields, target, aim) in kinds.items():
        parsed = probes.parse(kind, fields)

        def ours(count: int, kind: str = kind, parsed: Any = parsed) -> None:
            for _ in range(count):
                reading = look(kind, parsed)
                if reading.value is None:
                    raise SystemExit(f"our {kind} probe failed: {reading}")

        def theirs(count: int, name: str = name, target: str = target) -> None:
            exporter.probe(name, target, count)

        pairs = [(_cpu(ours, os.getpid()), _cpu(theirs, exporter.process.pid)) for _ in range(ROUNDS + 1)][
            1:
        ]  # the first is a warm-up
        mine, peer = median([a for a, _ in pairs]), median([b for _, b in pairs])
        ratio = median([a / b for a, b in pairs])
        yield f"{name}: CPU of a probe, {THREADS} threads", f"{mine:7.0f} us, blackbox_exporter {peer:7.0f} us"
        yield f"ratio: {name} probe", f"{ratio:.2f} of blackbox_exporter's CPU (aim {aim})"


def _cpu(job: Callable[[int], None], pid: int) -> float:
    """Microseconds of CPU of a process for each probe, from THREADS threads."""
    before = cpu_of(pid)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(job, [COUNT // THREADS] * THREADS))
    return (cpu_of(pid) - before) / (COUNT // THREADS * THREADS) * 1e6
