"""Compares the columns of a SELECT with the fields of the row that is made of them: their names, types, null or not.

And finds the functions that read a result without such a row, or build a query of their own.
"""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from types import ModuleType
from typing import Any, get_args, get_origin, get_type_hints

from sqlalchemy import BindParameter, Case, Column, ColumnElement, FromClause, Join, Label, ScalarSelect, Select
from sqlalchemy.sql.functions import coalesce, count
from sqlalchemy.sql.functions import max as sql_max
from sqlalchemy.sql.functions import min as sql_min
from sqlalchemy.types import TypeDecorator, TypeEngine

from shared.sql.rows import RowQuery

Field = tuple[str | None, Any]
"""Its name, None of a single value, and its type."""


def import_modules(*packages: ModuleType) -> list[ModuleType]:
    """All modules of these packages."""
    return [
        importlib.import_module(module.name)
        for package in packages
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not module.name.endswith(("__main__", ".drawing"))  # Matplotlib starts threads, which are not forked
    ]


def list_queries(modules: Sequence[ModuleType]) -> dict[RowQuery[Any], str]:
    """The queries that modules hold, and their names."""
    return {
        query: name
        for module in modules
        for name, value in vars(module).items()
        for query, name in find_queries(value, f"{module.__name__}.{name}")
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
    elif is_dataclass(value) and not isinstance(value, type) and value.__module__.startswith(("services.", "shared.")):
        for field in value.__dataclass_fields__:
            yield from find_queries(getattr(value, field), f"{name}.{field}")


def compare_query(query: RowQuery[Any]) -> None:
    """Raises AssertionError where a field is not of its column."""
    build_row: Any = query.build_row
    row_type = query.value_type or getattr(build_row, "__self__", build_row)
    if is_row(row_type):
        compare_columns(query.statement, list_fields(row_type))
    elif get_origin(row_type) is tuple:
        compare_columns(query.statement, [(None, hint) for hint in get_args(row_type)])
    elif inspect.isfunction(row_type) and inspect.getfullargspec(row_type).varargs:
        pass  # it converts some of its columns
    elif inspect.isfunction(row_type):
        arguments = [hint for name, hint in get_type_hints(row_type).items() if name != "return"]
        compare_columns(query.statement, [(None, hint) for hint in arguments])
    else:  # `fetch_first` gives None for null as for no row
        compare_columns(query.statement, [(None, row_type)], with_null=False)


def is_row(hint: Any) -> bool:
    return hasattr(hint, "_fields") or is_dataclass(hint)


def list_fields(row_type: Any) -> list[Field]:
    """The fields of a row, those of a row within it included."""
    return [
        field
        for name, hint in get_type_hints(row_type).items()
        for field in (list_fields(hint) if is_row(hint) else [(name, hint)])
    ]


def compare_columns(statement: Select[*tuple[Any, ...]], fields: Sequence[Field], *, with_null: bool = True) -> None:
    """Raises AssertionError; a column without a known type is `object`, and nothing else."""
    columns = list(statement.selected_columns)
    assert len(fields) == len(columns), [column.name for column in columns]
    for (name, hint), column in zip(fields, columns, strict=True):
        assert name in {None, column.name}, column.name
        types = set(get_args(hint)) or {hint}
        python_type = find_python_type(column.type)
        assert types - {type(None)} == {python_type}, f"{column.name} is {python_type}"
        is_null = may_be_null(column.element if isinstance(column, Label) else column, statement)
        if with_null and is_null is not None:
            assert is_null == (type(None) in types), column.name


def find_python_type(sql_type: TypeEngine[Any]) -> type[Any]:
    """`object` if it is not known."""
    return (sql_type.impl_instance if isinstance(sql_type, TypeDecorator) else sql_type).python_type


def may_be_null(column: ColumnElement[Any], statement: Select[*tuple[Any, ...]]) -> bool | None:
    """None where that depends on the conditions of the query."""
    found: bool | None = None
    match column:
        case Column():
            found = bool(column.nullable) or column.table in list_optional_tables(statement)
        case BindParameter():
            found = column.value is None
        case count():
            found = False
        case coalesce():
            # Else a condition may see to it that one of them is not null.
            found = False if any(may_be_null(part, statement) is False for part in column.clauses) else None
        case sql_min() | sql_max() if not statement._group_by_clauses:
            found = True  # of no rows
        case sql_min() | sql_max():
            found = False if may_be_null(next(iter(column.clauses)), statement) is False else None
        case ScalarSelect():
            found = True  # where there are no rows
        case Case():
            found = True if column.else_ is None else None
    return found


def list_optional_tables(statement: Select[*tuple[Any, ...]]) -> list[FromClause]:
    """Those of which a row of the SELECT may have none: of outer joins."""

    def iterate(source: FromClause) -> Iterator[FromClause]:
        if isinstance(source, Join):
            yield from iterate(source.left)
            yield from iterate(source.right)
            if source.isouter:
                yield from source.right._from_objects

    return [table for source in statement.get_final_froms() for table in iterate(source)]


def find_untyped_reads(module: ModuleType) -> Iterator[str]:
    """The functions of a module that read values of what `execute` gives, and not only whether or how many rows are."""
    tree = ast.parse(inspect.getsource(module))
    parents = {id(child): node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr in {"scalar", "scalars"}:
            yield f"{module.__name__}.{_find_function(parents, node)}"
        elif node.func.attr == "execute":
            used = parents[id(node)]
            if isinstance(used, ast.Attribute) and used.attr == "first":
                used = parents[id(parents[id(used)])]
            match used:
                case ast.Expr() | ast.Lambda() | ast.Attribute(attr="rowcount"):
                    pass  # a lambda's is over with its transaction
                case ast.Compare(comparators=[ast.Constant(value=None)]):
                    pass
                case _:
                    yield f"{module.__name__}.{_find_function(parents, node)}"


def find_building(module: ModuleType) -> Iterator[str]:
    """The functions of a module that build a query when they are called."""
    builders = {"RowQuery", "select_rows", "select_tuples", "select_values"}
    for function in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            calls = (ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call))
            if not builders.isdisjoint(calls):
                yield function.name


def _find_function(parents: dict[int, ast.AST], node: ast.AST) -> str:
    while not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        node = parents[id(node)]
    return node.name
