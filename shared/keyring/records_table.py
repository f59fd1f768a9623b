"""The records of a service, as far as a rotation must know them: which data key each needs, and whether they open.

The service's own table is named by whoever knows it: the service itself, or the configuration of the `sql` driver. It
is in the keyring's database. Only the service knows how its records are opened; without that they are counted alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, TableClause, column, exists, func, inspect, select, table, type_coerce

from shared.keyring.column_types import Id, LenientBytes, to_printable_text
from shared.keyring.database import Database, DatabaseError
from shared.keyring.rows import MissingKeyRow, OrphanCount, RowCount, VersionCount, fetch, fetch_one, fetch_page
from shared.keyring.tables import abandoned_data_keys, data_keys


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it is stored."""

    id: str
    data_key_id: str
    ciphertext: bytes


OpenRecord = Callable[[Record, bytes], object]
"""Opens a record with its data key; raises ValueError where it is not what was stored."""


@dataclass(frozen=True, slots=True)
class RecordsTable:
    """Where the records are."""

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
        records, key = self._build_table(), data_keys.c
        joined = data_keys.join(records, records.c[self.data_key_column] == key.id)
        group = (key.kek, key.kek_version)
        counted = select(*group, func.count().label("total")).select_from(joined).group_by(*group)
        return {(row.kek, row.kek_version): row.total for row in fetch(connection, counted, VersionCount)}

    def count_orphans(self, connection: Connection) -> dict[str, int]:
        """How many records need a data key that is not in the keyring, by its id: the first hundred."""
        records = self._build_table()
        data_key_id = records.c[self.data_key_column]
        joined = records.outerjoin(data_keys, data_key_id == data_keys.c.id)
        lost = (
            select(data_key_id.label("data_key_id"), func.count().label("total"))
            .select_from(joined)
            .where(data_keys.c.id.is_(None), ~_is_abandoned(data_key_id))
        )
        rows = fetch(connection, lost.group_by(data_key_id).limit(100), OrphanCount)
        return {to_printable_text(row.data_key_id): row.total for row in rows}

    def list_missing_data_keys(self, connection: Connection) -> tuple[str, ...]:
        """The ids of the data keys that records need and the keyring lacks.

        One lookup in the index of the data keys' column for each data key, not for each record: it needs that index.
        """
        data_key_id = self._build_table().c[self.data_key_column]
        ids = select(func.min(data_key_id).label("id")).cte("needed", recursive=True)
        following = select(func.min(data_key_id)).where(data_key_id > ids.c.id).correlate(ids).scalar_subquery()
        ids = ids.union_all(select(following).where(ids.c.id.is_not(None)))
        is_stored = exists(select(data_keys.c.id).where(data_keys.c.id == ids.c.id))
        lacking = select(ids.c.id).where(ids.c.id.is_not(None), ~is_stored, ~_is_abandoned(ids.c.id))
        return tuple(to_printable_text(row.id) for row in fetch(connection, lacking, MissingKeyRow))

    def count_by_data_key(self, connection: Connection, data_key_id: str) -> int:
        """How many records need one data key."""
        records = self._build_table()
        these = select(func.count().label("total")).select_from(records)
        return fetch_one(connection, these.where(records.c[self.data_key_column] == data_key_id), RowCount).total

    def read_page(self, connection: Connection, data_key_id: str, after: str, limit: int) -> tuple[Record, ...]:
        """Records of one data key whose id comes after `after`, in the order of their ids."""
        records = self._build_table()
        own_id, record_data_key_id = records.c[self.id_column], records.c[self.data_key_column]
        these = select(
            type_coerce(own_id, Id).label("id"),
            type_coerce(record_data_key_id, Id).label("data_key_id"),
            type_coerce(records.c[self.ciphertext_column], LenientBytes()).label("ciphertext"),
        ).where(record_data_key_id == data_key_id, own_id > after)
        return tuple(fetch_page(connection, these.order_by(own_id), Record, limit=limit))

    def _build_table(self) -> TableClause:
        names = {self.id_column, self.ciphertext_column, self.data_key_column}
        return table(self.name, *(column(name) for name in sorted(names)))


def _is_abandoned(data_key_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Nobody waits for the records of such a one any more."""
    return exists(select(abandoned_data_keys.c.id).where(abandoned_data_keys.c.id == data_key_id))
