"""The demonstration of the second dialect: real targets, a hub as the console, an agent, an outage in the middle.

One target changes between good and broken, and is looked at through the outage. At the end the hub's history of every
check is held against what the targets were: each change there once, in order, and nothing that never was. Runs on the
main thread; everything lives in a temporary directory and is gone at the end.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from observer_agent import queuefile
from observer_agent.clock import Clock, Signals
from observer_agent.demo.stage import TICK, Hub, Interrupted, end_process, free_port, get, needs, start_lighthouse
from observer_agent.demo.targets import accept_all, closing_server
from observer_agent.errors import UsageError
from observer_agent.worker import spawn

NAME = "demo"
LEAST = 80
FLIP = 13.0  # two looks of five seconds see every state
OUTAGE = 20.0
START_SECONDS = 20.0


class LighthouseDemo:
    """One demonstration; `run` returns the exit code."""

    def __init__(self, seconds: int | None, as_json: bool) -> None:
        self._seconds = seconds
        self._json = as_json
        self._clock = Clock()
        self._truth: dict[str, list[str]] = {}
        self._deepest = 0
        self._outage = 0.0

    def run(self) -> int:
        """0 if the history is the truth, 1 if not; raises UsageError without the extra `hub`."""
        needs()
        if self._seconds is not None and self._seconds < LEAST:
            raise UsageError(f"this dialect looks every five seconds: give it --seconds {LEAST} or more")
        with Signals((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)) as signals, ExitStack() as stack:
            self._signals = signals
            folder = Path(tempfile.mkdtemp(prefix="observer-demo-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            try:
                result = self._play(stack, folder)
            except Interrupted:
                return 0
        return self._report(result)

    def _play(self, stack: ExitStack, folder: Path) -> dict[str, Any]:
        self._say("Starting targets, a hub and an agent of the Lighthouse dialect; Ctrl-C ends it")
        self._file = folder / "lighthouse" / "events.db"
        self._target = stack.enter_context(flipping_target())
        checks = stack.enter_context(checks_of(self._target.server_port))
        self._truth = {each["name"]: ["down" if each["name"] in ("broken", "closed") else "up"] for each in checks}
        config = folder / "observer.yaml"
        config.write_text('{"apiVersion": "observer/v1", "metrics": []}')
        self._hub = Hub(folder, config, self._clock)
        stack.callback(self._hub.end)
        self._hub.start(self._pause)
        token = self._hub.command("lighthouse", "create", NAME).splitlines()[-1]
        self._hub.command("lighthouse", "change", NAME, "--heartbeat", "5")
        document = folder / "checks.yaml"
        document.write_text(json.dumps({"lighthouse": NAME, "checks": checks}))
        self._hub.command("lighthouse", "apply", "-f", str(document))
        self._agent = start_lighthouse(folder, token, self._hub.port)
        stack.callback(end_process, self._agent)
        began = self._clock.monotonic()
        try:
            self._settle(began)
            self._watch(self._clock.monotonic())
        except Interrupted:
            self._say("Stopping")
        return self._finish(began)

    def _settle(self, began: float) -> None:
        """Until the hub knows how every check is."""
        while any(each["state"] is None for each in self._checks()) or not self._checks():
            if self._clock.monotonic() > began + START_SECONDS:
                raise UsageError(f"the agent did not report: {self._agent_log()}")
            self._pause(TICK)
        self._say("every check was looked at")

    def _watch(self, began: float) -> None:
        """Until the time is over: the target changes, the hub is killed once and started again."""
        ends = None if self._seconds is None else began + self._seconds - FLIP
        flip_at, cut_at, down_at, shown = began + FLIP, began + 2.5 * FLIP, 0.0, -1
        while ends is None or self._clock.monotonic() < ends + FLIP:
            now = self._clock.monotonic()
            if now >= flip_at and (ends is None or now < ends - FLIP):
                flip_at += FLIP
                self._flip()
            if not down_at and now >= cut_at:
                down_at = now
                self._hub.kill()
                self._say("--- the hub is killed; events wait in the queue ---")
            if down_at and not self._outage and now >= down_at + OUTAGE:
                self._hub.start(self._pause)
                self._outage = round(self._clock.monotonic() - down_at, 3)
                self._say("--- the hub is back; the queue drains ---")
            self._deepest = max(self._deepest, self._depth())
            if int((now - began) // 5) > shown:
                shown = int((now - began) // 5)
                self._show(now - began)
            if self._agent.poll() is not None:
                raise UsageError(f"the agent ended by itself: {self._agent_log()}")
            self._pause(TICK)

    def _flip(self) -> None:
        self._target.good = not self._target.good
        state = "up" if self._target.good else "down"
        self._truth["flip"].append(state)
        self._say(f"--- the target is {'good' if self._target.good else 'broken'} now ---")

    def _finish(self, began: float) -> dict[str, Any]:
        """Stops the agent as systemd would, then holds the history against the truth."""
        if not self._hub.running:
            self._hub.start(self._pause)
        end_process(self._agent)
        seen = {each["name"]: self._history(each["id"]) for each in self._checks()}
        stamps = [(name, stamp) for name, rows in seen.items() for stamp, _ in rows]
        states = {name: [state for state, _ in groupby(state for _, state in rows)] for name, rows in seen.items()}
        wrong = {name: states.get(name, []) for name, truth in self._truth.items() if states.get(name) != truth}
        lighthouse = get(self._hub.port, f"/api/lighthouses/{NAME}") or {}
        return {
            "seconds": round(self._clock.monotonic() - began, 1),
            "checks": len(self._truth),
            "changes": len(self._truth["flip"]) - 1,
            "events": len(stamps),
            "duplicates": len(stamps) - len(set(stamps)),
            "wrong_histories": wrong,
            "waiting": self._depth(),
            "max_queue_depth": self._deepest,
            "outage_seconds": self._outage,
            "state": lighthouse.get("state"),
            "stop_reason": lighthouse.get("stop_reason"),
        }

    def _checks(self) -> list[dict[str, Any]]:
        found = get(self._hub.port, f"/api/lighthouses/{NAME}/checks") or {}
        return list(found.get("checks", []))

    def _history(self, check_id: str) -> list[tuple[str, str]]:
        """When and what, oldest first."""
        found = get(self._hub.port, f"/api/lighthouses/{NAME}/events?limit=10000&check_id={check_id}") or {}
        return [(each["agent_observed_at"], each["new_state"]) for each in reversed(found.get("events", []))]

    def _depth(self) -> int:
        if not self._file.exists():
            return 0
        return int(queuefile.read_stats(self._file, self._clock.now(), 0)["depth"])

    def _agent_log(self) -> str:
        return (self._hub.folder / "agent.log").read_text(errors="replace")[-500:]

    def _pause(self, seconds: float) -> None:
        if self._signals.wait(seconds):
            raise Interrupted

    def _say(self, line: str) -> None:
        click.echo(line, err=self._json)

    def _show(self, at: float) -> None:
        checks = self._checks() if self._hub.running else []
        states = ", ".join(f"{each['name']} {each['state']}" for each in checks) or "the hub is away"
        self._say(f"{at:5.0f} s  waiting {self._depth():>3}  {states}")

    def _report(self, result: dict[str, Any]) -> int:
        if self._json:
            click.echo(json.dumps(result))
        else:
            click.echo("\nThe hub's history of every check, held against what the targets were:")
            for name, value in result.items():
                click.echo(f"  {name:<20} {value}")
        good = not result["wrong_histories"] and result["duplicates"] == 0 and result["waiting"] == 0
        return 0 if good else 1


class FlippingServer(ThreadingHTTPServer):
    """`/ok` answers 200; `/flip` does while it is `good`; anything else is 500."""

    good = True


class _Target(BaseHTTPRequestHandler):
    server: FlippingServer

    def do_GET(self) -> None:
        good = self.path == "/ok" or (self.path == "/flip" and self.server.good)
        self.send_response(200 if good else 500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """The demo's targets are silent."""


@contextmanager
def flipping_target() -> Iterator[FlippingServer]:
    """The server, serving."""
    server = FlippingServer(("127.0.0.1", 0), _Target)
    with closing_server(server):
        yield server


@contextmanager
def checks_of(port: int) -> Iterator[list[dict[str, Any]]]:
    """The checks, as a document has them; the TCP listener that one of them needs lives as long as the block."""
    base = f"http://127.0.0.1:{port}"
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        spawn("demo-tcp", lambda: accept_all(listener))
        targets = [
            ("steady", "http", f"{base}/ok"),
            ("flip", "http", f"{base}/flip"),
            ("broken", "http", f"{base}/broken"),
            ("open", "tcp", f"127.0.0.1:{listener.getsockname()[1]}"),
            ("closed", "tcp", f"127.0.0.1:{free_port()}"),
        ]
        yield [
            {"name": name, "type": kind, "url": url, "interval_seconds": 5, "timeout_seconds": 3}
            for name, kind, url in targets
        ]
