"""How far a delivery went to other channels, where its own refuses everything."""

from alembic.operations import Operations
from sqlalchemy import BigInteger, Column

revision = "0004"
down_revision = "0003"


def upgrade(op: Operations) -> None:
    """Adds it; what waits for a channel that refuses everything goes to the others now."""
    op.add_column("deliveries", Column("fell_back", BigInteger))
