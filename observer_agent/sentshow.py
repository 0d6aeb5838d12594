"""`observer-agent sent`: the record of what has left, as text or JSON lines, once or as it comes.

Reads the files of sentlog.py, whether the agent runs or not; prints and returns exit codes. Runs on the main thread.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import click

from observer_agent import config, queueaccess
from observer_agent.clock import Clock, Signals
from observer_agent.errors import UsageError
from observer_agent.sentlog import Sent, Tail, older, path_of, read
from observer_agent.show import clean

TURN = 0.5
PATIENCE = 60.0  # a call has 30 s: what has no answer after this will have none
BODY_SHOWN = 2000


class Wish(NamedTuple):
    """Which requests, and how they are shown. `since` is a time such as 90m; `last` is a count."""

    since: str | None
    last: int | None
    follow: bool
    as_json: bool


def sent(wish: Wish, file: Path | None, clock: Clock) -> int:
    """Prints the requests that were asked for; exit code 1 where nothing is on record."""
    record = path_of(queueaccess.load(file).buffer_path)
    since = clock.now() - _age(wish.since) if wish.since else 0.0
    if wish.follow:
        return _follow(record, wish, clock, since)
    if not record.exists() and not older(record).exists():
        raise UsageError(f"{record} does not exist: no agent with this queue file has sent anything yet")
    found = read(record, since, wish.last)
    _print(found, wish.as_json)
    return 0 if found else 1


def _follow(record: Path, wish: Wish, clock: Clock, since: float) -> int:
    """What there is (only if it was asked for), then what comes, until SIGINT or SIGTERM."""
    with Signals((signal.SIGINT, signal.SIGTERM)) as signals:
        tail = Tail(record)
        if wish.since or wish.last:
            _print(read(record, since, wish.last), wish.as_json)
        while not signals.wait(TURN):
            _print(tail.more(clock.now() - PATIENCE), wish.as_json)
        tail.close()
    return 0


def _print(found: Iterable[Sent], as_json: bool) -> None:
    for each in found:
        click.echo(json.dumps(asdict(each)) if as_json else text(each))


def text(each: Sent) -> str:
    """A request as a line of facts, and its body below."""
    answer = "no answer on record" if each.status is None else str(each.status or f"no answer ({each.error})")
    took = "" if each.seconds is None else f"  {each.seconds * 1000:.0f} ms"
    head = f"{each.time}  {each.request}  {each.to}  {answer}{took}  {each.bytes} bytes  sha256 {each.sha256}"
    lines = [clean(head)]
    if each.body:
        more = len(each.body) - BODY_SHOWN + each.cut
        lines.append("    " + clean(each.body[:BODY_SHOWN]) + (f" ... {more} more characters" if more > 0 else ""))
    if each.missed:
        lines.append(f"    {each.missed} requests before this one could not be recorded")
    return "\n".join(lines)


def _age(text: str) -> float:
    try:
        age = config.VARIABLES["BUFFER_MAX_AGE"].parse(text)
    except ValueError:
        age = None
    if age is None:
        raise UsageError(f"--since {text!r}: must be a time such as 3600, 90m or 1h")
    return float(age)
