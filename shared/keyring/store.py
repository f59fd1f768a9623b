"""The data keys in their table. Every change names what it expects to find, so that two runners never undo each other.

A change that finds another row does nothing and returns so (compare-and-swap); the caller reads and decides again.
The functions work in the caller's transaction, because a rotation writes its journal in the same one.
"""

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, LargeBinary, cast, exists, select
from sqlalchemy.exc import IntegrityError

from shared.check import HintedError
from shared.keyring.administration import MAX_PAGE_SIZE
from shared.keyring.database import Database
from shared.keyring.model import LOCAL_KEK, DataKey, DataKeyStatus, WrappedKey
from shared.keyring.tables import (
    abandoned_data_keys,
    data_keys,
    fetch_page,
    find_unreadable_rows,
    local_key,
    retired_versions,
)
from shared.sql.rows import select_rows, select_values

_columns: Final = data_keys.c


class _DataKeyRow(NamedTuple):
    id: str
    status: str
    wrapped: bytes
    kek: str
    kek_version: str
    algorithm: str
    fingerprint: bytes
    created_at: float


class _RetiredVersionRow(NamedTuple):
    kek_version: str
    retired_at: float


_DATA_KEYS: Final = select_rows(_DataKeyRow, data_keys.c)
_RETIRED_VERSIONS: Final = select_rows(_RetiredVersionRow, retired_versions.c).order_by(retired_versions.c.kek_version)
_ENCRYPTIONS: Final = select_values(int, _columns.encryptions).where(_columns.status == DataKeyStatus.ACTIVE)
_LOCAL_KEY_FINGERPRINT: Final = select_values(bytes, local_key.c.fingerprint)


class RetiredVersionError(HintedError):
    """A wrap by a version that was retired, which must not be stored."""


class OtherLocalKeyError(Exception):
    """A wrap by another local key than the database knows, which must not be stored."""


def list_data_keys(
    connection: Connection, after: str, limit: int, condition: ColumnElement[bool] | None = None
) -> tuple[DataKey, ...]:
    """The data keys whose id comes after `after`, in the order of their ids."""
    query = _DATA_KEYS.where(_columns.id > after).order_by(_columns.id)
    if condition is not None:
        query = query.where(condition)
    return tuple(_parse_data_key(row) for row in fetch_page(connection, query, limit=limit))


def find_data_key(connection: Connection, data_key_id: str) -> DataKey | None:
    row = _DATA_KEYS.where(_columns.id == data_key_id).fetch_first(connection)
    return _parse_data_key(row) if row else None


def find_active_data_key(connection: Connection) -> DataKey | None:
    """The data key that encrypts new records."""
    active = _DATA_KEYS.where(_columns.status == DataKeyStatus.ACTIVE)
    return next(map(_parse_data_key, fetch_page(connection, active, limit=1)), None)


def read_encryptions(connection: Connection) -> int | None:
    """How often the active data key has encrypted; None if there is none, or the number cannot be read."""
    encryptions = _ENCRYPTIONS.fetch_first(connection)
    return encryptions if isinstance(encryptions, int) else None


def insert_data_key(connection: Connection, key: DataKey) -> None:
    """Stores a new one, or one that was abandoned.

    Raises IntegrityError if its id is there or another is active, and RetiredVersionError.
    """
    refuse_retired_version(connection, key.wrapped)
    values = {
        "id": key.id,
        "status": key.status.value,
        "algorithm": key.algorithm,
        "fingerprint": key.fingerprint,
        "created_at": key.created_at.timestamp(),
    }
    connection.execute(data_keys.insert().values(**values, **_to_wrap_columns(key.wrapped)))
    _clear_abandoned(connection, key.id)


def change_status(connection: Connection, data_key_id: str, expected: DataKeyStatus, new: DataKeyStatus) -> bool:
    """False, and nothing is changed, where its status is another."""
    found = (_columns.id == data_key_id) & (_columns.status == expected)
    return connection.execute(data_keys.update().where(found).values(status=new.value)).rowcount == 1


def replace_wrap(connection: Connection, data_key_id: str, expected: WrappedKey, new: WrappedKey) -> bool:
    """Replaces the wrapped form; False, and nothing is changed, where it is another. Raises RetiredVersionError."""
    refuse_retired_version(connection, new)
    found = (_columns.id == data_key_id) & _equals(_columns.wrapped, expected.ciphertext)
    return connection.execute(data_keys.update().where(found).values(**_to_wrap_columns(new))).rowcount == 1


def holds(key: DataKey) -> tuple[ColumnElement[bool], ...]:
    """The condition that a row still has all that `key` was unwrapped from."""
    return (
        _columns.kek == key.wrapped.kek,
        _equals(_columns.wrapped, key.wrapped.ciphertext),
        _equals(_columns.fingerprint, key.fingerprint),
    )


def _equals(column: ColumnElement[Any], expected: bytes) -> ColumnElement[bool]:
    return cast(column, LargeBinary) == expected  # a file may hold a text there


def refuse_retired_version(connection: Connection, wrapped: WrappedKey) -> None:
    """Raises RetiredVersionError if nothing may be wrapped by this version any more."""
    if wrapped.kek_version in list_retired_versions(connection, wrapped.kek):
        raise RetiredVersionError(
            f"version {wrapped.kek_version} of {wrapped.kek} was retired, and nothing may be wrapped by it",
            "set another primary version, and wait until Encrypt uses it",
        )


def list_retired_versions(connection: Connection, kek: str) -> dict[str, float]:
    """The versions of `kek` that nothing may be wrapped by any more, and since when (unix seconds)."""
    return dict(_RETIRED_VERSIONS.where(retired_versions.c.kek == kek).fetch_all(connection))


def read_local_key_fingerprint(connection: Connection) -> bytes | None:
    """The fingerprint of the service's local key; None if none is stored."""
    return _LOCAL_KEY_FINGERPRINT.fetch_first(connection)


def find_unreadable_data_keys(connection: Connection) -> dict[str, str]:
    """Why data keys' rows cannot be read, by id: see `find_unreadable_rows`."""
    return find_unreadable_rows(
        connection, data_keys, status=[each.value for each in DataKeyStatus if each is not DataKeyStatus.UNKNOWN]
    )


class DataKeyStore:
    """What the service itself needs of the data keys. Every method raises DatabaseError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_all(self) -> tuple[DataKey, ...]:
        """Every data key, oldest first."""
        keys: list[DataKey] = []
        after = ""
        while some := await self._database.read(partial(list_data_keys, after=after, limit=MAX_PAGE_SIZE)):
            keys += some
            after = some[-1].id
        return tuple(sorted(keys, key=lambda key: (key.created_at, key.id)))

    async def find(self, data_key_id: str) -> DataKey | None:
        return await self._database.read(partial(find_data_key, data_key_id=data_key_id))

    async def is_abandoned(self, data_key_id: str) -> bool:
        """Whether a data key was abandoned, and its row was not copied back."""
        is_stored = exists(select(_columns.id).where(_columns.id == data_key_id))
        query = select(abandoned_data_keys.c.id).where(abandoned_data_keys.c.id == data_key_id, ~is_stored)
        return await self._database.read(lambda connection: connection.execute(query).first() is not None)

    async def activate(
        self, new: DataKey, *, expected_active: DataKey | None, local_fingerprint: bytes | None = None
    ) -> bool:
        """Stores `new` as the active key, and retires the one that was active, in one step.

        False, and nothing is changed, where another key than `expected_active` is active; None expects none. Raises
        RetiredVersionError, and OtherLocalKeyError if a local key of another fingerprint than the stored one wraps it.
        """

        def swap(connection: Connection) -> bool:
            if new.wrapped.kek == LOCAL_KEK and read_local_key_fingerprint(connection) != local_fingerprint:
                raise OtherLocalKeyError
            if expected_active and not change_status(
                connection, expected_active.id, DataKeyStatus.ACTIVE, DataKeyStatus.RETIRED
            ):
                return False
            if expected_active is None:
                _retire_unreadable(connection)
            insert_data_key(connection, replace(new, status=DataKeyStatus.ACTIVE))
            return True

        try:
            return await self._database.write_exclusively(swap)
        except IntegrityError:
            return False

    async def restore_row(self, key: DataKey) -> bool:
        """Stores a lost row as retired; False, and nothing is changed, if it is there. Raises RetiredVersionError."""
        try:
            await self._database.write_exclusively(
                lambda connection: insert_data_key(connection, replace(key, status=DataKeyStatus.RETIRED))
            )
        except IntegrityError:
            return False
        return True

    async def replace_wrap(self, key: DataKey, wrapped: WrappedKey) -> bool:
        """See the function of that name; a data key that was abandoned is no longer."""

        def replace_wrapped(connection: Connection) -> bool:
            if not replace_wrap(connection, key.id, key.wrapped, wrapped):
                return False
            _clear_abandoned(connection, key.id)
            return True

        return await self._database.write_exclusively(replace_wrapped)


def _clear_abandoned(connection: Connection, data_key_id: str) -> None:
    """An abandoned one whose row is back: if it is lost again, it counts as lost."""
    connection.execute(abandoned_data_keys.delete().where(abandoned_data_keys.c.id == data_key_id))


def _retire_unreadable(connection: Connection) -> None:
    """An active data key whose id cannot be read encrypts nothing, and must not keep another from being active."""
    if find_active_data_key(connection) is None:
        active = data_keys.update().where(_columns.status == DataKeyStatus.ACTIVE)
        connection.execute(active.values(status=DataKeyStatus.RETIRED.value))


def _to_wrap_columns(wrapped: WrappedKey) -> dict[str, Any]:
    return {"wrapped": wrapped.ciphertext, "kek": wrapped.kek, "kek_version": wrapped.kek_version}


def _parse_data_key(row: _DataKeyRow) -> DataKey:
    return DataKey(
        id=row.id,
        status=DataKeyStatus(row.status),
        wrapped=WrappedKey(row.wrapped, row.kek, row.kek_version),
        fingerprint=row.fingerprint,
        created_at=datetime.fromtimestamp(row.created_at, UTC),
        algorithm=row.algorithm,
    )
