"""The steps of a rotation that its runner wrote down: entries of the journal, in columns.

Any program may write into the table. An entry that cannot be read is never passed over: it may be of a backup that
needs any version of the KMS key, so it is counted, and `retire` and `destroy` refuse while there is one.

The journal of rotations: which there were, what each changed, and what it could not.

An entry is written in the same transaction as the change that it describes. So whoever reads it after a kill knows
exactly what was done: `rotate` continues after it, `rollback` undoes it.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Connection, and_, func, or_, select

from shared.keyring.administration import (
    JournalBackup,
    JournalEntry,
    JournalStep,
    Problem,
    RefusedError,
    RotateRequest,
    RotationProgress,
    RotationState,
    RotationType,
    StepOutcome,
)
from shared.keyring.model import UNREADABLE_VERSION, WrappedKey
from shared.keyring.tables import (
    JournalEntryRow,
    ProblemRow,
    RewrapRow,
    RotationRow,
    RowCount,
    fetch,
    fetch_first,
    fetch_one,
    find_unreadable_rows,
    journal_entries,
    problems,
    rewraps,
    rotations,
    select_rows,
)
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


MAX_PROBLEMS: Final = 100
"""Problems in one answer, at most."""
_NO_ROTATION: Final = 0
"""Rotations are numbered from 1."""


class RewrapOutcome(StrEnum):
    """Of an entry."""

    DONE = "done"
    ROLLED_BACK = "undone"
    NOT_ROLLED_BACK = "kept"
    """Could not be undone; a problem says why."""
    RESTORED = "restored"
    """The wrap of a backup replaced one that did not open; of no rotation, and never undone."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """A row of the rotations."""

    number: int
    id: str
    type: RotationType
    state: RotationState
    is_rolling_back: bool
    target_version: str
    cursor: str
    new_data_key: str | None
    former_data_key: str | None


@dataclass(frozen=True, slots=True)
class RewrapEntry:
    """A data key that was re-wrapped."""

    number: int
    data_key_id: str
    old_wrap: WrappedKey
    new_wrap: WrappedKey


def find_rotation(connection: Connection, rotation_id: str) -> Rotation | None:
    """The rotation of that id. Raises RefusedError if its row cannot be read."""
    query = select_rows(rotations, RotationRow).where(rotations.c.id == rotation_id)
    row = fetch_first(connection, query, RotationRow)
    return _parse_rotation(row) if row else None


def begin_rotation(
    connection: Connection,
    now: float,
    request: RotateRequest,
    *,
    target_version: str,
    total: int,
    done: int = 0,
    new_data_key: str | None = None,
) -> Rotation:
    """Stores that a rotation begins. Raises RefusedError if another is not finished."""
    refuse_while_running(connection)
    if find_rotation(connection, request.rotation_id):
        raise RefusedError(f"another runner began rotation {request.rotation_id} at the same moment", "call again")
    connection.execute(
        rotations.insert().values(
            id=request.rotation_id,
            type=request.type.value,
            state=RotationState.RUNNING.value,
            is_rolling_back=False,
            target_version=target_version,
            caller=request.caller,
            started_at=now,
            updated_at=now,
            total=total,
            done=done,
            cursor="",
            new_data_key=new_data_key,
        )
    )
    return get_rotation(connection, request.rotation_id)


def refuse_while_running(connection: Connection) -> None:
    """Raises RefusedError if a rotation is not finished."""
    query = select_rows(rotations, RotationRow).where(rotations.c.state == RotationState.RUNNING)
    other = fetch_first(connection, query, RotationRow)
    if other:
        raise RefusedError(
            f"rotation {other.id} ({other.type}, started by {other.caller}) is not finished",
            "resume it or roll it back",
        )


def get_rotation(connection: Connection, rotation_id: str) -> Rotation:
    """The rotation of that id. Raises RefusedError if there is none."""
    found = find_rotation(connection, rotation_id)
    if found is None:
        raise RefusedError(f"there is no rotation {rotation_id}")
    return found


def check_unchanged(connection: Connection, expected: Rotation) -> None:
    """Raises RefusedError if another runner finished, rolled back or retargeted it since it was `expected`."""
    found = get_rotation(connection, expected.id)
    if (found.state, found.is_rolling_back, found.target_version) != (
        expected.state,
        expected.is_rolling_back,
        expected.target_version,
    ):
        raise RefusedError(f"rotation {expected.id} was changed by another runner meanwhile", "check its status")


def update_rotation(connection: Connection, now: float, rotation: Rotation, **columns: Any) -> None:
    """Changes the rotation's row. A failure gets a journal entry: once a retry succeeds, the row shows no failure."""
    if columns.get("state") == RotationState.FAILED:
        failure = JournalEntry(step=JournalStep.ROTATE, outcome=StepOutcome.FAILED, rotation_type=rotation.type)
        add_journal_entry(connection, now, rotation.id, failure)
    changed = rotations.update().where(rotations.c.number == rotation.number)
    connection.execute(changed.values(updated_at=now, **columns))


def add_rewrap(connection: Connection, rotation: Rotation, data_key_id: str, old: WrappedKey, new: WrappedKey) -> None:
    """Stores one re-wrap."""
    _add_replaced_wrap(connection, rotation.number, data_key_id, old, new, RewrapOutcome.DONE)


def add_restored_wrap(connection: Connection, data_key_id: str, old: WrappedKey, new: WrappedKey) -> None:
    """Stores what the row of a backup replaced."""
    _add_replaced_wrap(connection, _NO_ROTATION, data_key_id, old, new, RewrapOutcome.RESTORED)


def _add_replaced_wrap(
    connection: Connection, number: int, data_key_id: str, old: WrappedKey, new: WrappedKey, outcome: RewrapOutcome
) -> None:
    wraps = {"old_wrapped": old.ciphertext, "old_kek": old.kek, "old_kek_version": old.kek_version}
    wraps |= {"new_wrapped": new.ciphertext, "new_kek": new.kek, "new_kek_version": new.kek_version}
    values = {"rotation": number, "data_key_id": data_key_id, "outcome": outcome.value}
    connection.execute(rewraps.insert().values(**values, **wraps))


def find_replaced_rewraps(
    connection: Connection, rotation: Rotation, data_key_ids: Collection[str]
) -> dict[str, RewrapEntry]:
    """The entries of these data keys, by their ids, which a re-wrap for a later target replaces."""
    if not has_retarget(connection, rotation.id):
        return {}
    condition = (rewraps.c.rotation == rotation.number) & (rewraps.c.outcome == RewrapOutcome.DONE)
    query = select_rows(rewraps, RewrapRow).where(condition, rewraps.c.data_key_id.in_(data_key_ids))
    rows = fetch(connection, query.order_by(rewraps.c.number), RewrapRow)
    return {row.data_key_id: _parse_rewrap(row) for row in rows}


def replace_rewrap(connection: Connection, entry: RewrapEntry, new: WrappedKey) -> None:
    """Stores that the data key was wrapped once more; a rollback goes back to before the first time."""
    wraps = {"new_wrapped": new.ciphertext, "new_kek": new.kek, "new_kek_version": new.kek_version}
    connection.execute(rewraps.update().where(rewraps.c.number == entry.number).values(**wraps))


def list_rewraps_to_roll_back(connection: Connection, rotation: Rotation, limit: int) -> tuple[RewrapEntry, ...]:
    """The latest entries that a rollback has not come to yet, the latest first."""
    condition = (rewraps.c.rotation == rotation.number) & (rewraps.c.outcome == RewrapOutcome.DONE)
    latest_first = select_rows(rewraps, RewrapRow).where(condition).order_by(rewraps.c.number.desc()).limit(limit)
    return tuple(_parse_rewrap(row) for row in fetch(connection, latest_first, RewrapRow))


def set_rewrap_outcome(connection: Connection, entry: RewrapEntry, outcome: RewrapOutcome) -> None:
    """Stores what became of an entry."""
    connection.execute(rewraps.update().where(rewraps.c.number == entry.number).values(outcome=outcome.value))


def count_not_rolled_back(connection: Connection, rotation: Rotation) -> int:
    """How many entries could not be undone."""
    condition = (rewraps.c.rotation == rotation.number) & (rewraps.c.outcome == RewrapOutcome.NOT_ROLLED_BACK)
    return fetch_one(connection, select(func.count().label("total")).where(condition), RowCount).total


def add_problem(connection: Connection, rotation: Rotation, problem: Problem) -> None:
    """Stores what was left out, in the place of what was said of the same data key before."""
    condition = (problems.c.rotation == rotation.number) & (problems.c.data_key_id == problem.id)
    connection.execute(problems.delete().where(condition))
    values = {"data_key_id": problem.id, "error": problem.error, "is_foreign": problem.is_foreign}
    connection.execute(problems.insert().values(rotation=rotation.number, **values))


def read_total(connection: Connection, rotation: Rotation) -> int:
    """How many data keys it was to do."""
    query = select_rows(rotations, RotationRow).where(rotations.c.number == rotation.number)
    return fetch_one(connection, query, RotationRow).total


def delete_problems(connection: Connection, rotation: Rotation) -> None:
    """What could not be done is tried again."""
    connection.execute(problems.delete().where(problems.c.rotation == rotation.number))


def has_problems(connection: Connection, rotation: Rotation) -> bool:
    """Whether a data key that is ours was left out."""
    condition = (problems.c.rotation == rotation.number) & ~problems.c.is_foreign
    return connection.execute(select(problems.c.data_key_id).where(condition).limit(1)).first() is not None


def find_unreadable_rotations(connection: Connection) -> dict[str, str]:
    """Why rotations' rows cannot be read, by id: see `find_unreadable_rows`."""
    return find_unreadable_rows(connection, rotations, type=list(RotationType), state=list(RotationState))


def read_progress(connection: Connection, rotation_id: str | None) -> RotationProgress | None:
    """How far that rotation is, or the latest. Raises RefusedError if its row cannot be read."""
    query = select_rows(rotations, RotationRow).order_by(rotations.c.number.desc()).limit(1)
    if rotation_id is not None:
        query = query.where(rotations.c.id == rotation_id)
    row = fetch_first(connection, query, RotationRow)
    if row is None:
        return None
    _refuse_unreadable(row)
    condition = problems.c.rotation == row.number
    order = (problems.c.is_foreign, problems.c.data_key_id)
    left_out = select_rows(problems, ProblemRow).where(condition).order_by(*order).limit(MAX_PROBLEMS)
    return RotationProgress(
        rotation_id=row.id,
        type=RotationType(row.type),
        state=RotationState(row.state),
        target_version=row.target_version,
        caller=row.caller,
        started_at=datetime.fromtimestamp(row.started_at, UTC),
        updated_at=datetime.fromtimestamp(row.updated_at, UTC),
        total=row.total,
        done=row.done,
        problems=tuple(
            Problem(id=problem.data_key_id, error=problem.error, is_foreign=problem.is_foreign)
            for problem in fetch(connection, left_out, ProblemRow)
        ),
        journal=list_journal_entries(connection, row.id),
        is_rolling_back=row.is_rolling_back,
    )


def _refuse_unreadable(row: RotationRow) -> None:
    if row.type not in list(RotationType) or row.state not in list(RotationState):
        raise RefusedError(
            f"rotation {row.id} cannot be read: its type or its state in the table {rotations.name} is none",
            "correct it there",
        )


def _parse_rewrap(row: RewrapRow) -> RewrapEntry:
    old = WrappedKey(row.old_wrapped, row.old_kek, row.old_kek_version)
    return RewrapEntry(row.number, row.data_key_id, old, WrappedKey(row.new_wrapped, row.new_kek, row.new_kek_version))


def _parse_rotation(row: RotationRow) -> Rotation:
    _refuse_unreadable(row)
    if row.target_version is None:
        raise RefusedError(
            f"rotation {row.id} cannot be read: it has no target version in the table {rotations.name}", "set it there"
        )
    return Rotation(
        row.number,
        row.id,
        RotationType(row.type),
        RotationState(row.state),
        row.is_rolling_back,
        row.target_version,
        row.cursor,
        row.new_data_key,
        row.former_data_key,
    )
