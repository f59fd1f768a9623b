"""Deliveries can be searched by when they were accepted."""

from alembic.operations import Operations

revision = "0021"
down_revision = "0020"


def upgrade(op: Operations) -> None:
    """Adds the index."""
    op.create_index("deliveries_by_time", "deliveries", ["accepted_at", "seq"])
