"""The pages about agents: the overview, the list, and one agent in full."""

from __future__ import annotations

from typing import Any

from flask import request
from werkzeug.exceptions import NotFound

from observer_agent.hub import beats
from observer_agent.hub.console import draw, facts, words
from observer_agent.hub.console.parts import Parts, cut, show

BEATS_SECONDS = {"6h": 6 * 3600, "24h": 86400, "7d": 7 * 86400}
BEAT_GAP = 300.0
WRONG_SHOWN = 20
AGENTS_SHOWN = 50
EVENTS_SHOWN = 50


class Agents:
    """The views."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def overview(self) -> str:
        """What is wrong first."""
        agents = self._known()
        names = {each["id"]: each["name"] for each in agents}
        now = self._parts.clock.now()
        with self._parts.store.database.read() as conn:
            found = facts.entries(conn, now)
        wrong = facts.chosen(found, facts.Wish(status="wrong"), names)
        alerts = [(each, alert) for each in agents for alert in each["alerts"]]
        return show(
            "overview.html",
            agents=agents[:AGENTS_SHOWN],
            agents_in_all=len(agents),
            alerts=sorted(alerts, key=lambda pair: pair[1]["opened_at"], reverse=True),
            wrong=wrong[:WRONG_SHOWN],
            wrong_in_all=len(wrong),
            counts=facts.tally(found),
            states=_states(agents),
            metrics_in_all=len(found),
            names=names,
        )

    def index(self) -> str:
        """Every agent, those with trouble first, or those that a filter lets through."""
        state, text = request.args.get("state", ""), request.args.get("text", "").strip()
        agents = self._known()
        wanted = [each for each in agents if _wanted(each, state, text.casefold())]
        return show("agents.html", agents=cut(wanted), any=bool(agents), state=state, text=text)

    def detail(self) -> str:
        """One agent: its facts, what has arrived, its alerts, graphs and events."""
        agent = next(iter(self._known(request.args.get("id", ""))), None)
        if agent is None:
            raise NotFound("there is no such agent")
        length = request.args.get("range", "")
        length = length if length in BEATS_SECONDS else "6h"
        with self._parts.store.database.read() as conn:
            events = facts.events(conn, EVENTS_SHOWN, agent_id=agent["id"])
        charts = self._charts(agent["id"], BEATS_SECONDS[length])
        return show("agent.html", agent=agent, events=events, charts=charts, range=length, ranges=list(BEATS_SECONDS))

    def _known(self, agent_id: str | None = None) -> list[dict[str, Any]]:
        """The agents as `Look` knows them, or one, with their deliveries summed up, those with trouble first."""
        found = self._parts.look.agents(agent_id)
        agents = [{**each, "seen": _seen(each), "sum": facts.delivery(each["delivery"])} for each in found]
        return sorted(agents, key=lambda each: (not each["alerts"], words.STATUSES[each["seen"]].rank))

    def _charts(self, agent_id: str, seconds: float) -> list[dict[str, Any]]:
        now = self._parts.clock.now()
        with self._parts.store.database.read() as conn:
            found = beats.read(conn, agent_id, now - seconds)
        if not found:
            return []
        depth, age = [(each.at, float(each.depth)) for each in found], [(each.at, float(each.age)) for each in found]
        kinds = (("Waiting in the queue", depth, words.count), ("Age of the oldest", age, words.span))
        return [_chart(title, points, (now - seconds, now), say) for title, points, say in kinds]


def _chart(title: str, points: list[draw.Point], when: tuple[float, float], say: Any) -> dict[str, Any]:
    low, high = draw.bounds([value for _, value in points])
    curve = draw.curve(points, draw.Frame(*when, low, high), BEAT_GAP)
    most = max(value for _, value in points)
    said = f"{say(points[-1][1])} at last, at most {say(most)}"
    return {"title": title, "curve": curve, "said": said, "low": say(low), "high": say(high), "when": when}


def _wanted(agent: dict[str, Any], state: str, text: str) -> bool:
    trouble = bool(agent["alerts"]) or agent["seen"] == "offline"
    if state and (not trouble if state == "wrong" else agent["seen"] != state):
        return False
    return any(text in (agent[name] or "").casefold() for name in ("name", "hostname", "version", "id"))


def _seen(agent: dict[str, Any]) -> str:
    return "never" if agent["last_heartbeat_at"] is None else str(agent["state"])


def _states(agents: list[dict[str, Any]]) -> dict[str, int]:
    counts = dict.fromkeys(("offline", "never", "online"), 0)
    for each in agents:
        counts[each["seen"]] += 1
    return {name: n for name, n in counts.items() if n}
