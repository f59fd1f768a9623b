"""What earlier events said, how long a watchdog was silent, and what was given up in the future, is found at once."""

from alembic.operations import Operations
from sqlalchemy import Column, Double, Text, text

revision = "0005"
down_revision = "0004"


def upgrade(op: Operations) -> None:
    """Adds it; each silence is counted from now on, and a late twin is recognised by what comes from now on."""
    op.add_column("incidents", Column("earlier", Text))
    for name in ("silent", "counted_at"):
        op.add_column("watchdogs", Column(name, Double, nullable=False, server_default="0"))
    dead = text("state = 'dead'")
    op.create_index("deliveries_dead", "deliveries", ["finished_at"], sqlite_where=dead, postgresql_where=dead)
