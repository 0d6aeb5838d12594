"""The step `duplicate`: whether a newer process uses the agent's key.

The running agent's word is taken where there is one. Where an agent runs that tells nothing, an empty batch is posted
with the start time that this agent has already told the cloud: equal to it, it changes nothing there.
"""

from __future__ import annotations

import json

from observer_agent.doctor import _way
from observer_agent.doctor._cloud import make_transport
from observer_agent.doctor._place import Known, Place
from observer_agent.doctor._report import Check, Finding, checked

SECONDS = 0.8


def check_duplicate(place: Place, known: Known, started_at: str | None, *, fenced_by: str | None = None) -> Check:
    """Whether a newer process uses the key: by `fenced_by`, the agent's word, else with the agent's `started_at`."""
    if fenced_by:
        return checked("duplicate", "the agent was told so", [_fenced(fenced_by)])
    if not started_at or known.settings is None:
        return checked("duplicate", "the agent's samples are taken")
    with _way.proxies_of(known.env):
        transport = make_transport(place, known, known.settings, started_at)
    try:
        reply = transport.call("POST", "/api/agent/receiver/batch", b"[]", seconds=SECONDS)
    finally:
        transport.close()
    if reply.status != 409:
        return checked("duplicate", f"an empty batch is answered with status {reply.status}")
    try:
        newer = json.loads(reply.body).get("newer_started_at")
    except (ValueError, AttributeError):
        newer = None
    return checked("duplicate", "status 409", [_fenced(str(newer or "later"))])


def _fenced(newer: str) -> Finding:
    cause = f"another process, started at {newer[:40]}, uses this agent's key: the samples of this one are refused"
    fix = "give each machine a key of its own; stop the other agent, or put a new key here and reload"
    return Finding("duplicate.fenced", cause, fix)
