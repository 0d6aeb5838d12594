"""Tells the agent's own blindness from a target's fault: every look passes through here.

Only bad news of a target that was well is doubted: a reading that no answer came back for is held against the
witnesses, one that was taken while the agent itself was not let run is taken again. Runs on the probe threads.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

from observer_agent.clock import Clock, iso
from observer_agent.logs import Throttle
from observer_agent.model import Definition, Fault, Reading, Status
from observer_agent.pulse import Pulse
from observer_agent.verdict import judge
from observer_agent.witness import Finding, Kind, Witnesses, kind_of

log = logging.getLogger(__name__)

NETWORK, STALLED, NO_FILES = "agent_network", "agent_stalled", "EMFILE"
WARN = 60.0
STARVED = 2.0  # threads that wait for a processor, on average: a machine that is merely busy has fewer
STALL_SHARE = 0.5  # of a look: more than that without being let run spoils it
LONGEST = 65.0  # seconds that a look and its repetitions may take together
_OURS = (Fault.AGENT, Fault.CONFIG, Fault.POLICY)

Look = Callable[[Definition], Reading]


class Blindness(NamedTuple):
    """Since when (wall clock) this machine sees nothing, why, and that moment on the monotonic clock."""

    since: float
    text: str
    at: float
    told: bool  # in the log


class Seen(NamedTuple):
    """A look: what it gave, and when it began and ended on the monotonic clock."""

    reading: Reading
    begin: float
    end: float


class Lookout:
    """See the module. `look` is the bare look."""

    def __init__(self, look: Look, witnesses: Witnesses, pulse: Pulse, clock: Clock) -> None:
        self._look = look
        self._witnesses = witnesses
        self._pulse = pulse
        self._clock = clock
        self._lock = threading.Lock()
        self._bad: dict[str, Status] = {}  # definitions whose bad news is known to be their target's
        self._blind: dict[Kind, Blindness] = {}
        self._back: dict[Kind, float] = {}  # when it last saw again
        self._warn = Throttle(clock, WARN)

    def look(self, definition: Definition) -> Reading:
        """One look, and a second one where the first may have been the agent's own trouble."""
        begin = self._clock.monotonic()
        reading = self._look(definition)
        if definition.problem or _is_ours(reading):
            return reading
        status = judge(reading, definition.thresholds).status
        if status is Status.HEALTHY and not reading.silent:
            return self._good(definition, reading)
        if self._bad.get(definition.id) is status:
            return reading
        return self._doubt(definition, Seen(reading, begin, self._clock.monotonic()))

    def forget(self, ids: Iterable[str]) -> None:
        """These are all the definitions there are."""
        with self._lock:
            kept = set(ids)
            self._bad = {each: status for each, status in self._bad.items() if each in kept}

    def blindness(self) -> str | None:
        """That this machine sees nothing, since when and why; None while it sees."""
        blind = min(self._blind.copy().values(), default=None)
        return f"this machine sees nothing since {iso(blind.since)}: {blind.text}" if blind else None

    def _doubt(self, definition: Definition, seen: Seen) -> Reading:
        """Bad news of a target that was well: is it the target, or is it us?"""
        first = seen.begin
        if (seen.reading.silent or seen.reading.value is not None) and self._lamed(seen):
            seen = self._again(definition, seen, first)
            if text := self._lamed(seen):
                return _blamed(seen.reading, STALLED, text)
        if seen.reading.silent:
            finding = self._ask(seen.reading)
            if not finding.blind and not self._witnesses.covered(seen.reading.address, seen.begin, seen.end):
                seen = self._again(definition, seen, first)
                if seen.reading.silent and self._was_blind(seen):
                    seen = self._again(definition, seen, first)
                if seen.reading.silent and (text := self._lamed(seen)):
                    return _blamed(seen.reading, STALLED, text)
                finding = self._ask(seen.reading) if seen.reading.silent else finding
            if finding.blind and seen.reading.silent:
                return self._blame(seen.reading, finding)
            if finding.answered:
                self._sees(kind_of(seen.reading.address))
        return seen.reading if _is_ours(seen.reading) else self._believe(definition, seen.reading)

    def _believe(self, definition: Definition, reading: Reading) -> Reading:
        status = judge(reading, definition.thresholds).status
        if status is Status.HEALTHY and not reading.silent:
            return self._good(definition, reading)
        if not reading.silent:
            self._heard(reading)
        with self._lock:
            self._bad[definition.id] = status
        return reading

    def _lamed(self, seen: Seen) -> str | None:
        """That the agent was not let run during a look, where that may have spoilt it."""
        gap = self._pulse.stalled(seen.begin, seen.end)
        if gap and gap >= STALL_SHARE * (seen.end - seen.begin):
            return f"the agent was not let run for {gap:.1f} s while it looked"
        waiting = self._pulse.starved(seen.begin)
        return f"{waiting:.1f} threads of the agent waited for a processor" if waiting >= STARVED else None

    def _take(self, definition: Definition) -> Seen:
        begin = self._clock.monotonic()
        return Seen(self._look(definition), begin, self._clock.monotonic())

    def _was_blind(self, seen: Seen) -> bool:
        """Whether this machine was blind when a look began: what was sent then may be lost, though others answer."""
        kind = kind_of(seen.reading.address)
        return kind in self._blind or self._back.get(kind, -math.inf) >= seen.begin

    def _again(self, definition: Definition, seen: Seen, first: float) -> Seen:
        """Looks once more where the time since the first look allows."""
        spent = self._clock.monotonic() - first
        return self._take(definition) if spent + getattr(definition.config, "timeout", 0.0) <= LONGEST else seen

    def _ask(self, reading: Reading) -> Finding:
        return self._witnesses.ask(kind_of(reading.address), reading.address)

    def _good(self, definition: Definition, reading: Reading) -> Reading:
        self._heard(reading)
        if definition.id in self._bad:
            with self._lock:
                self._bad.pop(definition.id, None)
        return reading

    def _heard(self, reading: Reading) -> None:
        """An answer has come: the network works, as far as that address."""
        if reading.address:
            self._witnesses.note(reading.address)
            if self._blind:
                self._sees(kind_of(reading.address))
                self._names_again()

    def _blame(self, reading: Reading, finding: Finding) -> Reading:
        text = finding.blind or ""
        if finding.no_files:
            return _blamed(reading, NO_FILES, text)
        kind = kind_of(reading.address)
        with self._lock:
            before = self._blind.get(kind)
            told = before.told if before else not self._blind and self._warn.ready()
            first = before or Blindness(self._clock.now(), text, self._clock.monotonic(), told)
            self._blind[kind] = first._replace(text=text)
        if told and not before:
            log.warning("This machine sees nothing (%s); no target is blamed until it does again", text)
        return _blamed(reading, NETWORK, text)

    def _names_again(self) -> None:
        blind = self._blind.get(Kind.NAMES)
        if blind and self._witnesses.found_names(blind.at):
            self._sees(Kind.NAMES)

    def _sees(self, kind: Kind) -> None:
        if kind not in self._blind:
            return
        with self._lock:
            blind = self._blind.pop(kind, None)
            self._back[kind] = self._clock.monotonic()
        if blind and blind.told:
            log.info("This machine sees again, after %.0f s", self._clock.now() - blind.since)


def _is_ours(reading: Reading) -> bool:
    return reading.value is None and reading.fault in _OURS


def _blamed(reading: Reading, reason: str, text: str) -> Reading:
    """The reading as the agent's own fault; what was seen stays in the detail."""
    seen = reading.reason if reading.value is None else reading.value
    return reading._replace(value=None, reason=reason, fault=Fault.AGENT, detail={"error": text, "seen": seen})
