"""Every row type of the outbox says what its query returns: as many columns, of these types, null or not."""

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

import pytest
from sqlalchemy import Column, Label

from services.relay import outbox
from services.relay.outbox.rows import RowQuery

QUERIES = {
    query: f"{module.name}.{name}"
    for module in pkgutil.iter_modules(outbox.__path__)
    if not module.ispkg
    for name, query in vars(importlib.import_module(f"{outbox.__name__}.{module.name}")).items()
    if isinstance(query, RowQuery)
}


def fields_of(row_type: Any) -> Iterator[tuple[str, Any]]:
    """The fields that the columns of a query fill, those of a row within a row included."""
    for name, hint in get_type_hints(row_type).items():
        if is_row(hint):
            yield from fields_of(hint)
        else:
            yield name, hint


def is_row(hint: Any) -> bool:
    return hasattr(hint, "_fields") or is_dataclass(hint)


@pytest.mark.parametrize("query", QUERIES, ids=QUERIES.values())
def test_each_field_is_of_its_column(query: RowQuery[Any]) -> None:
    columns = list(query.statement.selected_columns)
    row_type = getattr(query.build_row, "__self__", query.build_row)
    if not is_row(row_type):  # one value
        assert len(columns) == 1
        return
    fields = list(fields_of(row_type))
    assert len(fields) == len(columns)
    for (name, hint), column in zip(fields, columns, strict=True):
        assert name == column.name
        source = column.element if isinstance(column, Label) else column
        if isinstance(source, Column):  # else it is computed
            types = set(get_args(hint)) or {hint}
            assert types - {type(None)} == {source.type.python_type}, name
            assert (type(None) in types) == bool(source.nullable), name
