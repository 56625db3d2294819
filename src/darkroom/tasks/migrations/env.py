"""Run by Alembic: migrations in the transaction of the connection that configuration.py was given."""

from __future__ import annotations

from alembic import context

from darkroom.tasks.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite changes columns by rebuilding the table
)
context.run_migrations()
