"""The first tables: agents and keys, metrics, pushes, what was taken, what was reported."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Creates everything, the order following the foreign key."""
    op.create_table(
        "agents",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("name", sa.String(128), nullable=False, unique=True),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("restarts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("duplicate_seen_at", sa.Double),
        sa.Column("last_heartbeat_at", sa.Double),
        sa.Column("version", sa.String(128)),
        sa.Column("hostname", sa.String(255)),
        sa.Column("uptime_seconds", sa.BigInteger),
        sa.Column("queue_depth", sa.BigInteger),
        sa.Column("queue_oldest_age_seconds", sa.BigInteger),
        sa.Column("queue_capacity", sa.BigInteger),
        sa.Column("facts", sa.Text, nullable=False, server_default="{}"),
        sa.Column("taken", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("duplicates", sa.BigInteger, nullable=False, server_default="0"),
    )
    op.create_table(
        "keys",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("agent_id", sa.String(36), sa.ForeignKey("agents.id"), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double),
    )
    _metrics()
    _delivery()


def _metrics() -> None:
    op.create_table(
        "metrics",
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column("key", sa.String(128), unique=True),
        sa.Column("title", sa.String(200), nullable=False, server_default=""),
        sa.Column("source_type", sa.String(64), nullable=False),
        sa.Column("agents", sa.Text, nullable=False, server_default="[]"),
        sa.Column("definition", sa.Text, nullable=False, server_default="{}"),
        sa.Column("managed", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_table(
        "pushes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("metric_id", sa.String(128), nullable=False),
        sa.Column("agent_id", sa.String(36), nullable=False),
        sa.Column("queue_id", sa.String(36)),
        sa.Column("row_id", sa.BigInteger),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("timestamp", sa.Double, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(64)),
        sa.Column("received_at", sa.Double, nullable=False),
    )
    op.create_index("pushes_by_metric", "pushes", ["metric_id", "id"])
    op.create_table(
        "latest",
        sa.Column("metric_id", sa.String(128), primary_key=True),
        sa.Column("agent_id", sa.String(36), primary_key=True),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("timestamp", sa.Double, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(64)),
        sa.Column("received_at", sa.Double, nullable=False),
    )


def _delivery() -> None:
    op.create_table(
        "taken",
        sa.Column("agent_id", sa.String(36), primary_key=True),
        sa.Column("queue_id", sa.String(36), primary_key=True),
        sa.Column("first_id", sa.BigInteger, primary_key=True),
        sa.Column("last_id", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "deliveries",
        sa.Column("agent_id", sa.String(36), primary_key=True),
        sa.Column("queue_id", sa.String(36), primary_key=True),
        sa.Column("given", sa.BigInteger, nullable=False),
        sa.Column("accepted", sa.BigInteger, nullable=False),
        sa.Column("pending", sa.BigInteger, nullable=False),
        sa.Column("lost", sa.Text, nullable=False),
        sa.Column("reported_at", sa.Double, nullable=False),
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("n", sa.BigInteger, nullable=False),
    )
