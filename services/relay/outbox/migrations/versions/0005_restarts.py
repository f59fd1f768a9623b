"""How long a watchdog was silent is counted across restarts; what was given up in the future is found at once."""

from alembic.operations import Operations
from sqlalchemy import Column, Double, text

revision = "0005"
down_revision = "0004"


def upgrade(op: Operations) -> None:
    """Adds it; each silence is counted from now on."""
    for name in ("silent", "counted_at"):
        op.add_column("watchdogs", Column(name, Double, nullable=False, server_default="0"))
    dead = text("state = 'dead'")
    op.create_index("deliveries_dead", "deliveries", ["finished_at"], sqlite_where=dead, postgresql_where=dead)
