"""The second dialect: lighthouses with their tokens and instances, checks, their events, discoveries, host metrics."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Adds the tables."""
    _lighthouses()
    _checks()
    _rest()


def _number() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _lighthouses() -> None:
    op.create_table(
        "lighthouses",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("name", sa.String(128), nullable=False, unique=True),
        sa.Column("host", sa.String(255)),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.Column("paused", sa.Boolean, nullable=False),
        sa.Column("notify_on_lifecycle", sa.Boolean, nullable=False),
        sa.Column("flap_protection_threshold", sa.Integer, nullable=False),
        sa.Column("heartbeat_interval_seconds", sa.Integer, nullable=False),
        sa.Column("allow_multi_instance", sa.Boolean, nullable=False),
        sa.Column("host_metrics_enabled", sa.Boolean),
        sa.Column("host_metrics_interval_seconds", sa.Integer, nullable=False),
        sa.Column("etag", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("changed_at", sa.Double, nullable=False),
        sa.Column("last_heartbeat_at", sa.Double),
        sa.Column("stop_reason", sa.String(64)),
        sa.Column("resync", sa.Boolean, nullable=False),
        sa.Column("resync_asked_at", sa.Double),
        sa.Column("rival_seen_at", sa.Double),
        sa.Column("agent_hostname", sa.String(255)),
        sa.Column("agent_version", sa.String(128)),
        sa.Column("runtime", sa.String(32)),
        sa.Column("taken", sa.BigInteger, nullable=False),
        sa.Column("duplicates", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "lighthouse_tokens",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("lighthouse_id", sa.String(36), nullable=False),
        sa.Column("hint", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double),
        sa.Column("revoked_at", sa.Double),
        sa.Column("deleted_at", sa.Double),
    )
    op.create_index("lighthouse_tokens_by_lighthouse", "lighthouse_tokens", ["lighthouse_id"])
    op.create_table(
        "lighthouse_instances",
        sa.Column("lighthouse_id", sa.String(36), primary_key=True),
        sa.Column("instance_id", sa.String(64), primary_key=True),
        sa.Column("node_name", sa.String(255)),
        sa.Column("role", sa.String(32)),
        sa.Column("pod_hostname", sa.String(255)),
        sa.Column("agent_version", sa.String(128)),
        sa.Column("seen_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
    )


def _checks() -> None:
    op.create_table(
        "lighthouse_checks",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("lighthouse_id", sa.String(36), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("document", sa.Boolean, nullable=False),
        sa.Column("definition", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.Column("state", sa.String(8)),
        sa.Column("since", sa.Double),
        sa.Column("seen_ns", sa.BigInteger, nullable=False),
        sa.Column("status_code", sa.Integer),
        sa.Column("error_message", sa.Text),
        sa.Column("latency_ms", sa.BigInteger),
        sa.Column("latency_at", sa.Double),
        sa.Column("days_to_expiry", sa.BigInteger),
        sa.Column("cert_at", sa.Double),
    )
    op.create_index("lighthouse_checks_by_lighthouse", "lighthouse_checks", ["lighthouse_id", "position"])
    op.create_table(
        "lighthouse_events",
        sa.Column("id", _number(), primary_key=True),
        sa.Column("lighthouse_id", sa.String(36), nullable=False),
        sa.Column("check_id", sa.String(36), nullable=False),
        sa.Column("observed_ns", sa.BigInteger, nullable=False),
        sa.Column("received_at", sa.Double, nullable=False),
        sa.Column("sync_kind", sa.String(16)),
        sa.Column("prev_state", sa.String(8)),
        sa.Column("new_state", sa.String(8), nullable=False),
        sa.Column("response_time_ms", sa.BigInteger),
        sa.Column("status_code", sa.Integer),
        sa.Column("error_message", sa.Text),
        sa.UniqueConstraint("check_id", "observed_ns", name="lighthouse_events_once"),
    )
    op.create_index("lighthouse_events_by_lighthouse", "lighthouse_events", ["lighthouse_id", "id"])


def _rest() -> None:
    op.create_table(
        "lighthouse_discoveries",
        sa.Column("lighthouse_id", sa.String(36), primary_key=True),
        sa.Column("listed", sa.Text, nullable=False),
        sa.Column("taken_at", sa.Double, nullable=False),
    )
    op.create_table(
        "lighthouse_series",
        sa.Column("lighthouse_id", sa.String(36), primary_key=True),
        sa.Column("digest", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
    )
