"""The step `agent`: the running agent's own word, from its local page.

Leaves the check and the state; None where no agent answers. Asks once, with a short deadline.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from observer_agent.clock import Clock, parse_iso
from observer_agent.config import Settings
from observer_agent.doctor._place import UNIT, Known
from observer_agent.doctor._report import Check, Finding, checked, skipped
from observer_agent.queuefile import is_held

PAGE_SECONDS = 1.5
SETTLED = 30.0  # seconds after which an agent has been answered if it ever will
SILENT = 120.0
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}
RESTART = f"systemctl restart {UNIT}"


class Local(NamedTuple):
    """What the local page said."""

    check: Check
    state: Mapping[str, Any] | None = None


def look(known: Known, clock: Clock) -> Local:
    """Asks the local page for the agent's state."""
    settings = known.settings
    if settings is None or known.wrong & {"DEBUG_DASHBOARD_PORT", "DEBUG_DASHBOARD_HOST", "ENABLE_DEBUG_DASHBOARD"}:
        return Local(skipped("agent", "its settings cannot be read"))
    held = is_held(settings.buffer_path)
    if not settings.enable_debug_dashboard or not settings.debug_dashboard_port:
        return Local(checked("agent", "runs; its local page is off") if held else _silent(known, settings, held))
    answer = _ask(settings)
    if answer is None:
        return Local(_silent(known, settings, held))
    status, state = answer
    if status == 0 and held:
        cause = f"an agent runs and does not answer on {_where(settings)} within {PAGE_SECONDS} s: it hangs"
        return Local(checked("agent", "silent", [Finding("agent.frozen", cause, RESTART)]))
    if status == 401:
        fix = "set DEBUG_DASHBOARD_TOKEN as the agent has it"
        return Local(
            checked("agent", _where(settings), [Finding("agent.token", "the local page wants its token", fix)])
        )
    if status != 200 or not _is_state(state):
        cause = f"another program listens on {_where(settings)}, where the agent's local page should be"
        fix = f"ss -ltnp 'sport = :{settings.debug_dashboard_port}', or choose another DEBUG_DASHBOARD_PORT"
        return Local(checked("agent", _where(settings), [Finding("agent.other_program", cause, fix)]))
    return Local(checked("agent", _fact(state), _state(state, clock)), state)


def _ask(settings: Settings) -> tuple[int, Any] | None:
    """Status and JSON of `/api/state`, status 0 without an answer; None where nobody listens."""
    host = ANY.get(settings.debug_dashboard_host, settings.debug_dashboard_host)
    conn = http.client.HTTPConnection(host, settings.debug_dashboard_port, timeout=PAGE_SECONDS)
    token = settings.debug_dashboard_token
    try:
        conn.connect()
    except OSError:
        return None
    try:
        conn.request("GET", "/api/state", headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = conn.getresponse()
        return answer.status, json.loads(answer.read())
    except ValueError:
        return answer.status, None
    except (OSError, http.client.HTTPException):
        return 0, None
    finally:
        conn.close()


def _is_state(state: Any) -> bool:
    parts = ("process", "cloud", "queue", "workers", "definitions")
    return isinstance(state, dict) and all(name in state for name in parts)


def _where(settings: Settings) -> str:
    return f"{settings.debug_dashboard_host}:{settings.debug_dashboard_port}"


def _silent(known: Known, settings: Settings, held: bool) -> Check:
    """Nobody listens where the page should be."""
    if held:
        cause = f"an agent runs, but its local page does not answer on {_where(settings)}"
        fix = f"see its log for the reason: journalctl -u {UNIT} -n 50; then: {RESTART}"
        return checked("agent", "runs without a local page", [Finding("agent.no_page", cause, fix)])
    if known.unit.get("LoadState") == "loaded" and known.unit.get("ActiveState") not in ("active", "activating"):
        return skipped("agent", "the unit does not run")
    if known.unit.get("LoadState") == "masked":
        return skipped("agent", "the unit is masked")
    fix = f"systemctl start {UNIT} (without systemd: observer-agent run)"
    return checked("agent", "does not run", [Finding("agent.not_running", "no agent runs with these settings", fix)])


def _fact(state: Mapping[str, Any]) -> str:
    process, cloud = state["process"], state["cloud"]
    how = "delivering" if cloud.get("delivering") else "not delivering"
    return f"{process.get('version')}, pid {process.get('pid')}, up {process.get('uptime_seconds', 0):.0f} s, {how}"


def _state(state: Mapping[str, Any], clock: Clock) -> Iterator[Finding]:
    yield from _receivers(state)
    workers, cloud = state["workers"], state["cloud"]
    for what, id_ in (("alive", "agent.dead_worker"), ("hung", "agent.hung_worker")):
        names = [w["name"] for w in workers if (w.get("hung") if what == "hung" else not w.get("alive", True))]
        if names:
            verb = "hang" if what == "hung" else "do not run"
            yield Finding(id_, f"workers of the agent {verb}: {', '.join(names)}", RESTART)
    if state["process"].get("uptime_seconds", 0) < SETTLED and not cloud.get("last_heartbeat_at"):
        return
    last = parse_iso(str(cloud.get("last_heartbeat_at")))
    if not cloud.get("delivering") and not cloud.get("fenced_by"):
        cause = f"the agent does not deliver: {cloud.get('problem')}"
        yield Finding("agent.not_delivering", cause, f"journalctl -u {UNIT} -n 50; if it stays: {RESTART}")
    elif last is not None and clock.now() - last > SILENT:
        cause = f"the agent's last answered heartbeat is {clock.now() - last:.0f} s old"
        yield Finding("agent.silent", cause, RESTART)


def _receivers(state: Mapping[str, Any]) -> Iterator[Finding]:
    """What comes in beside the readings: points of OTLP, pings of jobs, the operator's own probes."""
    otlp, relay, custom = (state.get(name) or {} for name in ("otlp", "relay", "custom_probes"))
    if otlp.get("problem"):
        cause = f"definitions want OTLP metrics, and none can be received: {otlp['problem']}"
        yield Finding("agent.otlp", cause, f"free the port, or mend the settings OBSERVER_OTLP_...; then: {RESTART}")
    if relay.get("problem") and relay.get("listens_on"):
        cause = f"{relay.get('waiting')} pings of jobs wait: {relay['problem']}"
        yield Finding("agent.relay_waits", cause, "ask who runs the cloud whether it knows heartbeats of jobs")
    elif relay.get("problem"):
        cause = f"the heartbeat relay takes no pings: {relay['problem']}"
        yield Finding("agent.relay", cause, f"free the port, or set HEARTBEAT_RELAY_PORT; then: {RESTART}")
    for each in custom.get("refused", ()):
        cause = f"custom probes of {each.get('origin')} are not used: {each.get('problem')}"
        fix = f"mend it (observer-agent probes checks it), then: systemctl reload {UNIT}"
        yield Finding("agent.custom_probe", cause, fix)
