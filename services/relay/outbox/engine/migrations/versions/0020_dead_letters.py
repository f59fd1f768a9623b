"""Dead letters are read in groups and retried together, webhooks replayed, edits of archived channels made later."""

from alembic.operations import Operations
from sqlalchemy import Column, Double, Integer, Text, text

revision = "0020"
down_revision = "0019"


def upgrade(op: Operations) -> None:
    """Adds indexes, the table and columns."""
    dead = text("state = 'dead'")
    op.create_index(
        "deliveries_dead_groups",
        "deliveries",
        ["channel", "reason", "oldest_accepted_at"],
        sqlite_where=dead,
        postgresql_where=dead,
    )
    op.create_table(
        "bulk_retry",
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("run", Text, nullable=False),
        *(Column(name, Text) for name in ("channel", "reason")),
        Column("started_by", Text, nullable=False),
        Column("started_at", Double, nullable=False),
        *(Column(name, Integer, nullable=False) for name in ("total", "retried")),
        Column("advanced_at", Double, nullable=False),
        Column("ended_at", Double),
        *(Column(name, Text) for name in ("stopped_by", "error")),
    )
    op.add_column("quarantine", Column("replayed_at", Double))
    op.add_column("quarantine", Column("replayed_by", Text))
    op.add_column("quarantine", Column("incident_id", Text))
    unavailable = text("wanted = shown AND reason = 'misconfigured'")
    op.create_index(
        "edits_unavailable",
        "edits",
        ["channel", "requested_at"],
        sqlite_where=unavailable,
        postgresql_where=unavailable,
    )
