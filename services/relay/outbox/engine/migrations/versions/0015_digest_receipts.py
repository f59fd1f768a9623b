"""What is edited may have a receipt of its own: that of a digest of which every delivery gets its own message."""

from alembic.operations import Operations
from sqlalchemy import Column, Text

revision = "0015"
down_revision = "0014"


def upgrade(op: Operations) -> None:
    """Adds it."""
    op.add_column("edits", Column("receipt", Text))
