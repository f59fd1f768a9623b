"""A report says what retention has deleted, and reads 100,000 deliveries from an index."""

from alembic.operations import Operations
from sqlalchemy import Column, Double, Text, text

revision = "0018"
down_revision = "0017"


def upgrade(op: Operations) -> None:
    """Adds the table of what was deleted, and widens the indexes of what was delivered and given up."""
    op.create_table(
        "pruned",
        Column("kind", Text, primary_key=True),
        Column("up_to", Double, nullable=False),
    )
    # Where the first delivery of all is gone, retention has deleted what is older than the oldest one that is left.
    op.execute(
        "INSERT INTO pruned (kind, up_to) SELECT 'deliveries', min(finished_at) FROM deliveries"
        " HAVING min(seq) > 1 AND min(finished_at) IS NOT NULL"
    )
    for name, columns, condition in (
        ("deliveries_delivered", ["channel", "finished_at", "oldest_accepted_at"], "state = 'delivered'"),
        ("deliveries_dead", ["finished_at", "channel", "reason"], "state = 'dead' AND finished_at IS NOT NULL"),
    ):
        where = text(condition)
        op.drop_index(name, "deliveries")
        op.create_index(name, "deliveries", columns, sqlite_where=where, postgresql_where=where)
    op.create_index("audit_of_action", "audit", ["action", "at"])
