"""A hub with a past, written straight into its tables: what the console's tests look at, and its screenshots."""

from __future__ import annotations

import json
import math
import random
import uuid
from typing import Any

from sqlalchemy import insert

from observer_agent.hub import partitions, schema
from tests.wire_hub import TestHub, digest

DAY, HOUR = 86400, 3600
AGENTS = ("web-1", "web-2", "db-1", "edge-fra", "edge-ams", "batch-1")
METRICS = (
    ("shop", "Shop answers", "http", 180.0, "healthy"),
    ("checkout", "Checkout", "http", 912.0, "degraded"),
    ("payments", "Payments gateway", "tcp", 0.0, "no_data"),
    ("certificate", "Certificate of shop.example", "tls_cert", 61.0, "healthy"),
    ("resolver", "Names resolve", "dns", 3.2, "healthy"),
    ("orders", "Orders in the database", "database", 18412.0, "healthy"),
    ("search", "Search index", "elasticsearch", 41.0, "healthy"),
    ("disk", "Disk of the backup host", "host", 93.4, "unhealthy"),
    ("mail", "Mail relay", "tcp", 12.6, "healthy"),
    ("queue", "Jobs that wait", "prometheus", 7.0, "healthy"),
)
HOSTILE = (
    "<img src=x onerror=window.harmed=1>",
    '"><script>window.harmed=1</script>',
    "\N{RIGHT-TO-LEFT OVERRIDE}dessap sdrawkcab\N{RIGHT-TO-LEFT ISOLATE}",
    "x" * 128,
    "\N{PILE OF POO}\N{ZERO WIDTH JOINER}\N{FIRE} emoji",
    "javascript:window.harmed=1",
    "</bdi></table><h1>out</h1>",
    "{{7*7}}${7*7}{% raw %}",
    "' onmouseover='window.harmed=1",
    "a&id=b#c?d=e/../f",
)


def put(hub: TestHub, table: Any, rows: list[dict[str, Any]]) -> None:
    """Inserts rows."""
    with hub.database.write() as conn:
        if table is schema.pushes and conn.dialect.name == "postgresql":
            for at in {row["received_at"] // DAY * DAY for row in rows}:
                partitions.make(conn, at)
        conn.execute(insert(table), rows)


def agent_row(hub: TestHub, number: int, name: str, **more: Any) -> dict[str, Any]:
    """An agent that has been heard a few seconds ago, every minute of the last day."""
    now = hub.clock.now()
    return {
        "id": f"{number:08x}-0000-4000-8000-000000000000",
        "name": name,
        "created_at": now - 40 * DAY,
        "started_at": now - 3 * DAY - 4000 * number,
        "restarts": number % 4,
        "last_heartbeat_at": now - 3 * number - 1,
        "version": "0.1.0",
        "hostname": f"{name}.internal",
        "uptime_seconds": 3 * DAY + 4000 * number,
        "queue_depth": 0,
        "queue_oldest_age_seconds": 0,
        "queue_capacity": 10000,
        "facts": json.dumps({"source_types_active": ["http", "tcp", "tls_cert"]}),
        "taken": 48211 + 977 * number,
        "duplicates": number,
        "minute_newest": int(now // 60),
        "minute_bits": ((1 << 1440) - 1).to_bytes(180, "big"),
        "minute_first": int(now // 60) - 60000,
        **more,
    }


def metric_row(number: int, title: str, **more: Any) -> dict[str, Any]:
    """A metric, as a document has defined it."""
    metric_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"observer:metric:{number}"))
    thresholds = {
        "healthy_operation": "under",
        "healthy_value": 500,
        "unhealthy_operation": "over",
        "unhealthy_value": 2000,
    }
    definition = {"id": metric_id, "interval": 0.5, "interval_agent_push": 5, **thresholds}
    base = {"id": metric_id, "key": f"key-{number}", "title": title, "source_type": "http", "managed": True}
    return {**base, "definition": json.dumps(definition), "created_at": 0.0, **more}


def latest_row(
    hub: TestHub, metric_id: str, agent_id: str, status: str = "healthy", value: float = 1.0
) -> dict[str, Any]:
    """The last push of a metric."""
    at = hub.clock.now() - 42
    reason = "ECONNREFUSED" if status == "no_data" else None
    same = {"metric_id": metric_id, "agent_id": agent_id, "value": value, "status": status, "reason": reason}
    return {**same, "timestamp": at, "received_at": at + 0.2}


def many(hub: TestHub, metrics: int = 3500, agents: int = 30) -> None:
    """Thousands of metrics, each pushed by one of the agents, one in ten of them not healthy, with their last day."""
    r, now = random.Random(7), hub.clock.now()
    known = [agent_row(hub, 100 + n, f"vm-{n:02}") for n in range(agents)]
    rows = [metric_row(n, f"Metric {n:04}") for n in range(metrics)]
    statuses = ["healthy"] * 9 + ["unhealthy"]
    pairs = [(row["id"], known[n % agents]["id"]) for n, row in enumerate(rows)]
    put(hub, schema.agents, known)
    put(hub, schema.metrics, rows)
    put(hub, schema.latest, [latest_row(hub, m, a, r.choice(statuses), r.random() * 900) for m, a in pairs])
    first = int(now // HOUR) * HOUR - 23 * HOUR
    put(hub, schema.hours, [hour_row(m, a, first + h * HOUR, r.random() * 900) for m, a in pairs for h in range(24)])


def hour_row(metric_id: str, agent_id: str, start: int, value: float, **more: float) -> dict[str, Any]:
    """An hour, up from its first to its last second."""
    same = {"metric_id": metric_id, "agent_id": agent_id, "start": start, "up": float(HOUR), "degraded": 0.0}
    return {**same, "down": 0.0, "unknown": 0.0, "n": 12, "total": 12 * value, "low": value, "high": value, **more}


def rolled_row(hub: TestHub, metric_id: str, agent_id: str, status: str = "healthy") -> dict[str, Any]:
    """Where the roll-ups of a metric end."""
    return {"metric_id": metric_id, "agent_id": agent_id, "timestamp": hub.clock.now() - 42, "status": status}


def scene(hub: TestHub) -> None:
    """A small company on an ordinary day: one agent silent, one behind, a few metrics not healthy."""
    _agents(hub)
    _metrics(hub)
    _events(hub)
    _rest(hub)


def _agents(hub: TestHub) -> None:
    now = hub.clock.now()
    rows = [agent_row(hub, n, name) for n, name in enumerate(AGENTS, 1)]
    rows[2].update(queue_depth=1840, queue_oldest_age_seconds=412)
    rows[4].update(
        last_heartbeat_at=now - 1300, minute_bits=((1 << 1419) - 1 << 21).to_bytes(180, "big"), version="0.0.9"
    )
    put(hub, schema.agents, rows)
    put(
        hub,
        schema.alerts,
        [
            {"agent_id": rows[2]["id"], "signal": "agent.lag_high", "opened_at": now - 900, "calm_since": None},
            {"agent_id": rows[4]["id"], "signal": "agent.offline", "opened_at": now - 1210, "calm_since": None},
        ],
    )
    queue = "0b9f5a52-7f0e-4c3b-9a50-3f6f6f1f5d0"
    reports = [
        {
            "agent_id": row["id"],
            "queue_id": f"{queue}{n}",
            "given": row["taken"] + row["queue_depth"],
            "accepted": row["taken"],
            "pending": row["queue_depth"],
            "lost": "{}",
            "reported_at": now,
        }
        for n, row in enumerate(rows)
    ]
    reports[2].update(given=reports[2]["given"] + 3, lost=json.dumps({"dead_letter": 3}))
    put(hub, schema.deliveries, reports)
    put(
        hub,
        schema.taken,
        [
            {"agent_id": row["id"], "queue_id": f"{queue}{n}", "first_id": 1, "last_id": row["taken"]}
            for n, row in enumerate(rows)
        ],
    )
    put(
        hub,
        schema.keys,
        [
            {
                "digest": digest(row["name"]),
                "agent_id": row["id"],
                "created_at": row["created_at"],
                "hint": f"obs_live_{n}f3A",
            }
            for n, row in enumerate(rows)
        ],
    )
    first = int(now // 60) - 420
    put(
        hub,
        schema.beats,
        [
            {"agent_id": rows[2]["id"], "minute": first + m, "depth": _depth(m), "age": _depth(m) // 5}
            for m in range(420)
        ],
    )


def _depth(minute: int) -> int:
    if minute < 330:
        return 120 if minute % 97 < 3 else 0
    return int((minute - 330) * 20.4)


def _metrics(hub: TestHub) -> None:
    r, now = random.Random(11), hub.clock.now()
    rows, latest = [], []
    for n, (key, title, kind, value, status) in enumerate(METRICS):
        rows.append(metric_row(1000 + n, title, key=key, source_type=kind))
        latest.append(latest_row(hub, rows[n]["id"], f"{n % 4 + 1:08x}-0000-4000-8000-000000000000", status, value))
    put(hub, schema.metrics, rows)
    put(hub, schema.latest, latest)
    hours, days, pushes = [], [], []
    for each, (_, _, _, value, status) in zip(latest, METRICS, strict=True):
        pair = each["metric_id"], each["agent_id"]
        value = value or 40.0
        start = int(now // HOUR) * HOUR
        for h in range(30 * 24):
            wave = value * (1 + 0.25 * math.sin((start / HOUR - h) / 24 * 2 * math.pi) + 0.12 * r.random())
            hours.append(hour_row(*pair, start - h * HOUR, wave))
        for d in range(90):
            bad = r.random() < 0.04 or (d == 0 and status == "unhealthy")
            down = r.choice((400.0, 3000.0, 20000.0)) if bad else 0.0
            days.append(hour_row(*pair, int(now // DAY) * DAY - d * DAY, value, up=DAY - down, down=down))
        for p in range(288):
            at = now - 300 * (288 - p) + 120
            wave = value * (1 + 0.25 * math.sin(p / 288 * 2 * math.pi) + 0.12 * r.random())
            pushes.append(
                {
                    "metric_id": pair[0],
                    "agent_id": pair[1],
                    "queue_id": None,
                    "row_id": 4000 + p,
                    "value": wave,
                    "timestamp": at,
                    "status": status if p >= 264 else "healthy",
                    "reason": "ECONNREFUSED" if status == "no_data" and p >= 264 else None,
                    "received_at": at + 0.3,
                }
            )
    rolled = [rolled_row(hub, each["metric_id"], each["agent_id"], each["status"]) for each in latest]
    for table, made in (
        (schema.hours, hours),
        (schema.days, days),
        (schema.pushes, pushes),
        (schema.rolled, rolled),
    ):
        put(hub, table, made)


def _events(hub: TestHub) -> None:
    now = hub.clock.now()
    with hub.database.read() as conn:
        metrics = {row.key: row.id for row in conn.execute(schema.metrics.select())}
    agent = "{:08x}-0000-4000-8000-000000000000".format
    told = [
        (
            "agent.offline",
            9000,
            {"state": "open", "agent_name": "web-2", "last_heartbeat_at": "2026-05-09T09:28:30.000Z"},
            agent(2),
            None,
        ),
        ("agent.offline", 8700, {"state": "cleared", "agent_name": "web-2"}, agent(2), None),
        (
            "metric.status_changed",
            7200,
            {"old_status": "healthy", "new_status": "degraded", "value": 912},
            None,
            "checkout",
        ),
        ("metric.no_data", 4000, {"reason": "ECONNREFUSED"}, None, "payments"),
        (
            "metric.status_changed",
            2400,
            {"old_status": "degraded", "new_status": "unhealthy", "value": 93.4},
            None,
            "disk",
        ),
        ("agent.offline", 1210, {"state": "open", "agent_name": "edge-ams"}, agent(5), None),
        (
            "agent.lag_high",
            900,
            {"state": "open", "queue_depth": 1012, "queue_oldest_age_seconds": 301},
            agent(3),
            None,
        ),
    ]
    rows = [
        {
            "event_id": str(uuid.uuid5(uuid.NAMESPACE_URL, str(n))),
            "event_type": kind,
            "occurred_at": now - before,
            "agent_id": about,
            "metric_id": metrics.get(key or ""),
            "data": json.dumps(data),
        }
        for n, (kind, before, data, about, key) in enumerate(told)
    ]
    put(hub, schema.events, rows)
    hook = {
        "id": "h" * 36,
        "name": "on-call",
        "url": "https://hooks.example/observer",
        "secret": "s" * 20,
        "active": True,
    }
    put(
        hub,
        schema.webhooks,
        [{**hook, "event_types": '["agent.offline", "metric.status_changed"]', "created_at": now - DAY}],
    )
    put(
        hub,
        schema.outbox,
        [
            {
                "id": n + 1,
                "webhook_id": hook["id"],
                "event_id": row["event_id"],
                "state": "delivered" if n < 6 else "pending",
                "attempts": 1,
                "created_at": row["occurred_at"],
                "next_at": now,
            }
            for n, row in enumerate(rows)
        ],
    )
    put(
        hub,
        schema.attempts,
        [
            {
                "outbox_id": n + 1,
                "at": row["occurred_at"],
                "status": 200 if n < 6 else 503,
                "error": "",
                "duration_ms": 84.2 + n,
            }
            for n, row in enumerate(rows)
        ],
    )


def _rest(hub: TestHub) -> None:
    now = hub.clock.now()
    page = {
        "key": "shop",
        "subdomain": "shop",
        "title": "Shop status",
        "metrics": [
            {"metric": "shop", "group": "Shop", "order": 1},
            {"metric": "checkout", "group": "Shop", "order": 2},
            {"metric": "payments", "group": "Behind the shop", "order": 3},
            {"metric": "mail", "group": "Behind the shop", "order": 4},
        ],
    }
    put(hub, schema.objects, [{"kind": "page", "key": "shop", "body": json.dumps(page)}])
    put(hub, schema.objects, [{"kind": "service", "key": key, "body": json.dumps(body)} for key, body in _services()])
    described = {
        "description": "What a visitor sees first: the start page, from the time it is asked for to its last byte."
    }
    put(hub, schema.objects, [{"kind": "metric", "key": "shop", "body": json.dumps(described)}])
    put(
        hub,
        schema.audit,
        [
            {"at": now - 5000, "actor": "command line", "action": "key.create", "subject": "batch-1", "detail": ""},
            {
                "at": now - 3000,
                "actor": "console",
                "action": "webhook.create",
                "subject": "on-call",
                "detail": "2 kinds of events",
            },
        ],
    )


def _services() -> list[tuple[str, dict[str, Any]]]:
    def slo(key: str, name: str, metric: str, target: float, days: int) -> dict[str, Any]:
        return {"key": key, "name": name, "metric": metric, "target_pct": target, "window_days": days}

    shop = [
        slo("answers", "The shop answers", "shop", 99.9, 30),
        slo("checkout", "Customers can pay", "checkout", 99.5, 30),
        slo("certificate", "The certificate is good", "certificate", 100, 90),
    ]
    behind = [slo("disk", "There is room for backups", "disk", 99.9, 30), slo("mail", "Mail goes out", "mail", 99, 7)]
    return [
        ("shop", {"key": "shop", "name": "Shop", "description": "What customers see.", "slos": shop}),
        ("behind", {"key": "behind", "name": "Behind the shop", "slos": behind}),
        ("orders", {"key": "orders", "name": "Orders", "slos": []}),
    ]
