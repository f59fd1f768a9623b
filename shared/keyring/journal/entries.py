"""The steps of a rotation that its runner wrote down: entries of the journal, in columns.

Any program may write into the table. An entry that cannot be read is never passed over: it may be of a backup that
needs any version of the KMS key, so it is counted, and `retire` and `destroy` refuse while there is one.
"""

import json
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Connection, and_, or_, select

from shared.keyring.administration import (
    JournalBackup,
    JournalEntry,
    JournalStep,
    RefusedError,
    RotationType,
    StepOutcome,
)
from shared.keyring.model import UNREADABLE_VERSION
from shared.keyring.rows import JournalEntryRow, fetch, select_rows
from shared.keyring.tables import journal_entries
from shared.kms.port import is_version

MAX_DETAIL_LENGTH: Final = 1000
"""Characters of an entry's text."""
MAX_NAME_LENGTH: Final = 300
MAX_NEEDS: Final = 10_000
"""Versions that one backup needs, at most."""
_MAX_UNREADABLE: Final = 100
"""Unreadable entries that are named."""
_WRITABLE_STEPS: Final = [step.value for step in JournalStep if step is not JournalStep.UNKNOWN]
_WRITABLE_OUTCOMES: Final = [outcome.value for outcome in StepOutcome if outcome is not StepOutcome.UNREADABLE]
_NEEDS: Final = TypeAdapter(tuple[str, ...])
_columns: Final = journal_entries.c


def add_journal_entry(connection: Connection, now: float, rotation_id: str, entry: JournalEntry) -> None:
    """Writes an entry of `rotation_id`, which may come before the rotation itself."""
    values = to_columns(entry)
    connection.execute(journal_entries.insert().values(rotation_id=rotation_id, created_at=now, **values))


def to_columns(entry: JournalEntry) -> dict[str, Any]:
    """The columns of an entry, but its number, its rotation and its time."""
    return {
        "step": entry.step.value,
        "outcome": entry.outcome.value,
        "rotation_type": entry.rotation_type and entry.rotation_type.value,
        "backup_name": entry.backup_name,
        "sha256": entry.sha256,
        "needs": None if entry.needs is None else json.dumps(entry.needs),
        "detail": entry.detail,
    }


def list_journal_entries(connection: Connection, rotation_id: str) -> tuple[JournalEntry, ...]:
    """All entries of a rotation, in the order in which they were written."""
    own = select_rows(journal_entries, JournalEntryRow).where(_columns.rotation_id == rotation_id)
    return tuple(parse_row(row) for row in fetch(connection, own.order_by(_columns.number), JournalEntryRow))


def list_backups(connection: Connection) -> tuple[JournalBackup, ...]:
    """The backups of all rotations, the oldest first. Entries that cannot be read: see `find_unreadable_entries`."""
    was_backed_up = (_columns.step == JournalStep.BACKUP.value) & (_columns.outcome == StepOutcome.SUCCEEDED.value)
    query = select_rows(journal_entries, JournalEntryRow).where(was_backed_up).order_by(_columns.number)
    entries = (parse_row(row) for row in fetch(connection, query, JournalEntryRow))
    return tuple(backup for entry in entries if (backup := entry.backup))


def find_unreadable_entries(connection: Connection) -> tuple[int, ...]:
    """The numbers of entries that cannot be read, the first hundred."""
    sound = and_(
        _columns.step.in_(_WRITABLE_STEPS),
        _columns.step.not_in([JournalStep.BACKUP.value, JournalStep.PLAN.value]),
        _columns.outcome.in_(_WRITABLE_OUTCOMES),
        _columns.outcome != StepOutcome.NOTHING_TO_DO.value,
        or_(_columns.rotation_type.is_(None), _columns.rotation_type.in_(list(RotationType))),
        *(column.is_(None) for column in (_columns.backup_name, _columns.sha256, _columns.needs)),
    )
    suspects = select_rows(journal_entries, JournalEntryRow).where(~sound).order_by(_columns.number)
    rows = fetch(connection, suspects, JournalEntryRow)
    found = (row.number for row in rows if parse_row(row).outcome is StepOutcome.UNREADABLE)
    return tuple(islice(found, _MAX_UNREADABLE))


def has_retarget(connection: Connection, rotation_id: str) -> bool:
    """Whether the rotation continued with another version than it began with."""
    own = (_columns.rotation_id == rotation_id) & (_columns.step == JournalStep.RETARGET.value)
    return connection.execute(select(_columns.number).where(own).limit(1)).first() is not None


def parse_row(row: JournalEntryRow) -> JournalEntry:
    """The entry of a row; its outcome is `unreadable` where a column holds what no runner writes."""
    step, outcome = JournalStep(row.step), StepOutcome(row.outcome)
    detail, created_at = row.detail[:MAX_DETAIL_LENGTH], datetime.fromtimestamp(row.created_at, UTC)
    try:
        entry = JournalEntry(
            step=step,
            outcome=outcome,
            rotation_type=None if row.rotation_type is None else RotationType(row.rotation_type),
            backup_name=row.backup_name,
            sha256=row.sha256,
            needs=None if row.needs is None else _NEEDS.validate_json(row.needs, strict=True),
            detail=detail,
            created_at=created_at,
        )
    except (ValidationError, ValueError):
        return JournalEntry(step=step, outcome=StepOutcome.UNREADABLE, detail=detail, created_at=created_at)
    if find_defect(entry) is None:
        return entry
    return entry.model_copy(update={"outcome": StepOutcome.UNREADABLE})


def refuse_defective_entry(entry: JournalEntry) -> None:
    """Raises RefusedError if an entry could not be read again, or is too long."""
    texts = (entry.backup_name, entry.sha256, entry.detail)
    too_long = any(len(name or "") > MAX_NAME_LENGTH for name in texts[:2]) or len(entry.detail) > MAX_DETAIL_LENGTH
    if too_long or len(entry.needs or ()) > MAX_NEEDS:
        raise RefusedError("this journal entry is too long", f"expected up to {MAX_DETAIL_LENGTH} characters of detail")
    if any("\0" in text for text in texts if text):  # PostgreSQL has no such text
        raise RefusedError("this journal entry holds a NUL character", "expected text without one")
    if defect := find_defect(entry):
        raise RefusedError(f"this journal entry could not be read again: {defect}")


def find_defect(entry: JournalEntry) -> str | None:
    """Why an entry says nothing that can be relied on; None if it does."""
    is_plan, is_backup = entry.step is JournalStep.PLAN, entry.backup is not None
    defects = {
        f"expected a step, one of {', '.join(_WRITABLE_STEPS)}": entry.step is JournalStep.UNKNOWN,
        f"expected an outcome, one of {', '.join(_WRITABLE_OUTCOMES)}": entry.outcome is StepOutcome.UNREADABLE,
        "expected the outcome nothing_to_do of the step plan, and of no other": is_plan
        != (entry.outcome is StepOutcome.NOTHING_TO_DO),
        "expected the rotation_type that has nothing to do": is_plan and entry.rotation_type is None,
        "expected backup_name and sha256 of the backup": is_backup and not (entry.backup_name and entry.sha256),
        "expected backup_name, sha256 and needs of a backup that succeeded, and of nothing else": not is_backup
        and (entry.backup_name, entry.sha256, entry.needs) != (None, None, None),
        "expected in needs a version at least, since one encrypts the backup": is_backup and entry.needs == (),
        "expected in needs the names of versions": not all(
            version == UNREADABLE_VERSION or is_version(version) for version in entry.needs or ()
        ),
    }
    return next((sentence for sentence, applies in defects.items() if applies), None)
