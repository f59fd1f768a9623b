"""Logins of people in browsers."""

from alembic.operations import Operations
from sqlalchemy import Column, Double, Text

revision = "0022"
down_revision = "0021"


def upgrade(op: Operations) -> None:
    """Adds the table."""
    op.create_table(
        "sessions",
        Column("id", Text, primary_key=True),
        *(Column(name, Text, nullable=False) for name in ("name", "source", "proof", "group_names")),
        *(Column(name, Double, nullable=False) for name in ("created_at", "used_at", "expires_at")),
        sqlite_with_rowid=False,
    )
    op.create_index("sessions_of_name", "sessions", ["name", "used_at"])
