"""The types of the keyring's columns, which read whatever stands there.

Any program may write into the tables. What it got wrong in one row must not hide the others: a value that is none of
its column's is read as one that shows up, and `defects` names its row.
"""

from collections.abc import Callable, Collection
from typing import Any, Final

from sqlalchemy import Connection, Dialect, Float, Integer, LargeBinary, String, Table, TypeDecorator, select

from shared.keyring.model import GREATEST_VERSION, UNREADABLE_VERSION

Id: Final = String().with_variant(String(collation="C"), "postgresql")
"""Of an id, of data keys and of records. Compared byte by byte, as Python does: in the order of a language, the
fingerprint of all would be another one."""
LAST_SECOND: Final = 253402300799
"""Of the year 9999; Python knows no later one."""


class Seconds(TypeDecorator[float]):
    """Unix seconds. Read as 0 where they are no moment."""

    impl = Float
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> float | None:  # noqa: ARG002
        """See the class."""
        return value if value is None or _within(value, LAST_SECOND) else 0.0


class Version(TypeDecorator[int]):
    """Number of a KMS key's version. Read as `UNREADABLE_VERSION` where it is none."""

    impl = Integer
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:  # noqa: ARG002
        """See the class."""
        right = value is None or (isinstance(value, int) and _within(value, GREATEST_VERSION))
        return value if right else UNREADABLE_VERSION


class Bytes(LargeBinary):
    """Bytes; SQLite keeps a text in such a column too."""

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:  # noqa: ARG002
        """See the class."""
        return lambda value: value.encode() if isinstance(value, str) else value if value is None else bytes(value)


def defects(connection: Connection, table: Table, **known: Collection[str]) -> dict[str, str]:
    """Why rows of `table` cannot be read, by their id: of each column a hundred. `known` has what may stand in some."""
    bad = {name: table.c[name].not_in(values) for name, values in known.items()}
    for column in table.c:
        if isinstance(column.type, Seconds):
            bad[column.name] = ~column.between(0, LAST_SECOND)
        elif isinstance(column.type, Version):
            bad[column.name] = ~column.between(0, GREATEST_VERSION)
    found: dict[str, str] = {}
    for name, condition in bad.items():
        for row_id in connection.execute(select(table.c.id).where(condition).limit(100)).scalars():
            found.setdefault(row_id, f"its {name} in the table {table.name} cannot be read; correct it there")
    return found


def _within(value: object, last: int) -> bool:
    return isinstance(value, int | float) and 0 <= value <= last
