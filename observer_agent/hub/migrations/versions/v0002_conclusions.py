"""Alerts and statuses, events and webhooks, roll-ups, services and pages, the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds columns to agents and keys, and the tables."""
    with op.batch_alter_table("agents") as table:
        table.add_column(sa.Column("minute_newest", sa.BigInteger, nullable=False, server_default="0"))
        table.add_column(sa.Column("minute_bits", sa.LargeBinary, nullable=False, server_default=""))
        table.add_column(sa.Column("minute_first", sa.BigInteger))
    with op.batch_alter_table("keys") as table:
        table.add_column(sa.Column("hint", sa.String(16), nullable=False, server_default=""))
        table.add_column(sa.Column("revoked_at", sa.Double))
    if op.get_bind().dialect.name == "postgresql":
        _partitioned_pushes()
    _conclusions()
    _webhooks()
    _rollup("hours")
    _rollup("days")
    _rest()
    _console()


def _number() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _partitioned_pushes() -> None:
    """Nothing is lost by it: no version that knew PostgreSQL stopped at 0001, so the table is empty."""
    op.drop_table("pushes")
    op.execute("""
        CREATE TABLE pushes (
            id BIGSERIAL NOT NULL,
            metric_id VARCHAR(128) NOT NULL,
            agent_id VARCHAR(36) NOT NULL,
            queue_id VARCHAR(36),
            row_id BIGINT,
            value DOUBLE PRECISION NOT NULL,
            timestamp DOUBLE PRECISION NOT NULL,
            status VARCHAR(16) NOT NULL,
            reason VARCHAR(64),
            received_at DOUBLE PRECISION NOT NULL,
            PRIMARY KEY (id, received_at)
        ) PARTITION BY RANGE (received_at)
    """)
    op.create_index("pushes_by_metric", "pushes", ["metric_id", "id"])


def _conclusions() -> None:
    op.create_table(
        "alerts",
        sa.Column("agent_id", sa.String(36), primary_key=True),
        sa.Column("signal", sa.String(32), primary_key=True),
        sa.Column("opened_at", sa.Double),
        sa.Column("calm_since", sa.Double),
    )
    op.create_table(
        "states",
        sa.Column("metric_id", sa.String(128), primary_key=True),
        sa.Column("agent_id", sa.String(36), primary_key=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("since", sa.Double, nullable=False),
        sa.Column("candidate", sa.String(16)),
        sa.Column("candidate_since", sa.Double),
    )
    op.create_table(
        "events",
        sa.Column("id", _number(), primary_key=True),
        sa.Column("event_id", sa.String(36), nullable=False, unique=True),
        sa.Column("event_type", sa.String(64), nullable=False),
        sa.Column("occurred_at", sa.Double, nullable=False),
        sa.Column("agent_id", sa.String(36)),
        sa.Column("metric_id", sa.String(128)),
        sa.Column("data", sa.Text, nullable=False),
    )
    op.create_index("events_by_agent", "events", ["agent_id", "id"])
    op.create_index("events_by_metric", "events", ["metric_id", "id"])


def _webhooks() -> None:
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("name", sa.String(128), nullable=False, unique=True),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("secret", sa.Text),
        sa.Column("event_types", sa.Text, nullable=False, server_default="[]"),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_table(
        "outbox",
        sa.Column("id", _number(), primary_key=True),
        sa.Column("webhook_id", sa.String(36), nullable=False),
        sa.Column("event_id", sa.String(36), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("next_at", sa.Double, nullable=False),
        sa.Column("claimed_until", sa.Double),
        sa.Column("ended_at", sa.Double),
    )
    op.create_index("outbox_by_webhook", "outbox", ["webhook_id", "state", "id"])
    op.create_table(
        "attempts",
        sa.Column("id", _number(), primary_key=True),
        sa.Column("outbox_id", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("error", sa.String(200), nullable=False, server_default=""),
        sa.Column("duration_ms", sa.Double, nullable=False),
    )
    op.create_index("attempts_by_outbox", "attempts", ["outbox_id"])


def _rollup(name: str) -> None:
    seconds = ("up", "degraded", "down", "unknown")
    op.create_table(
        name,
        sa.Column("metric_id", sa.String(128), primary_key=True),
        sa.Column("agent_id", sa.String(36), primary_key=True),
        sa.Column("start", sa.BigInteger, primary_key=True),
        *(sa.Column(each, sa.Double, nullable=False, server_default="0") for each in seconds),
        sa.Column("n", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("total", sa.Double, nullable=False, server_default="0"),
        sa.Column("low", sa.Double),
        sa.Column("high", sa.Double),
        sqlite_with_rowid=False,
    )
    op.create_index(f"{name}_by_start", name, ["start"])


def _rest() -> None:
    op.create_table(
        "rolled",
        sa.Column("metric_id", sa.String(128), primary_key=True),
        sa.Column("agent_id", sa.String(36), primary_key=True),
        sa.Column("timestamp", sa.Double, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
    )
    op.create_table(
        "objects",
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("key", sa.String(128), primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("id", _number(), primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(256), nullable=False),
        sa.Column("detail", sa.Text, nullable=False, server_default=""),
    )


def _console() -> None:
    op.create_table(
        "sessions",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
    )
    op.create_table(
        "beats",
        sa.Column("agent_id", sa.String(36), primary_key=True),
        sa.Column("minute", sa.BigInteger, primary_key=True),
        sa.Column("depth", sa.BigInteger, nullable=False),
        sa.Column("age", sa.BigInteger, nullable=False),
    )
