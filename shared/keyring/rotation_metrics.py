"""What a service's metrics show of its keyring, from the database alone: so a rotation by any runner is visible.

A rotation has succeeded once its state is `done` and its runner's last step is a verification that succeeded. One that
found nothing to do has succeeded, too: otherwise a failure that was fixed would be visible for weeks.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from sqlalchemy import Connection, and_, func, or_, select

from shared.keyring import store
from shared.keyring.administration import JournalStep, RotationState, RotationType, StepOutcome
from shared.keyring.journal import find_unreadable_entries
from shared.keyring.key_table import RecordsTable
from shared.keyring.model import DataKeyStatus
from shared.keyring.tables import data_keys, find_unreadable_rows, journal_entries, rotations
from shared.sql.rows import RowQuery, select_values

ROTATION_STEPS: Final = tuple(
    step.value
    for step in JournalStep
    if step not in (JournalStep.PLAN, JournalStep.RETARGET, JournalStep.RESTORE, JournalStep.UNKNOWN)
)
"""Of a rotation; each is counted from the start, at 0."""
_OTHER_STEP: Final = "other"
_FAILURES: Final = (StepOutcome.FAILED, StepOutcome.PROBLEMS)
_entries: Final = journal_entries.c


class _StatusCount(NamedTuple):
    kek_version: str
    status: str
    total: int


class _LastEntryRow(NamedTuple):
    """A rotation that is done, and the last journal entry of its runner, where there is one."""

    type: str
    updated_at: float
    step: str | None
    outcome: str | None
    created_at: float | None


class _IdleRow(NamedTuple):
    """When a rotation of one type last had nothing to do."""

    rotation_type: str | None
    created_at: float


class _FailureCount(NamedTuple):
    step: str
    rotation_type: str | None
    total: int
    created_at: float


_by_status: Final = (data_keys.c.kek_version, data_keys.c.status)
_STATUS_COUNTS: Final = RowQuery(_StatusCount, select(*_by_status, func.count().label("total")).group_by(*_by_status))
_FIRST_DATA_KEY_AT: Final = select_values(float, func.min(data_keys.c.created_at))
_last: Final = (
    select(_entries.rotation_id, func.max(_entries.number).label("number")).group_by(_entries.rotation_id).subquery()
)
_LAST_ENTRIES: Final = RowQuery(
    _LastEntryRow,
    select(rotations.c.type, rotations.c.updated_at, _entries.step, _entries.outcome, _entries.created_at)
    .select_from(
        rotations.outerjoin(_last, _last.c.rotation_id == rotations.c.id).outerjoin(
            journal_entries, _entries.number == _last.c.number
        )
    )
    .where(rotations.c.state == RotationState.DONE.value)
    .order_by(rotations.c.number),
)
_last_at: Final = func.max(_entries.created_at).label("created_at")
_LAST_IDLE: Final = RowQuery(
    _IdleRow,
    select(_entries.rotation_type, _last_at)
    .where(_entries.outcome == StepOutcome.NOTHING_TO_DO.value)
    .group_by(_entries.rotation_type),
)
_unverified: Final = and_(_entries.step == JournalStep.VERIFY.value, _entries.outcome == StepOutcome.PROBLEMS.value)
_FAILURE_COUNTS: Final = RowQuery(
    _FailureCount,
    select(_entries.step, _entries.rotation_type, func.count().label("total"), _last_at)
    .where(or_(_entries.outcome == StepOutcome.FAILED.value, _unverified))
    .group_by(_entries.step, _entries.rotation_type),
)


@dataclass(frozen=True, slots=True)
class KeyringMetrics:
    """A keyring at one moment; times are unix seconds."""

    data_keys: Mapping[tuple[str, DataKeyStatus], int]
    """By version of the KMS key, `0` of the local key; of a key that is not ours, too."""
    last_success: Mapping[RotationType, float]
    """Of `new-dek` it is there from the start: the first data key is as new as one that was just rotated."""
    last_failure: Mapping[RotationType, float]
    """It is over once a rotation of the same type has succeeded since."""
    is_in_progress: bool
    """Running or interrupted, its verification included."""
    failures_by_step: Mapping[str, int]
    """By step, since the keyring began."""
    unreadable_rows: Mapping[str, str]
    """Why rows cannot be read, by the id of a data key or of a rotation: the first ones."""
    missing_data_keys: tuple[str, ...] = ()
    """Ids of data keys that records need and the keyring lacks."""
    encryptions: int | None = None
    """With the active data key; None if there is none, or the number cannot be read."""


def read_keyring_metrics(connection: Connection, records: RecordsTable | None = None) -> KeyringMetrics:
    """The keyring as it is now; `records` have an index by data key."""
    return replace(
        read_rotations(connection, _count_data_keys(connection), _FIRST_DATA_KEY_AT.fetch_first(connection)),
        unreadable_rows=_find_unreadable_rows(connection),
        encryptions=store.read_encryptions(connection),
        missing_data_keys=records.list_missing_data_keys(connection) if records else (),
    )


def read_rotations(
    connection: Connection,
    data_keys: Mapping[tuple[str, DataKeyStatus], int],
    first_data_key_at: float | None = None,
) -> KeyringMetrics:
    """What the journal tells, also that of another program's table, where the age of data keys is not known."""
    success, is_left = _read_successes(connection, first_data_key_at)
    failures, last_failure = _count_failures(connection)
    running = rotations.c.state == RotationState.RUNNING.value
    return KeyringMetrics(
        data_keys=data_keys,
        last_success=success,
        last_failure=last_failure,
        is_in_progress=is_left
        or connection.execute(select(rotations.c.id).where(running).limit(1)).first() is not None,
        failures_by_step=failures,
        unreadable_rows={},
    )


def _read_successes(connection: Connection, first_data_key_at: float | None) -> tuple[dict[RotationType, float], bool]:
    """When a rotation of each type last succeeded, and whether the latest that is done was left before its end."""
    success: dict[str | None, float] = {}
    if first_data_key_at is not None:
        success[RotationType.NEW_DEK] = first_data_key_at
    is_left = False
    for row in _LAST_ENTRIES.fetch_all(connection):
        verified = (row.step, row.outcome) == (JournalStep.VERIFY, StepOutcome.SUCCEEDED)
        is_left = row.step is not None and not verified and row.outcome not in _FAILURES
        if row.step is None or verified:
            success[row.type] = max(success.get(row.type, 0.0), row.updated_at, row.created_at or 0.0)
    for found in _LAST_IDLE.fetch_all(connection):
        success[found.rotation_type] = max(success.get(found.rotation_type, 0.0), found.created_at)
    return {type_: success[type_] for type_ in RotationType if type_ in success}, is_left


def _count_failures(connection: Connection) -> tuple[dict[str, int], dict[RotationType, float]]:
    """How many steps failed, by step, and when one did last, by type; an entry without a type may be of any.

    Data keys that a rotation left out are counted by the entry of `rotate` itself, a verification by its own.
    """
    failures, last_failure = dict.fromkeys(ROTATION_STEPS, 0), dict[RotationType, float]()
    for row in _FAILURE_COUNTS.fetch_all(connection):
        step = row.step if row.step in ROTATION_STEPS else _OTHER_STEP
        failures[step] = failures.get(step, 0) + row.total
        for type_ in [each for each in RotationType if each == row.rotation_type] or RotationType:
            last_failure[type_] = max(last_failure.get(type_, 0.0), row.created_at)
    return failures, last_failure


def _count_data_keys(connection: Connection) -> Mapping[tuple[str, DataKeyStatus], int]:
    counted: Counter[tuple[str, DataKeyStatus]] = Counter()
    for row in _STATUS_COUNTS.fetch_all(connection):
        counted[row.kek_version, DataKeyStatus(row.status)] += row.total
    return counted


def _find_unreadable_rows(connection: Connection) -> Mapping[str, str]:
    defect = f"it cannot be read in the table {journal_entries.name}; correct its columns there"
    return {
        **find_unreadable_rows(connection, rotations, type=list(RotationType), state=list(RotationState)),
        **store.find_unreadable_data_keys(connection),
        **{f"journal entry {number}": defect for number in find_unreadable_entries(connection)},
    }
