"""A delivery stores the digest that names it, and an incident the severity by which it may be in one."""

from alembic.operations import Operations
from sqlalchemy import Column, Text, text

revision = "0011"
down_revision = "0008"


def upgrade(op: Operations) -> None:
    """Adds them. What waits from before is never put into a digest, since its severity is not known."""
    op.add_column("deliveries", Column("digest_id", Text))
    named = text("digest_id IS NOT NULL")
    op.create_index("deliveries_of_digest", "deliveries", ["digest_id"], sqlite_where=named, postgresql_where=named)
    op.add_column("incidents", Column("severity", Text))
