"""The journal of a table of another program: `keypulse_*` tables beside it, made when somebody first takes the lease.

They are those of a keyring, under names of their own, and one of fingerprints: what is known of each row that was
unwrapped or wrapped here.
"""

import re
from hashlib import sha256
from typing import Any, Final

from sqlalchemy import Column, Connection, Index, MetaData, String, Table, inspect, select
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import SchemaConst
from sqlalchemy.types import TypeEngine

from shared.keyring.column_types import Id, LenientBytes, LenientText, LenientTimestamp, LenientVersion
from shared.keyring.external.layout import TableLayout
from shared.keyring.external.row_id import MAX_ID_LENGTH
from shared.keyring.tables import (
    journal_entries,
    problems,
    retired_versions,
    rewraps,
    rotation_lease,
    rotations,
    schema,
)
from shared.kms.port import MAX_VERSION_LENGTH

fingerprints: Final = Table(
    "keyring_fingerprints",
    MetaData(),
    Column("id", Id, primary_key=True),
    Column("sha256", LenientBytes, nullable=False),  # of the wrapped key that the rest is said of
    Column("kek_version", LenientVersion, nullable=False),
    Column("fingerprint", LenientBytes, nullable=False),
)
VERSION: Final = 1
"""Of these tables."""
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
    """The names as SQL has them, by those of a keyring's tables; `quote` stands around an identifier."""
    qualifier = f"{quote}{layout.schema.replace(quote, quote * 2)}{quote}." if layout.schema else ""
    return {table.name: qualifier + _rename(table, prefix) for table in _TABLES}


def has_tables(connection: Connection, layout: TableLayout, prefix: str) -> bool:
    """Whether all of them are there."""
    found = inspect(connection)
    if not found.has_table(_rename(schema, prefix), schema=layout.schema):
        return False
    return connection.execute(select(schema.c.version)).first() is not None


def create_tables(connection: Connection, layout: TableLayout, prefix: str) -> None:
    """Creates those that are missing."""
    tables = [_copy_table(connection, table, layout, prefix) for table in _TABLES]
    for table in tables:
        table.create(connection, checkfirst=True)
    if connection.execute(select(schema.c.version)).first() is None:
        connection.execute(schema.insert().values(singleton=1, version=VERSION))


def _rename(table: Table, prefix: str) -> str:
    return prefix + table.name.removeprefix("keyring")


def _copy_table(connection: Connection, table: Table, layout: TableLayout, prefix: str) -> Table:
    """The same for a CREATE TABLE."""
    copy = table.to_metadata(MetaData(), name=_rename(table, prefix), schema=layout.schema or SchemaConst.RETAIN_SCHEMA)
    copy.indexes.clear()
    for columns in (_INDEXES[table],) if table in _INDEXES else ():
        Index(f"{copy.name}_ix", *(copy.c[name] for name in columns))
    if connection.dialect.name == "mariadb":
        copy.dialect_options["mariadb"]["engine"] = "InnoDB"
        keys = {column.name for column in copy.primary_key} | {"rotation_id"} | ({"id"} & set(copy.c.keys()))
        for column in copy.c:
            column.type = _choose_mariadb_type(column, is_key=column.name in keys, table=table)
    return copy


def _choose_mariadb_type(column: Column[Any], *, is_key: bool, table: Table) -> TypeEngine[Any]:
    """One that has a length, where MariaDB needs one, and compares byte by byte."""
    if isinstance(column.type, LenientTimestamp):
        return mysql.DOUBLE()
    if isinstance(column.type, LenientBytes):
        return mysql.MEDIUMBLOB()
    if not isinstance(column.type, String | LenientText | LenientVersion):
        return column.type
    length = MAX_ID_LENGTH if table is fingerprints or column.name == "data_key_id" else _LENGTHS.get(column.name)
    binary = {"charset": "utf8mb4", "collation": "utf8mb4_bin"}
    return mysql.VARCHAR(length, **binary) if is_key and length else mysql.MEDIUMTEXT(**binary)
