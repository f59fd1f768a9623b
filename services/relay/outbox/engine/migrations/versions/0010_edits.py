"""First messages that are edited, and the rate of their edits."""

from alembic.operations import Operations
from sqlalchemy import BigInteger, Column, Double, ForeignKey, Integer, Text, text

revision = "0010"
down_revision = "0009"


def upgrade(op: Operations) -> None:
    """Adds the tables. Messages from before stay as they are."""
    op.create_table(
        "edits",
        Column("incident_id", Text, primary_key=True),
        Column("episode", Integer, primary_key=True),
        Column("channel", Text, primary_key=True),
        Column(
            "delivery_seq",
            BigInteger().with_variant(Integer, "sqlite"),
            ForeignKey("deliveries.seq"),
            nullable=False,
        ),
        *(Column(name, Integer, nullable=False) for name in ("wanted", "shown")),
        Column("requested_at", Double, nullable=False),
        Column("attempts", Integer, nullable=False),
        *(Column(name, Double, nullable=False) for name in ("due_at", "due_set_at")),
        *(Column(name, Text) for name in ("lease", "reason")),
        sqlite_with_rowid=False,
    )
    waiting = text("wanted > shown")
    op.create_index("edits_due", "edits", ["channel", "due_at"], sqlite_where=waiting, postgresql_where=waiting)
    op.create_index("edits_of_delivery", "edits", ["delivery_seq"])
    op.create_table(
        "edit_limits",
        Column("scope", Text, primary_key=True),
        Column("next_token_at", Double, nullable=False),
        *(Column(name, Double) for name in ("retry_after_until", "retry_after_set_at")),
    )
