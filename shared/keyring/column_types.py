"""The types of the keyring's columns, which read whatever stands there.

Any program may write into the tables. What it got wrong in one row must not hide the others: a value that is none of
its column's is read as one that shows up, and `find_unreadable_rows` names its row. A text that is not UTF-8 comes
from the connection as bytes, see `decode_text`; a row whose id is none is passed over, for nothing could refer to it.
"""

from collections.abc import Callable, Collection
from itertools import islice
from typing import Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Dialect,
    Float,
    LargeBinary,
    String,
    Table,
    TypeDecorator,
    func,
    select,
    type_coerce,
)

from shared.keyring.model import UNREADABLE_VERSION
from shared.keyring.rows import IdRow, fetch
from shared.kms.port import MAX_VERSION_LENGTH, is_version

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
    """A text, or what stands in its place in a form that shows what is wrong."""
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return value if isinstance(value, str) else str(value)


class LenientText(TypeDecorator[str]):
    """A text, but no id. Read as `to_printable_text` where it is none."""

    impl = String
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        """See the class."""
        return value if value is None else to_printable_text(value)


class LenientTimestamp(TypeDecorator[float]):
    """Unix seconds. Read as 0 if they are no moment."""

    impl = Float
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> float | None:  # noqa: ARG002
        """See the class."""
        return value if value is None or _is_within(value, MAX_TIMESTAMP) else 0.0


class LenientVersion(TypeDecorator[str]):
    """A version of a KMS key. Read as `UNREADABLE_VERSION` where it is none."""

    impl = String
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002
        """See the class."""
        return value if value is None or is_version(value) else UNREADABLE_VERSION


class LenientBytes(LargeBinary):
    """Bytes; SQLite keeps a text or a number in such a column too."""

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:  # noqa: ARG002
        """See the class."""
        return _to_bytes


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
        for row in fetch(connection, select(table.c.id).where(condition).limit(100), IdRow):
            found.setdefault(to_printable_text(row.id), _describe_defect(table, name))
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
    """Text with other characters than ASCII is checked again: no database says whether it is UTF-8."""
    if connection.dialect.name == "sqlite":
        return column.op("GLOB", is_comparison=True)("*[^ -~]*") | (func.typeof(column) != "text")
    return column.op("~", is_comparison=True)("[^ -~]")


def _describe_defect(table: Table, column: str) -> str:
    return f"its {column} in the table {table.name} cannot be read; correct it there"


def _to_bytes(value: Any) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    return bytes(value) if isinstance(value, bytearray | memoryview) else str(value).encode()


def _is_within(value: object, last: int) -> bool:
    return isinstance(value, int | float) and 0 <= value <= last
