"""Who did what."""

from alembic.operations import Operations
from sqlalchemy import BigInteger, Column, Double, Integer, Text

revision = "0006"
down_revision = "0005"


def upgrade(op: Operations) -> None:
    """Adds the table."""
    op.create_table(
        "audit",
        Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
        Column("at", Double, nullable=False),
        Column("who", Text, nullable=False),
        Column("peer", Text),
        Column("action", Text, nullable=False),
        Column("object", Text, nullable=False),
        sqlite_autoincrement=True,
    )
