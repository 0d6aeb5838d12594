"""Results as text for a person. Pure: JSON-like data in, lines out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MARKS = {"healthy": "ok", "degraded": "!", "unhealthy": "!!", "no_data": "?"}


def table(facts: Mapping[str, Any]) -> str:
    """One `name  value` line for each fact."""
    width = max((len(name) for name in facts), default=0)
    return "\n".join(f"{name:<{width}}  {_plain(value)}" for name, value in facts.items())


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
    lines += [f"  {name}: {_plain(value)}" for name, value in result["detail"].items()]
    return "\n".join(lines)


def status(state: Mapping[str, Any]) -> str:
    """The agent's state in a dozen lines."""
    process, cloud, queue = state["process"], state["cloud"], state["queue"]
    lines = [
        f"observer-agent {process['version']}, pid {process['pid']}, up {process['uptime_seconds']:.0f} s",
        f"cloud  {cloud['url']}: " + ("delivering" if cloud["delivering"] else f"NOT delivering: {cloud['problem']}"),
        f"       last push {cloud['last_push_at'] or 'none yet'}, heartbeat {cloud['last_heartbeat_at'] or 'none'}",
        f"queue  {queue['depth']} of {queue['capacity']} wait, the oldest for {queue['oldest_age_seconds']:.0f} s",
        f"lost   {_plain(state['losses']) or 'nothing'}",
    ]
    dead = [worker["name"] for worker in state["workers"] if not worker["alive"]]
    if dead:
        lines.append(f"DEAD workers: {', '.join(dead)}")
    lines += [_definition(each) for each in state["definitions"]]
    return "\n".join(lines)


def _definition(each: Mapping[str, Any]) -> str:
    mark = MARKS.get(each["status"] or "", "-")
    name = each["title"] or each["id"]
    said = each["reason"] if each["value"] is None else each["value"]
    return f"  {mark:<3}{name:<32} {each['source_type']:<12} {each['status'] or 'not yet':<10} {said}"


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(each)}" for name, each in value.items())
    return "" if value is None else str(value)
