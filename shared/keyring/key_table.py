"""The rows of data keys that rotations work on: the keyring's own table, or one that another program made.

The methods work on a connection, in whatever transaction the caller has begun.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from sqlalchemy import ColumnElement, Connection, exists, func, select

from shared.keyring import store
from shared.keyring.column_types import build_unreadable_version_condition
from shared.keyring.model import LOCAL_KEK, DataKey, WrappedKey
from shared.keyring.rows import VersionCount, fetch
from shared.keyring.tables import data_keys, problems

_columns = data_keys.c


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

    def list_outdated(
        self, connection: Connection, version: str, after: str, limit: int, rotation: int | None = None
    ) -> tuple[DataKey, ...]:
        """Those that `version` of the KMS key does not wrap, but for the problems of the rotation of that number."""
        ...

    def count_outdated(self, connection: Connection, version: str) -> int:
        """How many of them are ours to wrap."""
        ...

    def has_outdated(self, connection: Connection, version: str, rotation: int) -> bool:
        """Whether there is one, decided within a moment."""
        ...

    def count(self, connection: Connection) -> KeyCounts:
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

    def find_unreadable(self, connection: Connection) -> Mapping[str, str]:
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
    """The keyring's own table, `data_keys`; `kek` is the KMS key of the service."""

    is_shared = False

    def __init__(self, kek: str) -> None:
        self._kek = kek

    def list_page(self, connection: Connection, after: str, limit: int) -> tuple[DataKey, ...]:
        """See `KeyTable`, as for every method here."""
        return store.list_data_keys(connection, after, limit)

    def list_outdated(  # noqa: D102
        self, connection: Connection, version: str, after: str, limit: int, rotation: int | None = None
    ) -> tuple[DataKey, ...]:
        condition = self._build_outdated_condition(version)
        if rotation is not None:
            same = (problems.c.rotation == rotation) & (problems.c.data_key_id == _columns.id)
            condition &= ~exists().where(same)
        return store.list_data_keys(connection, after, limit, condition)

    def count_outdated(self, connection: Connection, version: str) -> int:  # noqa: D102
        ours = _columns.kek.in_((self._kek, LOCAL_KEK))
        outdated = select(func.count()).where(self._build_outdated_condition(version), ours)
        return connection.execute(outdated).scalar_one()

    def has_outdated(self, connection: Connection, version: str, rotation: int) -> bool:  # noqa: D102
        return bool(self.list_outdated(connection, version, "", 1, rotation))

    def count(self, connection: Connection) -> KeyCounts:  # noqa: D102
        counted = select(_columns.kek, _columns.kek_version, func.count()).group_by(_columns.kek, _columns.kek_version)
        return KeyCounts(tuple(fetch(connection, counted, VersionCount)), self.find_unreadable(connection))

    def find(self, connection: Connection, data_key_id: str) -> DataKey | None:  # noqa: D102
        return store.find_data_key(connection, data_key_id)

    def find_needing(self, connection: Connection, version: str) -> DataKey | None:  # noqa: D102
        by = _columns.kek_version
        needed = (by == version) | build_unreadable_version_condition(connection, by)
        return next(iter(store.list_data_keys(connection, "", 1, (_columns.kek == self._kek) & needed)), None)

    def find_active(self, connection: Connection) -> DataKey | None:  # noqa: D102
        return store.find_active_data_key(connection)

    def find_unreadable(self, connection: Connection) -> Mapping[str, str]:  # noqa: D102
        return store.find_unreadable_data_keys(connection)

    def list_retired_versions(self, connection: Connection) -> Mapping[str, float]:  # noqa: D102
        return store.list_retired_versions(connection, self._kek)

    def replace_wrap(self, connection: Connection, key: DataKey, new: WrappedKey) -> bool:  # noqa: D102
        return store.replace_wrap(connection, key.id, key.wrapped, new)

    def insert(self, connection: Connection, key: DataKey) -> None:  # noqa: D102
        store.insert_data_key(connection, key)

    def _build_outdated_condition(self, version: str) -> ColumnElement[bool]:
        return ~((_columns.kek == self._kek) & (_columns.kek_version == version))
