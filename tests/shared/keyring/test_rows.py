"""Every query of the keyring gives what its row says: as many columns, of these names and types, null or not.

No query is left out: one that a function builds and that is not run here fails, and so does one that is read without a
row.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Connection, Result, func, select

from services import backend
from services.backend.records import RECORDS_TABLE, TABLES
from shared import keyring as package
from shared.keyring.tables import data_keys
from shared.sql.rows import RowQuery
from tests.row_columns import compare_query, find_building, find_untyped_reads, import_modules, list_queries
from tests.shared.keyring.keyring import Keyring

MODULES = import_modules(package, backend)
QUERIES = list_queries(MODULES)


@pytest.mark.parametrize("query", QUERIES, ids=QUERIES.values())
def test_each_field_is_of_its_column(query: RowQuery[Any]) -> None:
    compare_query(query)


async def test_each_field_is_of_its_column_where_the_table_is_named_by_the_service(
    keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute, compared = RowQuery._execute, list[RowQuery[Any]]()

    def compare_first(
        query: RowQuery[Any], connection: Connection, values: Mapping[str, object]
    ) -> Result[*tuple[Any, ...]]:
        compare_query(query)
        compared.append(query)
        return execute(query, connection, values)

    await keyring.database.write(TABLES.create_all)
    reads: dict[str, Callable[[Connection], object]] = {
        "count_by_version": RECORDS_TABLE.count_by_version,
        "count_orphans": RECORDS_TABLE.count_orphans,
        "list_missing_data_keys": RECORDS_TABLE.list_missing_data_keys,
        "count_by_data_key": partial(RECORDS_TABLE.count_by_data_key, data_key_id="k000"),
        "read_page": partial(RECORDS_TABLE.read_page, data_key_id="k000", after="", limit=1),
    }
    monkeypatch.setattr(RowQuery, "_execute", compare_first)
    for read in reads.values():
        await keyring.database.read(read)
    assert len(compared) == len(reads)
    assert {name for module in MODULES for name in find_building(module)} == set(reads)


def test_no_query_is_read_without_a_row() -> None:
    allowed = {
        # Of tables of another program, whose columns its configuration names.
        "external.table.find",
        "external.table.read_chunk",
        # Of the database itself, in its own SQL.
        "database.read_clock",
        "external.table._check_row_security",
        "external.table._check_storage",
        # Of any column of any table, also what is no text.
        "tables._find_undecodable_text",
        "tables.find_unreadable_rows",
    }
    untyped = {function for module in MODULES for function in find_untyped_reads(module)}
    assert untyped == {f"{package.__name__}.{name}" for name in allowed}


class Wrong(NamedTuple):
    id: str
    total: str


class Swapped(NamedTuple):
    total: int
    id: str


class Null(NamedTuple):
    id: str
    total: int | None


@pytest.mark.parametrize("row_type", [Wrong, Swapped, Null])
def test_a_wrong_one_is_noticed(row_type: type[Any]) -> None:
    counted = select(data_keys.c.id, func.count().label("total")).group_by(data_keys.c.id)
    with pytest.raises(AssertionError):
        compare_query(RowQuery(row_type, counted))
