"""The console's pages: what they say of a hub that is empty, busy, wrong or full of hostile names, and how fast."""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from observer_agent import __version__
from observer_agent.hub import beats, schema
from observer_agent.hub.app import create_app
from observer_agent.hub.console import draw, facts, words
from observer_agent.hub.keep import Keep, forget
from observer_agent.hub.objectives import outcome
from observer_agent.hub.rollup import Sums
from observer_agent.hub.webhooks import Wanted, Webhooks
from tests.hub_scene import (
    DAY,
    HOSTILE,
    HOUR,
    agent_row,
    hour_row,
    latest_row,
    many,
    metric_row,
    put,
    rolled_row,
    scene,
)
from tests.test_hub_sessions import hidden
from tests.wire_hub import QUEUE, STARTED, TestHub, define, golden, memory_hub, row

HTML = {"Accept": "text/html"}
LISTS = (
    "/",
    *(f"/console/{name}" for name in ("agents", "metrics", "services", "events", "webhooks", "keys", "audit")),
)
VOID = {"meta", "link", "input", "br", "wbr", "img", "hr"}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    with memory_hub(tmp_path) as found:
        yield found


@pytest.fixture
def bare(hub: TestHub) -> TestHub:
    """A hub in which nobody has done anything yet."""
    with hub.database.write() as conn:
        conn.execute(delete(schema.keys))
        conn.execute(delete(schema.agents))
    return hub


class Tags(HTMLParser):
    """Holds tags against one another, and keeps what must be looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def see(hub: TestHub, path: str, **headers: str) -> str:
    """A page that is there, made of tags that match, without a script or a style in its lines."""
    answer = hub.client().get(path, headers={**HTML, **headers})
    assert answer.status_code == 200, path
    text: str = answer.text
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert not [each for each in tags.attributes if each[1].startswith("on") or each[1] == "style"]
    assert "<style" not in text and set(re.findall(r"<script[^>]*>", text)) <= {'<script src="/static/console.js">'}
    addresses = [value for _, name, value in tags.attributes if name in ("href", "src", "action")]
    assert all(each.startswith(("/", "#", "?")) for each in addresses), addresses
    return text


def said(page: str) -> str:
    """What a page says, without its tags."""
    body = re.sub(r"<(script|title)[^>]*>.*?</\1>", "", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def detail_pages(hub: TestHub) -> list[str]:
    """One address for each agent and each metric."""
    from urllib.parse import urlencode

    with hub.database.read() as conn:
        agents = [("agent", {"id": each}) for each in conn.scalars(select(schema.agents.c.id))]
        metrics = [("metric", {"id": each}) for each in conn.scalars(select(schema.metrics.c.id))]
    return [f"/console/{kind}?{urlencode(wanted)}" for kind, wanted in (*agents, *metrics)]


# -- every page


def test_a_bare_hub_says_what_to_do_next(bare: TestHub) -> None:
    for path in LISTS:
        see(bare, path)
    overview = said(see(bare, "/"))
    assert "Nothing is watched yet" in overview
    assert "No agents yet: observer-hub key create NAME" in overview
    assert "No metrics yet: observer-hub serve --config observer.yaml" in overview
    assert "No webhooks yet" in said(see(bare, "/console/webhooks"))
    assert "No events yet" in said(see(bare, "/console/events"))


@pytest.mark.slow
def test_every_page_of_a_busy_hub(bare: TestHub) -> None:
    scene(bare)
    for path in (*LISTS, *detail_pages(bare), "/status/shop"):
        see(bare, path)
        see(bare, path, **{"Observer-Fragment": "1"})
    for name in ("6h", "24h", "7d", "30d", "90d", "nonsense"):
        for path in detail_pages(bare):
            see(bare, f"{path}&range={name}")


def test_headers_of_every_page(hub: TestHub) -> None:
    for path in (*LISTS, "/nothing", "/console/agent?id=nobody"):
        headers = hub.client().get(path, headers=HTML).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"


def test_what_is_not_there_is_a_page_for_people_and_json_for_programs(hub: TestHub) -> None:
    for path in ("/console/agent", "/console/agent?id=x", "/console/metric?id=x", "/status/x", "/nothing"):
        answer = hub.client().get(path, headers=HTML)
        assert answer.status_code == 404 and "Go to the overview" in answer.text, path
        assert hub.client().get(path).json["error"] == "not_found"
    assert hub.client().get("/api/v1/nothing", headers=HTML).json["error"] == "not_found"


def test_hostile_names_stay_text_everywhere(bare: TestHub) -> None:
    hostile(bare)
    for path in (
        *LISTS,
        *detail_pages(bare),
        "/status/hostile",
        "/console/events?kind=<b>",
        "/console/metrics?text=<b>",
    ):
        page = see(bare, path)
        for name in HOSTILE:
            if "<" in name or '"' in name:
                assert name not in page, (path, name)
        assert "49$" not in page
    page = html.unescape(see(bare, "/console/metrics"))
    assert all(words.straight(name) in page for name in HOSTILE)
    assert not words.TURNS.search(page) and "\N{REPLACEMENT CHARACTER}dessap" in page
    for path in detail_pages(bare):
        assert "<h1>out" not in see(bare, path)


def hostile(hub: TestHub) -> None:
    """Every text that comes from outside is hostile."""
    now = hub.clock.now()
    agents = [agent_row(hub, n, name, hostname=name, version=name[:128]) for n, name in enumerate(HOSTILE)]
    facts_of = json.dumps({"source_types_active": list(HOSTILE)})
    put(hub, schema.agents, [{**each, "facts": facts_of} for each in agents])
    metrics = [metric_row(n, name, id=name, key=name, source_type=name[:64]) for n, name in enumerate(HOSTILE)]
    put(hub, schema.metrics, metrics)
    latest = [latest_row(hub, m["id"], a["id"], "no_data") for m, a in zip(metrics, agents, strict=True)]
    put(hub, schema.latest, [{**each, "reason": each["metric_id"][:64]} for each in latest])
    put(hub, schema.pushes, [{**each, "reason": each["metric_id"][:64]} for each in latest])
    events = [
        {
            "event_id": str(n),
            "event_type": name[:64],
            "occurred_at": now,
            "agent_id": agents[n]["id"],
            "metric_id": name,
            "data": json.dumps({name: name, "state": name, "agent_name": name}),
        }
        for n, name in enumerate(HOSTILE)
    ]
    put(hub, schema.events, events)
    hook = {"secret": None, "active": True, "created_at": now}
    put(
        hub,
        schema.webhooks,
        [
            {**hook, "id": str(n), "name": name, "url": name, "event_types": json.dumps([name])}
            for n, name in enumerate(HOSTILE)
        ],
    )
    put(
        hub,
        schema.outbox,
        [
            {"id": n, "webhook_id": str(n), "event_id": str(n), "state": "failed", "created_at": now, "next_at": now}
            for n in range(len(HOSTILE))
        ],
    )
    put(
        hub,
        schema.attempts,
        [{"outbox_id": n, "at": now, "status": 0, "error": name, "duration_ms": 1.0} for n, name in enumerate(HOSTILE)],
    )
    put(
        hub,
        schema.keys,
        [
            {"digest": str(n), "agent_id": agents[n]["id"], "created_at": now, "hint": name[:16]}
            for n, name in enumerate(HOSTILE)
        ],
    )
    put(hub, schema.audit, [{"at": now, "actor": n, "action": n[:64], "subject": n, "detail": n} for n in HOSTILE])
    put(
        hub,
        schema.deliveries,
        [
            {
                "agent_id": a["id"],
                "queue_id": a["name"][:36],
                "given": 3,
                "accepted": 1,
                "pending": 1,
                "lost": json.dumps({a["name"]: 1}),
                "reported_at": now,
            }
            for a in agents
        ],
    )
    page = {"subdomain": "hostile", "title": HOSTILE[1], "metrics": [{"metric": n, "group": n} for n in HOSTILE]}
    put(hub, schema.objects, [{"kind": "page", "key": "hostile", "body": json.dumps(page)}])


@pytest.mark.parametrize(
    "query",
    [
        "page=0",
        "page=-1",
        "page=x",
        "page=99999999999",
        "page=2&endpoint=x&_external=1&_anchor=y&filename=z",
        "status=x",
        "agent=x",
    ],
)
def test_odd_addresses_are_no_fault(bare: TestHub, query: str) -> None:
    many(bare, 450, 2)
    page = see(bare, f"/console/metrics?{query}")
    assert "450" in page or "No metric is like this" in page
    for path in ("/console/events?before=x", "/console/audit?before=99999999999999999999", "/console/events?before=٣"):
        see(bare, path)


# -- what is wrong comes first


def test_the_overview_names_alerts_and_metrics_that_are_not_healthy(bare: TestHub) -> None:
    scene(bare)
    page = said(see(bare, "/"))
    assert "2 alerts open, 3 metrics not healthy." in page
    assert page.index("falls behind") < page.index("Disk of the backup host") < page.index("Checkout")
    assert page.index("Payments gateway") < page.index("Agents, those with trouble first")
    assert "1 offline" in page and "5 online" in page and "7 healthy" in page
    assert page.index("edge-ams 0.0.9") < page.index("batch-1 0.1.0")


def test_all_well_is_said_too(bare: TestHub) -> None:
    put(bare, schema.agents, [agent_row(bare, 1, "web-1")])
    put(bare, schema.metrics, [metric_row(1, "Shop")])
    put(bare, schema.latest, [latest_row(bare, metric_row(1, "Shop")["id"], agent_row(bare, 1, "")["id"])])
    assert "Nothing is wrong." in said(see(bare, "/"))


def test_a_metric_that_falls_silent_is_wrong(bare: TestHub) -> None:
    put(bare, schema.agents, [agent_row(bare, 1, "web-1")])
    put(bare, schema.metrics, [metric_row(1, "Shop")])
    put(bare, schema.latest, [latest_row(bare, metric_row(1, "Shop")["id"], agent_row(bare, 1, "")["id"])])
    bare.clock.advance(900 - 42)
    assert "unknown" not in said(see(bare, "/"))
    bare.clock.advance(1)
    assert "1 metric not healthy" in said(see(bare, "/")) and "1 unknown" in said(see(bare, "/"))


# -- an agent


def test_an_agent_says_what_is_missing(hub: TestHub) -> None:
    path = "/console/agent?id=" + "a" * 36
    assert "has not said yet what it was given" in said(see(hub, path))
    hub.push([row(n) for n in range(3)], "1-3")
    report = {"queue_id": QUEUE, "given": 3, "accepted": 3, "pending": 0, "lost": {}}
    hub.beat({"delivery": [report]})
    assert "Complete up to 2026-05-09T12:00:10Z 0 s ago ." in said(see(hub, path))
    other = {"queue_id": QUEUE[:-1] + "9", "given": 20, "accepted": 2, "pending": 4, "lost": {"cap": 5, "refused": 2}}
    hub.beat({"delivery": [report, other]})
    page = said(see(hub, path))
    assert "except 4 that wait at the agent, 7 lost, 2 unexplained, 7 that no figure accounts for." in page
    assert "5 cap, 2 refused" in page.replace(" ,", ",") and "All 23" in page


def test_deliveries_are_summed_up() -> None:
    both = [
        {"given": 10, "accepted": 5, "pending": 2, "lost": {"cap": 3, "age": 0}, "unexplained": 1},
        {"given": 7, "accepted": 6, "pending": 0, "lost": {"cap": 1}, "unexplained": 0},
    ]
    found = facts.delivery(both)
    assert found == facts.Delivery(17, 11, 2, {"cap": 4}, 1, 0)
    assert found is not None and found.lost_in_all == 4
    assert facts.delivery([]) is None


def test_one_point_a_minute_is_kept_for_seven_days(hub: TestHub) -> None:
    for depth in (7, 9, 11, 13):
        hub.beat({"queue_depth": depth, "queue_oldest_age_seconds": depth * 2})
        hub.clock.advance(30)
    start = hub.clock.now() - 120
    with hub.database.read() as conn:
        points = beats.read(conn, "a" * 36, start - 60)
    first = start // 60 * 60
    assert points == [(first, 7, 14), (first + 60, 11, 22)]
    page = said(see(hub, "/console/agent?id=" + "a" * 36))
    assert "Waiting in the queue 11 at last, at most 11" in page and "Age of the oldest 22 s at last" in page
    hub.clock.advance(7 * DAY + HOUR)
    for _ in range(61):
        hub.beat({}, STARTED)
        hub.clock.advance(60)
    with hub.database.read() as conn:
        assert len(beats.read(conn, "a" * 36, 0)) == 61
    assert beats.KEPT_MINUTES * 60 == 7 * DAY


def test_points_of_an_agent_that_comes_no_more_go_too(hub: TestHub) -> None:
    put(hub, schema.agents, [agent_row(hub, 1, "alive")])
    put(hub, schema.beats, [{"agent_id": agent_row(hub, 1, "")["id"], "minute": 5, "depth": 0, "age": 0}])
    hub.beat({"queue_depth": 7})
    for later, gone in ((7 * DAY, 0), (2 * HOUR, 1), (DAY, 0)):
        hub.clock.advance(later)
        with hub.database.write() as conn:
            conn.execute(update(schema.agents).where(schema.agents.c.name == "alive").values(last_heartbeat_at=2e9))
        assert forget(hub.database, Keep(), hub.clock.now(), rolled=0) == gone
    with hub.database.read() as conn:
        assert (beats.read(conn, "a" * 36, 0), len(beats.read(conn, agent_row(hub, 1, "")["id"], 0))) == ([], 1)


def test_a_heartbeat_of_an_older_process_makes_no_point(hub: TestHub) -> None:
    hub.beat({"queue_depth": 1})
    hub.clock.advance(60)
    hub.beat({"queue_depth": 5}, "2026-05-09T11:00:00.000Z")
    with hub.database.read() as conn:
        assert [each.depth for each in beats.read(conn, "a" * 36, 0)] == [1]


# -- metrics


def test_the_filter(bare: TestHub) -> None:
    scene(bare)

    def titles(query: str) -> list[str]:
        return re.findall(r'<th scope="row"><a [^>]*><bdi>([^<]*)</bdi>', see(bare, f"/console/metrics?{query}"))

    assert titles("")[:3] == ["Disk of the backup host", "Checkout", "Payments gateway"] and len(titles("")) == 10
    assert titles("status=wrong") == ["Disk of the backup host", "Checkout", "Payments gateway"]
    assert titles("status=degraded") == ["Checkout"]
    assert titles("text=SEARCH") == ["Search index"]
    assert titles("text=econnrefused") == ["Payments gateway"]
    assert titles("text=db-1") == titles("agent=00000003-0000-4000-8000-000000000000") != []
    assert titles("text=db-1&status=no_data") == ["Payments gateway"]
    assert "No metric is like this" in see(bare, "/console/metrics?text=nothing")


def test_a_metric_tells_its_history(bare: TestHub) -> None:
    put(bare, schema.agents, [agent_row(bare, 1, "web-1"), agent_row(bare, 2, "web-2")])
    metric, now = metric_row(1, "Shop"), bare.clock.now()
    one, two = (agent_row(bare, n, "")["id"] for n in (1, 2))
    put(bare, schema.metrics, [metric])
    put(bare, schema.latest, [latest_row(bare, metric["id"], one), latest_row(bare, metric["id"], two, "unhealthy")])
    hour = int(now // HOUR) * HOUR
    put(
        bare,
        schema.hours,
        [
            hour_row(metric["id"], one, hour - HOUR, 400.0, up=1800.0, down=900.0, unknown=900.0),
            hour_row(metric["id"], one, hour - 2 * HOUR, 600.0),
            hour_row(metric["id"], two, hour - HOUR, 90.0),
        ],
    )
    put(bare, schema.rolled, [rolled_row(bare, metric["id"], each) for each in (one, two)])
    page = said(see(bare, f"/console/metric?id={metric['id']}&agent={one}&range=7d"))
    assert "History on web-1" in page and "unhealthy , the worst of 2 agents" in page
    assert "Hourly means 400 at last, 400 to 600; healthy at 500" in page
    assert "24 hours 85.81 % 15 min down" in page
    page = said(see(bare, f"/console/metric?id={metric['id']}&range=7d"))
    assert "History on web-2" in page and "Hourly means 90 at last" in page


def test_values_of_the_last_day_come_from_its_rows(hub: TestHub) -> None:
    define(hub.store, golden("definitions")["answer"]["body"][:1])
    metric_id = hub.get("metrics")["metrics"][0]["id"]
    values = [row(v, metric_id=metric_id, status="no_data" if v == 0 else "healthy") for v in (10, 0, 30, 20)]
    for n, each in enumerate(values):
        hub.push([{**each, "timestamp": f"2026-05-09T11:0{n}:00.000Z"}])
    page = said(see(hub, f"/console/metric?id={metric_id}"))
    assert "Values 20 at last, 10 to 30" in page
    assert "The last 4 rows" in page


# -- keys, webhooks


def test_a_key_is_made_and_shown_once(hub: TestHub) -> None:
    client = hub.client()
    form = {"form_token": hidden(client.get("/console/keys", headers=HTML).text), "name": "<new>"}
    page = client.post("/console/keys", data=form, headers=HTML).text
    (key,) = re.findall(r"obs_live_[A-Za-z0-9_-]{43}", page)
    assert "&lt;new&gt;" in page
    answer = hub.client().post("/api/agent/heartbeat", json={}, headers={"Agent-Key": key})
    assert answer.status_code == 200
    assert key not in client.get("/console/keys", headers=HTML).text
    answer = client.post("/console/keys", data=form, headers=HTML)
    assert answer.status_code == 400 and "choose another name" in answer.text


def test_a_key_is_rotated_and_revoked(hub: TestHub) -> None:
    client = hub.client()
    form = {"form_token": hidden(client.get("/console/keys", headers=HTML).text), "name": "agent"}

    def knock(key: str) -> int:
        return int(hub.client().post("/api/agent/heartbeat", json={}, headers={"Agent-Key": key}).status_code)

    page = client.post("/console/keys/rotate", data=form, headers=HTML).text
    (key,) = re.findall(r"obs_live_[A-Za-z0-9_-]{43}", page)
    assert (knock(key), knock(hub.key)) == (200, 200)
    page = see(hub, "/console/keys")
    assert "ends soon" in page and "in 1 d" in page
    hint = next(each["hint"] for each in hub.store.keys.list() if each["state"] == "valid")
    answer = client.post("/console/keys/revoke", data={**form, "hint": hint}, headers=HTML)
    assert (
        answer.status_code == 303 and "refused from now on" in client.get(answer.headers["Location"], headers=HTML).text
    )
    assert (knock(key), knock(hub.key)) == (401, 200)
    for path, wrong in (
        ("revoke", {"hint": hint}),
        ("revoke", {}),
        ("revoke", {"name": "x"}),
        ("rotate", {"name": "x"}),
    ):
        assert client.post(f"/console/keys/{path}", data={**form, **wrong}, headers=HTML).status_code == 400
    assert sorted(each["state"] for each in hub.store.keys.list()) == ["expiring", "revoked"]
    assert said(see(hub, "/console/audit")).count("console key.") == 2


def test_webhooks_are_made_tested_and_switched(hub: TestHub) -> None:
    client, hooks = hub.client(), Webhooks(hub.database, hub.clock)
    form = {"form_token": hidden(client.get("/console/webhooks", headers=HTML).text)}

    def send(path: str, **data: Any) -> Any:
        return client.post(f"/console/webhooks{path}", data={**form, **data}, headers=HTML)

    made = send("", name="on-call", url="https://hooks.example/x?token=hush", kind=["agent.offline", "agent.lag_high"])
    assert made.status_code == 200 and re.search(r"whsec_[A-Za-z0-9_-]{43}", made.text)
    (shown,) = hooks.all()
    assert (shown["name"], shown["event_types"]) == ("on-call", ["agent.offline", "agent.lag_high"])
    page = see(hub, "/console/webhooks")
    assert "whsec_" not in page and "hush" not in page
    bad = send("", name="other", url="http://10.0.0.1/")
    assert bad.status_code == 400 and 'role="alert"' in bad.text and len(hooks.all()) == 1
    answer = send("/act", webhook="on-call", act="test")
    assert answer.status_code == 303 and "on its way" in client.get(answer.headers["Location"], headers=HTML).text
    (laid,) = hooks.deliveries()
    assert (laid["event_type"], laid["state"]) == ("webhook.test", "pending")
    assert send("/act", webhook="on-call", act="redeliver", event=laid["event_id"]).status_code == 303
    assert len(hooks.deliveries()) == 2
    assert send("/act", webhook="on-call", act="off").status_code == 303
    assert not hooks.all()[0]["active"] and ">On<" in see(hub, "/console/webhooks")
    assert send("/act", webhook="on-call", act="test").status_code == 400
    assert send("/act", webhook="on-call", act="on").status_code == 303
    for wrong in (
        {"act": "delete"},
        {"act": "forget", "webhook": "on-call"},
        {"act": "test", "webhook": "x"},
        {"act": "redeliver", "webhook": "on-call", "event": "x"},
        {},
    ):
        assert send("/act", **wrong).status_code == 400
    audit = said(see(hub, "/console/audit"))
    assert audit.count("console webhook.") == 5 and "webhook.redeliver" in audit


def test_a_webhook_is_changed_and_deleted_on_its_page(hub: TestHub) -> None:
    client, hooks = hub.client(), Webhooks(hub.database, hub.clock)
    made = hooks.create(
        "cli:root", Wanted("on-call", "https://hooks.example/x?token=hush", "s" * 20, ("agent.offline",))
    )
    page = see(hub, f"/console/webhook?id={made}")
    assert "hush" not in page and page.count(" checked") == 1 and "yes" in said(page)
    form = {"form_token": hidden(client.get("/console/webhooks", headers=HTML).text), "webhook": made}

    def send(path: str, **data: Any) -> Any:
        return client.post(f"/console/{path}", data={**form, **data}, headers=HTML)

    def kept() -> Any:
        with hub.database.read() as conn:
            return conn.execute(select(schema.webhooks)).first()

    answer = send("webhook", name="pager", url="", kind=["agent.lag_high", "webhook.test"])
    assert answer.status_code == 303 and "is changed" in client.get(answer.headers["Location"], headers=HTML).text
    assert (kept().name, kept().url, kept().secret) == ("pager", "https://hooks.example/x?token=hush", "s" * 20)
    assert kept().event_types == '["agent.lag_high"]'
    answer = send("webhook", name="pager", url="https://hooks.example/y", secret="new")
    (secret,) = re.findall(r"whsec_[A-Za-z0-9_-]{43}", answer.text)
    assert (kept().secret, kept().url, kept().event_types) == (secret, "https://hooks.example/y", "[]")
    assert secret not in see(hub, f"/console/webhook?id={made}")
    wrong = send("webhook", name="pager", url="http://10.0.0.1/?a=<b>")
    assert (
        wrong.status_code == 400
        and 'value="http://10.0.0.1/?a=&lt;b&gt;"' in wrong.text
        and 'role="alert"' in wrong.text
    )
    assert send("webhook", name="x", webhook="nobody").status_code == 404
    assert client.get("/console/webhook?id=nobody", headers=HTML).status_code == 404
    answer = send("webhooks/act", act="test", own="1")
    assert answer.headers["Location"] == f"/console/webhook?id={made}&done=test"
    assert "webhook.test" in see(hub, answer.headers["Location"]).replace("<wbr>", "")
    answer = send("webhooks/act", act="delete", own="1")
    assert answer.headers["Location"] == "/console/webhooks?done=delete" and kept() is None
    assert "is deleted" in see(hub, answer.headers["Location"]) and hooks.deliveries() == []
    audit = said(see(hub, "/console/audit"))
    assert audit.count("console webhook.change") == 2 and "console webhook.delete pager" in audit


def test_every_form_needs_its_token_and_our_own_page(hub: TestHub) -> None:
    """Whatever changes something is refused without the form's token, with another's, or from another site."""
    hook = Webhooks(hub.database, hub.clock).create("cli:root", Wanted("on-call", "https://hooks.example/"))
    client = hub.client()
    token = hidden(client.get("/console/webhooks", headers=HTML).text)
    posts = [
        rule.rule for rule in hub.app.url_map.iter_rules() if "POST" in rule.methods and "console." in rule.endpoint
    ]
    assert len(posts) >= 8 and "/console/webhook" in posts
    before = _everything(hub)
    what = {"webhook": hook, "act": "delete", "name": "agent", "url": "https://other.example/", "hint": ""}
    for path in sorted({*posts} - {"/login", "/logout"}):
        for given, headers in (
            ({}, {}),
            ({"form_token": "0" * 64}, {}),
            ({"form_token": token}, {"Sec-Fetch-Site": "cross-site"}),
            ({"form_token": token}, {"Origin": "https://evil.example"}),
        ):
            answer = client.post(path, data={**what, **given}, headers={**HTML, **headers})
            assert answer.status_code == 403, (path, given, headers)
        assert client.get(f"{path}?act=delete&webhook={hook}", headers=HTML).status_code in (200, 404, 405)
    assert _everything(hub) == before
    assert client.post("/console/webhooks/act", data={**what, "form_token": token}, headers=HTML).status_code == 303


def _everything(hub: TestHub) -> list[Any]:
    with hub.database.read() as conn:
        tables = (schema.webhooks, schema.keys, schema.agents, schema.outbox, schema.audit)
        return [conn.execute(select(table)).all() for table in tables]


def test_a_wrong_form_is_given_back_as_it_was_filled_in(hub: TestHub) -> None:
    client = hub.client()
    form = {"form_token": hidden(client.get("/console/webhooks", headers=HTML).text)}
    wrong = {**form, "name": "a<b", "url": "https://hooks.example/", "kind": "agent.offline"}
    page = client.post("/console/webhooks", data=wrong, headers=HTML).text
    assert 'value="a&lt;b"' in page and 'value="agent.offline" checked' in page


# -- services and what was promised of them


@pytest.mark.parametrize(
    ("target", "agents", "state", "left", "share"),
    [
        (99.0, [], "nothing", 0, None),
        (99.0, [Sums(unknown=5000)], "nothing", 0, None),
        (99.0, [Sums(up=10_000)], "kept", 100, 100),
        (99.0, [Sums(up=9_000, degraded=1_000)], "kept", 100, 100),
        (99.0, [Sums(up=9_950, down=50, unknown=9_000)], "kept", 50, 50),
        (99.0, [Sums(up=9_900, down=100)], "kept", 0, 0),
        (99.0, [Sums(up=9_899, down=101)], "missed", -1, 0),
        (99.0, [Sums(up=9_800, down=200), Sums(up=10_000), Sums(unknown=7)], "kept", 0, 0),
        (100, [Sums(up=10_000)], "kept", 0, 100),
        (100, [Sums(up=9_999, down=1)], "missed", -1, 0),
        (0, [Sums(down=10_000)], "kept", 0, 0),
    ],
)
def test_an_objective(target: float, agents: list[Sums], state: str, left: float, share: float | None) -> None:
    found = outcome(target, agents)
    assert (found.state, found.left, found.left_pct) == (state, left, share)


@pytest.mark.slow
def test_services_show_what_was_promised_and_what_was_kept(bare: TestHub) -> None:
    scene(bare)
    page = said(see(bare, "/console/services"))
    assert page.index("Behind the shop") < page.index("Customers can pay") < page.index("Orders")
    assert "There is room for backups ✕ unhealthy Disk of the backup host 99.2 % 99.9 % 30" in page
    assert "5 h 4 min too much of 43 min" in page and "Orders no objectives" in page
    assert "Shop status shop 4" in page and "with OBSERVER_HUB_PUBLIC_PAGES=true everybody does" in page
    page = said(see(bare, "/console/services?text=pay"))
    assert "Shop" in page and "Mail goes out" not in page
    assert "No service is like this" in said(see(bare, "/console/services?text=nothing"))
    page = said(see(bare, "/console/service?key=shop"))
    assert "What customers see." in page and "6 h 30 min too much none is allowed" in page and "Key shop" in page
    for key in ("", "nobody"):
        assert bare.client().get(f"/console/service?key={key}", headers=HTML).status_code == 404


def test_an_objective_counts_its_own_days_and_today(hub: TestHub) -> None:
    """Through the front: rows of an agent, rolled up, the last status carried on to now."""
    rules = {"healthy_operation": "under", "healthy_value": 5, "unhealthy_operation": "over", "unhealthy_value": 9}
    define(hub.store, [{"id": "m", "title": "port", "source_type": "tcp", "interval_agent_push": 5, **rules}])
    slo = {"key": "a", "metric": "00", "target_pct": 99, "window_days": 2}
    put(hub, schema.objects, [{"kind": "service", "key": "s", "body": json.dumps({"slos": [slo]})}])
    assert "nothing known" in said(see(hub, "/console/services"))
    metric_id = "m"
    today = int(hub.clock.now()) // DAY * DAY
    sums = {today - 2 * DAY: DAY, today - DAY: 864}
    made = [hour_row(metric_id, "a" * 36, start, 1.0, up=DAY - down, down=down) for start, down in sums.items()]
    put(hub, schema.days, made)
    put(hub, schema.rolled, [{**rolled_row(hub, metric_id, "a" * 36), "timestamp": today}])
    page = said(see(hub, f"/console/metric?id={metric_id}"))
    known = DAY + 900  # the day before yesterday is too old; today is known as long as the metric's patience
    attained = words.percent((known - 864) / known * 100)
    assert f"✓ kept a of s {attained} 99 % 2 9 s left of 14 min, 1.03 %" in page, page


def test_a_metric_tells_everything_that_a_document_says_of_it_but_no_secret(bare: TestHub) -> None:
    """The parsers refuse most secrets; what a document of an older version brought is still not shown."""
    config = {
        "url": "https://user:hush1@shop.example/?token=hush2",
        "headers": {"Authorization": "Bearer hush3"},
        "nested": {"password": "hush4", "password_ref": "PROBE_PASSWORD"},
        "timeout_ms": 1500,
    }
    metric = metric_row(1, "Shop", agents=json.dumps(["web-1", "web-2"]))
    definition = {**json.loads(metric["definition"]), "source_config": config}
    put(bare, schema.metrics, [{**metric, "definition": json.dumps(definition)}])
    described = json.dumps({"description": "What a visitor <sees>."})
    put(bare, schema.objects, [{"kind": "metric", "key": "key-1", "body": described}])
    page = see(bare, f"/console/metric?id={metric['id']}")
    text = said(page.replace("<wbr>", ""))
    for wanted in (
        "What a visitor <sees>.",
        "For web-1 , web-2",
        "timeout_ms 1500",
        "nested.password_ref PROBE_PASSWORD",
    ):
        assert wanted in text, wanted
    assert "hush" not in page and text.count("[redacted]") == 4


# -- status pages


def test_a_status_page_leaks_nothing_but_what_it_shows(tmp_path: Path) -> None:
    """Every text that the database holds about these metrics and agents, but for titles and groups, is not there."""
    with memory_hub(tmp_path, token="open-sesame-42") as hub:
        scene(hub)
        app = create_app(hub.store, hub.clock, "open-sesame-42", public_pages=True)
        client = app.test_client()
        answer = client.get("/status/shop", headers={**HTML, "Host": "status.example"})
        page = answer.text
        shown = {"Shop answers", "Checkout", "Payments gateway", "Mail relay", "Shop", "Behind the shop", "Shop status"}
        shown |= {"shop", "mail", "checkout", "payments"}  # keys, which are words of the titles
        with hub.database.read() as conn:
            texts = {
                str(each) for t in schema.metadata.sorted_tables for row in conn.execute(t.select()) for each in row
            }
        ours = {*words.STATUSES, "metric", "page", "service"}  # words of the program, which classes are named by
        secret = {each for each in texts if len(each) > 3 and not re.fullmatch(r"[0-9.]+", each)} - shown - ours
        assert {"web-1", "ECONNREFUSED", "tls_cert", "https://hooks.example/observer"} <= secret
        plain = html.unescape(page)
        assert [each for each in secret if re.search(rf"(?<![\w.-]){re.escape(each)}(?![\w.-])", plain)] == []
        assert set(re.findall(r'(?:href|src|action)="([^"]*)"', page)) == {
            "/static/icon.svg",
            "/static/console.css",
            "/static/console.js",
        }
        assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-", page) and "Set-Cookie" not in answer.headers
        assert "observer" not in said(page) and __version__ not in page and "console" not in said(page)
        assert {"Server", "X-Powered-By"}.isdisjoint(answer.headers)
        for other in ("/status/nothing", "/console/metrics", "/console/services", "/api/v1/metrics", "/metrics"):
            answer = client.get(other, headers={**HTML, "Host": "status.example"})
            assert answer.status_code in (303, 401, 404), other
            assert "Shop" not in answer.text and "web-1" not in answer.text


def test_a_long_status_page_comes_in_parts_and_says_the_worst_of_all(bare: TestHub) -> None:
    many(bare, 250, 1)
    entries = [{"metric": f"key-{n}", "group": f"Group {n % 2}", "order": -n} for n in range(250)]
    body = {"subdomain": "long", "title": "Long", "metrics": entries}
    put(bare, schema.objects, [{"kind": "page", "key": "long", "body": json.dumps(body)}])
    with bare.database.write() as conn:
        conn.execute(update(schema.latest).values(status="healthy"))
        conn.execute(
            update(schema.latest).values(status="unhealthy").where(schema.latest.c.metric_id == metric_row(0, "")["id"])
        )
    first, last = see(bare, "/status/long"), see(bare, "/status/long?page=3")
    assert "Something is down." in said(first) and "Metric 0000" not in first and "1 to 100 of 250" in said(first)
    assert first.index("Metric 0249") < first.index("Metric 0051") and "Group 0" not in first
    assert "201 to 250 of 250" in said(last) and "Metric 0000 ✕ down" in said(last)


def test_a_status_page_says_little_and_that_in_words(bare: TestHub) -> None:
    scene(bare)
    page = see(bare, "/status/shop")
    text = said(page)
    assert text.startswith("Shop status") and "Something is slow or not quite right." in text
    assert (
        text.index("Shop answers") < text.index("Checkout") < text.index("Behind the shop") < text.index("Mail relay")
    )
    assert "Shop answers ✓ up" in text and "Payments gateway ? no data" in text
    assert "99.99 % up" in text and "with trouble" in text
    days = sum(len(re.findall("M[0-9]+ 0h8v30h-8z", path)) for path in re.findall('<path class="up" d="([^"]*)"', page))
    assert days == 4 * 90 and 1 <= page.count("<title>20") < 40
    with bare.database.read() as conn:
        ids = [*conn.scalars(select(schema.metrics.c.id)), *conn.scalars(select(schema.agents.c.name))]
    assert not [each for each in ids if each in page]
    assert "ECONNREFUSED" not in page and "912" not in text and "form" not in page


@pytest.mark.parametrize("public", [False, True])
def test_status_pages_are_public_only_where_the_operator_says_so(tmp_path: Path, public: bool) -> None:
    from observer_agent.hub.app import create_app

    with memory_hub(tmp_path) as hub:
        scene(hub)
        client = create_app(hub.store, hub.clock, "token", public_pages=public).test_client()
        answer = client.get("/status/shop", headers={**HTML, "Host": "status.example"})
        assert answer.status_code == (200 if public else 303)
        assert client.get("/", headers=HTML).status_code == 303
        assert client.post("/status/shop").status_code == 405 or not public
        if public:
            assert "Set-Cookie" not in answer.headers


def test_odd_pages_are_no_fault(bare: TestHub) -> None:
    scene(bare)
    odd = [
        {"subdomain": "a"},
        {"subdomain": "b", "metrics": None},
        {"subdomain": "c", "metrics": ["x", {}, {"metric": "nothing"}, {"metric": "shop", "order": "x", "group": 5}]},
    ]
    put(bare, schema.objects, [{"kind": "page", "key": each["subdomain"], "body": json.dumps(each)} for each in odd])
    for name in "abc":
        see(bare, f"/status/{name}")


# -- fast


@pytest.mark.slow
def test_3500_metrics_of_30_agents_in_under_a_second(bare: TestHub) -> None:
    many(bare)
    metric = metric_row(1, "")["id"]
    for path in ("/", "/console/agents", "/console/metrics", "/console/metrics?page=9", f"/console/metric?id={metric}"):
        best = min(_timed(bare, path) for _ in range(2))
        print(f"{path}: {best * 1000:.0f} ms")
        assert best < 1.0, path


def _timed(hub: TestHub, path: str) -> float:
    """Seconds of this thread on a processor: what others do on this machine is none of the page's."""
    start = time.thread_time()
    assert hub.client().get(path, headers=HTML).status_code == 200
    return time.thread_time() - start


def test_long_lists_of_agents_and_keys_come_in_pages_and_have_a_filter(bare: TestHub) -> None:
    now = bare.clock.now()
    rows = [agent_row(bare, n, f"vm-{n:03}", last_heartbeat_at=now - 1 if n else now - 999) for n in range(450)]
    put(bare, schema.agents, rows)
    keys = [
        {"digest": str(n), "agent_id": row["id"], "created_at": now, "hint": f"obs…{n:03}"}
        for n, row in enumerate(rows)
    ]
    put(bare, schema.keys, keys)
    agents, keys_page = said(see(bare, "/console/agents?page=3")), said(see(bare, "/console/keys?page=3"))
    assert "401 to 450 of 450" in agents and "401 to 450 of 450" in keys_page and "vm-449" in agents
    wrong = said(see(bare, "/console/agents?state=wrong"))
    assert "1 to 1 of 1" in wrong and "✕ offline vm-000" in wrong
    assert "vm-123" in said(see(bare, "/console/agents?text=VM-123&state=online"))
    assert "No agent is like this" in said(see(bare, "/console/agents?text=VM-123&state=never"))
    page = see(bare, "/console/keys?text=…123")
    assert "vm-123" in page and page.count("/console/keys/revoke") == 1
    assert "No key is like this" in said(see(bare, "/console/keys?text=nobody"))
    metrics = see(bare, f"/console/metrics?agent={rows[7]['id']}")
    assert metrics.count("<option") == 3 + 8 + 2, "a choice of hundreds is none: the filter's text finds agents too"


def test_a_metric_of_many_agents_comes_in_pages(bare: TestHub) -> None:
    put(bare, schema.agents, [agent_row(bare, n, f"vm-{n:03}") for n in range(250)])
    put(bare, schema.metrics, [metric_row(1, "Everywhere")])
    metric_id = metric_row(1, "")["id"]
    put(bare, schema.latest, [latest_row(bare, metric_id, agent_row(bare, n, "")["id"]) for n in range(250)])
    page = see(bare, f"/console/metric?id={metric_id}&page=2")
    assert "the worst of 250 agents" in said(page) and "201 to 250 of 250" in said(page) and "vm-249" in page


def test_pages_of_a_long_list(bare: TestHub) -> None:
    many(bare, 450, 2)
    first, last = see(bare, "/console/metrics?text=Metric"), see(bare, "/console/metrics?text=Metric&page=3")
    assert "1 to 200 of 450" in said(first) and "401 to 450 of 450" in said(last)
    assert 'rel="next" href="/console/metrics?text=Metric&amp;page=2"' in first
    assert 'rel="prev"' not in first and 'rel="next"' not in last and 'rel="prev"' in last


# -- words and drawings


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (95, "1 min 35 s"),
        (700, "11 min"),
        (3700, "1 h 1 min"),
        (90000, "1 d 1 h"),
        (2e6, "23 d"),
        (None, ""),
    ],
)
def test_spans(seconds: float | None, text: str) -> None:
    assert words.span(seconds) == text


def test_a_share_that_is_not_whole_is_never_shown_as_whole() -> None:
    assert [words.percent(each) for each in (100, 99.9999, 99.5, 0, None)] == ["100 %", "99.99 %", "99.5 %", "0 %", "–"]


def test_numbers() -> None:
    given = (0, -3, 18412, 0.1234567, 1234567.8, 1e300, None)
    assert [words.number(each) for each in given] == ["0", "-3", "18,412", "0.123457", "1,234,568", "1e+300", ""]
    assert words.stamp(1e20) == "1e+20" or words.stamp(1e20).isdigit()


def test_an_instant_is_shown_in_utc_and_as_how_long_ago(hub: TestHub) -> None:
    say = words.Words(hub.clock)
    text = str(say.when(hub.clock.now() - 65))
    assert 'datetime="2026-05-09T11:59:05Z"' in text and ">1 min 5 s ago<" in text
    assert "in 5 s" in say.when(hub.clock.now() + 5)
    assert str(say.when(None, "<never>")) == '<span class="none">&lt;never&gt;</span>'


def test_a_curve_leaves_gaps_empty_and_stays_in_its_frame() -> None:
    frame = draw.Frame(0, 100, 0, 10, 100, 100)
    curve = draw.curve([(0, 0), (10, 10), (60, 5), (70, 5), (99, 20)], frame, gap=30)
    assert curve.line == "M0.0 98.0L10.0 2.0M60.0 50.0L70.0 50.0L99.0 2.0"
    assert draw.curve([(50, 5)], frame).line.count("L") == 1, "a lone point is still drawn"
    assert draw.curve([], frame) == ("", "")
    assert draw.spark([(0, 1)]) == "" and draw.spark([(0, 1), (1, 1)]).startswith("M0.0 ")
    for values in ([], [0.0], [5.0], [-5.0], [1.0, 2.0]):
        low, high = draw.bounds(values)
        assert low < high


def test_bars_show_the_smallest_trouble() -> None:
    assert draw.bar(0, (0, 0, 0, 0)).kind == "none" and draw.bar(0, (0, 0, 0, 9)).kind == "unknown"
    assert draw.bar(0, (9, 0, 0, 9)) == (0, 0, "up")
    assert draw.bar(0, (86399, 0, 1, 0)).bad > 5 and draw.bar(0, (0, 0, 9, 0)).bad == 30


def test_a_test_of_this_file_uses_webhooks_as_they_are(hub: TestHub) -> None:
    Webhooks(hub.database, hub.clock).create("cli:root", Wanted("on-call", "https://hooks.example/"))
    assert "not signed" in see(hub, "/console/webhooks")
