"""`observer-agent status`: the state as text or JSON, once or again and again until a signal.

Prints and returns exit codes. On a terminal the repeated text has the screen for itself, and its last state stays when
it ends; elsewhere each turn is printed below the one before. Runs on the main thread.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

from observer_agent import show
from observer_agent.clock import Signals
from observer_agent.commands import NOT_RUNNING

OPEN_SCREEN, CLOSE_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
FROM_THE_TOP = "\x1b[H\x1b[2J"
SILENCE = "observer-agent is not running"


@dataclass(frozen=True)
class Look:
    """How the agent is asked (None when none answers), and how the answer is shown."""

    ask: Callable[[], dict[str, Any] | None]
    as_json: bool
    verbose: bool
    everything: bool

    def text(self, state: dict[str, Any] | None) -> str:
        """The state as it is printed."""
        if self.as_json:
            return json.dumps({"running": False} if state is None else state)
        if state is None:
            return SILENCE
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 80
        return show.status(state, verbose=self.verbose, everything=self.everything, width=max(width, 60))


def once(look: Look) -> int:
    """Prints the state; returns the exit code."""
    state = look.ask()
    click.echo(look.text(state), err=state is None and not look.as_json)
    return _code(state)


def watch(look: Look, interval: float) -> int:
    """Prints the state every `interval` seconds until SIGINT or SIGTERM; returns the exit code of the last."""
    with Signals((signal.SIGINT, signal.SIGTERM)) as signals, _screen(look.as_json) as draw:
        while True:
            state = look.ask()
            draw(look.text(state))
            if signals.wait(interval):
                return _code(state)


def _code(state: dict[str, Any] | None) -> int:
    return NOT_RUNNING if state is None else 0 if state["cloud"]["delivering"] else 1


@contextmanager
def _screen(as_json: bool) -> Iterator[Callable[[str], None]]:
    """How a turn is drawn: in place on a terminal, below the one before elsewhere."""
    if as_json or not sys.stdout.isatty():
        yield lambda text: click.echo(text if as_json else f"{text}\n")
        return
    last = ""

    def draw(text: str) -> None:
        nonlocal last
        last = text
        click.echo(FROM_THE_TOP + _cropped(text), nl=False)

    click.echo(OPEN_SCREEN, nl=False)
    try:
        yield draw
    finally:
        click.echo(CLOSE_SCREEN + last)


def _cropped(text: str) -> str:
    """As many lines as the terminal has; the last says what is missing."""
    size = shutil.get_terminal_size()
    lines, rows = [], 0
    for line in text.split("\n"):
        lines.append(line)
        rows += 1 + max(0, len(line) - 1) // size.columns
        if rows >= size.lines - 1:
            break
    left = text.count("\n") + 1 - len(lines)
    return "\n".join([*lines[:-1], f"... {left + 1} more lines"] if left else lines)
