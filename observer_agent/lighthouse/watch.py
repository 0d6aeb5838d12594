"""Hears of every look, and turns it into what the console is told: a change of state, or a row of a sync.

Looks come in from the probe threads through `ran`, events leave through `put`. A look counts only while its check is
as it was when it began, and only until the agent stops: a run that was cancelled is no result (W1). The latest latency
and days of a certificate wait for the heartbeat (`drain`, `restore`). What is believed of each check is in `tracks`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from observer_agent.clock import Clock
from observer_agent.clouds._lighthouse_wire import Event, State
from observer_agent.collector import Listener
from observer_agent.lighthouse.flap import Track, observe, settle
from observer_agent.lighthouse.opinion import Opinion, opinion
from observer_agent.logs import Redactor
from observer_agent.model import Definition, Reading

INITIAL, RESYNC, NEW_CHECK = "initial", "resync", "new_check"
STEP_NS = 1_000  # between two events of a check that would bear the same moment

Put = Callable[[Sequence[Event]], object]


class Figures(NamedTuple):
    """What a heartbeat tells of checks: milliseconds and days, each with its moment."""

    latencies: Mapping[str, tuple[int | None, str]]
    certificates: Mapping[str, tuple[int, str]]


class Watch(Listener):
    """See the module. `tally` hears of everything first; `changed` is called when there is something to store."""

    def __init__(
        self, put: Put, clock: Clock, redact: Redactor, tally: Listener, *, changed: Callable[[], object] = lambda: None
    ) -> None:
        self._put = put
        self._clock = clock
        self._redact = redact
        self._tally = tally
        self.changed = changed
        self._lock = threading.Lock()
        self._running: dict[str, str] = {}  # the fingerprints of the checks that are looked at now
        self._tracks: dict[str, Track] = {}
        self._due: dict[str, str] = {}  # checks that have to be told in a sync, and in which
        self._last: dict[str, int] = {}  # the moment of each check's last event, in ns
        self._latencies: dict[str, tuple[int | None, str]] = {}
        self._certificates: dict[str, tuple[int, str]] = {}
        self._closed = False
        self.threshold = 1

    # -- what the agent says

    def believe(self, tracks: Mapping[str, Track]) -> None:
        """What was believed before the restart."""
        with self._lock:
            self._tracks = dict(tracks)

    def adopt(self, known: Iterable[str], running: Iterable[Definition], due: Mapping[str, str]) -> set[str]:
        """The checks as they are now, those of them that are looked at, and those that have to be told in a sync.

        Returns the ids to be looked at at once: those, and whatever has changed or was not looked at before. State of
        checks that are gone is forgotten.
        """
        ids = set(known)
        with self._lock:
            before, self._running = self._running, {each.id: each.fingerprint for each in running}
            self._due = {name: kind for name, kind in {**self._due, **due}.items() if name in ids}
            for memory in (self._tracks, self._last, self._latencies, self._certificates):
                for gone in memory.keys() - ids:
                    memory.pop(gone)
            at_once = {name for name, mark in self._running.items() if name in self._due or before.get(name) != mark}
        self.changed()
        return at_once

    def forget(self) -> None:
        """Another console, or another Lighthouse: nothing is believed of its checks."""
        with self._lock:
            self._tracks.clear()
            self._due.clear()

    def close(self) -> None:
        """From now on nothing is a result."""
        with self._lock:
            self._closed = True

    def tracks(self) -> dict[str, Track]:
        """What is believed of each check."""
        with self._lock:
            return dict(self._tracks)

    def unsettled(self) -> int:
        """How many checks still have to be told in a sync."""
        with self._lock:
            return len(self._due)

    def drain(self) -> Figures:
        """What the next heartbeat tells."""
        with self._lock:
            figures = Figures(self._latencies, self._certificates)
            self._latencies, self._certificates = {}, {}
        return figures

    def restore(self, figures: Figures) -> None:
        """A heartbeat has failed: what it told waits again, where nothing newer does (W20)."""
        with self._lock:
            self._latencies = {**figures.latencies, **self._latencies}
            self._certificates = {**figures.certificates, **self._certificates}

    # -- what probe threads say

    def ran(self, definition: Definition, reading: Reading, late: float, in_time: bool) -> None:
        """A look has ended."""
        self._tally.ran(definition, reading, late, in_time)
        found = opinion(definition, reading, self._redact)
        if found.state is None:
            return
        with self._lock:
            if self._closed or self._running.get(definition.id) != definition.fingerprint:
                return
            event = self._take(definition.id, found, found.state)
        if event:
            self._put((event,))
            self.changed()

    def skipped(self, definition: Definition, slots: int, starved: bool) -> None:
        """Slots went by."""
        self._tally.skipped(definition, slots, starved)

    def missed(self, definition: Definition, slots: int) -> None:
        """Slots went by while nothing ran at all."""
        self._tally.missed(definition, slots)

    def stood(self, seconds: float) -> None:
        """Nothing ran at all for a while."""
        self._tally.stood(seconds)

    def _take(self, check_id: str, found: Opinion, state: State) -> Event | None:
        """What a result changes, and what the console is told of it."""
        nanos = max(int(self._clock.now() * 1e9), 0)
        at = stamp(nanos)
        self._latencies[check_id] = (found.response_time_ms, at)
        if found.days_to_expiry is not None:
            self._certificates[check_id] = (found.days_to_expiry, at)
        track, kind = self._tracks.get(check_id, Track()), self._due.pop(check_id, None)
        if kind:
            # What was believed before a restart stands until the threshold is reached, or each restart would undo it.
            held = kind == INITIAL and track.committed is not None
            track = observe(track, state, self.threshold)[0] if held else settle(track, state)
            self._tracks[check_id] = track
            return self._event(check_id, nanos, found, (None, track.committed or state), kind)
        fresh, change = observe(track, state, self.threshold)
        if fresh != track:
            self._tracks[check_id] = fresh
            self.changed()
        if change is None or change.before is None:
            return None
        return self._event(check_id, nanos, found, (change.before, change.after), None)

    def _event(
        self, check_id: str, nanos: int, found: Opinion, states: tuple[State | None, State], kind: str | None
    ) -> Event:
        """The console tells events of a check apart by their moment: no two bear the same."""
        if nanos == self._last.get(check_id):
            nanos += STEP_NS
        self._last[check_id] = nanos
        held = states[1] is not found.state
        return Event(
            check_id=check_id,
            prev_state=states[0],
            new_state=states[1],
            observed_at=stamp(nanos),
            response_time_ms=None if held else found.response_time_ms,
            status_code=None if held else found.status_code,
            error_message=None if held else found.error_message,
            sync_kind=kind,
        )


def stamp(nanos: int) -> str:
    """RFC 3339, UTC, nanoseconds, `Z`."""
    seconds, rest = divmod(nanos, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC).isoformat()[:19]}.{rest:09d}Z"
