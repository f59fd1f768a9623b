"""The rows that a rotation works on: data keys, and the records of a service that need them.

The service itself, or the configuration of the driver `sql`, names the table of records, which is in the keyring's
database. Only the service knows how its records are opened; without that they are only counted.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    TableClause,
    column,
    exists,
    func,
    inspect,
    select,
    table,
    type_coerce,
)

from shared.keyring import store
from shared.keyring.database import Database, DatabaseError
from shared.keyring.model import LOCAL_KEK, DataKey, WrappedKey
from shared.keyring.tables import (
    Id,
    LenientBytes,
    abandoned_data_keys,
    build_unreadable_version_condition,
    data_keys,
    fetch_page,
    problems,
    to_printable_text,
)
from shared.keyring.wrapping import KeyWrapper
from shared.sql.rows import RowQuery, select_values

SCAN_SECONDS: Final = 60.0
"""How long the database may take to look through all rows, or through a page of those of another program."""
_columns: Final = data_keys.c


class KeyCounts(NamedTuple):
    """How many data keys each version of each KMS key wraps, and which rows cannot be read."""

    versions: Mapping[tuple[str, str], int]
    unreadable: Mapping[str, str]
    """Why, by their ids: the first hundred."""


class KeyTable:
    """The keyring's own table, `data_keys`; `ExternalKeyTable` has another program's rows.

    A method that takes a connection works in the caller's transaction. A method that takes the database looks through
    all rows, in as many transactions as it needs.
    """

    is_shared: ClassVar[bool] = False
    """Whether another program changes and removes rows at any time: then neither is a problem."""

    def __init__(self, wrapping: KeyWrapper) -> None:
        self.wrapping = wrapping
        self.kek = wrapping.kek

    def list_page(self, connection: Connection, after: str, limit: int) -> tuple[DataKey, ...]:
        """The data keys that come after the id `after`, in the table's order; fewer than `limit` are all."""
        return store.list_data_keys(connection, after, limit)

    async def list_outdated(
        self, database: Database, version: str, after: str, limit: int, rotation: int | None = None
    ) -> tuple[DataKey, ...]:
        """The data keys that another version wraps, without the problems of the rotation of that number."""
        return await database.read(
            lambda connection: self._list_outdated(connection, version, after, limit, rotation), seconds=SCAN_SECONDS
        )

    def _list_outdated(
        self, connection: Connection, version: str, after: str, limit: int, rotation: int | None
    ) -> tuple[DataKey, ...]:
        condition = ~((_columns.kek == self.kek) & (_columns.kek_version == version))
        if rotation is not None:
            same = (problems.c.rotation == rotation) & (problems.c.data_key_id == _columns.id)
            condition &= ~exists().where(same)
        return store.list_data_keys(connection, after, limit, condition)

    async def count_outdated(self, database: Database, version: str) -> int:
        """How many of them are ours to wrap."""
        counts = await database.read(_count_versions, seconds=SCAN_SECONDS)
        return sum(
            total
            for (kek, by), total in counts.items()
            if (kek, by) != (self.kek, version) and (kek == LOCAL_KEK or self.wrapping.find_key(kek))
        )

    def has_outdated(self, connection: Connection, version: str, rotation: int) -> bool:
        """Whether the rotation has to pass through the table again, decided within a moment."""
        return bool(self._list_outdated(connection, version, "", 1, rotation))

    async def count(self, database: Database) -> KeyCounts:

        def count(connection: Connection) -> KeyCounts:
            return KeyCounts(_count_versions(connection), store.find_unreadable_data_keys(connection))

        return await database.read(count, seconds=SCAN_SECONDS)

    def find(self, connection: Connection, data_key_id: str) -> DataKey | None:
        return store.find_data_key(connection, data_key_id)

    def count_chosen(self, connection: Connection) -> int:  # noqa: ARG002
        """How many rows are there to rotate, where a change of one may take others out; otherwise 0."""
        return 0

    def find_fingerprint(self, connection: Connection, key: DataKey) -> bytes:  # noqa: ARG002
        """The fingerprint that was last known of its row, whatever the row holds today; empty where none was."""
        return key.fingerprint

    def find_needing(self, connection: Connection, version: str) -> DataKey | None:
        """A data key that this version wraps, or may wrap, decided within a moment."""
        by = _columns.kek_version
        may_need_it = (by == version) | build_unreadable_version_condition(connection, by)
        return next(iter(store.list_data_keys(connection, "", 1, (_columns.kek == self.kek) & may_need_it)), None)

    def find_active(self, connection: Connection) -> DataKey | None:
        """The data key that encrypts new records; None where each row is used for its own."""
        return store.find_active_data_key(connection)

    def list_retired_versions(self, connection: Connection) -> Mapping[str, float]:
        """The versions of the KMS key that nothing may be wrapped by any more, and since when (unix seconds)."""
        return store.list_retired_versions(connection, self.kek)

    def replace_wrap(self, connection: Connection, key: DataKey, new: WrappedKey) -> bool:
        """Replaces the wrapped form of `key`; False, and nothing is changed, where it is no longer the one in `key`.

        Raises RetiredVersionError.
        """
        return store.replace_wrap(connection, key.id, key.wrapped, new)

    def insert(self, connection: Connection, key: DataKey) -> None:
        """Stores a row that was lost. Raises IntegrityError, RetiredVersionError, ValueError where it cannot."""
        store.insert_data_key(connection, key)


class _VersionCount(NamedTuple):
    kek: str
    kek_version: str
    total: int


_by_version: Final = (_columns.kek, _columns.kek_version)
_SELECT_COUNTS: Final = select(*_by_version, func.count().label("total")).group_by(*_by_version)
_VERSION_COUNTS: Final = RowQuery(_VersionCount, _SELECT_COUNTS)


def _count_versions(connection: Connection) -> dict[tuple[str, str], int]:
    return _to_counts(_VERSION_COUNTS.fetch_all(connection))


def _to_counts(rows: Iterable[_VersionCount]) -> dict[tuple[str, str], int]:
    """By KMS key and version. A version that cannot be read reads as another one does: they are added."""
    counted: Counter[tuple[str, str]] = Counter()
    for kek, version, total in rows:
        counted[kek, version] += total
    return counted


class _OrphanCount(NamedTuple):
    data_key_id: object
    total: int


class Record(NamedTuple):
    id: str
    data_key_id: str
    ciphertext: bytes


OpenRecord = Callable[[Record, bytes], object]
"""Opens a record with its data key; raises ValueError where it is not what was stored."""


@dataclass(frozen=True, slots=True)
class RecordsTable:
    name: str
    data_key_column: str
    id_column: str = "id"
    ciphertext_column: str = "sealed"
    open_record: OpenRecord | None = None
    """None if this process cannot decrypt them."""

    async def check_columns(self, database: Database) -> None:
        """Raises DatabaseError if there is no such table or column."""

        def columns(connection: Connection) -> set[str]:
            found = inspect(connection)
            return {each["name"] for each in found.get_columns(self.name)} if found.has_table(self.name) else set()

        found = await database.read(columns)
        required = {self.data_key_column} | ({self.id_column, self.ciphertext_column} if self.open_record else set())
        if missing := required - found:
            raise DatabaseError(f"there is no table {self.name} with a column {', '.join(sorted(missing))}")

    def count_by_version(self, connection: Connection) -> dict[tuple[str, str], int]:
        """How many records need each version of each KMS key."""
        records = self._build_table()
        joined = data_keys.join(records, records.c[self.data_key_column] == _columns.id)
        return _to_counts(RowQuery(_VersionCount, _SELECT_COUNTS.select_from(joined)).fetch_all(connection))

    def count_orphans(self, connection: Connection) -> dict[str, int]:
        """How many records need a data key that is not in the keyring, by its id: the first hundred."""
        records = self._build_table()
        data_key_id = records.c[self.data_key_column]
        joined = records.outerjoin(data_keys, data_key_id == data_keys.c.id)
        lost = (
            select(data_key_id.label("data_key_id"), func.count().label("total"))
            .select_from(joined)
            .where(data_keys.c.id.is_(None), ~_is_abandoned(data_key_id))
            .group_by(data_key_id)
            .limit(100)
        )
        rows = RowQuery(_OrphanCount, lost).fetch_all(connection)
        return {to_printable_text(name): total for name, total in rows}

    def list_missing_data_keys(self, connection: Connection) -> tuple[str, ...]:
        """The ids of the data keys that records need and the keyring lacks.

        One lookup in the index of the data keys' column for each data key, not for each record: it needs that index.
        """
        data_key_id = self._build_table().c[self.data_key_column]
        ids = select(func.min(data_key_id).label("id")).cte("needed", recursive=True)
        following = select(func.min(data_key_id)).where(data_key_id > ids.c.id).correlate(ids).scalar_subquery()
        ids = ids.union_all(select(following).where(ids.c.id.is_not(None)))
        is_stored = exists(select(data_keys.c.id).where(data_keys.c.id == ids.c.id))
        lacking = select_values(object, ids.c.id).where(ids.c.id.is_not(None), ~is_stored, ~_is_abandoned(ids.c.id))
        return tuple(map(to_printable_text, lacking.fetch_all(connection)))

    def count_by_data_key(self, connection: Connection, data_key_id: str) -> int:
        """How many records need one data key."""
        records = self._build_table()
        own = select_values(int, func.count()).where(records.c[self.data_key_column] == data_key_id)
        return own.fetch_one(connection)

    def read_page(self, connection: Connection, data_key_id: str, after: str, limit: int) -> tuple[Record, ...]:
        """Records of one data key whose id comes after `after`, in the order of their ids."""
        records = self._build_table()
        own_id, record_data_key_id = records.c[self.id_column], records.c[self.data_key_column]
        these = RowQuery(
            Record,
            select(
                type_coerce(own_id, Id).label("id"),
                type_coerce(record_data_key_id, Id).label("data_key_id"),
                type_coerce(records.c[self.ciphertext_column], LenientBytes()).label("ciphertext"),
            ),
        ).where(record_data_key_id == data_key_id, own_id > after)
        return tuple(fetch_page(connection, these.order_by(own_id), limit=limit))

    def _build_table(self) -> TableClause:
        names = {self.id_column, self.ciphertext_column, self.data_key_column}
        return table(self.name, *(column(name) for name in sorted(names)))


def _is_abandoned(data_key_id: ColumnElement[str]) -> ColumnElement[bool]:
    return exists(select(abandoned_data_keys.c.id).where(abandoned_data_keys.c.id == data_key_id))


async def notify_nobody() -> None:
    """Every instance reads the keyring from time to time anyway."""


@dataclass(frozen=True, slots=True)
class OpenKeyring:
    """A keyring, as its operations need it."""

    database: Database
    keys: KeyTable
    wrapping: KeyWrapper
    records: RecordsTable | None = None
    notify_instances: Callable[[], Awaitable[None]] = notify_nobody
    """Has every instance of the service read the keyring again."""
