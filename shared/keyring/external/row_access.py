"""A table of another program, in SQL: pages of rows, one row, and a change of one that is still what was read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    LargeBinary,
    Select,
    Table,
    and_,
    cast,
    exc,
    false,
    literal_column,
    not_,
    or_,
    select,
    types,
    update,
)

from shared.keyring.administration import AdministrationError, RefusedError
from shared.keyring.external.encoding import Encoding, EncodingError, StoredWrap, parse_any_wrap, parse_stored_wrap
from shared.keyring.external.layout import TableLayout
from shared.keyring.external.row_id import format_row_id, parse_row_id

CHUNK_ROWS: Final = 1000
"""Rows in memory at a time."""


class Row(NamedTuple):
    """A row that can be read."""

    id: str
    key: tuple[Any, ...]
    """The values of the id's columns."""
    stored: object
    """The column of the wrapped key."""
    wrap: StoredWrap
    version: object
    """The column of the version; None where there is none."""
    aad: bytes


class UnreadableRow(NamedTuple):
    """A row that cannot."""

    id: str
    error: str


class Chunk(NamedTuple):
    """Some rows."""

    rows: list[Row | UnreadableRow]
    last: tuple[Any, ...] | None
    """The id's values of the last one; None where these are the last of all."""


@dataclass(frozen=True, slots=True)
class ExternalTable:
    """The table that `layout` describes; `table_checks` opens it, where it is as `layout` says."""

    layout: TableLayout
    table: Table
    kinds: tuple[type, ...]
    """Of the values of the id's columns."""
    has_number_versions: bool
    """Whether the column of the version is one of numbers."""

    def read_page(self, connection: Connection, after: str, limit: int, *, excluded: bool = False) -> list[Row]:
        """The rows that can be read, after the one of that id; fewer than `limit` are all. Raises RefusedError."""
        found: list[Row] = []
        last: tuple[Any, ...] | None = self.parse_cursor(after)
        while True:
            rows, last = self.read_chunk(connection, last, limit, excluded=excluded)
            found += (row for row in rows if isinstance(row, Row))
            if last is None or len(found) >= limit:
                return found[:limit]

    def parse_cursor(self, after: str) -> tuple[Any, ...] | None:
        """The values of the id's columns; None at the beginning. Raises RefusedError."""
        try:
            return parse_row_id(after, self.kinds) if after else None
        except ValueError as error:
            raise RefusedError(str(error)) from None

    def read_chunk(
        self, connection: Connection, last: tuple[Any, ...] | None, limit: int = CHUNK_ROWS, *, excluded: bool = False
    ) -> Chunk:
        """The next rows in the order of the id's columns, a thousand at most.

        Args:
            connection: in a transaction.
            last: the id's values of the row before; None at the beginning.
            limit: of the rows.
            excluded: reads the rows that `where` leaves out instead.
        """
        limit = min(limit, CHUNK_ROWS)
        ids = [self.table.c[name] for name in self.layout.id_columns]
        query = self.filter_rows(select(*self.table.c), excluded=excluded).order_by(*ids).limit(limit)
        if last is not None:
            query = query.where(_is_after(ids, last))
        found = [row._asdict() for row in connection.execute(query)]
        is_end = len(found) < limit
        following = None if is_end else tuple(found[-1][name] for name in self.layout.id_columns)
        return Chunk([self._parse(values) for values in found], following)

    def find(self, connection: Connection, row_id: str) -> Row | None:
        """The row of that id; None where it is gone, or cannot be read.

        What is no wrapped key at all is one that does not open, which a restore replaces.
        """
        try:
            key = parse_row_id(row_id, self.kinds)
        except ValueError:
            return None
        found = connection.execute(self.filter_rows(select(*self.table.c)).where(self._is_row(key))).first()
        row = self._parse(found._asdict(), parse_any_wrap) if found else None
        return row if isinstance(row, Row) else None

    def replace(self, connection: Connection, row: Row, ciphertext: bytes, version: object) -> bool:
        """Replaces a row's wrapped key; False, and nothing is changed, where it is no longer the one in `row`."""
        values: dict[str, object] = {self.layout.wrapped: row.wrap.replace(ciphertext)}
        if self.layout.key_version:
            values[self.layout.key_version] = version
        same = self._is_same(connection, row.stored)
        try:
            changed = update(self.table).where(self._is_row(row.key), same, self.build_condition())
            changed_count = connection.execute(changed.values(**values)).rowcount
        except exc.IntegrityError:
            raise AdministrationError(
                f"a constraint of {self.layout.table} refuses a new wrapped form of row {row.id}", "change that first"
            ) from None
        if changed_count != 1:
            return False
        if connection.execute(select(1).where(self._is_row(row.key), self.build_condition())).first() is None:
            raise RefusedError(  # rolls back: neither a verification nor a rollback could find the row again
                f"row {row.id} leaves `driver.where` as soon as it is wrapped anew, and could not be rolled back",
                "name no column there that a rotation changes",
            )
        return True

    def check_update(self, connection: Connection) -> None:
        """Whether the account may change what a rotation changes; no row is changed."""
        names = filter(None, (self.layout.wrapped, self.layout.key_version))
        connection.execute(update(self.table).where(false()).values({name: self.table.c[name] for name in names}))

    def convert_version(self, version: str) -> object:
        """What a column of the version takes, where it held none before."""
        return int(version) if self.has_number_versions and version.isdecimal() else version

    def filter_rows(self, query: Select[Any], *, excluded: bool = False) -> Select[Any]:
        """The query for the rows with a wrapped key that `driver.where` names; or else for those that it leaves out."""
        condition = self.build_condition()
        chosen = or_(condition.is_(None), not_(condition)) if excluded else condition
        return query.where(self.table.c[self.layout.wrapped].is_not(None), chosen)

    def build_condition(self) -> ColumnElement[bool]:
        """`driver.where` in SQL; true without one."""
        return literal_column(f"({self.layout.where or '1 = 1'})", types.Boolean())

    def _is_same(self, connection: Connection, stored: object) -> ColumnElement[bool]:
        """Compared byte by byte, whatever the column's collation takes for equal."""
        column = self.table.c[self.layout.wrapped]
        if isinstance(stored, str) and connection.dialect.name != "postgresql":
            return cast(column, LargeBinary) == stored.encode()
        return column == stored

    def _is_row(self, key: Sequence[Any]) -> ColumnElement[bool]:
        return and_(*(self.table.c[name] == part for name, part in zip(self.layout.id_columns, key, strict=True)))

    def _parse(
        self, values: dict[str, Any], parse_wrap: Callable[[Encoding, object], StoredWrap] = parse_stored_wrap
    ) -> Row | UnreadableRow:
        values = {
            name: bytes(value) if isinstance(value, bytearray | memoryview) else value for name, value in values.items()
        }
        key, stored = tuple(values[name] for name in self.layout.id_columns), values[self.layout.wrapped]
        row_id = ", ".join(map(str, key))
        try:
            row_id = format_row_id(key, self.kinds)
            wrap = parse_wrap(self.layout.encoding, stored)
            aad = self.layout.aad.build(values) if self.layout.aad else b""
        except EncodingError as error:
            return UnreadableRow(row_id, f"its {self.layout.wrapped} cannot be read: {error}")
        except ValueError as error:
            return UnreadableRow(row_id, str(error))
        version = values[self.layout.key_version] if self.layout.key_version else None
        return Row(row_id, key, stored, wrap, version, aad)


def _is_after(columns: Sequence[ColumnElement[Any]], last: Sequence[Any]) -> ColumnElement[bool]:
    """Later in the order of these columns."""
    return or_(
        *(
            and_(*(columns[at] == last[at] for at in range(index)), columns[index] > last[index])
            for index in range(len(columns))
        )
    )
