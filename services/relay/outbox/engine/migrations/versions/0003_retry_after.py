"""The pause that a provider asked for, apart from that of the breaker."""

from alembic.operations import Operations
from sqlalchemy import Column, Double

revision = "0003"
down_revision = "0002"


def upgrade(op: Operations) -> None:
    """Adds it; nobody is known to have asked."""
    for name in ("asked_until", "asked_at"):
        op.add_column("channels", Column(name, Double))
