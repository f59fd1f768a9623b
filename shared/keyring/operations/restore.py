"""Puts the rows of a backup back: those whose data key is the same, and those that are missing altogether.

A row is believed only after it was unwrapped: a backup that was damaged must not displace what works. Where its version
was retired meanwhile, what can be read as it is stays so, and the rest is re-wrapped by the primary version.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from shared.keyring.administration import MAX_PAGE_SIZE, AdministrationError, RefusedError, StoredKey
from shared.keyring.database import Database
from shared.keyring.key_table import KeyTable
from shared.keyring.model import DataKey, DataKeyStatus, WrappedKey, compute_fingerprint
from shared.keyring.rotation_lease import run_under_lease
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
    changed, failed = 0, []
    for row in rows:
        try:
            changed += await _restore_data_key(database, keys, wrapping, row, token)
        except (UnwrapError, ValueError) as error:
            failed.append(f"{row.id} ({error})")
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
    if found and await _has_other_key(keys, wrapping, found, data_key):
        raise ValueError("the keyring has another data key of this id")
    if found and found.wrapped == data_key.wrapped:
        return False
    retired = await database.read(keys.list_retired_versions)
    if data_key.wrapped.kek == wrapping.kek and data_key.wrapped.kek_version in retired:
        if found and await _can_unwrap(wrapping, found):
            return False
        secret = await wrapping.unwrap(data_key)
        data_key = replace(data_key, wrapped=await wrapping.wrap_with_aad(data_key.wrapping_aad, secret))
    else:
        await wrapping.unwrap(data_key)

    def write(connection: Connection, _now: float) -> bool:
        if found is None:
            keys.insert(connection, data_key)
            return True
        return keys.replace_wrap(connection, replace(found, fingerprint=data_key.fingerprint), data_key.wrapped)

    try:
        if await run_under_lease(database, token, write):
            return True
    except IntegrityError:
        pass
    raise ValueError("another program changed it meanwhile")


async def _has_other_key(keys: KeyTable, wrapping: KeyWrapper, found: DataKey, wanted: DataKey) -> bool:
    """Whether the row has a data key that works, and is another one."""
    if found.fingerprint or not keys.is_shared:
        return found.fingerprint != wanted.fingerprint
    try:
        return compute_fingerprint(await wrapping.unwrap(found)) != wanted.fingerprint
    except UnwrapError as error:
        return error.is_of_version  # whatever it is, it comes back with its version


async def _can_unwrap(wrapping: KeyWrapper, key: DataKey) -> bool:
    try:
        await wrapping.unwrap(key)
    except UnwrapError:
        return False
    return True


def _parse_backup_row(row: StoredKey) -> DataKey:
    try:
        ciphertext, fingerprint = base64.b64decode(row.wrapped, validate=True), bytes.fromhex(row.fingerprint)
        aad = None if row.aad is None else row.wrapping_aad
    except (binascii.Error, ValueError):
        raise ValueError("it is damaged") from None
    wrapped = WrappedKey(ciphertext, row.kek, row.kek_version)
    return DataKey(row.id, DataKeyStatus.RETIRED, wrapped, fingerprint, row.created_at, row.algorithm, aad)
