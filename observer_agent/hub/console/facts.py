"""What the console asks the database beyond `Look`: metrics by the thousand, deliveries summed up, small histories.

Returns plain data, instants in seconds since 1970. Runs on the threads of the server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, select

from observer_agent.hub import schema
from observer_agent.hub.console.words import STATUSES
from observer_agent.hub.difference import flat
from observer_agent.hub.form import METRIC
from observer_agent.hub.rollup import patience
from observer_agent.logs import HIDDEN, Redactor

# fields of configurations that people put secrets into
SECRET = re.compile("secret|password|passphrase|token|credential|auth|header|body|key|dsn|connection_string", re.I)
SETTING_MAX = 2000
NO_DATA = "no_data"


class Metric(NamedTuple):
    """A metric as it is defined; `patience` is the silence after which its status is unknown."""

    id: str
    key: str | None
    title: str
    source_type: str
    managed: bool
    patience: float
    definition: Mapping[str, Any]


class About(NamedTuple):
    """A metric's description, the agents that it is for (none: every one), and its configuration for people."""

    description: str
    agents: tuple[str, ...]
    config: Mapping[str, str]


class Entry(NamedTuple):
    """What one agent last pushed of a metric; no agent where none has."""

    metric: Metric
    agent_id: str | None
    status: str
    value: float | None = None
    reason: str | None = None
    timestamp: float | None = None
    received_at: float | None = None


class Wish(NamedTuple):
    """A filter of metrics; empty is everything."""

    status: str = ""
    agent_id: str = ""
    text: str = ""


class Delivery(NamedTuple):
    """All queues of an agent together: `given` is accepted, pending, lost by reason, or nobody knows where."""

    given: int
    accepted: int
    pending: int
    lost: Mapping[str, int]
    unexplained: int
    missing: int

    @property
    def lost_in_all(self) -> int:
        """Rows lost for any reason that the agent has named."""
        return sum(self.lost.values())


def delivery(reports: Sequence[Mapping[str, Any]]) -> Delivery | None:
    """The reports of `Look.agents` summed up; None where the agent makes none."""
    if not reports:
        return None
    lost: dict[str, int] = {}
    for each in reports:
        for reason, n in each["lost"].items():
            lost[reason] = lost.get(reason, 0) + n
    given, accepted, pending = (sum(each[name] for each in reports) for name in ("given", "accepted", "pending"))
    unexplained = sum(each["unexplained"] for each in reports)
    missing = max(0, given - accepted - pending - sum(lost.values()))
    return Delivery(given, accepted, pending, {k: n for k, n in lost.items() if n}, unexplained, missing)


def metric(conn: Connection, metric_id: str) -> Metric | None:
    """One metric by its id."""
    row = conn.execute(select(schema.metrics).where(schema.metrics.c.id == metric_id)).first()
    return None if row is None else _metric(row)


def about(conn: Connection, found: Metric) -> About:
    """What a document says of a metric besides the definition."""
    objects, metrics = schema.objects, schema.metrics
    here = (objects.c.kind == METRIC, objects.c.key == found.key)
    body = conn.scalar(select(objects.c.body).where(*here))
    agents = json.loads(conn.scalar(select(metrics.c.agents).where(metrics.c.id == found.id)) or "[]")
    config = found.definition.get("source_config") or {}
    return About(json.loads(body or "{}").get("description", ""), tuple(agents), dict(settings(config)))


def entries(conn: Connection, now: float, metric_ids: Sequence[str] | None = None) -> list[Entry]:
    """The last word of every agent on every metric, or on some of them; in no order."""
    metrics, latest = schema.metrics, schema.latest
    wanted, pushed = select(metrics), select(latest)
    if metric_ids is not None:
        wanted = wanted.where(metrics.c.id.in_(metric_ids))
        pushed = pushed.where(latest.c.metric_id.in_(metric_ids))
    known = {row.id: _metric(row) for row in conn.execute(wanted)}
    quiet = dict(known)
    found = []
    for name, agent_id, value, timestamp, status, reason, received_at in conn.execute(pushed):
        each = known.get(name)
        if each is not None:
            quiet.pop(name, None)
            seen = "unknown" if now - received_at > each.patience else status
            found.append(Entry(each, agent_id, seen, value, reason, timestamp, received_at))
    found.extend(Entry(each, None, "nothing") for each in quiet.values())
    return found


def chosen(found: Iterable[Entry], wish: Wish, names: Mapping[str, str]) -> list[Entry]:
    """Those that a filter lets through, what is wrong first."""
    if wish.status == "wrong":
        found = [each for each in found if each.status not in ("healthy", "nothing")]
    elif wish.status:
        found = [each for each in found if each.status == wish.status]
    if wish.agent_id:
        found = [each for each in found if each.agent_id == wish.agent_id]
    if wish.text:
        text = wish.text.casefold()
        found = [each for each in found if text in _haystack(each, names)]
    return sorted(found, key=lambda each: _place(each, names))


def tally(found: Iterable[Entry]) -> dict[str, int]:
    """How many entries there are of each status, the worst first."""
    counts = dict.fromkeys(STATUSES, 0)
    for each in found:
        counts[each.status] = counts.get(each.status, 0) + 1
    return {name: n for name, n in counts.items() if n}


def readings(conn: Connection, metric_id: str, limit: int) -> list[Any]:
    """The last rows of a metric, newest first."""
    pushes = schema.pushes
    query = select(pushes).where(pushes.c.metric_id == metric_id).order_by(pushes.c.id.desc()).limit(limit)
    return list(conn.execute(query))


def _metric(row: Any) -> Metric:
    definition = json.loads(row.definition)
    wait = patience(definition.get("interval_agent_push", 0))
    title = row.title or row.key or row.id
    return Metric(row.id, row.key, title, row.source_type, row.managed, wait, definition)


def settings(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A configuration field by field, without what may be a secret: credentials of URLs, headers, passwords, bodies."""
    redact = Redactor()
    for name, value in flat(config).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        hidden = SECRET.search(name) and not name.endswith("_ref")
        yield name, HIDDEN if hidden else redact(text)[:SETTING_MAX]


def _haystack(each: Entry, names: Mapping[str, str]) -> str:
    words = (each.metric.title, each.metric.key, each.metric.id, each.metric.source_type, each.reason)
    return "\n".join(filter(None, (*words, names.get(each.agent_id or "")))).casefold()


def _place(each: Entry, names: Mapping[str, str]) -> tuple[int, str, str, str]:
    word = STATUSES.get(each.status)
    return (word.rank if word else 3), each.metric.title.casefold(), names.get(each.agent_id or "", ""), each.metric.id


def agent_names(conn: Connection) -> dict[str, str]:
    """The names of all agents, by id."""
    agents = schema.agents
    return {row.id: row.name for row in conn.execute(select(agents.c.id, agents.c.name).order_by(agents.c.name))}


class Told(NamedTuple):
    """An event for people: about whom, and what has happened, in words."""

    at: float
    kind: str
    agent: tuple[str, str] | None
    metric: tuple[str, str] | None
    state: str
    said: str


def told(conn: Connection, rows: Sequence[Any]) -> list[Told]:
    """Rows of `events`, with the names of their agents and metrics."""
    metrics, names = schema.metrics, agent_names(conn)
    ids = {row.metric_id for row in rows if row.metric_id}
    found = conn.execute(select(metrics.c.id, metrics.c.title, metrics.c.key).where(metrics.c.id.in_(ids)))
    titles = {row.id: row.title or row.key or row.id for row in found}
    return [_told(row, names, titles) for row in rows]


def events(conn: Connection, limit: int, **about: str) -> list[Told]:
    """The last events of an agent (`agent_id`) or a metric (`metric_id`), newest first."""
    table = schema.events
    query = select(table).order_by(table.c.id.desc()).limit(limit).filter_by(**about)
    return told(conn, list(conn.execute(query)))


def _told(row: Any, names: Mapping[str, str], titles: Mapping[str, str]) -> Told:
    data = json.loads(row.data)
    agent = (row.agent_id, names.get(row.agent_id) or data.get("agent_name") or row.agent_id) if row.agent_id else None
    title = titles.get(row.metric_id) or data.get("metric_title") or row.metric_id
    metric = (row.metric_id, title) if row.metric_id else None
    state = NO_DATA if row.event_type == f"metric.{NO_DATA}" else data.get("state") or data.get("new_status") or ""
    return Told(row.occurred_at, row.event_type, agent, metric, str(state), _said(data))


def _said(data: Mapping[str, Any]) -> str:
    """What an event says besides its state."""
    if "new_status" in data:
        return f"{data.get('old_status') or 'nothing'} to {data['new_status']}"
    known = ("agent_id", "agent_name", "metric_id", "metric_title", "state", "timestamp")
    words = [f"{name.replace('_', ' ')} {value}" for name, value in data.items() if name not in known]
    return ", ".join(words)
