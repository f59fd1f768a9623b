"""Edits of archived channels are retried by themselves, and first messages of channels that were renamed are edited."""

from alembic.operations import Operations
from sqlalchemy import Column, Text

revision = "0023"
down_revision = "0022"


def upgrade(op: Operations) -> None:
    """Adds the column, and drops an index that nothing uses."""
    op.drop_index("edits_unavailable", "edits")
    op.add_column("channels", Column("edit_scope", Text))
