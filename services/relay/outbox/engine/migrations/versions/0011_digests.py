"""A delivery stores the digests that deliver it or named it, and an incident the severity by which it may be in one."""

from alembic.operations import Operations
from sqlalchemy import Column, Text, text

revision = "0011"
down_revision = "0010"


def upgrade(op: Operations) -> None:
    """Adds them. What waits from before is never put into a digest, since its severity is not known."""
    for index, name in (("deliveries_of_digest", "digest_id"), ("deliveries_named_in", "named_in")):
        op.add_column("deliveries", Column(name, Text))
        condition = text(f"{name} IS NOT NULL")
        op.create_index(index, "deliveries", [name], sqlite_where=condition, postgresql_where=condition)
    op.add_column("incidents", Column("severity", Text))
