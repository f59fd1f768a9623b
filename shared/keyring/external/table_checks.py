"""Opens a table of another program, unless a rotation could do harm there: what is refused, and what to do about it.

Refused are missing columns, ids that are not unique, rows that the account does not see, and a storage without
transactions.
"""

import warnings
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column, Connection, Inspector, MetaData, Table, exc, inspect, or_, select, text, types
from sqlalchemy.sql.elements import quoted_name

from shared.keyring.administration import RefusedError
from shared.keyring.external.layout import TableLayout
from shared.keyring.external.row_access import ExternalTable
from shared.keyring.external.row_id import get_python_type, is_usable


def open_table(connection: Connection, layout: TableLayout) -> ExternalTable:
    """The table, whose columns and rows are as `layout` says. Raises RefusedError where they are not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", exc.SAWarning)  # of types and indexes that are the database's own
        found = inspect(connection)
        if not found.has_table(layout.name, schema=layout.schema):
            raise RefusedError(f"there is no table {layout.table}", "correct `driver.table`")
        existing = {each["name"]: each["type"] for each in found.get_columns(layout.name, schema=layout.schema)}
        unique = _list_unique_columns(found, layout)
    own = (*layout.id_columns, layout.wrapped, *filter(None, [layout.key_version]))
    names = dict.fromkeys((*own, *(layout.aad.columns if layout.aad else ())))
    if missing := [name for name in names if name not in existing]:
        raise RefusedError(f"the table {layout.table} has no column {', '.join(missing)}", "correct `driver`")
    if not any(columns and columns <= set(layout.id_columns) for columns in unique):
        raise RefusedError(
            f"nothing says that {', '.join(layout.id_columns)} is unique in {layout.table}",
            "expected a primary key or a unique constraint in `driver.id`",
        )
    kinds = tuple(get_python_type(existing[name]) for name in layout.id_columns)
    for name, kind in zip(layout.id_columns, kinds, strict=True):
        if not is_usable(kind):
            raise RefusedError(f"{name} is of the type {existing[name]}", "expected text, whole numbers, UUID or bytes")
    is_file = connection.dialect.name == "sqlite"
    columns = [Column(quoted_name(name, quote=True), _adapt(existing[name], is_file=is_file)) for name in names]
    table = Table(
        quoted_name(layout.name, quote=True),
        MetaData(),
        *columns,
        schema=quoted_name(layout.schema, quote=True) if layout.schema else None,
    )
    versions = existing.get(layout.key_version or "")
    opened = ExternalTable(layout, table, kinds, isinstance(versions, types.Numeric | types.Integer))
    _check_storage(connection, opened)
    _check_row_security(connection, opened)
    _check_rows(connection, opened)
    return opened


def _check_storage(connection: Connection, opened: ExternalTable) -> None:
    if connection.dialect.name != "mariadb":
        return
    query = text("SELECT engine FROM information_schema.tables WHERE table_schema = :schema AND table_name = :name")
    schema = opened.layout.schema or connection.engine.url.database
    engine = connection.execute(query, {"schema": schema, "name": opened.layout.name}).scalar()
    if str(engine).lower() != "innodb":
        raise RefusedError(
            f"the table {opened.layout.table} is stored by {engine}, which has no transactions",
            f"expected InnoDB: ALTER TABLE {opened.layout.name} ENGINE=InnoDB",
        )


def _check_row_security(connection: Connection, opened: ExternalTable) -> None:
    """A row that is hidden would be counted for no version: `retire` would take the one that it needs."""
    if connection.dialect.name != "postgresql":
        return
    name = connection.dialect.identifier_preparer.format_table(opened.table)
    if connection.execute(text("SELECT row_security_active(CAST(:name AS text))"), {"name": name}).scalar():
        raise RefusedError(
            f"row-level security hides rows of {opened.layout.table} from this account", "expected one with BYPASSRLS"
        )


def _check_rows(connection: Connection, opened: ExternalTable) -> None:
    """The condition is SQL, and no row is without an id."""
    ids = [opened.table.c[name] for name in opened.layout.id_columns]
    any_row = select(*ids).limit(1)
    connection.execute(any_row)
    try:
        connection.execute(any_row.where(opened.build_condition()))
    except exc.DBAPIError:
        raise RefusedError(f"the database does not understand `driver.where`: {opened.layout.where}") from None
    nameless = opened.filter_rows(any_row).where(or_(*(column.is_(None) for column in ids)))
    if connection.execute(nameless).first() is not None:
        raise RefusedError(f"a row of {opened.layout.table} has NULL in {', '.join(opened.layout.id_columns)}")


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
