"""The rows of data keys that rotations work on: the keyring's own table, or one that another program made.

What takes a connection works in whatever transaction the caller has begun. What looks through all rows takes the
database, and as many transactions as it needs.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

from sqlalchemy import ColumnElement, Connection, exists, func, select

from shared.keyring import store
from shared.keyring.column_types import build_unreadable_version_condition
from shared.keyring.database import Database
from shared.keyring.model import LOCAL_KEK, DataKey, WrappedKey
from shared.keyring.rows import VersionCount, fetch
from shared.keyring.tables import data_keys, problems
from shared.kms.profile import KmsProfile

SCAN_SECONDS: Final = 60.0
"""How long the database may take to look through all rows, or through a page of those of another program."""
_columns: Final = data_keys.c


class KeyCounts(NamedTuple):
    """How many data keys each version wraps, and which rows cannot be read."""

    versions: tuple[VersionCount, ...]
    unreadable: Mapping[str, str]
    """Why, by their ids: the first hundred."""


class KeyTable(Protocol):
    """Rows of data keys."""

    is_shared: bool
    """Whether another program changes and removes rows at any time: then neither is a problem."""

    def list_page(self, connection: Connection, after: str, limit: int) -> tuple[DataKey, ...]:
        """Those that come after the id `after`, in the table's order; fewer than `limit` are all."""
        ...

    async def list_outdated(
        self, database: Database, version: str, after: str, limit: int, rotation: int | None = None
    ) -> tuple[DataKey, ...]:
        """Those that `version` of the KMS key does not wrap, but for the problems of the rotation of that number."""
        ...

    async def count_outdated(self, database: Database, version: str) -> int:
        """How many of them are ours to wrap."""
        ...

    def has_outdated(self, connection: Connection, version: str, rotation: int) -> bool:
        """Whether there is one, decided within a moment."""
        ...

    async def count(self, database: Database) -> KeyCounts:
        """Of the whole table."""
        ...

    def find(self, connection: Connection, data_key_id: str) -> DataKey | None:
        """The data key of that id."""
        ...

    def find_needing(self, connection: Connection, version: str) -> DataKey | None:
        """One that this version of the KMS key wraps, or may wrap, decided within a moment."""
        ...

    def find_active(self, connection: Connection) -> DataKey | None:
        """The one that encrypts new records; None where each row is used for its own."""
        ...

    async def find_unreadable(self, database: Database) -> Mapping[str, str]:
        """Why rows cannot be read, by their ids."""
        ...

    def list_retired_versions(self, connection: Connection) -> Mapping[str, float]:
        """The versions of the KMS key that nothing may be wrapped by any more, and since when (unix seconds)."""
        ...

    def replace_wrap(self, connection: Connection, key: DataKey, new: WrappedKey) -> bool:
        """Replaces the wrapped form of `key`; False, and nothing is changed, where it is no longer the one in `key`.

        Raises RetiredVersionError.
        """
        ...

    def insert(self, connection: Connection, key: DataKey) -> None:
        """Stores a row that was lost. Raises IntegrityError, RetiredVersionError, ValueError where it cannot."""
        ...


class OwnKeyTable:
    """The keyring's own table, `data_keys`; `kek` is the KMS key of the service, of the provider of that profile."""

    is_shared = False

    def __init__(self, kek: str, profile: KmsProfile) -> None:
        self._kek = kek
        self._profile = profile

    def list_page(self, connection: Connection, after: str, limit: int) -> tuple[DataKey, ...]:
        """See `KeyTable`, as for every method here."""
        return store.list_data_keys(connection, after, limit)

    async def list_outdated(  # noqa: D102
        self, database: Database, version: str, after: str, limit: int, rotation: int | None = None
    ) -> tuple[DataKey, ...]:
        return await database.read(
            lambda connection: self._list_outdated(connection, version, after, limit, rotation), seconds=SCAN_SECONDS
        )

    def _list_outdated(
        self, connection: Connection, version: str, after: str, limit: int, rotation: int | None
    ) -> tuple[DataKey, ...]:
        condition = self._build_outdated_condition(version)
        if rotation is not None:
            same = (problems.c.rotation == rotation) & (problems.c.data_key_id == _columns.id)
            condition &= ~exists().where(same)
        return store.list_data_keys(connection, after, limit, condition)

    async def count_outdated(self, database: Database, version: str) -> int:  # noqa: D102
        counts = await database.read(_count_versions, seconds=SCAN_SECONDS)
        outdated = (row for row in counts if (row.kek, row.kek_version) != (self._kek, version))
        return sum(row.total for row in outdated if row.kek == LOCAL_KEK or self._profile.may_name(row.kek, self._kek))

    def has_outdated(self, connection: Connection, version: str, rotation: int) -> bool:  # noqa: D102
        return bool(self._list_outdated(connection, version, "", 1, rotation))

    async def count(self, database: Database) -> KeyCounts:  # noqa: D102
        return await database.read(_count, seconds=SCAN_SECONDS)

    def find(self, connection: Connection, data_key_id: str) -> DataKey | None:  # noqa: D102
        return store.find_data_key(connection, data_key_id)

    def find_needing(self, connection: Connection, version: str) -> DataKey | None:  # noqa: D102
        by = _columns.kek_version
        may_need_it = (by == version) | build_unreadable_version_condition(connection, by)
        return next(iter(store.list_data_keys(connection, "", 1, (_columns.kek == self._kek) & may_need_it)), None)

    def find_active(self, connection: Connection) -> DataKey | None:  # noqa: D102
        return store.find_active_data_key(connection)

    async def find_unreadable(self, database: Database) -> Mapping[str, str]:  # noqa: D102
        return await database.read(store.find_unreadable_data_keys, seconds=SCAN_SECONDS)

    def list_retired_versions(self, connection: Connection) -> Mapping[str, float]:  # noqa: D102
        return store.list_retired_versions(connection, self._kek)

    def replace_wrap(self, connection: Connection, key: DataKey, new: WrappedKey) -> bool:  # noqa: D102
        return store.replace_wrap(connection, key.id, key.wrapped, new)

    def insert(self, connection: Connection, key: DataKey) -> None:  # noqa: D102
        store.insert_data_key(connection, key)

    def _build_outdated_condition(self, version: str) -> ColumnElement[bool]:
        return ~((_columns.kek == self._kek) & (_columns.kek_version == version))


def _count(connection: Connection) -> KeyCounts:
    return KeyCounts(_count_versions(connection), store.find_unreadable_data_keys(connection))


def _count_versions(connection: Connection) -> tuple[VersionCount, ...]:
    group = (_columns.kek, _columns.kek_version)
    counted = select(*group, func.count().label("total")).group_by(*group)
    return tuple(fetch(connection, counted, VersionCount))
