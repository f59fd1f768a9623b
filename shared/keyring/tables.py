"""The keyring's tables, the same on SQLite and PostgreSQL: data keys, and all that a rotation writes.

Any program may write into them. What it got wrong in one row must not hide the others: a column reads a value that is
not of its type as one that shows up, and `find_unreadable_rows` names the row. A text that is not UTF-8 comes from the
connection as bytes, see `decode_text`; a row with such an id is passed over, because nothing can refer to it.
"""

from collections.abc import Callable, Collection
from itertools import islice
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Dialect,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    TypeDecorator,
    func,
    select,
    text,
    type_coerce,
)

from shared.keyring.model import UNREADABLE_VERSION
from shared.kms.port import MAX_VERSION_LENGTH, is_version
from shared.sql.rows import RowQuery, T


def fetch_page(connection: Connection, ordered: RowQuery[T], *, limit: int) -> list[T]:
    """The first rows of `ordered` whose first column, their id, can be read; fewer than `limit` are all."""
    found: list[T] = []
    offset = 0
    while len(found) < limit:
        rows = ordered.limit(limit).offset(offset).fetch_all(connection)
        found += [row for row in rows if isinstance(row[0], str)]
        if len(rows) < limit:
            break
        offset += limit
    return found[:limit]


Id: Final = String().with_variant(String(collation="C"), "postgresql")
"""Of an id, of data keys and of records. Compared byte by byte, as Python does: in the order of a language, the
fingerprint of all would be another one."""
MAX_TIMESTAMP: Final = 253402300799
"""Of the year 9999; Python knows no later one."""


def decode_text(stored: bytes) -> str | bytes:
    """A text as the database has it; the bytes themselves where they are not UTF-8."""
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return stored


def to_printable_text(value: Any) -> str:
    """A text; another value in a form that shows what is wrong."""
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return value if isinstance(value, str) else str(value)


class LenientText(TypeDecorator[str]):
    """A text, but no id. Read as `to_printable_text` where it is none."""

    impl = String
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        return value if value is None else to_printable_text(value)


class LenientTimestamp(TypeDecorator[float]):
    """Unix seconds. Read as 0 if they are no moment."""

    impl = Float
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> float | None:  # noqa: ARG002
        is_moment = isinstance(value, int | float) and 0 <= value <= MAX_TIMESTAMP
        return value if value is None or is_moment else 0.0


class LenientVersion(TypeDecorator[str]):
    """A version of a KMS key. Read as `UNREADABLE_VERSION` where it is none."""

    impl = String
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        return value if value is None or is_version(value) else UNREADABLE_VERSION


class LenientBytes(LargeBinary):
    """Bytes; SQLite keeps a text or a number in such a column too."""

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:  # noqa: ARG002
        def to_bytes(value: Any) -> bytes | None:
            if value is None or isinstance(value, bytes):
                return value
            return bytes(value) if isinstance(value, bytearray | memoryview) else str(value).encode()

        return to_bytes


def find_unreadable_rows(connection: Connection, table: Table, **allowed_values: Collection[str]) -> dict[str, str]:
    """Why rows of `table` cannot be read, by their id: of each column a hundred.

    `allowed_values` has the values that some columns may hold.
    """
    bad: dict[str, ColumnElement[bool]] = {
        name: table.c[name].not_in(values) for name, values in allowed_values.items()
    }
    found = _find_undecodable_text(connection, table)
    for column in table.c:
        if isinstance(column.type, LenientTimestamp):
            bad[column.name] = ~column.between(0, MAX_TIMESTAMP)
        elif isinstance(column.type, LenientVersion):
            bad[column.name] = build_unreadable_version_condition(connection, column)
    for name, condition in bad.items():
        for row_id in connection.scalars(select(table.c.id).where(condition).limit(100)):
            found.setdefault(to_printable_text(row_id), _describe_defect(table, name))
    return found


def build_unreadable_version_condition(connection: Connection, column: ColumnElement[Any]) -> ColumnElement[bool]:
    """The rows whose version reads as `UNREADABLE_VERSION`."""
    length, text = func.length(column), type_coerce(column, String())
    is_of_bad_length = (length == 0) | (length > MAX_VERSION_LENGTH)
    if connection.dialect.name == "sqlite":
        return is_of_bad_length | text.op("GLOB", is_comparison=True)("*[^ -~]*") | (func.typeof(column) != "text")
    return is_of_bad_length | text.op("~", is_comparison=True)("[^ -~]")


def _find_undecodable_text(connection: Connection, table: Table) -> dict[str, str]:
    found: dict[str, str] = {}
    for column in table.c:
        if isinstance(column.type, String | LenientText):
            raw = type_coerce(column, String()).label("raw")
            suspects = select(table.c.id, raw).where(_may_be_undecodable(connection, column))
            with connection.execute(suspects, execution_options={"yield_per": 100}) as rows:
                bad = (row_id for row_id, value in rows if value is not None and not isinstance(value, str))
                for row_id in islice(bad, 100):
                    found.setdefault(to_printable_text(row_id), _describe_defect(table, column.name))
    return found


def _may_be_undecodable(connection: Connection, column: Column[Any]) -> ColumnElement[bool]:
    """No database says whether a text is UTF-8: the reader checks each with other characters than ASCII."""
    if connection.dialect.name == "sqlite":
        return column.op("GLOB", is_comparison=True)("*[^ -~]*") | (func.typeof(column) != "text")
    return column.op("~", is_comparison=True)("[^ -~]")


def _describe_defect(table: Table, column: str) -> str:
    return f"its {column} in the table {table.name} cannot be read; correct it there"


TABLES: Final = MetaData()
VERSION: Final = 1
"""Of these tables; a service of another version refuses them."""

schema: Final = Table(
    "keyring_schema",
    TABLES,
    Column("singleton", Integer, primary_key=True, autoincrement=False),  # 1: there is one row
    Column("version", Integer, nullable=False),
    Column("id", LenientText, nullable=False, default=lambda: uuid4().hex),  # of the keyring; its backups name it
)


def _build_data_key_columns() -> list[Column[Any]]:
    return [
        Column("wrapped", LenientBytes, nullable=False),
        Column("kek", LenientText, nullable=False),
        Column("kek_version", LenientVersion, nullable=False),
        Column("algorithm", LenientText, nullable=False),
        Column("fingerprint", LenientBytes, nullable=False),
        Column("created_at", LenientTimestamp, nullable=False),
    ]


data_keys: Final = Table(
    "data_keys",
    TABLES,
    Column("id", Id, primary_key=True),
    Column("status", LenientText, nullable=False),
    *_build_data_key_columns(),
    Column("encryptions", BigInteger, nullable=False, server_default="0"),
)
_ACTIVE: Final = text("status = 'active'")
# The database itself refuses a second active key.
Index("one_active", data_keys.c.status, unique=True, sqlite_where=_ACTIVE, postgresql_where=_ACTIVE)

retired_versions: Final = Table(
    "keyring_retired_versions",
    TABLES,
    Column("kek", LenientText, primary_key=True),
    Column("kek_version", LenientVersion, primary_key=True, autoincrement=False),
    Column("retired_at", LenientTimestamp, nullable=False),
)

local_key: Final = Table(
    "keyring_local_key",
    TABLES,
    Column("singleton", Integer, primary_key=True, autoincrement=False),  # 1: all instances have the same one
    Column("fingerprint", LenientBytes, nullable=False),
)

abandoned_data_keys: Final = Table(
    "keyring_abandoned_keys",  # data keys that only a lost local key unwraps; stored in case it is found
    TABLES,
    Column("id", Id, primary_key=True),
    *_build_data_key_columns(),
    Column("abandoned_at", LenientTimestamp, nullable=False),
)

rotation_lease: Final = Table(
    "keyring_lease",
    TABLES,
    Column("singleton", Integer, primary_key=True, autoincrement=False),  # 1: there is one lease
    Column("holder", LenientText, nullable=False),
    Column("token", LenientBytes, nullable=False),  # its SHA-256: a copy of the database gives nobody the lease
    Column("expires_at", LenientTimestamp, nullable=False),
)

rotations: Final = Table(
    "keyring_rotations",
    TABLES,
    Column("number", Integer, primary_key=True),  # in the order in which they began, whatever the clock did
    Column("id", LenientText, nullable=False, unique=True),
    Column("type", LenientText, nullable=False),
    Column("state", LenientText, nullable=False),
    Column("is_rolling_back", Boolean, nullable=False),
    Column("target_version", LenientVersion),
    Column("caller", LenientText, nullable=False),
    Column("started_at", LenientTimestamp, nullable=False),
    Column("updated_at", LenientTimestamp, nullable=False),
    Column("total", Integer, nullable=False),
    Column("done", Integer, nullable=False),
    Column("cursor", Id, nullable=False),  # rewrap-kek: the last data key that this pass has read
    Column("new_data_key", LenientText),  # new-dek: the new data key
    Column("former_data_key", LenientText),  # new-dek: the one that was active before it
)

rewraps: Final = Table(
    "keyring_rewraps",
    TABLES,
    Column("number", Integer, primary_key=True),
    Column("rotation", Integer, nullable=False),
    Column("data_key_id", LenientText, nullable=False),
    Column("old_wrapped", LenientBytes, nullable=False),
    Column("old_kek", LenientText, nullable=False),
    Column("old_kek_version", LenientVersion, nullable=False),
    Column("new_wrapped", LenientBytes, nullable=False),
    Column("new_kek", LenientText, nullable=False),
    Column("new_kek_version", LenientVersion, nullable=False),
    Column("outcome", LenientText, nullable=False),  # see `journal.RewrapOutcome`
)
Index("keyring_rewraps_by_rotation", rewraps.c.rotation, rewraps.c.number)

problems: Final = Table(
    "keyring_problems",
    TABLES,
    Column("rotation", Integer, primary_key=True, autoincrement=False),
    Column("data_key_id", Id, primary_key=True),
    Column("error", LenientText, nullable=False),
    Column("is_foreign", Boolean, nullable=False),
)

journal_entries: Final = Table(
    "keyring_journal_entries",
    TABLES,
    Column("number", Integer, primary_key=True),
    Column("rotation_id", LenientText, nullable=False, index=True),  # may come before the rotation itself
    Column("step", LenientText, nullable=False),
    Column("outcome", LenientText, nullable=False, server_default="unreadable"),
    Column("rotation_type", LenientText),
    Column("backup_name", LenientText),  # of a backup that was made, as are the next two
    Column("sha256", LenientText),
    Column("needs", LenientText),  # JSON, the versions of the KMS key that the backup needs; NULL: it may need any
    Column("detail", LenientText, nullable=False, server_default=""),  # for a person
    Column("created_at", LenientTimestamp, nullable=False),
)

instances: Final = Table(
    "keyring_instances",
    TABLES,
    Column("id", LenientText, primary_key=True),
    Column("last_seen_at", LenientTimestamp, nullable=False),
    Column("interval", LenientTimestamp, nullable=False),
    Column("unwrapped_keys", LenientText, nullable=False),  # ids of pending data keys, with spaces between
)
