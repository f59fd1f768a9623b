"""A table of another program, in SQL: pages of rows, one row, and a change of one that is still what was read."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Inspector,
    LargeBinary,
    MetaData,
    Select,
    Table,
    and_,
    cast,
    exc,
    false,
    inspect,
    literal_column,
    not_,
    or_,
    select,
    text,
    types,
    update,
)
from sqlalchemy.sql.elements import quoted_name

from shared.keyring.administration import AdministrationError, RefusedError
from shared.keyring.external.encoding import EncodingError, StoredWrap, parse_stored_wrap
from shared.keyring.external.layout import TableLayout
from shared.keyring.external.row_id import format_row_id, get_python_type, is_usable, parse_row_id

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
    """The table that `layout` describes, whose columns were found to be as it says."""

    layout: TableLayout
    table: Table
    kinds: tuple[type, ...]
    """Of the values of the id's columns."""
    has_number_versions: bool
    """Whether the column of the version is one of numbers."""

    @classmethod
    def open(cls, connection: Connection, layout: TableLayout) -> Self:
        """Looks at the table's columns. Raises RefusedError where they are not as `layout` says."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", exc.SAWarning)  # of types and indexes that are the database's own
            found = inspect(connection)
            if not found.has_table(layout.name, schema=layout.schema):
                raise RefusedError(f"there is no table {layout.table}; correct `driver.table`")
            existing = {each["name"]: each["type"] for each in found.get_columns(layout.name, schema=layout.schema)}
            unique = _list_unique_columns(found, layout)
        own = (*layout.id_columns, layout.wrapped, *filter(None, [layout.key_version]))
        names = dict.fromkeys((*own, *(layout.aad.columns if layout.aad else ())))
        if missing := [name for name in names if name not in existing]:
            raise RefusedError(f"the table {layout.table} has no column {', '.join(missing)}; correct `driver`")
        if not any(columns and columns <= set(layout.id_columns) for columns in unique):
            raise RefusedError(
                f"nothing says that {', '.join(layout.id_columns)} is unique in {layout.table}; expected a primary key "
                "or a unique constraint in `driver.id`"
            )
        kinds = tuple(get_python_type(existing[name]) for name in layout.id_columns)
        for name, kind in zip(layout.id_columns, kinds, strict=True):
            if not is_usable(kind):
                raise RefusedError(
                    f"{name} is of the type {existing[name]}; expected text, whole numbers, UUID or bytes"
                )
        is_file = connection.dialect.name == "sqlite"
        columns = [Column(quoted_name(name, quote=True), _adapt(existing[name], is_file=is_file)) for name in names]
        table = Table(
            quoted_name(layout.name, quote=True),
            MetaData(),
            *columns,
            schema=quoted_name(layout.schema, quote=True) if layout.schema else None,
        )
        versions = existing.get(layout.key_version or "")
        opened = cls(layout, table, kinds, isinstance(versions, types.Numeric | types.Integer))
        opened._check_storage(connection)
        opened._check_row_security(connection)
        opened._check_rows(connection)
        return opened

    def _check_storage(self, connection: Connection) -> None:
        if connection.dialect.name != "mariadb":
            return
        query = text("SELECT engine FROM information_schema.tables WHERE table_schema = :schema AND table_name = :name")
        schema = self.layout.schema or connection.engine.url.database
        engine = connection.execute(query, {"schema": schema, "name": self.layout.name}).scalar()
        if str(engine).lower() != "innodb":
            raise RefusedError(
                f"the table {self.layout.table} is stored by {engine}, which has no transactions; expected InnoDB: "
                f"ALTER TABLE {self.layout.name} ENGINE=InnoDB"
            )

    def _check_row_security(self, connection: Connection) -> None:
        """A row that is hidden would be counted for no version: `retire` would take the one that it needs."""
        if connection.dialect.name != "postgresql":
            return
        name = connection.dialect.identifier_preparer.format_table(self.table)
        if connection.execute(text("SELECT row_security_active(CAST(:name AS text))"), {"name": name}).scalar():
            raise RefusedError(
                f"row-level security hides rows of {self.layout.table} from this account; expected one with BYPASSRLS"
            )

    def _check_rows(self, connection: Connection) -> None:
        """The condition is SQL, and no row is without an id."""
        ids = [self.table.c[name] for name in self.layout.id_columns]
        any_row = select(*ids).limit(1)
        connection.execute(any_row)
        try:
            connection.execute(any_row.where(self._condition()))
        except exc.DBAPIError:
            raise RefusedError(f"the database does not understand `driver.where`: {self.layout.where}") from None
        nameless = self._filter(any_row).where(or_(*(column.is_(None) for column in ids)))
        if connection.execute(nameless).first() is not None:
            raise RefusedError(f"a row of {self.layout.table} has NULL in {', '.join(self.layout.id_columns)}")

    def read_page(self, connection: Connection, after: str, limit: int) -> list[Row]:
        """The rows that can be read, after the one of that id; fewer than `limit` are all. Raises RefusedError."""
        found: list[Row] = []
        last: tuple[Any, ...] | None = self.parse_cursor(after)
        while True:
            rows, last = self.read_chunk(connection, last, limit)
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
        query = self._filter(select(*self.table.c), excluded=excluded).order_by(*ids).limit(limit)
        if last is not None:
            query = query.where(_is_after(ids, last))
        found = [row._asdict() for row in connection.execute(query)]
        is_end = len(found) < limit
        following = None if is_end else tuple(found[-1][name] for name in self.layout.id_columns)
        return Chunk([self._parse(values) for values in found], following)

    def find(self, connection: Connection, row_id: str) -> Row | None:
        """The row of that id; None where it is gone, or cannot be read."""
        try:
            key = parse_row_id(row_id, self.kinds)
        except ValueError:
            return None
        found = connection.execute(self._filter(select(*self.table.c)).where(self._is_row(key))).first()
        row = self._parse(found._asdict()) if found else None
        return row if isinstance(row, Row) else None

    def replace(self, connection: Connection, row: Row, ciphertext: bytes, version: object) -> bool:
        """Replaces a row's wrapped key; False, and nothing is changed, where it is no longer the one in `row`."""
        values: dict[str, object] = {self.layout.wrapped: row.wrap.replace(ciphertext)}
        if self.layout.key_version:
            values[self.layout.key_version] = version
        same = self._is_same(connection, row.stored)
        try:
            changed = connection.execute(
                update(self.table).where(self._is_row(row.key), same, self._condition()).values(**values)
            )
        except exc.IntegrityError:
            raise AdministrationError(
                f"a constraint of {self.layout.table} refuses a new wrapped form of row {row.id}; change that first"
            ) from None
        if changed.rowcount != 1:
            return False
        if connection.execute(select(1).where(self._is_row(row.key), self._condition())).first() is None:
            raise RefusedError(  # rolls back: neither a verification nor a rollback could find the row again
                f"row {row.id} leaves `driver.where` as soon as it is wrapped anew, and could not be rolled back; "
                "name no column there that a rotation changes"
            )
        return True

    def check_update(self, connection: Connection) -> None:
        """Whether the account may change what a rotation changes; no row is changed."""
        names = filter(None, (self.layout.wrapped, self.layout.key_version))
        connection.execute(update(self.table).where(false()).values({name: self.table.c[name] for name in names}))

    def convert_version(self, version: str) -> object:
        """What a column of the version takes, where it held none before."""
        return int(version) if self.has_number_versions and version.isdecimal() else version

    def _is_same(self, connection: Connection, stored: object) -> ColumnElement[bool]:
        """Compared byte by byte, whatever the column's collation takes for equal."""
        column = self.table.c[self.layout.wrapped]
        if isinstance(stored, str) and connection.dialect.name != "postgresql":
            return cast(column, LargeBinary) == stored.encode()
        return column == stored

    def _is_row(self, key: Sequence[Any]) -> ColumnElement[bool]:
        return and_(*(self.table.c[name] == part for name, part in zip(self.layout.id_columns, key, strict=True)))

    def _filter(self, query: Select[Any], *, excluded: bool = False) -> Select[Any]:
        condition = self._condition()
        chosen = or_(condition.is_(None), not_(condition)) if excluded else condition
        return query.where(self.table.c[self.layout.wrapped].is_not(None), chosen)

    def _condition(self) -> ColumnElement[bool]:
        return literal_column(f"({self.layout.where or '1 = 1'})", types.Boolean())

    def _parse(self, values: dict[str, Any]) -> Row | UnreadableRow:
        values = {
            name: bytes(value) if isinstance(value, bytearray | memoryview) else value for name, value in values.items()
        }
        key, stored = tuple(values[name] for name in self.layout.id_columns), values[self.layout.wrapped]
        row_id = ", ".join(map(str, key))
        try:
            row_id = format_row_id(key, self.kinds)
            wrap = parse_stored_wrap(self.layout.encoding, stored)
            aad = self.layout.aad.build(values) if self.layout.aad else b""
        except EncodingError as error:
            return UnreadableRow(row_id, f"its {self.layout.wrapped} cannot be read: {error}")
        except ValueError as error:
            return UnreadableRow(row_id, str(error))
        version = values[self.layout.key_version] if self.layout.key_version else None
        return Row(row_id, key, stored, wrap, version, aad)


def _adapt(column_type: types.TypeEngine[Any], *, is_file: bool) -> types.TypeEngine[Any]:
    """SQLite keeps in a column what it gets: what stands there is read as it is, and compared as that."""
    return types.NullType() if is_file else column_type


def _list_unique_columns(found: Inspector, layout: TableLayout) -> list[set[str | None]]:
    """The sets of columns that the database keeps unique in all rows."""
    name, schema = layout.name, layout.schema
    names: list[Sequence[str | None]] = [found.get_pk_constraint(name, schema=schema)["constrained_columns"]]
    names += [each["column_names"] for each in found.get_unique_constraints(name, schema=schema)]
    for index in found.get_indexes(name, schema=schema):
        if index["unique"] and not _is_partial(dict(index)):
            names.append(index["column_names"])
    return [set(each) for each in names]


def _is_partial(index: dict[str, Any]) -> bool:
    options = index.get("dialect_options", {})
    return any(options.get(name) is not None for name in ("sqlite_where", "postgresql_where"))


def _is_after(columns: Sequence[ColumnElement[Any]], last: Sequence[Any]) -> ColumnElement[bool]:
    """Later in the order of these columns."""
    return or_(
        *(
            and_(*(columns[at] == last[at] for at in range(index)), columns[index] > last[index])
            for index in range(len(columns))
        )
    )
