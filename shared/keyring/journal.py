"""The journal: which rotations there were, what each changed, what it could not, and what its runner noted.

An entry is written in the same transaction as the change that it tells of. So whoever reads it after a kill knows
exactly what was done: `rotate` goes on behind it, `rollback` undoes it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, Row, func, select

from shared.keyring.administration import Problem, Progress, RefusedError, RotationState, RotationType
from shared.keyring.columns import defects
from shared.keyring.model import Wrapped
from shared.keyring.tables import entries, notes, problems, rotations

SHOWN: Final = 100
"""Problems in one answer, at most."""
_RETARGET: Final = "retarget "
"""Begins the note of a rotation that goes on with another version."""


class Outcome(StrEnum):
    """Of an entry."""

    DONE = "done"
    UNDONE = "undone"
    KEPT = "kept"
    """Could not be undone; a problem says why."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """A row of the rotations."""

    number: int
    id: str
    type: RotationType
    state: RotationState
    rolling_back: bool
    target_version: int
    cursor: str
    added: str | None
    former: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """A data key that was wrapped anew."""

    number: int
    data_key_id: str
    old: Wrapped
    new: Wrapped


def find(connection: Connection, rotation_id: str) -> Rotation | None:
    """The rotation of that id. Raises RefusedError where its row cannot be read."""
    row = connection.execute(select(rotations).where(rotations.c.id == rotation_id)).one_or_none()
    return _rotation(row) if row else None


def begin(connection: Connection, now: float, progress: Progress, *, added: str | None = None) -> Rotation:
    """Writes down that a rotation begins. Raises RefusedError where another is not finished."""
    refuse_while_running(connection)
    if find(connection, progress.rotation_id):
        raise RefusedError(f"another runner began rotation {progress.rotation_id} at the same moment; call again")
    values = {"state": RotationState.RUNNING.value, "rolling_back": False, "cursor": "", "added": added}
    asked = progress.model_dump(mode="json", include={"type", "target_version", "caller", "total", "done"})
    connection.execute(
        rotations.insert().values(id=progress.rotation_id, started_at=now, updated_at=now, **asked, **values)
    )
    return required(connection, progress.rotation_id)


def refuse_while_running(connection: Connection) -> None:
    """Raises RefusedError where a rotation is not finished."""
    other = connection.execute(select(rotations).where(rotations.c.state == RotationState.RUNNING)).first()
    if other:
        raise RefusedError(
            f"rotation {other.id} ({other.type}, begun by {other.caller}) is not finished; resume it or roll it back"
        )


def required(connection: Connection, rotation_id: str) -> Rotation:
    """The rotation of that id. Raises RefusedError where there is none."""
    found = find(connection, rotation_id)
    if found is None:
        raise RefusedError(f"there is no rotation {rotation_id}")
    return found


def still(connection: Connection, seen: Rotation) -> None:
    """Raises RefusedError where another hand finished, turned or retargeted the rotation since it was `seen`."""
    found = required(connection, seen.id)
    if (found.state, found.rolling_back, found.target_version) != (seen.state, seen.rolling_back, seen.target_version):
        raise RefusedError(f"rotation {seen.id} was changed by another runner meanwhile; look at its status")


def update(connection: Connection, now: float, rotation: Rotation, **columns: Any) -> None:
    """Changes the rotation's row. That it failed is noted too: once `rotate` made it good, no row tells of it."""
    if columns.get("state") == RotationState.FAILED:
        add_note(connection, now, rotation.id, "failed rotate")
    changed = rotations.update().where(rotations.c.number == rotation.number)
    connection.execute(changed.values(updated_at=now, **columns))


def enter(connection: Connection, rotation: Rotation, data_key_id: str, old: Wrapped, new: Wrapped) -> None:
    """Writes down one re-wrap."""
    wraps = {"old_wrapped": old.ciphertext, "old_kek": old.kek, "old_kek_version": old.kek_version}
    wraps |= {"new_wrapped": new.ciphertext, "new_kek": new.kek, "new_kek_version": new.kek_version}
    values = {"rotation": rotation.number, "data_key_id": data_key_id, "outcome": Outcome.DONE.value}
    connection.execute(entries.insert().values(**values, **wraps))


def retarget(connection: Connection, now: float, rotation: Rotation, version: int, **columns: Any) -> Rotation:
    """Writes down that the rotation goes on with another version, from its beginning; what failed is tried again."""
    forget_problems(connection, rotation)
    add_note(connection, now, rotation.id, f"{_RETARGET}from version {rotation.target_version} to version {version}")
    update(connection, now, rotation, target_version=version, cursor="", **columns)
    return required(connection, rotation.id)


def superseded(connection: Connection, rotation: Rotation, data_key_ids: Collection[str]) -> dict[str, Entry]:
    """The entries of these data keys, by their ids, which a re-wrap for a later target replaces."""
    own = (notes.c.rotation_id == rotation.id) & notes.c.step.startswith(_RETARGET)
    if connection.execute(select(notes.c.number).where(own).limit(1)).first() is None:
        return {}
    these = (entries.c.rotation == rotation.number) & (entries.c.outcome == Outcome.DONE)
    rows = connection.execute(
        select(entries).where(these, entries.c.data_key_id.in_(data_key_ids)).order_by(entries.c.number)
    )
    return {row.data_key_id: _entry(row) for row in rows}


def replace(connection: Connection, entry: Entry, new: Wrapped) -> None:
    """Writes down that the data key was wrapped once more; a rollback goes back to before the first time."""
    wraps = {"new_wrapped": new.ciphertext, "new_kek": new.kek, "new_kek_version": new.kek_version}
    connection.execute(entries.update().where(entries.c.number == entry.number).values(**wraps))


def to_undo(connection: Connection, rotation: Rotation, limit: int) -> tuple[Entry, ...]:
    """The latest entries that a rollback has not come to yet, the latest first."""
    these = (entries.c.rotation == rotation.number) & (entries.c.outcome == Outcome.DONE)
    rows = connection.execute(select(entries).where(these).order_by(entries.c.number.desc()).limit(limit))
    return tuple(_entry(row) for row in rows)


def conclude(connection: Connection, entry: Entry, outcome: Outcome) -> None:
    """Writes down what became of an entry."""
    connection.execute(entries.update().where(entries.c.number == entry.number).values(outcome=outcome.value))


def kept(connection: Connection, rotation: Rotation) -> int:
    """How many entries could not be undone."""
    these = (entries.c.rotation == rotation.number) & (entries.c.outcome == Outcome.KEPT)
    return connection.execute(select(func.count()).where(these)).scalar_one()


def add_problem(connection: Connection, rotation: Rotation, problem: Problem) -> None:
    """Writes down what was left out, in the place of what was said of the same data key before."""
    same = (problems.c.rotation == rotation.number) & (problems.c.data_key_id == problem.id)
    connection.execute(problems.delete().where(same))
    values = {"data_key_id": problem.id, "why": problem.why, "is_foreign": problem.foreign}
    connection.execute(problems.insert().values(rotation=rotation.number, **values))


def total(connection: Connection, rotation: Rotation) -> int:
    """How many data keys it was to do."""
    these = select(rotations.c.total).where(rotations.c.number == rotation.number)
    return int(connection.execute(these).scalar_one())


def forget_problems(connection: Connection, rotation: Rotation) -> None:
    """What could not be done is tried again."""
    connection.execute(problems.delete().where(problems.c.rotation == rotation.number))


def has_failed(connection: Connection, rotation: Rotation) -> bool:
    """Whether a data key that is ours was left out."""
    ours = (problems.c.rotation == rotation.number) & ~problems.c.is_foreign
    return connection.execute(select(problems).where(ours).limit(1)).first() is not None


def add_note(connection: Connection, now: float, rotation_id: str, step: str) -> None:
    """Writes down a step of the runner's own."""
    connection.execute(notes.insert().values(rotation_id=rotation_id, step=step, noted_at=now))


def unreadable(connection: Connection) -> dict[str, str]:
    """Why rotations' rows cannot be read, by id: see `defects`."""
    return defects(connection, rotations, type=list(RotationType), state=list(RotationState))


def progress(connection: Connection, rotation_id: str | None) -> Progress | None:
    """How far that rotation is, or the latest. Raises RefusedError where its row cannot be read."""
    these = select(rotations).order_by(rotations.c.number.desc()).limit(1)
    if rotation_id is not None:
        these = these.where(rotations.c.id == rotation_id)
    row = connection.execute(these).one_or_none()
    if row is None:
        return None
    _refuse_unreadable(row)
    own = problems.c.rotation == row.number
    order = (problems.c.is_foreign, problems.c.data_key_id)
    left_out = connection.execute(select(problems).where(own).order_by(*order).limit(SHOWN))
    steps = connection.execute(select(notes.c.step).where(notes.c.rotation_id == row.id).order_by(notes.c.number))
    return Progress(
        rotation_id=row.id,
        type=row.type,
        state=row.state,
        target_version=row.target_version,
        caller=row.caller,
        started_at=datetime.fromtimestamp(row.started_at, UTC),
        updated_at=datetime.fromtimestamp(row.updated_at, UTC),
        total=row.total,
        done=row.done,
        problems=tuple(Problem(id=each.data_key_id, why=each.why, foreign=each.is_foreign) for each in left_out),
        steps=tuple(steps.scalars()),
        rolling_back=row.rolling_back,
    )


def _refuse_unreadable(row: Row[Any]) -> None:
    if row.type not in list(RotationType) or row.state not in list(RotationState):
        raise RefusedError(
            f"rotation {row.id} cannot be read: its type or its state in the table {rotations.name} is none; "
            "correct it there"
        )


def _entry(row: Row[Any]) -> Entry:
    old = Wrapped(row.old_wrapped, row.old_kek, row.old_kek_version)
    return Entry(row.number, row.data_key_id, old, Wrapped(row.new_wrapped, row.new_kek, row.new_kek_version))


def _rotation(row: Row[Any]) -> Rotation:
    _refuse_unreadable(row)
    columns = (row.rolling_back, row.target_version, row.cursor, row.added, row.former)
    return Rotation(row.number, row.id, RotationType(row.type), RotationState(row.state), *columns)
