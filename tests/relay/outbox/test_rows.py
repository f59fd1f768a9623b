"""Every query of the relay gives what its row says: as many columns, of these names and types, null or not."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, get_type_hints

import pytest

from services import relay
from services.relay.deliveries import queries as deliveries
from services.relay.deliveries.queries import DeliveryFilter, Position
from services.relay.outbox import dead_letters, tables
from shared.sql.rows import RowQuery
from tests.row_columns import compare_columns, is_row, list_fields

MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(relay.__path__, f"{relay.__name__}.")
    if not module.name.endswith(("__main__", ".drawing"))  # Matplotlib starts threads, which are not forked
]
_EXAMINED = tables.deliveries.select().subquery()
BUILT = {
    # Those that a function builds, by the function.
    deliveries._build_search: deliveries._build_search(DeliveryFilter(), _EXAMINED, Position(), 1),
    deliveries._build_end: deliveries._build_end(_EXAMINED),
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
    elif is_dataclass(value) and not isinstance(value, type) and value.__module__.startswith(relay.__name__):
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
    elif inspect.isfunction(row_type) and inspect.getfullargspec(row_type).varargs:
        pass  # it converts some of its columns
    elif inspect.isfunction(row_type):
        arguments = [hint for name, hint in get_type_hints(row_type).items() if name != "return"]
        compare_columns(query.statement, [(None, hint) for hint in arguments])
    else:  # `fetch_first` gives None for null as for no row
        compare_columns(query.statement, [(None, row_type)], with_null=False)


@pytest.mark.parametrize("query", QUERIES, ids=QUERIES.values())
def test_each_field_is_of_its_column(query: RowQuery[Any]) -> None:
    compare(query)
