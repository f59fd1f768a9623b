"""SELECTs that know the type of their rows, so that mypy sees a wrong column."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, TypeVar, TypeVarTuple

from sqlalchemy import ColumnElement, Connection, Result, Select, Table, TextClause, select
from sqlalchemy.sql.base import ReadOnlyColumnCollection

R = TypeVar("R")
V = TypeVar("V")
T = TypeVar("T", bound=tuple[Any, ...])
Columns = TypeVarTuple("Columns")
_NO_VALUES: Final[Mapping[str, object]] = {}


class RowQuery(Generic[R]):
    """A SELECT and the type of its rows. Build each once: that takes longer than a database needs to run it.

    mypy compares the number of columns, and the types that it knows; a test compares each type.

    Args:
        build_row: makes a row of the values of its columns.
        statement: selects these columns, in this order.
        value_type: of the only column, where `build_row` gives it as it is.
    """

    def __init__(
        self, build_row: Callable[[*Columns], R], statement: Select[*Columns], value_type: type[R] | None = None
    ) -> None:
        self.build_row: Callable[..., R] = build_row
        self.statement: Select[*tuple[Any, ...]] = statement
        self.value_type = value_type

    def where(self, *conditions: ColumnElement[bool] | TextClause) -> "RowQuery[R]":
        """Only the rows that meet all conditions."""
        return self._replace(self.statement.where(*conditions))

    def order_by(self, *columns: Any) -> "RowQuery[R]":
        return self._replace(self.statement.order_by(*columns))

    def limit(self, count: Any) -> "RowQuery[R]":
        return self._replace(self.statement.limit(count))

    def offset(self, count: Any) -> "RowQuery[R]":
        return self._replace(self.statement.offset(count))

    def for_update(self, *, of: Table | None = None, skip_locked: bool = False) -> "RowQuery[R]":
        """Locks the rows until the transaction ends."""
        return self._replace(self.statement.with_for_update(of=of, skip_locked=skip_locked))

    def fetch_all(self, connection: Connection, values: Mapping[str, object] = _NO_VALUES) -> list[R]:
        """All rows; `values` are those of the bound parameters."""
        return [self.build_row(*row) for row in self._execute(connection, values)]

    def fetch_first(self, connection: Connection, values: Mapping[str, object] = _NO_VALUES) -> R | None:
        """The first row; None if there is none."""
        row = self._execute(connection, values).first()
        return None if row is None else self.build_row(*row)

    def fetch_one(self, connection: Connection, values: Mapping[str, object] = _NO_VALUES) -> R:
        return self.build_row(*self._execute(connection, values).one())

    def _replace(self, statement: Select[*tuple[Any, ...]]) -> "RowQuery[R]":
        return RowQuery(self.build_row, statement, self.value_type)

    def _execute(self, connection: Connection, values: Mapping[str, object]) -> Result[*tuple[Any, ...]]:
        return connection.execute(self.statement, dict(values))


def select_values(value_type: type[V], column: ColumnElement[V]) -> RowQuery[V]:
    """A query whose rows have one column."""

    def build(value: V) -> V:
        return value

    return RowQuery(build, select(column), value_type)


def select_tuples(row_type: type[T], statement: Select[*tuple[Any, ...]]) -> RowQuery[T]:
    """A query whose rows are taken apart at once: `row_type` is a tuple of the types of its columns."""

    def build(*values: Any) -> Any:
        return values

    return RowQuery(build, statement, row_type)


def select_rows(row_type: type[V], *tables: ReadOnlyColumnCollection[str, Any], **others: Any) -> RowQuery[V]:
    """A query for what a row has fields for; see `select_columns`."""
    return RowQuery(row_type, select(*select_columns(row_type, *tables, **others)))


def select_columns(row_type: type[Any], *tables: ReadOnlyColumnCollection[str, Any], **others: Any) -> list[Any]:
    """What a row has fields for: of `others`, or the column of that name of the first table that has one."""
    return [
        others[name].label(name) if name in others else next(columns[name] for columns in tables if name in columns)
        for name in row_type.__annotations__
    ]
