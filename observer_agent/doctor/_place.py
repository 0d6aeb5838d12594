"""Where the doctor is called, and what every step starts from: frozen data, and the one way to run a command."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from observer_agent import config
from observer_agent.clock import Clock
from observer_agent.config import Settings
from observer_agent.logs import Redactor
from observer_agent.policy import Policy
from observer_agent.resolver import Address

COMMAND_SECONDS = 1.0
UNIT = "observer-agent"

Command = Callable[[Sequence[str]], str | None]
Lookup = Callable[[str], tuple[Address, ...]]


def run_command(command: Sequence[str]) -> str | None:
    """What a command of systemd prints; None where systemd does not run or the command fails or takes over 1 s."""
    if not Path("/run/systemd/system").is_dir():
        return None
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=COMMAND_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The machine as the doctor finds it. `command` and `lookup` are the system's unless a test hands in others."""

    env: Mapping[str, str]
    file: Path | None = None
    folder: Path = config.FOLDER
    copies: tuple[Path, ...] = (Path("/run/observer-agent"), Path("/run/credentials/observer-agent.service"))
    command: Command = run_command
    lookup: Lookup | None = None
    clock: Clock = field(default_factory=Clock)
    redact: Redactor = field(default_factory=Redactor)


def is_hidden(place: Place) -> bool:
    """Whether an installed service's settings are there that this user cannot read."""
    folder, file = place.folder, place.folder / "config.toml"
    if not os.path.isdir(folder) or os.geteuid() == 0:
        return False
    return not os.access(folder, os.X_OK) or (os.path.lexists(file) and not os.access(file, os.R_OK))


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the first steps have found: the service's environment and settings, its key and its unit.

    `settings` is None where they cannot be read at all; `wrong` names those that are not what they may be.
    """

    env: Mapping[str, str]
    given: Mapping[str, str]
    settings: Settings | None
    file: Path | None = None
    wrong: frozenset[str] = frozenset()
    key: str = ""
    unit: Mapping[str, str] = field(default_factory=dict)
    rows: tuple[Any, ...] | None = None  # of DEFINITIONS_FILE
    told: frozenset[str] = frozenset()  # ids of the findings so far
    policy: Policy = field(default_factory=Policy)

    @property
    def service_user(self) -> str:
        """The user that the unit runs as; empty where there is no unit."""
        return self.unit.get("User", "")
