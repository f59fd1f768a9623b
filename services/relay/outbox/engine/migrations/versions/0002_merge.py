"""Waiting deliveries are merged, the circuit breakers are shared by all replicas, heartbeats are stored."""

from itertools import groupby
from operator import itemgetter

from alembic.operations import Operations
from sqlalchemy import BigInteger, Column, Connection, Double, Integer, LargeBinary, Text, text

revision = "0002"
down_revision = "0001"


def upgrade(op: Operations) -> None:
    """Adds what 0.1 had not, and merges what waits there."""
    for column in (
        Column("first_event", BigInteger, nullable=False, server_default="0"),
        Column("waits_since", Double, nullable=False, server_default="0"),
        Column("set_at", Double, nullable=False, server_default="0"),
        Column("maybe_sent", Integer, nullable=False, server_default="0"),
        Column("progress", Text),
        Column("note", Text),
        Column("superseded_by", Text),
        Column("payload", LargeBinary),
    ):
        op.add_column("deliveries", column)
    op.create_table(
        "channels",
        Column("name", Text, primary_key=True),
        Column("open_at", Double, nullable=False),
        Column("set_at", Double, nullable=False),
        Column("next_slot", Double, nullable=False),
        Column("failures", Integer, nullable=False),
        Column("refused", Integer, nullable=False),
        Column("reason", Text),
    )
    op.create_table(
        "watchdogs",
        Column("name", Text, primary_key=True),
        Column("seen_at", Double, nullable=False),
    )
    for name in ("deliveries_to_claim", "deliveries_in_order", "deliveries_counted"):
        op.drop_index(name, "deliveries")
    unfinished = text("finished_at IS NULL")
    for name, columns in (
        ("deliveries_due", ["channel", "due_at", "seq"]),
        ("deliveries_in_order", ["incident_id", "channel", "seq"]),
    ):
        op.create_index(name, "deliveries", columns, sqlite_where=unfinished, postgresql_where=unfinished)
    counted = text("state IN ('queued', 'sending', 'retrying', 'dead')")
    columns = ["channel", "state", "waits_since"]
    op.create_index("deliveries_counted", "deliveries", columns, sqlite_where=counted, postgresql_where=counted)
    delivered = text("state = 'delivered'")
    columns = ["channel", "finished_at"]
    op.create_index("deliveries_delivered", "deliveries", columns, sqlite_where=delivered, postgresql_where=delivered)
    op.create_index("events_of_incident", "events", ["incident_id", "seq"])
    ours = text("length(body) = 0")
    op.create_index("events_of_ours", "events", ["incident_id", "seq"], sqlite_where=ours, postgresql_where=ours)
    _merge(op.get_bind())
    if op.get_bind().dialect.name == "sqlite":
        op.execute("PRAGMA user_version = 2")  # keypulse 0.1 would write into it; so it says that it is too old


def _merge(connection: Connection) -> None:
    """An incident has one waiting delivery on a channel at most: the newest, which continues where the oldest stood."""
    # `set_at` as early as it can have been: a clock that is set back to before it makes what waits due.
    connection.execute(
        text("UPDATE deliveries SET first_event = event_seq, set_at = accepted_at, waits_since = accepted_at")
    )
    waiting = connection.execute(
        text("SELECT * FROM deliveries WHERE state IN ('queued', 'retrying') ORDER BY incident_id, channel, seq")
    )
    for _, group in groupby(waiting.mappings().all(), key=itemgetter("incident_id", "channel")):
        oldest, *others = group  # the oldest is the only one that was tried
        if not others:
            continue
        newest = others[-1]
        connection.execute(
            text("UPDATE deliveries SET state = 'superseded', superseded_by = :by, finished_at = :at WHERE seq = :seq"),
            [{"seq": row["seq"], "by": newest["id"], "at": newest["accepted_at"]} for row in (oldest, *others[:-1])],
        )
        connection.execute(
            text(
                "UPDATE deliveries SET first_event = :first_event, state = :state, attempts = :attempts, "
                "reason = :reason, due_at = :due_at, set_at = :set_at, waits_since = :waits_since "
                "WHERE seq = :successor"
            ),
            {**oldest, "successor": newest["seq"]},
        )
