"""The demonstration: real targets, a hub and an agent as processes of their own, an outage in the middle.

Everything lives in a temporary directory on free ports of loopback and is gone at the end, however it ends. The
figures at the end are counted from what the hub holds and what is left in the queue file, not from what was claimed.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from observer_agent import queuefile
from observer_agent.clock import Clock, Signals, parse_iso
from observer_agent.demo.stage import TICK, Hub, Interrupted, end_process, free_port, get, needs, start_agent
from observer_agent.demo.targets import document_of, running_targets
from observer_agent.errors import UsageError

OUTAGE = 5.0
OUTAGE_AT = 15.0
PUSH_WITHIN = 10.0  # seconds after an outage; the sender waits 5 s at most
TYPES = ("prometheus", "http", "tcp")


@dataclass
class Seen:
    """What was measured on the way."""

    heartbeats: int = 0
    max_queue_depth: int = 0
    pushed: int = 0
    accepted: int = 0
    outage_seconds: float = 0.0
    first_push_after: float | None = None
    taken_before: int = 0
    back_at: float | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)


class Demo:
    """One demonstration; `run` returns the exit code."""

    def __init__(self, seconds: int | None, as_json: bool) -> None:
        self._seconds = seconds
        self._json = as_json
        self._clock = Clock()
        self._seen = Seen()
        self._lines = 0

    def run(self) -> int:
        """0 if nothing was lost or doubled, 1 if something was; raises UsageError without the extra `hub`."""
        needs()
        with Signals((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)) as signals, ExitStack() as stack:
            self._signals = signals
            folder = Path(tempfile.mkdtemp(prefix="observer-demo-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            try:
                result = self._play(stack, folder)
            except Interrupted:
                return 0
        return self._report(result)

    # -- the play

    def _play(self, stack: ExitStack, folder: Path) -> dict[str, Any]:
        self._say("Starting targets, a hub and an agent; Ctrl-C ends it")
        page_port = free_port()
        targets = stack.enter_context(running_targets(folder, page_port))
        config = folder / "observer.yaml"
        config.write_text(json.dumps(document_of(targets, page_port)))
        self._hub = Hub(folder, config, self._clock)
        stack.callback(self._hub.end)
        self._hub.start(self._pause)
        self._agent = start_agent(folder, self._hub.create_key(), self._hub.port, page_port)
        stack.callback(end_process, self._agent)
        self._page_port = page_port
        began = self._clock.monotonic()
        try:
            self._watch(began)
        except Interrupted:
            self._say("Stopping")
        return self._finish(folder, began)

    def _watch(self, began: float) -> None:
        """Until the time is over: look every 0.2 s, kill the hub once, start it again."""
        cut_at = began + (self._seconds / 2 if self._seconds else OUTAGE_AT)
        down_at: float | None = None
        shown = 0
        while not self._is_over(now := self._clock.monotonic(), began):
            if down_at is None and now >= cut_at:
                down_at = now
                self._seen.taken_before = self._taken()
                self._hub.kill()
                self._say("--- the hub is killed; the queue fills ---")
            if down_at is not None and not self._seen.back_at and now >= down_at + OUTAGE:
                self._hub.start(self._pause)
                self._seen.back_at = self._clock.monotonic()
                self._seen.outage_seconds = round(self._seen.back_at - down_at, 3)
                self._say("--- the hub is back; the queue drains ---")
            self._look()
            if int(now - began) >= shown:
                shown = int(now - began) + 1
                self._show(now - began)
            if self._agent.poll() is not None:
                raise UsageError(f"the agent ended by itself: {self._agent_log()}")
            self._pause(TICK)

    def _is_over(self, now: float, began: float) -> bool:
        """A hub that was slow to come back is given the time to take its first push."""
        if self._seconds is None or now < began + self._seconds:
            return False
        seen = self._seen
        return not (seen.back_at and seen.first_push_after is None and now < seen.back_at + PUSH_WITHIN)

    def _look(self) -> None:
        state = get(self._page_port, "/api/state") or {}
        queue, seen = state.get("queue", {}), self._seen
        seen.max_queue_depth = max(seen.max_queue_depth, queue.get("depth", 0))
        seen.pushed = queue.get("given", seen.pushed)
        seen.accepted = queue.get("accepted", seen.accepted)
        seen.heartbeats = state.get("cloud", {}).get("heartbeats", seen.heartbeats)
        if seen.back_at and seen.first_push_after is None and self._taken() > seen.taken_before:
            seen.first_push_after = round(self._clock.monotonic() - seen.back_at, 3)
        self._state = state

    def _taken(self) -> int:
        found = (get(self._hub.port, "/api/v1/agents") or {}).get("agents", [])
        return sum(agent.get("taken") or 0 for agent in found)

    def _finish(self, folder: Path, began: float) -> dict[str, Any]:
        """Stops the agent as systemd would, then counts what the hub holds and what is left in the file."""
        if not self._hub.running:
            self._hub.start(self._pause)
        end_process(self._agent)
        rows = list(self._rows())
        distinct = {(row["agent_id"], row["queue_id"], row["row_id"]) for _, row in rows}
        stats = queuefile.read_stats(folder / "buffer.db", self._clock.now(), 0)
        types = {metric["id"]: metric["source_type"] for metric in self._seen.metrics}
        pushed = Counter(types[metric_id] for metric_id, _ in rows)
        pushed.update(types.get(i, "other") for i in left_in(folder / "buffer.db"))
        beats = [agent.get("last_heartbeat_at") for agent in (get(self._hub.port, "/api/v1/agents") or {})["agents"]]
        return {
            "seconds": round(self._clock.monotonic() - began, 1),
            "pushed": {name: pushed[name] for name in TYPES},
            "accepted": len(distinct),
            "duplicates": len(rows) - len(distinct),
            "lost": stats["next_row_id"] - 1 - len(distinct) - stats["depth"],
            "heartbeats": self._seen.heartbeats if any(map(parse_iso, filter(None, beats))) else 0,
            "max_queue_depth": self._seen.max_queue_depth,
            "outage_seconds": self._seen.outage_seconds,
            "first_push_after_outage_seconds": self._seen.first_push_after,
        }

    def _rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every row that the hub holds, by metric."""
        self._seen.metrics = (get(self._hub.port, "/api/v1/metrics") or {}).get("metrics", [])
        for metric_id in {metric["id"] for metric in self._seen.metrics}:
            found = get(self._hub.port, f"/api/v1/metrics/{metric_id}/pushes?limit=10000") or {}
            for row in found.get("pushes", []):
                yield metric_id, row

    def _agent_log(self) -> str:
        return (self._hub.folder / "agent.log").read_text(errors="replace")[-500:]

    def _pause(self, seconds: float) -> None:
        if self._signals.wait(seconds):
            raise Interrupted

    # -- what one sees

    def _say(self, line: str) -> None:
        click.echo(line, err=self._json)
        self._lines = 0  # the live table begins below

    def _show(self, at: float) -> None:
        seen = self._seen
        depth = self._state.get("queue", {}).get("depth", "-")
        line = f"{at:5.0f} s  pushed {seen.pushed:5}  accepted {seen.accepted:5}  waiting {depth:>4}"
        if self._json or not sys.stdout.isatty():
            self._say(line)
            return
        lines = [line, *(self._metric(each) for each in self._state.get("definitions", []))]
        up = f"\x1b[{self._lines}A" if self._lines else ""
        click.echo(up + "\n".join(f"\x1b[2K{each}" for each in lines))
        self._lines = len(lines)

    @staticmethod
    def _metric(each: Mapping[str, Any]) -> str:
        said = each["reason"] if each["value"] is None else f"{each['value']:g}"
        return f"   {each['title'] or each['id']:<28} {each['source_type']:<11} {each['status'] or '...':<10} {said}"

    def _report(self, result: dict[str, Any]) -> int:
        if self._json:
            click.echo(json.dumps(result))
        else:
            click.echo("\nEverything that was queued, held against everything that the hub has:")
            for name, value in result.items():
                click.echo(f"  {name:<32} {value}")
        return 0 if result["lost"] == 0 and result["duplicates"] == 0 else 1


def left_in(file: Path) -> list[str]:
    """The metric ids of the rows that wait in a queue file."""
    with closing(queuefile.read_only(file)) as conn:
        return [row[0] for row in conn.execute(f"SELECT metric_id FROM {queuefile.TABLE}")]
