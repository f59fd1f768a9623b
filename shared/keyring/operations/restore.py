"""Puts the rows of a backup back: those whose data key does not open any more, and those that are missing altogether.

What opens stays as it is, and a row is believed only after it was unwrapped: a backup must not displace what works.
Where its version was retired meanwhile, or its AAD is another one today, it is wrapped anew by the primary version.
What is replaced is kept in the journal.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from shared.keyring.administration import (
    MAX_PAGE_SIZE,
    AdministrationError,
    JournalEntry,
    JournalStep,
    RefusedError,
    StepOutcome,
    StoredKey,
)
from shared.keyring.database import Database
from shared.keyring.journal import progress
from shared.keyring.journal.entries import add_journal_entry
from shared.keyring.key_table import KeyTable
from shared.keyring.model import DataKey, DataKeyStatus, WrappedKey, compute_fingerprint
from shared.keyring.rotation_lease import get_holder, run_under_lease
from shared.keyring.wrapping import KeyWrapper, UnwrapError


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
