"""The journal of rotations: which there were, what each changed, and what it could not.

An entry is written in the same transaction as the change that it describes. So whoever reads it after a kill knows
exactly what was done: `rotate` continues after it, `rollback` undoes it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, func, select

from shared.keyring.administration import (
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
from shared.keyring.column_types import find_unreadable_rows
from shared.keyring.journal.entries import add_journal_entry, has_retarget, list_journal_entries
from shared.keyring.model import WrappedKey
from shared.keyring.rows import ProblemRow, RewrapRow, RotationRow, RowCount, fetch, fetch_first, fetch_one, select_rows
from shared.keyring.tables import problems, rewraps, rotations

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
