"""An incident stores who acknowledged its episode, where it was escalated to, and its severity."""

from typing import Final

from alembic.operations import Operations
from sqlalchemy import BigInteger, Column, Double, Text, text

revision = "0009"
down_revision = "0008"

_FIRST_EVENT: Final = """
UPDATE incidents SET first_event_seq = coalesce(
    (SELECT min(event_seq) FROM deliveries WHERE incident_id = incidents.id AND episode = incidents.episode),
    latest_event_seq)
"""


def upgrade(op: Operations) -> None:
    """Adds it. Nobody has acknowledged what is open; its next event brings severity and escalation."""
    op.add_column("incidents", Column("severity", Text))
    op.add_column("incidents", Column("first_event_seq", BigInteger))
    for name in ("acknowledged_by", "acknowledged_via", "escalation", "escalated_to"):
        op.add_column("incidents", Column(name, Text))
    for name in ("acknowledged_at", "escalation_starts_at", "escalation_after", "escalated_at"):
        op.add_column("incidents", Column(name, Double))
    op.execute(_FIRST_EVENT)
    op.create_index("incidents_by_episode", "incidents", ["first_event_seq"])
    to_come = text("escalation_after IS NOT NULL")
    op.create_index("incidents_escalating", "incidents", ["id"], sqlite_where=to_come, postgresql_where=to_come)
