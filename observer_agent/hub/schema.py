"""The tables, as declarations; `migrations/` creates and changes them, a test holds the two together.

Instants are seconds since 1970 as doubles, lists and objects are JSON text. Keys are present as SHA-256 alone.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

agents = Table(
    "agents",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(128), nullable=False, unique=True),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("restarts", Integer, nullable=False, server_default="0"),
    Column("duplicate_seen_at", Double),
    Column("last_heartbeat_at", Double),
    Column("version", String(128)),
    Column("hostname", String(255)),
    Column("uptime_seconds", BigInteger),
    Column("queue_depth", BigInteger),
    Column("queue_oldest_age_seconds", BigInteger),
    Column("queue_capacity", BigInteger),
    Column("facts", Text, nullable=False, server_default="{}"),
    Column("taken", BigInteger, nullable=False, server_default="0"),
    Column("duplicates", BigInteger, nullable=False, server_default="0"),
    Column("minute_newest", BigInteger, nullable=False, server_default="0"),
    Column("minute_bits", LargeBinary, nullable=False, server_default=""),
    Column("minute_first", BigInteger),
)

keys = Table(
    "keys",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("agent_id", String(36), ForeignKey("agents.id"), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("hint", String(16), nullable=False, server_default=""),
    Column("revoked_at", Double),
)

metrics = Table(
    "metrics",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("key", String(128), unique=True),
    Column("title", String(200), nullable=False, server_default=""),
    Column("source_type", String(64), nullable=False),
    Column("agents", Text, nullable=False, server_default="[]"),
    Column("definition", Text, nullable=False, server_default="{}"),
    Column("managed", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
)

pushes = Table(
    "pushes",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("metric_id", String(128), nullable=False),
    Column("agent_id", String(36), nullable=False),
    Column("queue_id", String(36)),
    Column("row_id", BigInteger),
    Column("value", Double, nullable=False),
    Column("timestamp", Double, nullable=False),
    Column("status", String(16), nullable=False),
    Column("reason", String(64)),
    Column("received_at", Double, nullable=False),
    Index("pushes_by_metric", "metric_id", "id"),
)

latest = Table(
    "latest",
    metadata,
    Column("metric_id", String(128), primary_key=True),
    Column("agent_id", String(36), primary_key=True),
    Column("value", Double, nullable=False),
    Column("timestamp", Double, nullable=False),
    Column("status", String(16), nullable=False),
    Column("reason", String(64)),
    Column("received_at", Double, nullable=False),
)

taken = Table(
    "taken",
    metadata,
    Column("agent_id", String(36), primary_key=True),
    Column("queue_id", String(36), primary_key=True),
    Column("first_id", BigInteger, primary_key=True),
    Column("last_id", BigInteger, nullable=False),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("agent_id", String(36), primary_key=True),
    Column("queue_id", String(36), primary_key=True),
    Column("given", BigInteger, nullable=False),
    Column("accepted", BigInteger, nullable=False),
    Column("pending", BigInteger, nullable=False),
    Column("lost", Text, nullable=False),
    Column("reported_at", Double, nullable=False),
)

counters = Table(
    "counters",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("n", BigInteger, nullable=False),
)

# -- what the hub concludes: alerts of agents, statuses of metrics, events, webhooks

alerts = Table(
    "alerts",
    metadata,
    Column("agent_id", String(36), primary_key=True),
    Column("signal", String(32), primary_key=True),
    Column("opened_at", Double),
    Column("calm_since", Double),
)

states = Table(
    "states",
    metadata,
    Column("metric_id", String(128), primary_key=True),
    Column("agent_id", String(36), primary_key=True),
    Column("status", String(16), nullable=False),
    Column("since", Double, nullable=False),
    Column("candidate", String(16)),
    Column("candidate_since", Double),
)

events = Table(
    "events",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("event_id", String(36), nullable=False, unique=True),
    Column("event_type", String(64), nullable=False),
    Column("occurred_at", Double, nullable=False),
    Column("agent_id", String(36)),
    Column("metric_id", String(128)),
    Column("data", Text, nullable=False),
    Index("events_by_agent", "agent_id", "id"),
    Index("events_by_metric", "metric_id", "id"),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(128), nullable=False, unique=True),
    Column("url", Text, nullable=False),
    Column("secret", Text),
    Column("event_types", Text, nullable=False, server_default="[]"),
    Column("active", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("webhook_id", String(36), nullable=False),
    Column("event_id", String(36), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("created_at", Double, nullable=False),
    Column("next_at", Double, nullable=False),
    Column("claimed_until", Double),
    Column("ended_at", Double),
    Index("outbox_by_webhook", "webhook_id", "state", "id"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("outbox_id", BigInteger, nullable=False),
    Column("at", Double, nullable=False),
    Column("status", Integer, nullable=False),
    Column("error", String(200), nullable=False, server_default=""),
    Column("duration_ms", Double, nullable=False),
    Index("attempts_by_outbox", "outbox_id"),
)

# -- history: the verdicts of a metric, rolled up; seconds by status, and what the values were


def _rollup(name: str) -> Table:
    seconds = ("up", "degraded", "down", "unknown")
    return Table(
        name,
        metadata,
        Column("metric_id", String(128), primary_key=True),
        Column("agent_id", String(36), primary_key=True),
        Column("start", BigInteger, primary_key=True),
        *(Column(each, Double, nullable=False, server_default="0") for each in seconds),
        Column("n", BigInteger, nullable=False, server_default="0"),
        Column("total", Double, nullable=False, server_default="0"),
        Column("low", Double),
        Column("high", Double),
        Index(f"{name}_by_start", "start"),
        sqlite_with_rowid=False,  # what is read together lies together
    )


hours = _rollup("hours")
days = _rollup("days")

rolled = Table(
    "rolled",
    metadata,
    Column("metric_id", String(128), primary_key=True),
    Column("agent_id", String(36), primary_key=True),
    Column("timestamp", Double, nullable=False),
    Column("status", String(16), nullable=False),
)

# -- what a document says besides metrics, and who changed what

objects = Table(
    "objects",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("key", String(128), primary_key=True),
    Column("body", Text, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at", Double, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(256), nullable=False),
    Column("detail", Text, nullable=False, server_default=""),
)

# -- the console: who is logged in, and how the queues of agents were, minute by minute

sessions = Table(
    "sessions",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
)

beats = Table(
    "beats",
    metadata,
    Column("agent_id", String(36), primary_key=True),
    Column("minute", BigInteger, primary_key=True),
    Column("depth", BigInteger, nullable=False),
    Column("age", BigInteger, nullable=False),
)
