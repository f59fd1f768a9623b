"""An incident stores which of its alerts other incidents of its group have resolved."""

from alembic.operations import Operations
from sqlalchemy import Column, Text

revision = "0007"
down_revision = "0006"


def upgrade(op: Operations) -> None:
    """Adds it; ends count that come from now on."""
    op.add_column("incidents", Column("ended_elsewhere", Text))
