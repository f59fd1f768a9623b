"""An incident knows its service, its title and when its last episodes started: messages say what else fires."""

from alembic.operations import Operations
from sqlalchemy import Column, Double, Text, text

revision = "0012"
down_revision = "0010"


def upgrade(op: Operations) -> None:
    """Adds it; service and title come with the next event of each incident."""
    for name in ("service_id", "title", "episode_starts"):
        op.add_column("incidents", Column(name, Text))
    op.add_column("incidents", Column("started_at", Double))
    is_open = text("is_open = 1")
    op.create_index(
        "incidents_of_service",
        "incidents",
        ["service_id", "started_at"],
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
    op.execute(
        "UPDATE incidents SET started_at = (SELECT min(deliveries.accepted_at) FROM deliveries"
        " WHERE deliveries.incident_id = incidents.id AND deliveries.episode = incidents.episode) WHERE is_open = 1"
    )
