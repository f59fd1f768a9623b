"""Puts the rows of a backup back: those whose data key is the same, and those that are missing altogether.

A row is believed only after it was unwrapped: a backup that was damaged must not displace what works. Where its version
was retired meanwhile, what can be read as it is stays so, and the rest is wrapped anew by the primary version.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from shared.keyring import store
from shared.keyring.administration import PAGE, AdministrationError, RefusedError, StoredKey
from shared.keyring.database import Database
from shared.keyring.lease import under_lease
from shared.keyring.model import DataKey, Status, Wrapped
from shared.keyring.wrapping import UnwrapError, Wrapping


def row_of(key: DataKey) -> StoredKey:
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
    )


async def restore(database: Database, wrapping: Wrapping, rows: Sequence[StoredKey], token: str) -> int:
    """How many rows were changed or put in; one that is missing comes back as retired, so that it encrypts nothing.

    Raises:
        RefusedError: the lease is not held, or these are too many rows.
        RetiredVersionError: Encrypt uses a version that was retired.
        AdministrationError: some could not be put back; all others were.
        KmsError, DatabaseError: the rest was not tried.
    """
    if len(rows) > PAGE:
        raise RefusedError(f"a restore takes up to {PAGE} rows; send the others in another call")
    changed, failed = 0, []
    for row in rows:
        try:
            changed += await _restore(database, wrapping, row, token)
        except (UnwrapError, ValueError) as error:
            failed.append(f"{row.id} ({error})")
    if failed:
        more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise AdministrationError(
            f"of {len(rows)} rows {changed} were changed; these could not be put back, and are as they were: "
            f"{', '.join(failed[:5])}{more}; look at them in another backup"
        )
    return changed


async def _restore(database: Database, wrapping: Wrapping, row: StoredKey, token: str) -> bool:
    wanted = _data_key(row)
    found = await database.read(lambda connection: store.find(connection, row.id))
    if found and found.fingerprint != wanted.fingerprint:
        raise ValueError("the keyring has another data key of this id")
    if found and found.wrapped == wanted.wrapped:
        return False
    if wanted.wrapped.kek_version in await database.read(lambda it: store.retired(it, wanted.wrapped.kek)):
        if found and await _can_be_read(wrapping, found):
            return False
        wanted = replace(wanted, wrapped=await wrapping.wrap(wanted.id, await wrapping.unwrap(wanted)))
    else:
        await wrapping.unwrap(wanted)

    def write(connection: Connection, _now: float) -> bool:
        if found is None:
            store.insert(connection, wanted)
            return True
        return store.rewrap(connection, row.id, found.wrapped, wanted.wrapped)

    try:
        if await under_lease(database, token, write):
            return True
    except IntegrityError:
        pass
    raise ValueError("another hand changed it meanwhile")


async def _can_be_read(wrapping: Wrapping, key: DataKey) -> bool:
    try:
        await wrapping.unwrap(key)
    except UnwrapError:
        return False
    return True


def _data_key(row: StoredKey) -> DataKey:
    try:
        ciphertext, fingerprint = base64.b64decode(row.wrapped, validate=True), bytes.fromhex(row.fingerprint)
    except (binascii.Error, ValueError):
        raise ValueError("it is damaged") from None
    wrapped = Wrapped(ciphertext, row.kek, row.kek_version)
    return DataKey(row.id, Status.RETIRED, wrapped, fingerprint, row.created_at, row.algorithm)
