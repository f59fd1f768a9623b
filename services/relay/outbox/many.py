"""A statement for many rows, compiled once for each kind of database.

SQLAlchemy looks at every value of every row anew at each execution, which takes longer than SQLite needs for the row.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Dialect, Insert, Update

RowValues = Mapping[str, Any]


class BulkStatement:
    """An insert or an update. Values go to the driver as they are: texts, numbers, bytes, None.

    Args:
        statement: without RETURNING.
        columns: of an insert; each row has all of them.
    """

    def __init__(self, statement: Insert | Update, columns: Sequence[str] | None = None) -> None:
        self._statement = statement
        self._columns = columns
        self._compiled: dict[str, tuple[str, Callable[[RowValues], Any]]] = {}

    def execute(self, connection: Connection, rows: Sequence[RowValues]) -> None:
        """Does it for each row; there has to be one."""
        compiled = self._compiled.get(connection.dialect.name)
        if compiled is None:
            compiled = self._compiled[connection.dialect.name] = self._compile(connection.dialect)
        sql, given = compiled
        connection.exec_driver_sql(sql, [given(row) for row in rows])

    def _compile(self, dialect: Dialect) -> tuple[str, Callable[[RowValues], Any]]:
        """The text for a driver, and what it takes for a row: a tuple or a mapping."""
        compiled = self._statement.compile(dialect=dialect, column_keys=self._columns, for_executemany=True)
        # What the statement itself holds, and what it awaits of each row.
        same = {name: value for name, value in compiled.params.items() if not compiled.binds[name].required}
        order = compiled.positiontup
        if order is None:
            return compiled.string, lambda row: {**same, **row}
        return compiled.string, lambda row: tuple(map({**same, **row}.__getitem__, order))
