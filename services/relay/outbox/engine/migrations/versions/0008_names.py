"""Columns and tables get the names that code, logs and documents use."""

from typing import Final

from alembic.operations import Operations
from sqlalchemy import text

revision = "0008"
down_revision = "0007"

_COLUMNS: Final = {
    "deliveries": {
        "first_event": "first_event_seq",
        "waits_since": "oldest_accepted_at",
        "set_at": "due_set_at",
        "note": "remark",
        "fell_back": "fallback_up_to",
        "maybe_told": "maybe_delivered_up_to",
    },
    "incidents": {
        "open": "is_open",
        "latest_event": "latest_event_seq",
        "ended_elsewhere": "resolved_elsewhere",
        "earlier": "earlier_events",
    },
    "channels": {
        "open_at": "paused_until",
        "set_at": "paused_set_at",
        "next_slot": "next_token_at",
        "refused": "is_down",
        "asked_until": "retry_after_until",
        "asked_at": "retry_after_set_at",
    },
    "watchdogs": {"silent": "silent_seconds", "seen_at": "last_seen_at"},
    "database_identity": {"name": "identity", "seen_at": "last_used_at"},
}


def upgrade(op: Operations) -> None:
    """Renames them. Both databases rename a column in its indexes too; a renamed index is created again."""
    op.rename_table("origin", "database_identity")
    for table, columns in _COLUMNS.items():
        for old, new in columns.items():
            op.execute(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}")
    op.drop_index("deliveries_counted", "deliveries")
    unsettled = text("state IN ('queued', 'sending', 'retrying', 'dead')")
    names = ["channel", "state", "oldest_accepted_at"]
    op.create_index("deliveries_unsettled", "deliveries", names, sqlite_where=unsettled, postgresql_where=unsettled)
    op.drop_index("events_of_ours", "events")
    of_relay = text("length(body) = 0")
    names = ["incident_id", "seq"]
    op.create_index("events_of_relay", "events", names, sqlite_where=of_relay, postgresql_where=of_relay)
