"""Detects a lost outbox: a database without tables, although a relay has used it, is refused.

Otherwise a wrong path or a volume that is not mounted would look like a first start, and waiting deliveries would be
forgotten. A relay with SQLite records beside its database, in `relay.db-last-used`, when it last used it; a backup of
the database does not contain that file. `restore_detection` compares it with the database to detect a restored backup.
"""

from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from services.relay.outbox.engine.dialect import is_sqlite
from shared.sql.database_url import DatabaseUrl

_SUFFIXES: Final = ("-last-used", "-seen")
"""Of the file's name; the second up to revision 0007 of the tables."""

log = structlog.get_logger(__name__)


def describe_lost_outbox(database: DatabaseUrl) -> tuple[str, str] | None:
    """Why a database without tables is a lost outbox, and what to do; None if no relay has used it."""
    for file in find_last_used_files(database):
        if file.exists():
            name = Path(str(database.database)).name
            return (
                f"it is new or empty, but by {file.name} beside it there was an outbox",
                f"put {name} back, or remove {file.name} to start with an empty outbox",
            )
    return None


def find_last_used_files(database: DatabaseUrl) -> tuple[Path, ...]:
    """The last-used file of an SQLite database, and its former name; nothing for PostgreSQL."""
    return tuple(Path(f"{database.database}{suffix}") for suffix in _SUFFIXES if is_sqlite(database))


def read_last_used(files: Collection[Path]) -> float:
    """When the database was last used, in unix seconds; 0 if that is unknown."""
    last_used = 0.0
    for file in files:
        with suppress(OSError, ValueError):
            last_used = max(last_used, float(file.read_text()))
    return last_used


def write_last_used(files: Sequence[Path], at: float) -> None:
    """Writes the first file, and removes those with a former name, which have been read by now."""
    file, *former_files = files
    try:
        file.touch(mode=0o600)
        file.write_text(repr(at))
        for each in former_files:
            each.unlink(missing_ok=True)
    except OSError as error:
        log.warning("last-used file cannot be written; a restored backup may not be detected", error=str(error))
