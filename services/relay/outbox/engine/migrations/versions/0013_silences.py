"""Silences that people request by a button."""

from alembic.operations import Operations
from sqlalchemy import Column, Double, Integer, Text, text

revision = "0013"
down_revision = "0012"


def upgrade(op: Operations) -> None:
    """Adds the table."""
    op.create_table(
        "silences",
        Column("id", Text, primary_key=True),
        Column("incident_id", Text, nullable=False),
        Column("episode", Integer, nullable=False),
        *(Column(name, Text, nullable=False) for name in ("channel", "slack_channel", "thread", "user_id", "who")),
        Column("state", Text, nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("due_at", Double, nullable=False),
        *(Column(name, Text) for name in ("lease", "alertmanager", "created_by", "detail")),
        *(Column(name, Double) for name in ("began_at", "ends_at", "answered_at")),
    )
    waiting = text("answered_at IS NULL")
    op.create_index("silences_due", "silences", ["due_at"], sqlite_where=waiting, postgresql_where=waiting)
    op.create_index("silences_of_incident", "silences", ["incident_id"])
