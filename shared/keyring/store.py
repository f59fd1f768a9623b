"""The data keys in their table. Every change names what it expects to find, so that two runners never undo each other.

A change that finds something else does nothing and says so (compare-and-swap); its caller reads again and decides anew.
The functions work on a connection, in whatever transaction the caller has begun: a rotation writes its journal in the
same one. `KeyStore` is what the service itself needs of them.
"""

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, exists, select
from sqlalchemy.exc import IntegrityError

from shared.keyring import columns
from shared.keyring.columns import defects
from shared.keyring.database import Database
from shared.keyring.model import LOCAL_KEK, DataKey, Status, Wrapped
from shared.keyring.tables import data_keys, given_up, local_key, retired_versions

PAGE: Final = 1000
"""Data keys in one read, at most."""
_c: Final = data_keys.c


class RetiredVersionError(Exception):
    """A wrap by a version that was retired, which must not be stored; the message says which, and what to do."""


class OtherLocalKeyError(Exception):
    """A wrap by a local key that is not the one that the database knows, which must not be stored."""


def page(
    connection: Connection, after: str, limit: int, condition: ColumnElement[bool] | None = None
) -> tuple[DataKey, ...]:
    """Those whose id comes after `after`, in the order of their ids."""
    these = select(data_keys).where(_c.id > after).order_by(_c.id)
    rows = columns.page(connection, these if condition is None else these.where(condition), limit)
    return tuple(_data_key(row) for row in rows)


def find(connection: Connection, data_key_id: str) -> DataKey | None:
    """The data key of that id."""
    row = connection.execute(select(data_keys).where(_c.id == data_key_id)).one_or_none()
    return _data_key(row) if row else None


def active(connection: Connection) -> DataKey | None:
    """The one that encrypts."""
    row = connection.execute(select(data_keys).where(_c.status == Status.ACTIVE)).one_or_none()
    return _data_key(row) if row and isinstance(row.id, str) else None


def insert(connection: Connection, key: DataKey) -> None:
    """Stores a new one, or one that was given up, after all.

    Raises IntegrityError where its id is there or another is active, and RetiredVersionError.
    """
    refuse_retired(connection, key.wrapped)
    values = {
        "id": key.id,
        "status": key.status.value,
        "algorithm": key.algorithm,
        "fingerprint": key.fingerprint,
        "created_at": key.created_at.timestamp(),
    }
    connection.execute(data_keys.insert().values(**values, **_wrapped_columns(key.wrapped)))
    _keep(connection, key.id)


def change_status(connection: Connection, data_key_id: str, expected: Status, new: Status) -> bool:
    """False, and nothing is changed, where its status is another."""
    found = (_c.id == data_key_id) & (_c.status == expected)
    return connection.execute(data_keys.update().where(found).values(status=new.value)).rowcount == 1


def rewrap(connection: Connection, data_key_id: str, expected: Wrapped, new: Wrapped) -> bool:
    """Replaces the wrapped form; False, and nothing is changed, where it is another. Raises RetiredVersionError."""
    refuse_retired(connection, new)
    found = (_c.id == data_key_id) & (_c.wrapped == expected.ciphertext)
    return connection.execute(data_keys.update().where(found).values(**_wrapped_columns(new))).rowcount == 1


def refuse_retired(connection: Connection, wrapped: Wrapped) -> None:
    """Raises RetiredVersionError where nothing may be wrapped by this version any more."""
    if wrapped.kek_version in retired(connection, wrapped.kek):
        raise RetiredVersionError(
            f"version {wrapped.kek_version} of {wrapped.kek} was retired, and nothing may be wrapped by it; "
            "set another primary version, and wait until Encrypt uses it"
        )


def retired(connection: Connection, kek: str) -> dict[int, float]:
    """The versions of `kek` that nothing may be wrapped by any more, ascending, and since when (unix seconds)."""
    of = retired_versions.c
    these = select(of.kek_version, of.retired_at).where(of.kek == kek).order_by(of.kek_version)
    return {row.kek_version: row.retired_at for row in connection.execute(these)}


def known_local_key(connection: Connection) -> bytes | None:
    """The fingerprint of the service's local key; None where none was noted."""
    return connection.execute(select(local_key.c.fingerprint)).scalar_one_or_none()


def unreadable(connection: Connection) -> dict[str, str]:
    """Why data keys' rows cannot be read, by id: see `defects`."""
    return defects(connection, data_keys, status=[each.value for each in Status if each is not Status.UNKNOWN])


class KeyStore:
    """The data keys in `database`. Every method raises DatabaseError where that cannot be read or written."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> tuple[DataKey, ...]:
        """Every data key, oldest first."""
        keys: list[DataKey] = []
        after = ""
        while some := await self._database.read(partial(page, after=after, limit=PAGE)):
            keys += some
            after = some[-1].id
        return tuple(sorted(keys, key=lambda key: (key.created_at, key.id)))

    async def find(self, data_key_id: str) -> DataKey | None:
        """The data key of that id."""
        return await self._database.read(partial(find, data_key_id=data_key_id))

    async def is_given_up(self, data_key_id: str) -> bool:
        """Whether nobody waits for a data key any more; false where its row was copied back."""
        is_stored = exists(select(_c.id).where(_c.id == data_key_id))
        these = select(given_up.c.id).where(given_up.c.id == data_key_id, ~is_stored)
        return await self._database.read(lambda connection: connection.execute(these).first() is not None)

    async def activate(self, new: DataKey, *, instead_of: DataKey | None, local: bytes | None = None) -> bool:
        """Stores `new` as the active key, and retires the one that was active, in one step.

        Args:
            new: a key that is not stored yet; its own status does not matter.
            instead_of: the key that is expected to be active, or None where none is.
            local: fingerprint of the local key, where that wraps `new`.

        Returns:
            False, and nothing is changed, where another key is active.

        Raises:
            RetiredVersionError: its wrap is by a version that was retired.
            OtherLocalKeyError: its wrap is by another local key than the other instances have.
        """

        def swap(connection: Connection) -> bool:
            if new.wrapped.kek == LOCAL_KEK and known_local_key(connection) != local:
                raise OtherLocalKeyError
            if instead_of and not change_status(connection, instead_of.id, Status.ACTIVE, Status.RETIRED):
                return False
            if instead_of is None:
                _retire_unreadable(connection)
            insert(connection, replace(new, status=Status.ACTIVE))
            return True

        try:
            return await self._database.change(swap)
        except IntegrityError:
            return False

    async def put_back(self, key: DataKey) -> bool:
        """Stores a row that was lost, as retired; False, and nothing is changed, where one of its id is there.

        Raises:
            RetiredVersionError: its wrap is by a version that was retired.
        """
        try:
            await self._database.change(lambda connection: insert(connection, replace(key, status=Status.RETIRED)))
        except IntegrityError:
            return False
        return True

    async def rewrap(self, key: DataKey, wrapped: Wrapped) -> bool:
        """Replaces the wrapped form of `key`; False, and nothing is changed, where it is no longer the one in `key`.

        Raises:
            RetiredVersionError: the new wrap is by a version that was retired.
        """

        def replace_wrapped(connection: Connection) -> bool:
            if not rewrap(connection, key.id, key.wrapped, wrapped):
                return False
            _keep(connection, key.id)
            return True

        return await self._database.change(replace_wrapped)


def _keep(connection: Connection, data_key_id: str) -> None:
    """One that was given up, and whose row is back: should it be lost again, that is told."""
    connection.execute(given_up.delete().where(given_up.c.id == data_key_id))


def _retire_unreadable(connection: Connection) -> None:
    """An active data key whose id cannot be read encrypts nothing, and must not keep another from being active."""
    found = connection.execute(select(_c.id).where(_c.status == Status.ACTIVE)).scalar_one_or_none()
    if found is not None and not isinstance(found, str):
        active = data_keys.update().where(_c.status == Status.ACTIVE)
        connection.execute(active.values(status=Status.RETIRED.value))


def _wrapped_columns(wrapped: Wrapped) -> dict[str, Any]:
    return {"wrapped": wrapped.ciphertext, "kek": wrapped.kek, "kek_version": wrapped.kek_version}


def _data_key(row: Row[Any]) -> DataKey:
    return DataKey(
        id=row.id,
        status=Status(row.status),
        wrapped=Wrapped(row.wrapped, row.kek, row.kek_version),
        fingerprint=row.fingerprint,
        created_at=datetime.fromtimestamp(row.created_at, UTC),
        algorithm=row.algorithm,
    )
