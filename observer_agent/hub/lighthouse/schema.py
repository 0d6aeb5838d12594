"""The tables of the second dialect, in the metadata of the hub's own; `migrations/` makes them.

Instants are seconds since 1970 as doubles, but for `observed_ns`: agents stamp events to the nanosecond, and two events
of a check are the same where that stamp is. A token is present as SHA-256 alone, also after its lighthouse was deleted,
so that its agent can be told so.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, String, Table, Text, UniqueConstraint

from observer_agent.hub.schema import metadata

lighthouses = Table(
    "lighthouses",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(128), nullable=False, unique=True),
    Column("host", String(255)),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("paused", Boolean, nullable=False),
    Column("notify_on_lifecycle", Boolean, nullable=False),
    Column("flap_protection_threshold", Integer, nullable=False),
    Column("heartbeat_interval_seconds", Integer, nullable=False),
    Column("allow_multi_instance", Boolean, nullable=False),
    Column("host_metrics_enabled", Boolean),
    Column("host_metrics_interval_seconds", Integer, nullable=False),
    Column("etag", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("changed_at", Double, nullable=False),
    Column("last_heartbeat_at", Double),
    Column("stop_reason", String(64)),
    Column("resync", Boolean, nullable=False),
    Column("resync_asked_at", Double),
    Column("rival_seen_at", Double),
    Column("agent_hostname", String(255)),
    Column("agent_version", String(128)),
    Column("runtime", String(32)),
    Column("taken", BigInteger, nullable=False),
    Column("duplicates", BigInteger, nullable=False),
)

tokens = Table(
    "lighthouse_tokens",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("lighthouse_id", String(36), nullable=False),
    Column("hint", String(16), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Column("deleted_at", Double),
    Index("lighthouse_tokens_by_lighthouse", "lighthouse_id"),
)

instances = Table(
    "lighthouse_instances",
    metadata,
    Column("lighthouse_id", String(36), primary_key=True),
    Column("instance_id", String(64), primary_key=True),
    Column("node_name", String(255)),
    Column("role", String(32)),
    Column("pod_hostname", String(255)),
    Column("agent_version", String(128)),
    Column("seen_at", Double, nullable=False),
    Column("started_at", Double),
)

checks = Table(
    "lighthouse_checks",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("lighthouse_id", String(36), nullable=False),
    Column("position", Integer, nullable=False),
    Column("document", Boolean, nullable=False),
    Column("definition", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("state", String(8)),
    Column("since", Double),
    Column("seen_ns", BigInteger, nullable=False),
    Column("status_code", Integer),
    Column("error_message", Text),
    Column("latency_ms", BigInteger),
    Column("latency_at", Double),
    Column("days_to_expiry", BigInteger),
    Column("cert_at", Double),
    Index("lighthouse_checks_by_lighthouse", "lighthouse_id", "position"),
)

events = Table(
    "lighthouse_events",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("lighthouse_id", String(36), nullable=False),
    Column("check_id", String(36), nullable=False),
    Column("observed_ns", BigInteger, nullable=False),
    Column("received_at", Double, nullable=False),
    Column("sync_kind", String(16)),
    Column("prev_state", String(8)),
    Column("new_state", String(8), nullable=False),
    Column("response_time_ms", BigInteger),
    Column("status_code", Integer),
    Column("error_message", Text),
    UniqueConstraint("check_id", "observed_ns", name="lighthouse_events_once"),
    Index("lighthouse_events_by_lighthouse", "lighthouse_id", "id"),
)

discoveries = Table(
    "lighthouse_discoveries",
    metadata,
    Column("lighthouse_id", String(36), primary_key=True),
    Column("listed", Text, nullable=False),
    Column("taken_at", Double, nullable=False),
)

series = Table(
    "lighthouse_series",
    metadata,
    Column("lighthouse_id", String(36), primary_key=True),
    Column("digest", String(32), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("labels", Text, nullable=False),
    Column("value", Double, nullable=False),
    Column("at", Double, nullable=False),
)
