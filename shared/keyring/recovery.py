"""Puts the rows of a backup back: those whose data key does not open any more, and those that are missing altogether.

What opens stays as it is, and a row is believed only after it was unwrapped: a backup must not displace what works.
Where its version was retired meanwhile, or its AAD is another one today, it is wrapped anew by the primary version.
What is replaced is kept in the journal.

Undoes a rotation by its journal, the latest entry first, one batch in each call.

A wrapped form goes back only where the row still holds the one that the rotation wrote, and only after the old one was
unwrapped: a version that was disabled meanwhile would take the data key with it. No data key is ever removed.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from shared.keyring import journal as progress
from shared.keyring import store
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
from shared.keyring.database import Database
from shared.keyring.journal import RewrapEntry, RewrapOutcome, Rotation, add_journal_entry
from shared.keyring.key_table import KeyTable
from shared.keyring.model import DataKey, DataKeyStatus, WrappedKey, compute_fingerprint
from shared.keyring.rotation_lease import get_holder, run_under_lease
from shared.keyring.store import RetiredVersionError
from shared.keyring.tables import rotations
from shared.keyring.wrapping import KeyWrapper, UnwrapError
from shared.kms.quota import MAX_CONCURRENT_CALLS
from shared.process.concurrency import run_concurrently


def create_backup_row(key: DataKey) -> StoredKey:
    """A row for a backup."""
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


async def restore_data_keys(
    database: Database, keys: KeyTable, wrapping: KeyWrapper, rows: Sequence[StoredKey], token: str
) -> int:
    """How many rows were changed or put in; one that is missing comes back as retired, so that it encrypts nothing.

    Raises:
        RefusedError: the lease is not held, or these are too many rows.
        RetiredVersionError: Encrypt uses a version that was retired.
        AdministrationError: some could not be put back; all others were.
        KmsError, DatabaseError: the rest was not tried.
    """
    if len(rows) > MAX_PAGE_SIZE:
        raise RefusedError(f"a restore takes up to {MAX_PAGE_SIZE} rows", "send the others in another call")
    await run_under_lease(database, token, lambda _connection, _now: None)  # where nothing has to change, too
    changed, failed = 0, []
    try:
        for row in rows:
            try:
                changed += await _restore_data_key(database, keys, wrapping, row, token)
            except (UnwrapError, ValueError) as error:
                failed.append(f"{row.id} ({error})")
    finally:
        if changed:
            await run_under_lease(database, token, partial(_add_journal_entry, changed=changed, total=len(rows)))
    if failed:
        more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise AdministrationError(
            f"of {len(rows)} rows {changed} were changed; these could not be put back, and are as they were: "
            f"{', '.join(failed[:5])}{more}",
            "try another backup",
        )
    return changed


async def _restore_data_key(
    database: Database, keys: KeyTable, wrapping: KeyWrapper, row: StoredKey, token: str
) -> bool:
    data_key = _parse_backup_row(row)
    found = await database.read(lambda connection: keys.find(connection, row.id))
    if found:
        is_same = (found.wrapped, found.wrapping_aad) == (data_key.wrapped, data_key.wrapping_aad)
        if is_same or await _is_intact(keys, wrapping, found, data_key):
            return False
    secret = await wrapping.unwrap(data_key)
    retired = await database.read(keys.list_retired_versions)
    is_retired = data_key.wrapped.kek == wrapping.kek and data_key.wrapped.kek_version in retired
    aad = found.wrapping_aad if found else data_key.wrapping_aad  # of today: a column of it may have changed since
    if is_retired or aad != data_key.wrapping_aad:
        data_key = replace(data_key, wrapped=await wrapping.wrap_with_aad(aad, secret))

    def write(connection: Connection, _now: float) -> bool:
        if found is None:
            keys.insert(connection, data_key)
            return True
        if not keys.replace_wrap(connection, replace(found, fingerprint=data_key.fingerprint), data_key.wrapped):
            return False
        progress.add_restored_wrap(connection, found.id, found.wrapped, data_key.wrapped)
        return True

    try:
        if await run_under_lease(database, token, write):
            return True
    except IntegrityError:
        pass
    raise ValueError("another program changed it meanwhile")


async def _is_intact(keys: KeyTable, wrapping: KeyWrapper, found: DataKey, wanted: DataKey) -> bool:
    """Whether the row's data key can be unwrapped. Raises ValueError where it is, or may be, another one."""
    other = ValueError("the keyring has another data key of this id")
    if found.fingerprint != wanted.fingerprint and (found.fingerprint or not keys.is_shared):
        raise other
    try:
        fingerprint = compute_fingerprint(await wrapping.unwrap(found))
    except UnwrapError as error:
        if error.is_foreign:  # it may work with that key
            raise
        if error.is_of_version and not found.fingerprint:  # whatever it is, it comes back with its version
            raise other from None
        return False
    if fingerprint != wanted.fingerprint:
        raise other
    return True


def _add_journal_entry(connection: Connection, now: float, *, changed: int, total: int) -> None:
    detail = f"{changed} of {total} rows of a backup were put back by {get_holder(connection)}"
    entry = JournalEntry(step=JournalStep.RESTORE, outcome=StepOutcome.SUCCEEDED, detail=detail)
    add_journal_entry(connection, now, f"restore-{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}", entry)


def _parse_backup_row(row: StoredKey) -> DataKey:
    try:
        ciphertext, fingerprint = base64.b64decode(row.wrapped, validate=True), bytes.fromhex(row.fingerprint)
        aad = None if row.aad is None else row.wrapping_aad
    except (binascii.Error, ValueError):
        raise ValueError("it is damaged") from None
    wrapped = WrappedKey(ciphertext, row.kek, row.kek_version)
    return DataKey(row.id, DataKeyStatus.RETIRED, wrapped, fingerprint, row.created_at, row.algorithm, aad)


_NOT_IN_KEYRING: Final = "it is no longer in the keyring"
_CHANGED_SINCE: Final = "another program changed its wrapped form since; it was left as it is"


@dataclass(frozen=True, slots=True)
class Rollback:
    """Of one rotation, under the lease with `token`."""

    database: Database
    keys: KeyTable
    wrapping: KeyWrapper
    rotation: Rotation
    token: str

    async def begin(self) -> Rotation:
        """From now on the rotation goes backwards only."""

        def write(connection: Connection, now: float) -> Rotation:
            if self.rotation.state is not RotationState.RUNNING:
                progress.refuse_while_running(connection)
            columns = {"state": RotationState.RUNNING.value, "is_rolling_back": True}
            progress.delete_problems(connection, self.rotation)
            progress.update_rotation(connection, now, self.rotation, **columns)
            return progress.get_rotation(connection, self.rotation.id)

        return await run_under_lease(self.database, self.token, write)

    async def run_batch(self) -> None:
        """Undoes the next entries. What is undone is journalled, also where this raises."""
        rotation = self.rotation
        entries = await self.database.read(
            lambda connection: progress.list_rewraps_to_roll_back(connection, rotation, MAX_PAGE_SIZE)
        )
        await run_concurrently(entries, self._find_obstacle, self._roll_back_entries, MAX_CONCURRENT_CALLS)
        if len(entries) < MAX_PAGE_SIZE:
            await run_under_lease(self.database, self.token, self._finish)

    async def _find_obstacle(self, entry: RewrapEntry) -> str | None:
        """Why its former wrapped form must not be put back, whatever the row holds by then."""
        key = await self.database.read(lambda connection: self.keys.find(connection, entry.data_key_id))
        if key is None:
            return _NOT_IN_KEYRING
        try:
            await self.wrapping.unwrap(replace(key, wrapped=entry.old_wrap))
        except UnwrapError as error:
            return f"its former wrapped form cannot be unwrapped: {error}; it was left as it is"
        return None

    async def _roll_back_entries(self, entries: Sequence[tuple[RewrapEntry, str | None]]) -> None:
        def write(connection: Connection, now: float) -> None:
            progress.check_unchanged(connection, self.rotation)
            changed = sum(self._roll_back_entry(connection, entry, obstacle) for entry, obstacle in entries)
            progress.update_rotation(connection, now, self.rotation, done=rotations.c.done - changed)

        if entries:
            await run_under_lease(self.database, self.token, write)

    def _roll_back_entry(self, connection: Connection, entry: RewrapEntry, obstacle: str | None) -> bool:
        """Whether it changed the row; one that holds the former wrapped form, of a backup say, is as it has to be."""
        key, changed = self.keys.find(connection, entry.data_key_id), False
        try:
            if key is None:
                obstacle = None if self.keys.is_shared else _NOT_IN_KEYRING
            elif key.wrapped == entry.old_wrap:
                obstacle = None
            elif key.wrapped != entry.new_wrap:
                obstacle = None if self.keys.is_shared else _CHANGED_SINCE
            elif obstacle is None:
                changed = self.keys.replace_wrap(connection, key, entry.old_wrap)
        except RetiredVersionError as error:
            obstacle = f"its former wrapped form is not put back: {error}"
        if obstacle is not None:
            progress.add_problem(connection, self.rotation, Problem(id=entry.data_key_id, error=obstacle))
        progress.set_rewrap_outcome(
            connection, entry, RewrapOutcome.NOT_ROLLED_BACK if obstacle else RewrapOutcome.ROLLED_BACK
        )
        return changed

    def _finish(self, connection: Connection, now: float) -> None:
        progress.check_unchanged(connection, self.rotation)
        if self.rotation.new_data_key:
            self._restore_active_key(connection, self.rotation.new_data_key, self.rotation.former_data_key)
        columns = {
            "state": RotationState.ROLLED_BACK.value,
            "done": progress.count_not_rolled_back(connection, self.rotation),
        }
        progress.update_rotation(connection, now, self.rotation, **columns)

    def _restore_active_key(self, connection: Connection, added: str, previous: str | None) -> None:
        """The new data key is retired, for records may need it; the former one is active again."""
        if store.change_status(connection, added, DataKeyStatus.PENDING, DataKeyStatus.RETIRED):
            return
        if not store.change_status(connection, added, DataKeyStatus.ACTIVE, DataKeyStatus.RETIRED):
            cause = "another data key is active since; nothing was changed"
            progress.add_problem(connection, self.rotation, Problem(id=added, error=cause))
        elif previous and not store.change_status(connection, previous, DataKeyStatus.RETIRED, DataKeyStatus.ACTIVE):
            cause = "it cannot be active again, for it is no longer in the keyring; no data key is active now"
            progress.add_problem(connection, self.rotation, Problem(id=previous, error=cause))
