"""What pages of incidents filter by and show: alert and service, actions by incident, times of silences and edits."""

from alembic.operations import Operations
from sqlalchemy import Column, Double, Text, text

revision = "0016"
down_revision = "0015"


def upgrade(op: Operations) -> None:
    """Adds it; the service comes with the next event of each incident."""
    for name in ("alertname", "service"):
        op.add_column("incidents", Column(name, Text))
    op.execute(
        "UPDATE incidents SET alertname ="
        " (SELECT events.alertname FROM events WHERE events.seq = incidents.latest_event_seq)"
    )
    is_open, has_incident = text("is_open = 1"), text("incident_id IS NOT NULL")
    op.create_index("incidents_open", "incidents", ["first_event_seq"], sqlite_where=is_open, postgresql_where=is_open)
    op.create_index("incidents_of_alert", "incidents", ["alertname", "first_event_seq"])
    op.create_index("incidents_by_service", "incidents", ["service", "first_event_seq"])
    op.create_index("incidents_by_start", "incidents", ["started_at"])

    op.add_column("audit", Column("incident_id", Text))
    op.execute(
        "UPDATE audit SET incident_id = substr(object, 1, 64) WHERE action IN"
        " ('acknowledge', 'unacknowledge', 'escalate', 'silence', 'silence refused', 'silence failed')"
    )
    op.create_index(
        "audit_of_incident",
        "audit",
        ["incident_id", "seq"],
        sqlite_where=has_incident,
        postgresql_where=has_incident,
    )

    for name in ("peer", "comment", "silence_id"):
        op.add_column("silences", Column(name, Text))
    for name in ("seconds", "requested_at", "finished_at"):
        op.add_column("silences", Column(name, Double))
    op.execute("UPDATE silences SET peer = 'slack:' || user_id")

    op.add_column("edits", Column("edited_at", Double))
