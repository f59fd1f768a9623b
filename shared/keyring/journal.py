"""The journal of rotations: what each changed and could not change, and the steps of its runner.

An entry is written in the same transaction as the change that it describes. After a kill it says exactly what was done:
`rotate` continues after it, `rollback` undoes it. Any program may write into the tables. An entry of a runner that
cannot be read is counted, never passed over: it may be of a backup that needs any version of the KMS key, so `retire`
and `destroy` refuse while there is one.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from typing import Any, Final, NamedTuple

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
from shared.keyring.tables import journal_entries, problems, rewraps, rotations
from shared.kms.port import is_version
from shared.sql.rows import select_rows, select_values

MAX_DETAIL_LENGTH: Final = 1000
MAX_NAME_LENGTH: Final = 300
MAX_NEEDS: Final = 10_000
MAX_PROBLEMS: Final = 100
_MAX_UNREADABLE: Final = 100
_NO_ROTATION: Final = 0
"""Rotations are numbered from 1."""
_WRITABLE_STEPS: Final = [step.value for step in JournalStep if step is not JournalStep.UNKNOWN]
_WRITABLE_OUTCOMES: Final = [outcome.value for outcome in StepOutcome if outcome is not StepOutcome.UNREADABLE]
_NEEDS: Final = TypeAdapter(tuple[str, ...])
_columns: Final = journal_entries.c


class JournalEntryRow(NamedTuple):
    number: int
    step: str
    outcome: str
    rotation_type: str | None
    backup_name: str | None
    sha256: str | None
    needs: str | None
    detail: str
    created_at: float


_ENTRIES: Final = select_rows(JournalEntryRow, _columns).order_by(_columns.number)


def add_journal_entry(connection: Connection, now: float, rotation_id: str, entry: JournalEntry) -> None:
    """Writes an entry of `rotation_id`, which may come before the rotation itself."""
    values = to_columns(entry) | {"rotation_id": rotation_id, "created_at": now}
    connection.execute(journal_entries.insert().values(**values))


def to_columns(entry: JournalEntry) -> dict[str, Any]:
    """The columns of an entry, without its number, its rotation and its time."""
    values = entry.model_dump(mode="json", include=set(JournalEntry.model_fields) - {"created_at"})
    return values | {"needs": None if entry.needs is None else json.dumps(entry.needs)}


def list_journal_entries(connection: Connection, rotation_id: str) -> tuple[JournalEntry, ...]:
    """All entries of a rotation, in the order in which they were written."""
    return tuple(map(parse_entry, _ENTRIES.where(_columns.rotation_id == rotation_id).fetch_all(connection)))


def list_backups(connection: Connection) -> tuple[JournalBackup, ...]:
    """The backups of all rotations, the oldest first. Entries that cannot be read: see `find_unreadable_entries`."""
    was_backed_up = (_columns.step == JournalStep.BACKUP.value) & (_columns.outcome == StepOutcome.SUCCEEDED.value)
    rows = _ENTRIES.where(was_backed_up).fetch_all(connection)
    return tuple(backup for row in rows if (backup := parse_entry(row).backup))


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
    suspects = _ENTRIES.where(~sound).fetch_all(connection)
    found = (row.number for row in suspects if parse_entry(row).outcome is StepOutcome.UNREADABLE)
    return tuple(islice(found, _MAX_UNREADABLE))


def parse_entry(row: JournalEntryRow) -> JournalEntry:
    """The entry of a row; its outcome is `unreadable` where a column holds what no runner writes."""
    readable: dict[str, Any] = {
        "step": JournalStep(row.step),
        "outcome": StepOutcome(row.outcome),
        "detail": row.detail[:MAX_DETAIL_LENGTH],
        "created_at": datetime.fromtimestamp(row.created_at, UTC),
    }
    try:
        entry = JournalEntry(
            **readable,
            rotation_type=None if row.rotation_type is None else RotationType(row.rotation_type),
            backup_name=row.backup_name,
            sha256=row.sha256,
            needs=None if row.needs is None else _NEEDS.validate_json(row.needs, strict=True),
        )
    except (ValidationError, ValueError):
        return JournalEntry(**{**readable, "outcome": StepOutcome.UNREADABLE})
    return entry.model_copy(update={"outcome": StepOutcome.UNREADABLE}) if find_defect(entry) else entry


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
    """Why nobody can rely on an entry; None if everybody can."""
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


class RewrapOutcome(StrEnum):
    """What became of a wrap that was replaced."""

    DONE = "done"
    ROLLED_BACK = "undone"
    NOT_ROLLED_BACK = "kept"
    """It could not be undone; a problem says why."""
    RESTORED = "restored"
    """The wrap of a backup replaced one that did not open; it is of no rotation, and never undone."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """A rotation, as far as the next batch must know it."""

    number: int
    id: str
    type: RotationType
    state: RotationState
    is_rolling_back: bool
    target_version: str
    total: int
    cursor: str
    new_data_key: str | None
    former_data_key: str | None


class _RotationRow(NamedTuple):
    number: int
    id: str
    type: str
    state: str
    is_rolling_back: bool
    target_version: str | None
    caller: str
    started_at: float
    updated_at: float
    total: int
    done: int
    cursor: str
    new_data_key: str | None
    former_data_key: str | None


class RewrapEntry(NamedTuple):
    number: int
    data_key_id: str
    old_wrapped: bytes
    old_kek: str
    old_kek_version: str
    new_wrapped: bytes
    new_kek: str
    new_kek_version: str

    @property
    def old_wrap(self) -> WrappedKey:
        return WrappedKey(self.old_wrapped, self.old_kek, self.old_kek_version)

    @property
    def new_wrap(self) -> WrappedKey:
        return WrappedKey(self.new_wrapped, self.new_kek, self.new_kek_version)


class _ProblemRow(NamedTuple):
    data_key_id: str
    error: str
    is_foreign: bool


_ROTATIONS: Final = select_rows(_RotationRow, rotations.c)
_REWRAPS: Final = select_rows(RewrapEntry, rewraps.c)
_REWRAP_COUNT: Final = select_values(int, func.count())
_PROBLEMS: Final = select_rows(_ProblemRow, problems.c).order_by(problems.c.is_foreign, problems.c.data_key_id)


def find_rotation(connection: Connection, rotation_id: str) -> Rotation | None:
    """The rotation of that id. Raises RefusedError if its row cannot be read."""
    row = _ROTATIONS.where(rotations.c.id == rotation_id).fetch_first(connection)
    if row is None:
        return None
    type_, state = _parse_type_and_state(row)
    if row.target_version is None:
        raise RefusedError(
            f"rotation {row.id} cannot be read: it has no target version in the table {rotations.name}", "set it there"
        )
    return Rotation(
        row.number,
        row.id,
        type_,
        state,
        row.is_rolling_back,
        row.target_version,
        row.total,
        row.cursor,
        row.new_data_key,
        row.former_data_key,
    )


def get_rotation(connection: Connection, rotation_id: str) -> Rotation:
    """The rotation of that id. Raises RefusedError if there is none."""
    found = find_rotation(connection, rotation_id)
    if found is None:
        raise RefusedError(f"there is no rotation {rotation_id}")
    return found


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
    other = _ROTATIONS.where(rotations.c.state == RotationState.RUNNING).fetch_first(connection)
    if other:
        raise RefusedError(
            f"rotation {other.id} ({other.type}, started by {other.caller}) is not finished",
            "resume it or roll it back",
        )


def check_unchanged(connection: Connection, expected: Rotation) -> Rotation:
    """The rotation as it is now. Raises RefusedError if another runner finished, rolled back or retargeted it."""
    found = get_rotation(connection, expected.id)
    if (found.state, found.is_rolling_back, found.target_version) != (
        expected.state,
        expected.is_rolling_back,
        expected.target_version,
    ):
        raise RefusedError(f"rotation {expected.id} was changed by another runner meanwhile", "check its status")
    return found


def update_rotation(connection: Connection, now: float, rotation: Rotation, **columns: Any) -> Rotation:
    """Changes the rotation's row. A failure gets a journal entry: once a retry succeeds, the row shows no failure."""
    if columns.get("state") == RotationState.FAILED:
        failure = JournalEntry(step=JournalStep.ROTATE, outcome=StepOutcome.FAILED, rotation_type=rotation.type)
        add_journal_entry(connection, now, rotation.id, failure)
    changed = rotations.update().where(rotations.c.number == rotation.number)
    connection.execute(changed.values(updated_at=now, **columns))
    return get_rotation(connection, rotation.id)


def add_rewrap(
    connection: Connection, rotation: Rotation | None, data_key_id: str, old: WrappedKey, new: WrappedKey
) -> None:
    """Stores one re-wrap; without a rotation, what the row of a backup replaced."""
    number, outcome = (rotation.number, RewrapOutcome.DONE) if rotation else (_NO_ROTATION, RewrapOutcome.RESTORED)
    wraps = {"old_wrapped": old.ciphertext, "old_kek": old.kek, "old_kek_version": old.kek_version}
    values = {"rotation": number, "data_key_id": data_key_id, "outcome": outcome.value}
    connection.execute(rewraps.insert().values(**values, **wraps, **_to_new_columns(new)))


def replace_rewrap(connection: Connection, entry: RewrapEntry, new: WrappedKey) -> None:
    """Stores that the data key was wrapped once more; a rollback goes back to before the first time."""
    own = rewraps.update().where(rewraps.c.number == entry.number)
    connection.execute(own.values(**_to_new_columns(new)))


def _to_new_columns(new: WrappedKey) -> dict[str, Any]:
    return {"new_wrapped": new.ciphertext, "new_kek": new.kek, "new_kek_version": new.kek_version}


def find_replaced_rewraps(
    connection: Connection, rotation: Rotation, data_key_ids: Collection[str]
) -> dict[str, RewrapEntry]:
    """The entries of these data keys, by their ids, which a re-wrap for a later target replaces."""
    retarget = (_columns.rotation_id == rotation.id) & (_columns.step == JournalStep.RETARGET.value)
    if connection.execute(select(_columns.number).where(retarget).limit(1)).first() is None:
        return {}
    condition = (rewraps.c.rotation == rotation.number) & (rewraps.c.outcome == RewrapOutcome.DONE)
    query = _REWRAPS.where(condition, rewraps.c.data_key_id.in_(data_key_ids)).order_by(rewraps.c.number)
    return {entry.data_key_id: entry for entry in query.fetch_all(connection)}


def list_rewraps_to_roll_back(connection: Connection, rotation: Rotation, limit: int) -> tuple[RewrapEntry, ...]:
    """The latest entries that a rollback has not come to yet, the latest first."""
    condition = (rewraps.c.rotation == rotation.number) & (rewraps.c.outcome == RewrapOutcome.DONE)
    return tuple(_REWRAPS.where(condition).order_by(rewraps.c.number.desc()).limit(limit).fetch_all(connection))


def set_rewrap_outcome(connection: Connection, entry: RewrapEntry, outcome: RewrapOutcome) -> None:
    connection.execute(rewraps.update().where(rewraps.c.number == entry.number).values(outcome=outcome.value))


def count_not_rolled_back(connection: Connection, rotation: Rotation) -> int:
    """How many entries could not be undone."""
    condition = (rewraps.c.rotation == rotation.number) & (rewraps.c.outcome == RewrapOutcome.NOT_ROLLED_BACK)
    return _REWRAP_COUNT.where(condition).fetch_one(connection)


def add_problem(connection: Connection, rotation: Rotation, problem: Problem) -> None:
    """Stores that a data key was left out; a new problem replaces an older one of it."""
    condition = (problems.c.rotation == rotation.number) & (problems.c.data_key_id == problem.id)
    connection.execute(problems.delete().where(condition))
    values = {"data_key_id": problem.id, "error": problem.error, "is_foreign": problem.is_foreign}
    connection.execute(problems.insert().values(rotation=rotation.number, **values))


def delete_problems(connection: Connection, rotation: Rotation) -> None:
    """What could not be done is tried again."""
    connection.execute(problems.delete().where(problems.c.rotation == rotation.number))


def has_problems(connection: Connection, rotation: Rotation) -> bool:
    """Whether a data key that is ours was left out."""
    condition = (problems.c.rotation == rotation.number) & ~problems.c.is_foreign
    return connection.execute(select(problems.c.data_key_id).where(condition).limit(1)).first() is not None


def read_progress(connection: Connection, rotation_id: str | None) -> RotationProgress | None:
    """How far that rotation is, or the latest. Raises RefusedError if its row cannot be read."""
    query = _ROTATIONS.order_by(rotations.c.number.desc()).limit(1)
    if rotation_id is not None:
        query = query.where(rotations.c.id == rotation_id)
    row = query.fetch_first(connection)
    if row is None:
        return None
    type_, state = _parse_type_and_state(row)
    left_out = _PROBLEMS.where(problems.c.rotation == row.number).limit(MAX_PROBLEMS)
    return RotationProgress(
        rotation_id=row.id,
        type=type_,
        state=state,
        target_version=row.target_version,
        caller=row.caller,
        started_at=datetime.fromtimestamp(row.started_at, UTC),
        updated_at=datetime.fromtimestamp(row.updated_at, UTC),
        total=row.total,
        done=row.done,
        problems=tuple(
            Problem(id=problem.data_key_id, error=problem.error, is_foreign=problem.is_foreign)
            for problem in left_out.fetch_all(connection)
        ),
        journal=list_journal_entries(connection, row.id),
        is_rolling_back=row.is_rolling_back,
    )


def _parse_type_and_state(row: _RotationRow) -> tuple[RotationType, RotationState]:
    try:
        return RotationType(row.type), RotationState(row.state)
    except ValueError:
        raise RefusedError(
            f"rotation {row.id} cannot be read: its type or its state in the table {rotations.name} is none",
            "correct it there",
        ) from None
