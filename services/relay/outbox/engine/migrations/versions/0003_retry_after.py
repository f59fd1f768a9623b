"""The pause that a provider asked for, separate from that of the breaker."""

from alembic.operations import Operations
from sqlalchemy import Column, Double

revision = "0003"
down_revision = "0002"


def upgrade(op: Operations) -> None:
    """Adds its columns, empty."""
    for name in ("asked_until", "asked_at"):
        op.add_column("channels", Column(name, Double))
