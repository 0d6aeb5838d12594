"""`observer-agent doctor`: walks everything that delivery needs, and names the cause and the fix in one line each.

    _catalog.py   every finding by its id: how bad, and who is blamed first
    _place.py     the machine as it is found; what every step starts from
    _report.py    findings, checks, the report as facts and as text
    _together.py  steps side by side until a deadline
    _settings.py  settings, key
    _host.py      unit, user, disk
    _queue.py     the queue file
    _local.py     the running agent, by its local page
    _way.py       the way to the cloud: proxy, connection
    _tls.py       TLS, certificates, the clock
    _cloud.py     resolver, connection, proxy, TLS, the answer
    _duplicate.py the duplicate key
    _sources.py   definitions, and one look for each source type
    _secrets.py   what the redactor has to know
    _bundle.py    the file for somebody who helps

Ends within five seconds whatever hangs. Changes nothing: neither on this machine nor at the cloud nor in the agent.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from observer_agent import config
from observer_agent.clock import iso
from observer_agent.doctor import _bundle, _host, _queue, _secrets, _settings, _sources
from observer_agent.doctor._catalog import FINDINGS, LATE, NETWORK, Severity
from observer_agent.doctor._cloud import STEPS, Cloud
from observer_agent.doctor._duplicate import check_duplicate
from observer_agent.doctor._local import Local
from observer_agent.doctor._local import look as look_local
from observer_agent.doctor._place import Known, Place
from observer_agent.doctor._queue import Seen
from observer_agent.doctor._report import Check, Finding, Report, checked, skipped
from observer_agent.doctor._together import Together
from observer_agent.errors import ConfigError, UsageError

__all__ = ["FINDINGS", "Place", "Report", "Result", "examine", "main", "save"]

NETWORK_UNTIL = 2.9  # seconds from the start
STORED_AFTER = 1.5  # until when the cloud's own definitions are waited for
ALL_UNTIL = 3.7


class Result(NamedTuple):
    """The report, and what a bundle needs besides."""

    report: Report
    gathered: _bundle.Gathered


def main(file: Path | None, bundle: Path | None) -> tuple[Report, str]:
    """The command: the report, and what was written of it; raises UsageError where the bundle cannot be written."""
    place = Place(env=dict(os.environ), file=file)
    _refuse_console(place)
    result = examine(place)
    if bundle is None:
        return result.report, ""
    members = save(bundle, place, result)
    return result.report, f"{bundle} (mode 0600, secrets taken out) holds {', '.join(members)}"


def _refuse_console(place: Place) -> None:
    """Its steps are those of the way to an Observer cloud."""
    try:
        env = config.environment(place.env, place.folder)
        settings = config.load(env, place.file or config.usual_file(place.folder), to_run=False)
    except ConfigError:
        return  # it says so itself
    if settings.cloud_dialect == config.LIGHTHOUSE:
        raise UsageError("doctor knows the Observer dialect alone: use check, status, sent and the log")


def save(file: Path, place: Place, result: Result) -> list[str]:
    """Writes the bundle and returns the names of its members; raises UsageError where it cannot be written."""
    return _bundle.write(file, place, result.report, result.gathered)


def text(report: Report, note: str) -> str:
    """The report for a person: signs and colours on a terminal alone, and no colours with NO_COLOR."""
    terminal = sys.stdout.isatty()
    signs = terminal and (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    shown = report.text(signs=signs, colour=terminal and not os.environ.get("NO_COLOR"))
    return f"{shown}\n{note}" if note else shown


def facts(report: Report, bundle: Path | None) -> dict[str, Any]:
    """The report as one JSON object, with the bundle's path where one was written."""
    return {**report.facts, **({"bundle": str(bundle)} if bundle else {})}


def examine(place: Place) -> Result:
    """The whole walk."""
    with _quiet():
        return _Walk(place).go()


@contextmanager
def _quiet() -> Iterator[None]:
    """Parts that are used here log for the agent; what they have to say is in the findings."""
    logger, handler = logging.getLogger("observer_agent"), logging.NullHandler()
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = before
        logger.removeHandler(handler)


class _Walk:
    """One walk. The steps that need one another come one after the other, all others side by side."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._clock = place.clock
        self._began = place.clock.monotonic()
        self._together = Together(place.clock)
        self._checks: list[Check] = []
        self._cloud: Cloud | None = None

    def go(self) -> Result:
        known = self._first_steps()
        self._side_by_side(known)
        seen, local = self._gather("queue"), self._gather("agent")
        self._last_steps(known, seen, local)
        checks = _without_consequences(self._checks)
        report = Report(checks, self._clock.monotonic() - self._began, self._place.redact)
        queue = {"stats": dict(seen.stats), "verify": dict(seen.verified)} if seen else {}
        return Result(report, _bundle.Gathered(known, local.state if local else None, queue))

    # -- what all others start from

    def _first_steps(self) -> Known:
        began = self._clock.monotonic()
        unit = _host.ask_unit(self._place)
        self._add(_host.check_unit(unit, self._clock), began)
        began = self._clock.monotonic()
        known, check = _settings.learn(self._place, unit)
        self._add(check, began)
        began = self._clock.monotonic()
        key, check = _settings.find_key(self._place, known)
        known = replace(known, key=key)
        _secrets.teach(self._place, known)
        self._add(check, began)
        began = self._clock.monotonic()
        self._add(_host.check_user(self._place, known), began)
        return known

    def _add(self, check: Check, began: float) -> None:
        self._checks.append(replace(check, ms=(self._clock.monotonic() - began) * 1000))

    # -- side by side

    def _side_by_side(self, known: Known) -> None:
        start = self._together.start
        start("disk", lambda: _host.check_disk(known, self._clock))
        start("queue", lambda: _queue.look(known, self._clock))
        start("agent", lambda: look_local(known, self._clock))
        if known.settings and "CLOUD_SERVER_URL" not in known.wrong:
            cloud = self._cloud = Cloud(self._place, known, known.settings, self._began + NETWORK_UNTIL)
            start("network", cloud.walk)
        self._together.wait(["queue", "agent"], self._began + STORED_AFTER)
        self._together.wait(["network"] if self._cloud else [], self._began + STORED_AFTER)

    def _gather(self, name: str) -> Any:
        return self._together.result(name)

    # -- what needs their results

    def _last_steps(self, known: Known, seen: Seen | None, local: Local | None) -> None:
        state = local.state if local else None
        fetched = self._cloud.rows if self._cloud else None
        chosen = _sources.choose(known, fetched)
        for each in (chosen, _sources.choose(known, None)):
            _secrets.teach_definitions(self._place, known, each.rows if each else ())
        began = self._clock.monotonic()
        definitions, found = _sources.check_definitions(known, chosen)
        usable = _sources.usable(known, found, definitions, state)
        self._add(definitions, began)
        until = self._began + ALL_UNTIL
        self._together.start(
            "sources", lambda: _sources.check_sources(self._place, known, usable, until - 0.1, state=state)
        )
        self._together.start("duplicate", lambda: self._duplicate(known, seen, state))
        self._together.wait(["disk", "queue", "agent", "sources", "duplicate"], until)
        if self._cloud:
            self._together.wait(["network"], until)
        for name in ("disk", "queue", "agent", "sources", "duplicate"):
            self._take(name)
        self._take_network(known)
        stale = _settings.reloaded(self._place, known, state)
        if stale:
            self._checks = [_with(each, stale) if each.name == "key" else each for each in self._checks]

    def _duplicate(self, known: Known, seen: Seen | None, state: Mapping[str, Any] | None) -> Check:
        if state is not None:
            return check_duplicate(self._place, known, None, fenced_by=state["cloud"].get("fenced_by"))
        if not seen or not seen.held or seen.started_at is None or not known.key or not self._cloud:
            return skipped("duplicate", "no agent runs that could be asked")
        self._together_wait_network()
        if self._cloud.rows is None:
            return skipped("duplicate", "the cloud does not answer as it should")
        if known.settings and _queue.started_at(known.settings.buffer_path) != seen.started_at:
            return skipped("duplicate", "the agent has just been started")
        return check_duplicate(self._place, known, iso(seen.started_at))

    def _together_wait_network(self) -> None:
        """A thread of its own may wait only with an alarm of its own."""
        alarm, until = self._clock.alarm(), self._began + NETWORK_UNTIL
        while self._together.hangs("network") and self._clock.monotonic() < until:
            alarm.wait(0.05)

    def _take(self, name: str) -> None:
        """The outcome of a step, whatever has become of it."""
        found, ms = self._together.result(name), self._together.ms(name)
        if self._together.hangs(name):
            self._checks.append(_hung(name, ms))
        elif self._together.crashed(name):
            self._checks.append(_crashed(name))
        else:
            check: Check = found if isinstance(found, Check) else found.check
            self._checks.append(replace(check, ms=ms))

    def _take_network(self, known: Known) -> None:
        cloud = self._cloud
        if cloud is None:
            why = "CLOUD_SERVER_URL is wrong" if known.settings else "the settings cannot be read"
            self._checks += [skipped(name, why) for name in STEPS]
            return
        done = list(cloud.checks)
        if self._together.hangs("network"):
            done.append(_hung(cloud.doing, self._together.ms("network")))
        elif self._together.crashed("network"):
            done.append(_crashed(cloud.doing))
        blamed = next((each.name for each in done if each.findings and each.name != "clock"), "")
        taken = {each.name for each in done}
        why = f"because of {blamed}" if blamed else "there is no key to try" if not known.key else "not asked"
        self._checks += [*done, *(skipped(name, why) for name in STEPS if name not in taken)]


def _hung(name: str, ms: float) -> Check:
    cause = f"the step {name} did not answer within {ms / 1000:.1f} s"
    return checked(
        name, "hangs", [Finding(f"{name}.hung", cause, _HUNG.get(name, "look at what the step depends on"))], ms
    )


_HUNG: Mapping[str, str] = {
    "disk": "dmesg | tail: a disk or network file system that hangs; see mount for where BUFFER_PATH lies",
    "queue": "dmesg | tail: a disk or network file system that hangs; see mount for where BUFFER_PATH lies",
    "agent": "systemctl restart observer-agent",
}


def _crashed(name: str) -> Check:
    cause, fix = f"the step {name} of the doctor itself broke", "report it, with the bundle (--bundle FILE)"
    return checked(name, "broke", [Finding(f"{name}.crashed", cause, fix)])


def _with(check: Check, finding: Finding) -> Check:
    return replace(check, outcome="found", findings=(*check.findings, finding))


def _without_consequences(checks: Sequence[Check]) -> list[Check]:
    """Takes out what another finding explains: a queue that fills while the cloud is away is no cause."""
    broken = {f.id for each in checks for f in each.findings if f.severity is Severity.BROKEN and f.id not in LATE}
    kinds = {id_.partition(".")[0] for id_ in broken}
    stopped = any(f.id == "agent.not_running" for each in checks for f in each.findings) or "unit" in kinds
    gone = set()
    if kinds & {*NETWORK, "duplicate", "key", "settings", "disk"}:
        gone |= {"agent.not_delivering", "agent.silent", "agent.relay_waits", "queue.filling", "queue.old"}
    if stopped:
        gone |= {"queue.filling", "queue.old"}
    if any(f.id == "user.cannot_read" for each in checks for f in each.findings):
        gone |= {"definitions.missing_env", "sources.config", "agent.not_running"}
    if kinds & {"unit", "settings", "key", "user", "queue", "disk"}:
        gone |= {"agent.not_running"}
    return [_pruned(each, gone) for each in checks]


def _pruned(check: Check, gone: set[str]) -> Check:
    kept = tuple(each for each in check.findings if each.id not in gone)
    if kept == check.findings:
        return check
    return replace(check, findings=kept, outcome="found" if kept else "ok")
