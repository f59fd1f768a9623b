"""Checks and tests of channels, and the last failure of each."""

from alembic.operations import Operations
from sqlalchemy import BigInteger, Column, Double, Integer, Text

revision = "0017"
down_revision = "0016"


def upgrade(op: Operations) -> None:
    """Adds the table and the columns."""
    for name in ("failed_at", "check_started_at", "test_started_at"):
        op.add_column("channels", Column(name, Double))
    for name in ("failed_reason", "failed_detail"):
        op.add_column("channels", Column(name, Text))
    op.create_table(
        "channel_checks",
        Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
        *(Column(name, Text, nullable=False) for name in ("channel", "kind")),
        *(Column(name, Double, nullable=False) for name in ("started_at", "seconds")),
        *(Column(name, Text) for name in ("requested_by", "problem", "hint")),
        Column("results", Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("channel_checks_of_channel", "channel_checks", ["channel", "kind", "seq"])
