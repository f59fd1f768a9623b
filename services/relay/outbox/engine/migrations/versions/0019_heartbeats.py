"""A watchdog that is awaited can be told from one whose heartbeat came; the worst open incidents have an index."""

from alembic.operations import Operations
from sqlalchemy import Column, Double, text

revision = "0019"
down_revision = "0018"


def upgrade(op: Operations) -> None:
    """Adds both; which of the two a watchdog is shows with its next heartbeat."""
    op.add_column("watchdogs", Column("heartbeat_at", Double))
    is_open = text("is_open = 1")
    op.create_index(
        "incidents_open_by_severity",
        "incidents",
        ["severity", "first_event_seq"],
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
