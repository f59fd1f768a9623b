"""Every query of the outbox gives what its row says: as many columns, of these names and types, null or not.

No query is left out: one whose column has no known type fails, one that is built where nothing collects it, and one
that is read without a row.
"""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, get_type_hints

import pytest
from sqlalchemy import ColumnElement, func, select

from services.relay import outbox
from services.relay.deliveries import queries as delivery_search
from services.relay.deliveries.queries import DeliveryFilter, Position
from services.relay.outbox import dead_letters
from services.relay.outbox.tables import CHANNELS, ChannelRow, RowQuery, deliveries, select_values
from tests.row_columns import compare_columns, find_untyped_reads, is_row, list_fields

MODULES = [
    importlib.import_module(module.name) for module in pkgutil.walk_packages(outbox.__path__, f"{outbox.__name__}.")
]
_EXAMINED = select(deliveries).subquery()
BUILT = {
    # Those that a function builds, by the function.
    delivery_search._build_search: delivery_search._build_search(DeliveryFilter(), _EXAMINED, Position(), 1),
    delivery_search._build_end: delivery_search._build_end(_EXAMINED),
    dead_letters._build_queries: dead_letters._build_queries(),
}


def find_queries(value: object, name: str) -> Iterator[tuple[RowQuery[Any], str]]:
    """The queries in a value of a module: itself, or what a collection or a dataclass holds."""
    if isinstance(value, RowQuery):
        yield value, name
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from find_queries(item, f"{name}[{number}]")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from find_queries(item, f"{name}[{key}]")
    elif is_dataclass(value) and not isinstance(value, type) and value.__module__.startswith(outbox.__name__):
        for field in value.__dataclass_fields__:
            yield from find_queries(getattr(value, field), f"{name}.{field}")


QUERIES = {
    query: name
    for module in MODULES
    for name, value in vars(module).items()
    for query, name in find_queries(value, f"{module.__name__}.{name}")
} | {query: name for function, built in BUILT.items() for query, name in find_queries(built, function.__qualname__)}


def compare(query: RowQuery[Any]) -> None:
    build_row: Any = query.build_row
    row_type = query.value_type or getattr(build_row, "__self__", build_row)
    if is_row(row_type):
        compare_columns(query.statement, list_fields(row_type))
    elif inspect.isfunction(row_type):
        arguments = [hint for name, hint in get_type_hints(row_type).items() if name != "return"]
        compare_columns(query.statement, [(None, hint) for hint in arguments])
    else:  # `fetch_first` gives None for null as for no row
        compare_columns(query.statement, [(None, row_type)], with_null=False)


@pytest.mark.parametrize("query", QUERIES, ids=QUERIES.values())
def test_each_field_is_of_its_column(query: RowQuery[Any]) -> None:
    compare(query)


def test_no_query_is_built_where_it_is_not_compared() -> None:
    building = {
        f"{module.__name__}.{function.name}"
        for module in MODULES
        if module.__name__ != RowQuery.__module__
        for function in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] in {"RowQuery", "select_values"}
    }
    assert building == {f"{function.__module__}.{function.__qualname__}" for function in BUILT}


def test_no_query_is_read_without_a_row() -> None:
    of_the_database_itself = {  # in its own SQL, of none of our tables
        "engine.dialect.read_clock",
        "engine.revision._has_tables",
        "restore_detection._read_identity",
        "retention.by_bytes.measure_bytes",
    }
    untyped = {function for module in MODULES for function in find_untyped_reads(module)}
    allowed = {f"{outbox.__name__}.{name}" for name in of_the_database_itself}
    assert untyped == {*allowed, f"{RowQuery.__module__}.{RowQuery._execute.__name__}"}


def find_oldest(at: int | None) -> int | None:
    return at


_seq: ColumnElement[Any] = deliveries.c.seq
_accepted_at: ColumnElement[Any] = deliveries.c.accepted_at
WRONG: dict[str, RowQuery[Any]] = {
    "a single column": select_values(str, _seq),
    "a computed single column": RowQuery(find_oldest, select(func.min(_accepted_at))),
    "no known type": RowQuery(int, select(func.length(deliveries.c.payload))),
    "never null": RowQuery(find_oldest, select(func.count())),
    "another order": RowQuery(ChannelRow, select(*reversed(list(CHANNELS.statement.selected_columns)))),
}


@pytest.mark.parametrize("query", WRONG.values(), ids=WRONG)
def test_a_wrong_one_is_noticed(query: RowQuery[Any]) -> None:
    with pytest.raises(AssertionError):
        compare(query)
