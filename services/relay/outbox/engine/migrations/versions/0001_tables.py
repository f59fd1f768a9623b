"""The tables of keypulse 0.1, which wrote them into an SQLite file; on PostgreSQL the like."""

from alembic.operations import Operations
from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Text,
    UniqueConstraint,
    text,
)

revision = "0001"
down_revision = None

_SEQ = BigInteger().with_variant(Integer, "sqlite")
_TIME: Float[float] = Double().with_variant(Float(), "sqlite")


def upgrade(op: Operations) -> None:
    """Makes them."""
    op.create_table(
        "incidents",
        Column("id", Text, nullable=False),
        Column("episode", Integer, nullable=False),
        Column("open", Integer, nullable=False),
        Column("latest_event", _SEQ, nullable=False),
        PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "events",
        Column("seq", _SEQ, nullable=False),
        Column("id", Text, nullable=False),
        Column("incident_id", Text, nullable=False),
        Column("receiver", Text, nullable=False),
        Column("alertname", Text, nullable=False),
        Column("status", Text, nullable=False),
        Column("fingerprint", Text, nullable=False),
        Column("accepted_at", _TIME, nullable=False),
        Column("event", LargeBinary, nullable=False),
        Column("body", LargeBinary, nullable=False),
        PrimaryKeyConstraint("seq"),
        UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "deliveries",
        Column("seq", _SEQ, nullable=False),
        Column("id", Text, nullable=False),
        Column("event_seq", _SEQ, ForeignKey("events.seq"), nullable=False),
        Column("incident_id", Text, nullable=False),
        Column("episode", Integer, nullable=False),
        Column("channel", Text, nullable=False),
        Column("state", Text, nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("reason", Text),
        Column("accepted_at", _TIME, nullable=False),
        Column("due_at", _TIME, nullable=False),
        Column("lease", Text),
        Column("finished_at", _TIME),
        Column("receipt", Text),
        PrimaryKeyConstraint("seq"),
        UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "attempts",
        Column("delivery_seq", _SEQ, ForeignKey("deliveries.seq"), nullable=False),
        Column("number", Integer, nullable=False),
        Column("started_at", _TIME, nullable=False),
        Column("seconds", _TIME, nullable=False),
        Column("reason", Text, nullable=False),
        Column("detail", Text, nullable=False),
        PrimaryKeyConstraint("delivery_seq", "number"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "quarantine",
        Column("seq", _SEQ, nullable=False),
        Column("received_at", _TIME, nullable=False),
        Column("source", Text, nullable=False),
        Column("code", Integer, nullable=False),
        Column("reason", Text, nullable=False),
        Column("body", LargeBinary, nullable=False),
        PrimaryKeyConstraint("seq"),
    )
    unfinished = text("finished_at IS NULL")
    counted = text("state IN ('queued', 'sending', 'retrying', 'dead')")
    for name, columns, where in (
        ("deliveries_to_claim", ["channel", "seq"], unfinished),
        ("deliveries_in_order", ["channel", "incident_id", "seq"], unfinished),
        ("deliveries_of_event", ["event_seq"], None),
        ("deliveries_of_episode", ["incident_id", "episode", "channel"], None),
        ("deliveries_counted", ["channel", "state", "accepted_at"], counted),
    ):
        op.create_index(name, "deliveries", columns, sqlite_where=where, postgresql_where=where)
