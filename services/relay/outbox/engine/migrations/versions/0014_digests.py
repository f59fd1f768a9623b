"""A delivery stores the digest that delivers it, and the one that named it."""

from alembic.operations import Operations
from sqlalchemy import Column, Text, text

revision = "0014"
down_revision = "0013"


def upgrade(op: Operations) -> None:
    """Adds them."""
    for index, name in (("deliveries_of_digest", "digest_id"), ("deliveries_named_in", "named_in")):
        op.add_column("deliveries", Column(name, Text))
        condition = text(f"{name} IS NOT NULL")
        op.create_index(index, "deliveries", [name], sqlite_where=condition, postgresql_where=condition)
