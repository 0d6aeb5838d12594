"""What outlives a restart, in two files beside the queue: the console's last good configuration, and what is believed.

`<queue>.console` holds the checks as the console gave them, headers and bodies too: mode 0600. `<queue>.states` holds
the state of each check and how far its flap protection has counted. Both are replaced as a whole.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from observer_agent.clouds._lighthouse_wire import FLAP_MAX, State
from observer_agent.lighthouse.flap import Track

log = logging.getLogger(__name__)

INTERVAL = 60.0
NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the console said last; the interval is that of heartbeats, in seconds."""

    lighthouse_id: str = ""
    name: str = ""
    etag: str = ""
    paused: bool = False
    heartbeat_interval: float = INTERVAL
    flap_threshold: int = 1
    checks: tuple[Mapping[str, Any], ...] = ()


class Store:
    """See the module; `file` is the queue's. The worker `states` writes states, `beat` the configuration."""

    def __init__(self, file: Path) -> None:
        self._console = file.with_name(file.name + ".console")
        self._states = file.with_name(file.name + ".states")

    def load(self) -> Configuration | None:
        """The last good configuration; None where there is none that can be read."""
        content = _read(self._console)
        if content is None:
            return None
        default, checks = Configuration(), content.get("checks")
        known = {f.name: content.get(f.name) for f in fields(Configuration) if f.name != "checks"}
        good: dict[str, Any] = {n: value for n, value in known.items() if type(value) is type(getattr(default, n))}
        if not 0 < good.get("heartbeat_interval", INTERVAL) < math.inf:  # NaN as well: it would be the last heartbeat
            del good["heartbeat_interval"]
        if not 1 <= good.get("flap_threshold", 1) <= FLAP_MAX:
            del good["flap_threshold"]
        rows = tuple(each for each in checks if isinstance(each, dict)) if isinstance(checks, list) else ()
        return Configuration(**good, checks=rows)

    def save(self, known: Configuration) -> None:
        """Replaces the configuration; a disk that refuses costs only the next start without the console."""
        _write(self._console, {**asdict(known), "checks": [dict(each) for each in known.checks]})

    def load_states(self, told: Mapping[str, str] = NOTHING) -> dict[str, Track]:
        """What was believed of each check; `told` is what the queue was given last: a change gets there before it
        gets here, and a process that was killed in between has told it.
        """
        content = _read(self._states)
        tracks = content.get("checks") if content else None
        rows = tracks.items() if isinstance(tracks, dict) else ()
        return {name: _as_told(_track(each), told.get(name)) for name, each in rows}

    def save_states(self, tracks: Mapping[str, Track]) -> None:
        """Replaces what is believed."""
        rows = {name: [each.committed, each.candidate, each.times] for name, each in tracks.items()}
        _write(self._states, {"checks": rows})


def _track(row: object) -> Track:
    """One stored track; what cannot be understood is not believed."""
    states = {state.value: state for state in State}
    if isinstance(row, list) and len(row) == 3 and isinstance(row[2], int) and not isinstance(row[2], bool):
        first, second = (states.get(each) if isinstance(each, str) else None for each in row[:2])
        return Track(first, second, max(row[2], 0) if second else 0)
    return Track()


def _as_told(track: Track, told: str | None) -> Track:
    """What was told was believed, and nothing was counted since."""
    return Track(State(told)) if told in set(State) and told != track.committed else track


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_bytes())
        if not isinstance(content, dict):
            raise TypeError
        return content
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        log.warning("%s cannot be read (%s); the console is asked", file, type(error).__name__)
        return None


def _write(file: Path, content: object) -> None:
    fresh = file.with_name(file.name + ".new")
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as handle:
            handle.write(json.dumps(content).encode())
            handle.flush()
            os.fsync(handle.fileno())
        fresh.replace(file)
    except OSError as error:
        log.warning("%s could not be written: %s", file, error.strerror)
