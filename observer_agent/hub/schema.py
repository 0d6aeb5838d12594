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
)

keys = Table(
    "keys",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("agent_id", String(36), ForeignKey("agents.id"), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
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
