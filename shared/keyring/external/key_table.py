"""The rows of another program's table as data keys, and the `keypulse_*` tables beside it.

The first runner that takes the lease makes these tables: those of a keyring, under other names, and one with what is
known of each row that was unwrapped or wrapped here. That is believed only of the very ciphertext that it was found
with, because another program may write another one at any time.

The table's own column says which version wraps a row; or what is known of its ciphertext; or the ciphertext itself,
where the KMS writes the version into it. Where nothing does, or two of them disagree, it may be any version, and the
row is wrapped anew.
"""

import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import Any, ClassVar, Final, NamedTuple

from sqlalchemy import Column, Connection, Index, MetaData, String, Table, inspect, select
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import SchemaConst
from sqlalchemy.types import TypeEngine

from shared.keyring import store
from shared.keyring.database import Database
from shared.keyring.external.table import MAX_ID_LENGTH, ExternalTable, Row, TableLayout, UnreadableRow
from shared.keyring.key_table import SCAN_SECONDS, KeyCounts, KeyTable
from shared.keyring.model import UNREADABLE_VERSION, DataKey, DataKeyStatus, WrappedKey
from shared.keyring.tables import (
    Id,
    LenientBytes,
    LenientText,
    LenientTimestamp,
    LenientVersion,
    journal_entries,
    problems,
    retired_versions,
    rewraps,
    rotation_lease,
    rotations,
    schema,
)
from shared.keyring.wrapping import KeyWrapper
from shared.kms.port import MAX_VERSION_LENGTH, is_version
from shared.kms.registry import parse_key_name
from shared.sql.rows import select_rows, select_values

fingerprints: Final = Table(
    "keyring_fingerprints",
    MetaData(),
    Column("id", Id, primary_key=True),
    Column("sha256", LenientBytes, nullable=False),  # of the wrapped key that the rest is said of
    Column("kek_version", LenientVersion, nullable=False),
    Column("fingerprint", LenientBytes, nullable=False),
)


class _FingerprintRow(NamedTuple):
    id: str
    sha256: bytes
    kek_version: str
    fingerprint: bytes


_FINGERPRINTS: Final = select_rows(_FingerprintRow, fingerprints.c)
_PROBLEM_IDS: Final = select_values(str, problems.c.data_key_id)
VERSION: Final = 1
_TABLES: Final = (
    schema,
    rotation_lease,
    rotations,
    rewraps,
    problems,
    journal_entries,
    retired_versions,
    fingerprints,
)
_INDEXES: Final = {rewraps: ("rotation", "number"), journal_entries: ("rotation_id",)}
_MAX_LABEL_LENGTH: Final = 32
"""With prefix and suffix a name has 63 characters at most, which is all that PostgreSQL keeps of one."""
_LENGTHS: Final = {"rotation_id": 64, "id": 64, "kek_version": MAX_VERSION_LENGTH, "kek": 500}
"""Of the texts in keys, in MariaDB."""


def get_table_prefix(layout: TableLayout) -> str:
    """What the names of the tables begin with: another one for each column of wrapped keys."""
    name = f"{layout.name}__{layout.wrapped}"  # two underscores: a_b and c are others than a and b_c
    parts = [re.sub(r"[^a-z0-9]+", "_", part.lower()).strip("_") for part in (layout.name, layout.wrapped)]
    label = "__".join(parts)
    if label != name or len(label) > _MAX_LABEL_LENGTH:
        digest = sha256(f"{layout.name}\x00{layout.wrapped}".encode()).hexdigest()
        label = f"{label[: _MAX_LABEL_LENGTH - 9]}_{digest[:8]}"
    return f"keypulse_{label}"


def build_table_names(layout: TableLayout, prefix: str, quote: str) -> dict[str, str]:
    """The names as SQL has them, by the names of a keyring's tables; `quote` stands around an identifier."""
    qualifier = f"{quote}{layout.schema.replace(quote, quote * 2)}{quote}." if layout.schema else ""
    return {table.name: qualifier + _rename(table, prefix) for table in _TABLES}


def create_tables(connection: Connection, layout: TableLayout, prefix: str) -> None:
    tables = [_copy_table(connection, table, layout, prefix) for table in _TABLES]
    for table in tables:
        table.create(connection, checkfirst=True)
    if connection.execute(select(schema.c.version)).first() is None:
        connection.execute(schema.insert().values(singleton=1, version=VERSION))


def _rename(table: Table, prefix: str) -> str:
    return prefix + table.name.removeprefix("keyring")


def _copy_table(connection: Connection, table: Table, layout: TableLayout, prefix: str) -> Table:
    copy = table.to_metadata(MetaData(), name=_rename(table, prefix), schema=layout.schema or SchemaConst.RETAIN_SCHEMA)
    copy.indexes.clear()
    if table in _INDEXES:
        Index(f"{copy.name}_ix", *(copy.c[name] for name in _INDEXES[table]))
    if connection.dialect.name == "mariadb":
        copy.dialect_options["mariadb"]["engine"] = "InnoDB"
        keys = {column.name for column in copy.primary_key} | {"rotation_id"} | ({"id"} & set(copy.c.keys()))
        for column in copy.c:
            column.type = _choose_mariadb_type(column, is_key=column.name in keys, table=table)
    return copy


def _choose_mariadb_type(column: Column[Any], *, is_key: bool, table: Table) -> TypeEngine[Any]:
    """A type with a length, where MariaDB needs one, that compares byte by byte."""
    if isinstance(column.type, LenientTimestamp):
        return mysql.DOUBLE()
    if isinstance(column.type, LenientBytes):
        return mysql.MEDIUMBLOB()
    if not isinstance(column.type, String | LenientText | LenientVersion):
        return column.type
    length = MAX_ID_LENGTH if table is fingerprints or column.name == "data_key_id" else _LENGTHS.get(column.name)
    binary = {"charset": "utf8mb4", "collation": "utf8mb4_bin"}
    return mysql.VARCHAR(length, **binary) if is_key and length else mysql.MEDIUMTEXT(**binary)


_MAX_UNREADABLE: Final = 100
_UNKNOWN_AGE: Final = datetime.fromtimestamp(0, UTC)
_UNKNOWN_ALGORITHM: Final = "unknown"


class KeyPage(NamedTuple):
    """Some data keys, and the rows between them that cannot be read."""

    keys: list[DataKey]
    unreadable: list[UnreadableRow]


class ExternalKeyTable(KeyTable):
    """See the module; `prefix` begins the names of the tables beside it."""

    is_shared: ClassVar[bool] = True

    def __init__(self, table: ExternalTable, prefix: str, wrapping: KeyWrapper) -> None:
        super().__init__(wrapping)
        self.table = table
        self.prefix = prefix
        self._has_tables = False

    def has_tables(self, connection: Connection) -> bool:
        """Whether the tables beside it are there; once they are, they stay."""
        if not self._has_tables:
            name, schema_name = _rename(schema, self.prefix), self.table.layout.schema
            self._has_tables = (
                inspect(connection).has_table(name, schema=schema_name)
                and connection.execute(select(schema.c.version)).first() is not None
            )
        return self._has_tables

    def list_page(
        self, connection: Connection, after: str, limit: int, *, excluded: bool = False
    ) -> tuple[DataKey, ...]:
        """`excluded` gives the rows that `where` leaves out instead."""
        rows = self.table.read_page(connection, after, limit, excluded=excluded)
        return tuple(self._build_data_keys(connection, rows))

    async def list_outdated(
        self, database: Database, version: str, after: str, limit: int, rotation: int | None = None
    ) -> tuple[DataKey, ...]:
        found: list[DataKey] = []
        async for keys, _ in self.scan(database, after):
            outdated = [key for key in keys if key.wrapped.by != (self.kek, version)]
            left_out = set[str]()
            if outdated and rotation is not None:
                left_out = await database.read(partial(self._list_left_out, rotation=rotation, keys=outdated))
            found += (key for key in outdated if key.id not in left_out)
            if len(found) >= limit:
                break
        return tuple(found[:limit])

    def _list_left_out(self, connection: Connection, rotation: int, keys: list[DataKey]) -> set[str]:
        """The rotation has named them, or they were added since it began: there may be no end of these."""
        ids = [key.id for key in keys]
        named = _PROBLEM_IDS.where(problems.c.rotation == rotation, problems.c.data_key_id.in_(ids))
        stored = _read_fingerprints(connection, ids)
        added = {key.id for key in keys if key.wrapped.kek == self.kek and key.id not in stored}
        return added | set(named.fetch_all(connection))

    async def count_outdated(self, database: Database, version: str) -> int:
        total = 0
        async for keys, _ in self.scan(database):
            total += sum(key.wrapped.kek == self.kek and key.wrapped.kek_version != version for key in keys)
        return total

    def has_outdated(self, connection: Connection, version: str, rotation: int) -> bool:  # noqa: ARG002
        return False  # the pass that is over has seen every row; what was written meanwhile is for the next rotation

    async def count(self, database: Database) -> KeyCounts:
        counted: Counter[tuple[str, str]] = Counter()
        unreadable: dict[str, str] = {}
        async for keys, bad in self.scan(database):
            counted.update(key.wrapped.by for key in keys)
            unreadable |= {row.id: row.error for row in bad[: _MAX_UNREADABLE - len(unreadable)]}
        return KeyCounts(counted, unreadable)

    async def count_excluded(self, database: Database) -> Counter[tuple[str, str]]:
        """The rows that `where` leaves out, by KMS key and version; one that cannot be read may be of any version."""
        counted: Counter[tuple[str, str]] = Counter()
        if self.table.layout.where is None:
            return counted
        async for keys, bad in self.scan(database, excluded=True):
            counted.update(key.wrapped.by for key in keys)
            counted[self.kek, UNREADABLE_VERSION] += len(bad)
        return +counted

    def find(self, connection: Connection, data_key_id: str) -> DataKey | None:
        row = self.table.find(connection, data_key_id)
        return next(iter(self._build_data_keys(connection, [row]))) if row else None

    def count_chosen(self, connection: Connection) -> int:
        """A condition that reads other rows has a subquery."""
        if "select" not in (self.table.layout.where or "").lower():
            return 0
        return self.table.count(connection)

    def find_fingerprint(self, connection: Connection, key: DataKey) -> bytes:
        stored = _read_fingerprints(connection, [key.id])
        return stored[key.id].fingerprint if stored else b""

    def find_needing(self, connection: Connection, version: str) -> DataKey | None:  # noqa: ARG002
        return None  # `ExternalAdministration` counts them all before

    def find_active(self, connection: Connection) -> DataKey | None:  # noqa: ARG002
        return None

    def list_retired_versions(self, connection: Connection) -> Mapping[str, float]:
        return store.list_retired_versions(connection, self.kek) if self.has_tables(connection) else {}

    def replace_wrap(self, connection: Connection, key: DataKey, new: WrappedKey) -> bool:
        store.refuse_retired_version(connection, new)
        row = self.table.find(connection, key.id)
        if row is None or (row.wrap.ciphertext, row.aad) != (key.wrapped.ciphertext, key.aad):
            return False
        if not self.table.replace(connection, row, new.ciphertext, self._format_version(row.version, new)):
            return False
        self.store_fingerprints(connection, {key: key.fingerprint}, new)
        return True

    def insert(self, connection: Connection, key: DataKey) -> None:  # noqa: ARG002
        raise ValueError(
            "the row is gone, `driver.where` leaves it out, or its wrapped key is NULL or damaged within Tink's format"
        )

    def store_fingerprints(
        self, connection: Connection, found: Mapping[DataKey, bytes], wrapped: WrappedKey | None = None
    ) -> None:
        """Stores the fingerprints of these data keys, as they are or as `wrapped` is."""
        values = [
            {
                "id": key.id,
                "sha256": _compute_sha256((wrapped or key.wrapped).ciphertext),
                "kek_version": (wrapped or key.wrapped).kek_version,
                "fingerprint": fingerprint,
            }
            for key, fingerprint in found.items()
        ]
        if values:
            connection.execute(fingerprints.delete().where(fingerprints.c.id.in_([row["id"] for row in values])))
            connection.execute(fingerprints.insert(), values)

    async def scan(self, database: Database, after: str = "", *, excluded: bool = False) -> AsyncIterator[KeyPage]:
        """All data keys after that id, and the rows that cannot be read, one transaction for each page.

        `excluded` reads the rows that `where` leaves out instead.
        """
        last = self.table.parse_cursor(after)
        while True:
            read = partial(self._read_keys, last=last, excluded=excluded)
            keys, last = await database.read(read, seconds=SCAN_SECONDS)
            yield keys
            if last is None:
                return

    def _read_keys(
        self, connection: Connection, last: tuple[Any, ...] | None, *, excluded: bool
    ) -> tuple[KeyPage, tuple[Any, ...] | None]:
        rows, following = self.table.read_chunk(connection, last, excluded=excluded)
        keys = list(self._build_data_keys(connection, [row for row in rows if isinstance(row, Row)]))
        return KeyPage(keys, [row for row in rows if isinstance(row, UnreadableRow)]), following

    def _build_data_keys(self, connection: Connection, rows: list[Row]) -> Iterator[DataKey]:
        known = rows and self.has_tables(connection)
        stored = _read_fingerprints(connection, [row.id for row in rows]) if known else {}
        for row in rows:
            found = stored.get(row.id)
            is_same = found is not None and found.sha256 == _compute_sha256(row.wrap.ciphertext)
            yield self._build_data_key(row, found if is_same else None)

    def _build_data_key(self, row: Row, found: _FingerprintRow | None) -> DataKey:
        kek, version = self._parse_version(row.version)
        by_ciphertext = self.wrapping.kms.profile.parse_version(row.wrap.ciphertext)
        by_ciphertext = by_ciphertext or (found.kek_version if found else UNREADABLE_VERSION)
        if version is None:
            version = by_ciphertext
        elif by_ciphertext not in (UNREADABLE_VERSION, version):  # the column was changed, and the ciphertext was not
            version = UNREADABLE_VERSION
        return DataKey(
            id=row.id,
            status=DataKeyStatus.ACTIVE,
            wrapped=WrappedKey(row.wrap.ciphertext, self.kek if found else kek, version),
            fingerprint=found.fingerprint if found else b"",
            created_at=_UNKNOWN_AGE,
            algorithm=_UNKNOWN_ALGORITHM,
            aad=row.aad,
        )

    def _parse_version(self, stored: object) -> tuple[str, str | None]:
        """The KMS key and its version, by the table's own column: a version, or the full name of one.

        None where the column has no place for a version. What is no name of a key is not another one's, but unreadable.
        """
        text = _to_text(stored).strip().rstrip("/")
        if self.table.layout.key_version is None or text == self.kek:
            return self.kek, None
        if text.startswith(f"{self.kek}/") or "/" not in text:
            named: tuple[str, str] | None = (self.kek, text.rpartition("/")[2])
        else:
            named = parse_key_name(text)
        if named is None:
            return self.kek, UNREADABLE_VERSION
        kek, version = named
        if "/" in text and not version:
            return kek, None
        return kek, version if is_version(version) else UNREADABLE_VERSION

    def _format_version(self, stored: object, new: WrappedKey) -> object:
        """What the column holds for another version, in the form that it had before."""
        kek, version = self._parse_version(stored)
        if kek == self.kek and version is None:
            return stored  # the key's name, which no version changes
        if new.kek_version == UNREADABLE_VERSION:
            return None
        if isinstance(stored, int):
            return int(new.kek_version)
        text = _to_text(stored)
        if kek == self.kek and version and "/" in text:
            before, _, after = text.rpartition(version)
            return f"{before}{new.kek_version}{after}"
        return self.table.convert_version(new.kek_version)


def _to_text(stored: object) -> str:
    return stored.decode(errors="replace") if isinstance(stored, bytes) else str(stored or "")


def _compute_sha256(ciphertext: bytes) -> bytes:
    return sha256(ciphertext).digest()


def _read_fingerprints(connection: Connection, ids: Sequence[str]) -> Mapping[str, _FingerprintRow]:
    return {row.id: row for row in _FINGERPRINTS.where(fingerprints.c.id.in_(ids)).fetch_all(connection)}
