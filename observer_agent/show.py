"""Results as text for a person. Pure: JSON-like data in, lines out."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any
from unicodedata import combining, east_asian_width

from observer_agent.clock import parse_iso

MARKS = {"healthy": "ok", "degraded": "!", "unhealthy": "!!", "no_data": "?"}
ORDER = ("unhealthy", "degraded", "no_data", "not_yet", "healthy")
DEFINITIONS_MAX = 50


def table(facts: Mapping[str, Any]) -> str:
    """One `name  value` line for each fact."""
    width = max((len(name) for name in facts), default=0)
    return "\n".join(f"{name:<{width}}  {plain(value)}" for name, value in facts.items())


def check(report: Mapping[str, Any]) -> str:
    """The settings, then what the cloud said."""
    lines = ["The settings are right:", table(report["settings"])]
    for where in (report, report.get("cloud", {})):
        found = where.get("definitions")
        if found:
            lines.append(f"{found['count']} definitions, {len(found['broken'])} of them broken")
            lines += [f"  {each['id']} {each['title']}: {each['problem']}" for each in found["broken"]]
    cloud = report.get("cloud")
    if cloud:
        said = "takes this key" if cloud["ok"] else f"does not answer as it should: {cloud['status']} {cloud['text']}"
        lines.append(f"{cloud['url']} {said}")
    return "\n".join(lines)


def probe(result: Mapping[str, Any]) -> str:
    """A reading: the value or the reason first, then how it came about."""
    head = f"{result['value']}" if result["value"] is not None else f"no value: {result['reason']}"
    verdict = f"  [{result['status']}]" if result["status"] else ""
    lines = [f"{result['source_type']}: {head}{verdict}", f"  took {result['duration_ms']:.3f} ms"]
    lines += [f"  {name:<12}{ms:10.3f} ms" for name, ms in result["phases"].items()]
    lines += [f"  {name}: {plain(value)}" for name, value in result["detail"].items()]
    return "\n".join(lines)


def custom_probes(found: Mapping[str, Any]) -> str:
    """The custom probes, a line each, then what is refused."""
    listed = [f"{each['name']}  {each.get('description', '')}".rstrip() for each in found["probes"]]
    refused = [f"refused: {each['origin']}: {each['problem']}" for each in found["refused"]]
    return clean("\n".join(listed + refused) or f"no custom probes in {found['directory']} or in installed packages")


def status(state: Mapping[str, Any], *, verbose: bool = False, everything: bool = False, width: int = 80) -> str:
    """The agent's state: one sentence, the facts, the definitions, those that are worst first."""
    process, cloud, queue = state["process"], state["cloud"], state["queue"]
    now, oldest = process["now"], span(queue["oldest_age_seconds"])
    facts = {
        "process": f"observer-agent {process['version']} on {process['hostname']}, pid {process['pid']}, "
        f"up {span(process['uptime_seconds'])}",
        "cloud": f"{cloud['url']}, last push {_ago(cloud['last_push_at'], now)}, "
        f"heartbeat {_ago(cloud['last_heartbeat_at'], now)}",
        "queue": f"{queue['depth']:,} of {queue['capacity']:,} wait, the oldest for {oldest}",
        "delivered": f"{queue['accepted']:,} of {queue['given']:,}",
        "lost": plain(state["losses"]) or "nothing",
    }
    if cloud["definitions_problem"]:
        facts["definitions"] = cloud["definitions_problem"]
    if queue["kept_in_memory"]:
        facts["in memory"] = f"{queue['kept_in_memory']:,} verdicts, because the queue file takes none"
    facts |= _receivers(state)
    workers = [_worker(each) for each in state["workers"]]
    facts["workers"] = "; ".join(filter(None, workers)) or f"all {len(workers)} well"
    return "\n".join(
        [clean(state["summary"]), "", clean(table(facts)), *_definitions(state, verbose, everything, width)]
    )


def span(seconds: float) -> str:
    """A time in at most two units: `850 ms`, `12 s`, `3 min 20 s`, `2 d 4 h`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds else "0 s"
    for unit, size, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            more = int(seconds % size // part)
            return f"{int(seconds // size)} {unit}" + (f" {more} {below}" if more else "")
    return f"{int(seconds)} s"


def _receivers(state: Mapping[str, Any]) -> dict[str, str]:
    """What comes in beside the readings; nothing of what is not in use."""
    otlp, relay, custom = (state.get(name) for name in ("otlp", "relay", "custom_probes"))
    lines = {}
    if otlp:
        text = f"{otlp['points']:,} points for {otlp['definitions']} definitions, {otlp['requests']:,} requests"
        lines["otlp"] = _receiver(otlp, f"{text}, {otlp['requests_refused']:,} refused")
    if relay:
        text = f"{relay['delivered']:,} of {relay['taken']:,} pings delivered, {relay['waiting']:,} wait"
        lost = f", lost: {plain(relay['lost'])}" if relay["lost"] else ""
        refused = f", turned away: {plain(relay['refused'])}" if relay["refused"] else ""
        lines["relay"] = _receiver(relay, text + lost + refused)
    if custom and custom["refused"]:
        refused = "; ".join(f"{each['origin']}: {each['problem']}" for each in custom["refused"])
        lines["custom probes"] = f"{len(custom['names'])} loaded; REFUSED: {refused}"
    return lines


def _receiver(each: Mapping[str, Any], text: str) -> str:
    where = f"on {each['listens_on']}: {text}" if each["listens_on"] else "does NOT listen"
    return f"{where}; {each['problem']}" if each["problem"] else where


def _worker(each: Mapping[str, Any]) -> str:
    """What is wrong with a worker, empty where nothing is."""
    if not each["alive"]:
        return f"{each['name']} is DEAD"
    if each["hung"]:
        return f"{each['name']} HANGS for {span(each['busy_seconds'])}"
    return f"{each['name']} was restarted {each['restarts']} times" if each["restarts"] else ""


def _definitions(state: Mapping[str, Any], verbose: bool, everything: bool, width: int) -> list[str]:
    """A line for each definition; those that look worst come first, so that they are never cut off."""
    found = sorted(state["definitions"], key=lambda each: (_badness(each), each["title"] or each["id"]))
    shown = found if everything else found[:DEFINITIONS_MAX]
    lines = [""] if shown else []
    for each in shown:
        lines += _definition(each, state["process"]["now"], verbose, width)
    if len(shown) < len(found):
        lines.append(f"... and {len(found) - len(shown):,} more: --all")
    return lines


def _badness(each: Mapping[str, Any]) -> int:
    status = each["status"] or "not_yet"
    return ORDER.index(status) if status in ORDER else 0


def _definition(each: Mapping[str, Any], now: str, verbose: bool, width: int) -> list[str]:
    status = each["status"]
    mark, name = MARKS.get(status or "", "-"), clean(each["title"] or each["id"])
    why = " ".join(str(part) for part in (each["reason"], each["fault"] and f"({each['fault']})") if part)
    said = f"{each['value']:.10g}" if each["value"] is not None else why
    word = status.replace("_", " ") if status else "not yet"
    head = f"{mark:<3}{_fit(name, max(20, width - 48))} {_fit(each['source_type'], 11)} {word:<10}"
    lines = [f"{head} {said}".rstrip()]
    if each["problem"]:
        lines.append(f"   {clean(each['problem'])}")
    if verbose:
        lines += [f"   {line}" for line in _facts(each, now)]
    return lines


def _facts(each: Mapping[str, Any], now: str) -> list[str]:
    """What `-v` adds to a definition."""
    took = f", took {each['duration_ms']:.1f} ms" if each["duration_ms"] is not None else ""
    lines = [f"last run {_ago(each['last_run_at'], now)}{took}; next in {span(ceil(each['next_run_in_seconds']))}"]
    if each["phases"]:
        lines.append(", ".join(f"{name} {ms:.1f} ms" for name, ms in each["phases"].items()))
    return lines + [clean(f"{name}: {value}") for name, value in each["detail"].items()]


def _ago(moment: str | None, now: str) -> str:
    seconds = (parse_iso(now) or 0.0) - (parse_iso(moment) or 0.0) if moment else 0.0
    return f"{span(max(0, int(seconds)))} ago" if moment else "never"


def clean(text: str) -> str:
    """A text from outside may not steer the terminal: no escapes, no marks that turn the line around."""
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)


def _fit(text: str, width: int) -> str:
    """Cut or filled to so many columns of a terminal."""
    out, used = "", 0
    for char in text.replace("\n", " "):
        columns = 0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1
        if used + columns > width:
            break
        out, used = out + char, used + columns
    return out + " " * (width - used)


def plain(value: object) -> str:
    """A value as a person reads it: a map as `name value, name value`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(each)}" for name, each in value.items())
    return "" if value is None else str(value)
