"""What is remembered of incidents and watchdogs, and what was given up in the future is found at once."""

import hashlib
import json

from alembic.operations import Operations
from sqlalchemy import BigInteger, Column, Connection, Double, Integer, Text, text

revision = "0005"
down_revision = "0004"


def upgrade(op: Operations) -> None:
    """Adds it; silences are counted from now on, and late twins are recognised by what comes from now on."""
    for name in ("group_id", "earlier"):
        op.add_column("incidents", Column(name, Text))
    op.add_column("channels", Column("served_at", Double))
    op.add_column("deliveries", Column("maybe_told", BigInteger))
    op.create_table(
        "origin",
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("name", Text, nullable=False),
        Column("seen_at", Double, nullable=False),
    )
    for name in ("silent", "counted_at"):
        op.add_column("watchdogs", Column(name, Double, nullable=False, server_default="0"))
    going_on, dead = text("open = 1"), text("state = 'dead' AND finished_at IS NOT NULL")
    op.create_index("incidents_of_group", "incidents", ["group_id"], sqlite_where=going_on, postgresql_where=going_on)
    op.create_index("deliveries_dead", "deliveries", ["finished_at"], sqlite_where=dead, postgresql_where=dead)
    _group(op.get_bind())


def _group(connection: Connection) -> None:
    """Open incidents learn which of them are of one source and groupKey."""
    latest = "SELECT i.id, e.event FROM incidents i JOIN events e ON e.seq = i.latest_event WHERE i.open = 1"
    for incident, event_json in connection.execute(text(latest)).all():
        try:
            event = json.loads(event_json)
            group = hashlib.sha256(json.dumps([event["source"], event["group_key"]]).encode()).hexdigest()
        except (ValueError, KeyError, TypeError):
            continue  # something else than keypulse wrote it
        connection.execute(
            text("UPDATE incidents SET group_id = :group WHERE id = :incident"), {"group": group, "incident": incident}
        )
