"""Detects a lost outbox: a database without tables, although a relay has used it, is refused.

Otherwise a wrong path or a volume that is not mounted would look like a first start, and waiting deliveries would be
forgotten. A relay with SQLite records beside its database, in `relay.db-last-used`, when it last used it; a backup of
the database does not contain that file. `restore_detection` compares it with the database to detect a restored backup.
"""

from contextlib import suppress
from pathlib import Path

import structlog

from services.relay.outbox.engine.dialect import is_sqlite
from shared.sql.database_url import DatabaseUrl

log = structlog.get_logger(__name__)


def describe_lost_outbox(database: DatabaseUrl) -> tuple[str, str] | None:
    """Why a database without tables is a lost outbox, and what to do; None if no relay has used it."""
    file = find_last_used_file(database)
    if file is None or not file.exists():
        return None
    name = Path(str(database.database)).name
    return (
        f"it is new or empty, but by {file.name} beside it there was an outbox",
        f"put {name} back, or remove {file.name} to start with an empty outbox",
    )


def find_last_used_file(database: DatabaseUrl) -> Path | None:
    """The last-used file of an SQLite database; None for PostgreSQL."""
    return Path(f"{database.database}-last-used") if is_sqlite(database) else None


def read_last_used(file: Path | None) -> float:
    """When the database was last used, in unix seconds; 0 if that is unknown."""
    if file is not None:
        with suppress(OSError, ValueError):
            return float(file.read_text())
    return 0.0


def write_last_used(file: Path, at: float) -> None:
    """Writes the file; a failure is logged, since it stops no delivery."""
    try:
        file.touch(mode=0o600)
        file.write_text(repr(at))
    except OSError as error:
        log.warning("last-used file cannot be written; a restored backup may not be detected", error=str(error))
