"""Every query of the keyring gives what its row says: as many columns, of these names and types, null or not.

No query is left out: one that is neither selected by the fields of its row nor run here fails, and so does one that is
read without a row.
"""

import ast
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Connection, Select, func, select

from services import backend
from services.backend.records import TABLES
from shared import keyring as package
from shared.keyring import journal as progress
from shared.keyring import key_table
from shared.keyring import rotation_metrics as metrics
from shared.keyring import tables as rows
from shared.keyring.key_table import RecordsTable
from shared.keyring.rotation_metrics import read_keyring_metrics
from shared.keyring.tables import data_keys
from shared.kms.fixes import GENERIC_PROFILE
from tests.row_columns import compare_columns, find_untyped_reads, list_fields
from tests.shared.keyring.keyring import Keyring

MODULES: list[ModuleType] = [
    importlib.import_module(module.name)
    for root in (package, backend)
    for module in pkgutil.walk_packages(root.__path__, f"{root.__name__}.")
    if not module.name.endswith("__main__") and module.name != rows.__name__
]


class Call(NamedTuple):
    """A call of one of `shared.keyring.tables`, in a function or beside all of them."""

    module: ModuleType
    function: str | None
    call: ast.Call

    @property
    def row_type(self) -> str:
        return ast.unparse(self.call.args[-1])


FETCHES = ("fetch", "fetch_first", "fetch_one", "fetch_page")


def find_calls(*names: str) -> Iterator[Call]:
    for module in MODULES:
        tree = ast.parse(inspect.getsource(module))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        names_of_functions = {id(node): function.name for function in functions for node in ast.walk(function)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in names:
                yield Call(module, names_of_functions.get(id(node)), node)


def compare(query: Select[*tuple[Any, ...]], row_type: type[Any]) -> None:
    # A text that is none is read as bytes, see `decode_text`; a row may say so.
    fields = [(name, str if hint == str | bytes else hint) for name, hint in list_fields(row_type)]
    compare_columns(query, fields)


SELECTED = {f"{each.module.__name__}.{each.function or ''}.{each.row_type}": each for each in find_calls("select_rows")}


@pytest.mark.parametrize("selected", SELECTED.values(), ids=SELECTED)
def test_each_field_is_of_its_column(selected: Call) -> None:
    source, row_type = (eval(ast.unparse(each), vars(selected.module)) for each in selected.call.args)  # noqa: S307
    compare(rows.select_rows(source, row_type), row_type)


async def test_what_is_computed_is_of_its_columns(keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: set[tuple[str, str, str]] = set()

    def add_comparison(fetch: Callable[..., Any]) -> Callable[..., Any]:
        def compare_first(
            connection: Connection, query: Select[*tuple[Any, ...]], row_type: type[Any], **limit: int
        ) -> Any:
            caller = sys._getframe(1)
            compare(query, row_type)
            compared.add((caller.f_globals["__name__"], caller.f_code.co_name, row_type.__name__))
            return fetch(connection, query, row_type, **limit)

        return compare_first

    for module in MODULES:
        for name in FETCHES:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, add_comparison(getattr(rows, name)))
    records = RecordsTable("records", "data_key_id")
    await keyring.database.write(TABLES.create_all)
    rotation = await keyring.database.write(
        lambda connection: progress.begin_rotation(connection, 0.0, keyring.request(), target_version="1", total=0)
    )
    reads: list[Callable[[Connection], object]] = [
        read_keyring_metrics,
        key_table._count,
        records.count_by_version,
        records.count_orphans,
        records.list_missing_data_keys,
        partial(records.count_by_data_key, data_key_id="k000"),
        partial(records.read_page, data_key_id="k000", after="", limit=1),
        partial(progress.count_not_rolled_back, rotation=rotation),
    ]
    for read in reads:
        await keyring.database.read(read)
    await key_table.OwnKeyTable("a key", GENERIC_PROFILE).count_outdated(keyring.database, "1")
    fetched = {(each.module.__name__, each.function, each.row_type) for each in find_calls(*FETCHES)}
    selected = {(each.module.__name__, each.function, each.row_type) for each in SELECTED.values()}
    beside = {(module, row_type) for module, function, row_type in selected if function is None}
    assert fetched - selected - compared == {each for each in fetched if (each[0], each[2]) in beside}
    assert {function for _, function, _ in compared} >= {"count_orphans", metrics._count_failures.__name__}


def test_no_query_is_read_without_a_row() -> None:
    allowed = {
        # Of tables of another program, whose columns its configuration names.
        "external.row_access.find",
        "external.row_access.read_chunk",
        # Of the database itself, in its own SQL.
        "database.read_clock",
        "external.table_checks._check_row_security",
        "external.table_checks._check_storage",
        # Of any column of any table, as a stream.
        "column_types._find_undecodable_text",
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
        compare(counted, row_type)
