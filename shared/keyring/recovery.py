"""Rolls a rotation back by its journal, the latest entry first, one batch in each call; and restores rows of a backup.

A wrapped form goes back only where the row still holds what the rotation wrote, and only after the old form was
unwrapped: a version that was disabled meanwhile would take the data key with it. No data key is ever removed.

A restore puts back rows that do not open any more, and rows that are missing. What opens stays as it is, and a row is
believed only after it was unwrapped: a backup must not displace what works. Where its version was retired meanwhile,
its AAD is another one today, or a key wraps it that only unwraps, it is wrapped anew by the primary version. What is
replaced is kept in the journal.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from shared.keyring import journal, store
from shared.keyring.administration import (
    MAX_PAGE_SIZE,
    AdministrationError,
    JournalEntry,
    JournalStep,
    Problem,
    RefusedError,
    RotationState,
    StepOutcome,
    StoredKey,
)
from shared.keyring.journal import RewrapEntry, RewrapOutcome, Rotation
from shared.keyring.key_table import OpenKeyring
from shared.keyring.model import DataKey, DataKeyStatus, WrappedKey, compute_fingerprint
from shared.keyring.rotation_lease import get_holder, run_under_lease
from shared.keyring.store import RetiredVersionError
from shared.keyring.tables import rotations
from shared.keyring.wrapping import UnwrapError
from shared.kms.quota import MAX_CONCURRENT_CALLS
from shared.process.concurrency import run_concurrently

_NOT_IN_KEYRING = "it is no longer in the keyring"
_CHANGED_SINCE = "another program changed its wrapped form since; it was left as it is"


async def roll_back(keyring: OpenKeyring, rotation_id: str, token: str) -> None:
    """Undoes a rotation's next entries; one that is rolled back stays as it is.

    Raises AdministrationError, KmsError and DatabaseError.
    """
    rotation = await keyring.database.read(lambda connection: journal.get_rotation(connection, rotation_id))

    def begin(connection: Connection, now: float) -> Rotation:
        """From now on the rotation goes backwards only."""
        if rotation.state is not RotationState.RUNNING:
            journal.refuse_while_running(connection)
        journal.delete_problems(connection, rotation)
        return journal.update_rotation(
            connection, now, rotation, state=RotationState.RUNNING.value, is_rolling_back=True
        )

    if rotation.state is RotationState.ROLLED_BACK:
        return
    if not rotation.is_rolling_back:
        await keyring.database.read(lambda connection: _refuse_without_former_key(keyring, connection, rotation))
        rotation = await run_under_lease(keyring.database, token, begin)
    await roll_back_batch(keyring, rotation, token)


def _refuse_without_former_key(keyring: OpenKeyring, connection: Connection, rotation: Rotation) -> None:
    """Raises RefusedError where a setting is missing, which can be added before the rollback begins.

    Once it has begun, to leave out the setting is how a person ends it without a KMS that never answers again.
    """
    for entry in journal.list_rewraps_to_roll_back(connection, rotation, MAX_PAGE_SIZE):
        refusal = keyring.wrapping.explain_refusal(entry.old_wrap)
        if refusal and refusal.is_foreign:
            key = keyring.keys.find(connection, entry.data_key_id)
            if key and key.wrapped == entry.new_wrap:
                raise RefusedError(
                    f"data key {key.id} was wrapped by {entry.old_wrap.kek}, which neither `kms` nor `previous_kms` "
                    "names",
                    "name it there, then roll back again",
                )


async def roll_back_batch(keyring: OpenKeyring, rotation: Rotation, token: str) -> None:
    """Undoes the next entries. What is undone is journalled, also where this raises."""
    entries = await keyring.database.read(
        lambda connection: journal.list_rewraps_to_roll_back(connection, rotation, MAX_PAGE_SIZE)
    )

    async def undo(checked: Sequence[tuple[RewrapEntry, str | None]]) -> None:
        def write(connection: Connection, now: float) -> None:
            journal.check_unchanged(connection, rotation)
            changed = sum(_undo_entry(keyring, connection, rotation, *each) for each in checked)
            journal.update_rotation(connection, now, rotation, done=rotations.c.done - changed)

        if checked:
            await run_under_lease(keyring.database, token, write)

    def finish(connection: Connection, now: float) -> None:
        journal.check_unchanged(connection, rotation)
        if rotation.new_data_key:
            _restore_active_key(connection, rotation, rotation.new_data_key)
        left = journal.count_not_rolled_back(connection, rotation)
        journal.update_rotation(connection, now, rotation, state=RotationState.ROLLED_BACK.value, done=left)

    await run_concurrently(entries, partial(_find_obstacle, keyring), undo, MAX_CONCURRENT_CALLS)
    if len(entries) < MAX_PAGE_SIZE:
        await run_under_lease(keyring.database, token, finish)


async def _find_obstacle(keyring: OpenKeyring, entry: RewrapEntry) -> str | None:
    """Why the former wrapped form must not be put back."""
    key = await keyring.database.read(lambda connection: keyring.keys.find(connection, entry.data_key_id))
    if key is None:
        return _NOT_IN_KEYRING
    try:
        await keyring.wrapping.unwrap(replace(key, wrapped=entry.old_wrap))
    except UnwrapError as error:
        return f"its former wrapped form cannot be unwrapped: {error}; it was left as it is"
    return None


def _undo_entry(
    keyring: OpenKeyring, connection: Connection, rotation: Rotation, entry: RewrapEntry, obstacle: str | None
) -> bool:
    """Whether it changed the row; a row that holds the former wrapped form, of a backup say, is as it has to be."""
    key, changed = keyring.keys.find(connection, entry.data_key_id), False
    try:
        if key is None:
            obstacle = None if keyring.keys.is_shared else _NOT_IN_KEYRING
        elif key.wrapped == entry.old_wrap:
            obstacle = None
        elif key.wrapped != entry.new_wrap:
            obstacle = None if keyring.keys.is_shared else _CHANGED_SINCE
        elif obstacle is None:
            changed = keyring.keys.replace_wrap(connection, key, entry.old_wrap)
    except RetiredVersionError as error:
        obstacle = f"its former wrapped form is not put back: {error}"
    if obstacle is not None:
        journal.add_problem(connection, rotation, Problem(id=entry.data_key_id, error=obstacle))
    outcome = RewrapOutcome.NOT_ROLLED_BACK if obstacle else RewrapOutcome.ROLLED_BACK
    journal.set_rewrap_outcome(connection, entry, outcome)
    return changed


def _restore_active_key(connection: Connection, rotation: Rotation, added: str) -> None:
    """The new data key is retired, for records may need it; the former one is active again."""
    previous = rotation.former_data_key
    if store.change_status(connection, added, DataKeyStatus.PENDING, DataKeyStatus.RETIRED):
        return
    if not store.change_status(connection, added, DataKeyStatus.ACTIVE, DataKeyStatus.RETIRED):
        cause = "another data key is active since; nothing was changed"
        journal.add_problem(connection, rotation, Problem(id=added, error=cause))
    elif previous and not store.change_status(connection, previous, DataKeyStatus.RETIRED, DataKeyStatus.ACTIVE):
        cause = "it cannot be active again, for it is no longer in the keyring; no data key is active now"
        journal.add_problem(connection, rotation, Problem(id=previous, error=cause))


def create_backup_row(key: DataKey) -> StoredKey:
    return StoredKey(
        id=key.id,
        status=key.status,
        kek=key.wrapped.kek,
        kek_version=key.wrapped.kek_version,
        algorithm=key.algorithm,
        created_at=key.created_at,
        fingerprint=key.fingerprint.hex(),
        wrapped=base64.b64encode(key.wrapped.ciphertext).decode(),
        aad=None if key.aad is None else f"0x{key.aad.hex()}",
    )


async def restore_data_keys(keyring: OpenKeyring, rows: Sequence[StoredKey], token: str) -> int:
    """How many rows were changed or put in; one that is missing comes back as retired, so that it encrypts nothing.

    Raises:
        RefusedError: the lease is not held, or these are too many rows.
        RetiredVersionError: Encrypt uses a version that was retired.
        AdministrationError: some could not be put back; all others were.
        KmsError, DatabaseError: the rest was not tried.
    """
    if len(rows) > MAX_PAGE_SIZE:
        raise RefusedError(f"a restore takes up to {MAX_PAGE_SIZE} rows", "send the others in another call")
    await run_under_lease(keyring.database, token, lambda _connection, _now: None)  # where nothing has to change, too
    changed, failed = 0, []

    def record(connection: Connection, now: float) -> None:
        detail = f"{changed} of {len(rows)} rows of a backup were put back by {get_holder(connection)}"
        entry = JournalEntry(step=JournalStep.RESTORE, outcome=StepOutcome.SUCCEEDED, detail=detail)
        name = f"restore-{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}"
        journal.add_journal_entry(connection, now, name, entry)

    try:
        for row in rows:
            try:
                changed += await _restore_data_key(keyring, row, token)
            except (UnwrapError, ValueError) as error:
                failed.append(f"{row.id} ({error})")
    finally:
        if changed:
            await run_under_lease(keyring.database, token, record)
    if failed:
        more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise AdministrationError(
            f"of {len(rows)} rows {changed} were changed; these could not be put back, and are as they were: "
            f"{', '.join(failed[:5])}{more}",
            "try another backup",
        )
    return changed


async def _restore_data_key(keyring: OpenKeyring, row: StoredKey, token: str) -> bool:
    keys, wrapping, data_key = keyring.keys, keyring.wrapping, _parse_backup_row(row)
    found = await keyring.database.read(lambda connection: keys.find(connection, row.id))
    if found:
        is_same = (found.wrapped, found.wrapping_aad) == (data_key.wrapped, data_key.wrapping_aad)
        if is_same or await _is_intact(keyring, found, data_key):
            return False
    secret = await wrapping.unwrap(data_key)
    retired = await keyring.database.read(keys.list_retired_versions)
    kek, version = data_key.wrapped.by
    is_superseded = wrapping.is_previous(kek) or (kek == wrapping.kek and version in retired)
    aad = found.wrapping_aad if found else data_key.wrapping_aad  # of today: a column of it may have changed since
    if is_superseded or aad != data_key.wrapping_aad:
        data_key = replace(data_key, wrapped=await wrapping.wrap_with_aad(aad, secret))

    def write(connection: Connection, _now: float) -> bool:
        if found is None:
            keys.insert(connection, data_key)
            return True
        if not keys.replace_wrap(connection, replace(found, fingerprint=data_key.fingerprint), data_key.wrapped):
            return False
        journal.add_rewrap(connection, None, found.id, found.wrapped, data_key.wrapped)
        return True

    try:
        if await run_under_lease(keyring.database, token, write):
            return True
    except IntegrityError:
        pass
    raise ValueError("another program changed it meanwhile")


async def _is_intact(keyring: OpenKeyring, found: DataKey, wanted: DataKey) -> bool:
    """Whether the row's data key can be unwrapped. Raises ValueError where it is, or may be, another one."""
    other = ValueError("the keyring has another data key of this id")
    if found.fingerprint != wanted.fingerprint and (found.fingerprint or not keyring.keys.is_shared):
        raise other
    known = await keyring.database.read(lambda connection: keyring.keys.find_fingerprint(connection, found))
    try:
        fingerprint = compute_fingerprint(await keyring.wrapping.unwrap(found))
    except UnwrapError as error:
        if error.is_foreign:  # it may work with that key
            raise
        if error.is_of_version and not found.fingerprint:  # whatever it is, it comes back with its version
            raise other from None
        if known not in (b"", wanted.fingerprint):
            raise other from None
        return False
    if fingerprint != wanted.fingerprint:
        raise other
    return True


def _parse_backup_row(row: StoredKey) -> DataKey:
    try:
        ciphertext, fingerprint = base64.b64decode(row.wrapped, validate=True), bytes.fromhex(row.fingerprint)
        aad = None if row.aad is None else row.wrapping_aad
    except (binascii.Error, ValueError):
        raise ValueError("it is damaged") from None
    wrapped = WrappedKey(ciphertext, row.kek, row.kek_version)
    return DataKey(row.id, DataKeyStatus.RETIRED, wrapped, fingerprint, row.created_at, row.algorithm, aad)
