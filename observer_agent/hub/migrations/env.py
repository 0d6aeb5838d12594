"""What alembic runs: the missing steps, on the connection and in the transaction that `database.migrate` hands in."""

from __future__ import annotations

from alembic import context

from observer_agent.hub import schema

context.configure(connection=context.config.attributes["connection"], target_metadata=schema.metadata)
context.run_migrations()
