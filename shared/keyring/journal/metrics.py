"""What a service's metrics say of its keyring, from the database alone: so a rotation by whatever runner is seen.

A note of a runner that begins with `failed STEP` is a failure of that step. A rotation has succeeded once its state is
`done` and its last note is no failure; so one that could not be verified has not, until it is resumed. One that found
nothing to do, and all that it needs in order, has succeeded, too: else a failure that was mended would stand for weeks.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, func, select

from shared.keyring import store
from shared.keyring.administration import RotationState, RotationType
from shared.keyring.journal import progress
from shared.keyring.model import DataKeyStatus
from shared.keyring.records import RecordsTable
from shared.keyring.tables import data_keys, journal_entries, rotations

ROTATION_STEPS: Final = ("smoke", "target", "backup", "encrypt", "rotate", "reload", "verify", "rollback")
"""Of a rotation; each is counted from the start, at 0."""
NOTHING_TO_DO: Final = "nothing to do: "
"""Begins the note of such a one; the type follows."""
_OTHER_STEP: Final = "other"
_FAILED: Final = re.compile(r"failed (\w+)")
_VERIFIED: Final = "verify "
"""Begins a runner's last note of a rotation that came to a good end; whatever else is its last one, it did not."""


@dataclass(frozen=True, slots=True)
class KeyringMetrics:
    """A keyring at one moment; times are unix seconds."""

    data_keys: Mapping[tuple[int, DataKeyStatus], int]
    """By version of the KMS key, 0 for the local key; of a key that is not ours, too."""
    last_success: Mapping[RotationType, float]
    """Of `new-dek` it is there from the start: the first data key is as new as one that was just rotated."""
    last_failure: float | None
    is_in_progress: bool
    """Under way, or left in the middle, its verification included."""
    failures_by_step: Mapping[str, int]
    """By step, since the keyring began."""
    unreadable_rows: Mapping[str, str]
    """Why rows cannot be read, by the id of a data key or of a rotation: the first ones."""
    missing_data_keys: tuple[str, ...] = ()
    """Ids of data keys that records need and the keyring lacks."""


def read_keyring_metrics(connection: Connection, records: RecordsTable | None = None) -> KeyringMetrics:
    """Reads it; `records` have an index by data key."""
    last_note = select(journal_entries.c.rotation_id, func.max(journal_entries.c.number).label("number")).group_by(
        journal_entries.c.rotation_id
    )
    last = last_note.subquery()
    ended = (
        select(rotations.c.type, rotations.c.updated_at, journal_entries.c.step, journal_entries.c.noted_at)
        .select_from(
            rotations.outerjoin(last, last.c.rotation_id == rotations.c.id).outerjoin(
                journal_entries, journal_entries.c.number == last.c.number
            )
        )
        .where(rotations.c.state == RotationState.DONE.value)
        .order_by(rotations.c.number)
    )
    success: dict[RotationType, float] = {}
    first = connection.execute(select(func.min(data_keys.c.created_at))).scalar_one()
    if first is not None:
        success[RotationType.NEW_DEK] = first
    types = {each.value: each for each in RotationType}
    left = False
    for name, updated_at, step, noted_at in connection.execute(ended):
        left = step is not None and not step.startswith((_VERIFIED, "failed "))
        if (type_ := types.get(name)) and (step is None or step.startswith(_VERIFIED)):
            at = max(updated_at, noted_at or 0.0)
            success[type_] = max(success.get(type_, 0.0), at)
    content = {NOTHING_TO_DO + each: each for each in RotationType}
    idle = (
        select(journal_entries.c.step, func.max(journal_entries.c.noted_at))
        .where(journal_entries.c.step.in_(content))
        .group_by(journal_entries.c.step)
    )
    for step, noted_at in connection.execute(idle):
        success[content[step]] = max(success.get(content[step], 0.0), noted_at)
    failures, last_failure = dict.fromkeys(ROTATION_STEPS, 0), None
    failed = select(journal_entries.c.step, journal_entries.c.noted_at).where(
        journal_entries.c.step.startswith("failed ")
    )
    for step, noted_at in connection.execute(failed):
        if found := _FAILED.match(step):
            name = found[1] if found[1] in failures else _OTHER_STEP
            failures[name] = failures.get(name, 0) + 1
            last_failure = max(last_failure or 0.0, noted_at)
    group = (data_keys.c.kek_version, data_keys.c.status)
    counted: Counter[tuple[int, DataKeyStatus]] = Counter()
    for version, status, number in connection.execute(select(*group, func.count()).group_by(*group)):
        counted[version, DataKeyStatus(status)] += number
    running = rotations.c.state == RotationState.RUNNING.value
    return KeyringMetrics(
        data_keys=counted,
        last_success=success,
        last_failure=last_failure,
        is_in_progress=left or connection.execute(select(rotations.c.id).where(running).limit(1)).first() is not None,
        failures_by_step=failures,
        unreadable_rows=progress.find_unreadable_rotations(connection) | store.find_unreadable_data_keys(connection),
        missing_data_keys=records.list_missing_data_keys(connection) if records else (),
    )
