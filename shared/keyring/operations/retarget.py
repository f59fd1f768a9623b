"""A rotation goes on with another version of the KMS key: the primary one changed before it was finished.

What it wrapped so far is wrapped once more, and the journal gets an entry of the step `retarget`.
"""

from contextlib import suppress
from typing import Any

from sqlalchemy import Connection

from shared.keyring import store
from shared.keyring.administration import (
    JournalEntry,
    JournalStep,
    RefusedError,
    RotateRequest,
    RotationType,
    StepOutcome,
)
from shared.keyring.database import Database
from shared.keyring.journal import progress
from shared.keyring.journal.entries import add_journal_entry
from shared.keyring.journal.progress import Rotation
from shared.keyring.key_table import KeyTable
from shared.keyring.operations import target_version
from shared.keyring.rotation_lease import run_under_lease
from shared.keyring.wrapping import KeyWrapper, UnwrapError


async def retarget_rotation(
    database: Database,
    keys: KeyTable,
    wrapping: KeyWrapper,
    request: RotateRequest,
    rotation: Rotation,
    version: str,
) -> Rotation:
    """The rotation, which from now on is to `version`. Raises AdministrationError, KmsError and DatabaseError."""
    if rotation.type is RotationType.NEW_DEK:
        return await _retarget_new_dek(database, wrapping, request, rotation, version)
    return await _retarget_rewrap(database, keys, request, rotation, version)


async def _retarget_rewrap(
    database: Database, keys: KeyTable, request: RotateRequest, rotation: Rotation, version: str
) -> Rotation:
    left = await keys.count_outdated(database, version)

    def write(connection: Connection, now: float) -> Rotation:
        progress.check_unchanged(connection, rotation)
        total = max(left, progress.read_total(connection, rotation))
        return _record_retarget(connection, now, rotation, version, total=total, done=total - left)

    return await run_under_lease(database, request.token, write)


async def _retarget_new_dek(
    database: Database, wrapping: KeyWrapper, request: RotateRequest, rotation: Rotation, version: str
) -> Rotation:
    """Wraps the new data key by another version before it is made active."""
    data_key_id = rotation.new_data_key or ""
    new = await database.read(lambda connection: store.find_data_key(connection, data_key_id))
    wrapped = None
    if new is not None:
        with suppress(UnwrapError):  # what is wrong with it is said when it is promoted
            wrapped = await wrapping.wrap(data_key_id, await wrapping.unwrap(new))
            target_version.refuse_other_version(wrapping, wrapped, version)

    def write(connection: Connection, now: float) -> Rotation:
        progress.check_unchanged(connection, rotation)
        if new and wrapped and not store.replace_wrap(connection, data_key_id, new.wrapped, wrapped):
            raise RefusedError(f"data key {data_key_id} was changed by another program meanwhile", "resume once more")
        return _record_retarget(connection, now, rotation, version)

    return await run_under_lease(database, request.token, write)


def _record_retarget(connection: Connection, now: float, rotation: Rotation, version: str, **columns: Any) -> Rotation:
    """Stores that the rotation continues with another version, from its beginning; what failed is tried again."""
    progress.delete_problems(connection, rotation)
    entry = JournalEntry(
        step=JournalStep.RETARGET,
        outcome=StepOutcome.SUCCEEDED,
        rotation_type=rotation.type,
        detail=f"from version {rotation.target_version} to version {version}",
    )
    add_journal_entry(connection, now, rotation.id, entry)
    progress.update_rotation(connection, now, rotation, target_version=version, cursor="", **columns)
    return progress.get_rotation(connection, rotation.id)
