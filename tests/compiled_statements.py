"""Lets all engines of a kind share what SQLAlchemy compiled.

A process of the product has one engine of each kind, and compiles a statement once. A test has engines of its own, and
would compile all of its statements again: a third of what an outbox's test computes.
"""

from typing import Any, Final

from sqlalchemy import Connection, Engine, event


class _Statements(dict[Any, Any]):
    """By SQLAlchemy's key, whose first part is the engine's dialect: of that, the kind and the server's version count.

    SQLAlchemy itself only gets and sets.
    """

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(_without_engine(key), default)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(_without_engine(key), value)


_STATEMENTS: Final = _Statements()


def _without_engine(key: Any) -> Any:
    dialect, *statement = key
    return type(dialect), dialect.server_version_info, *statement


def share_compiled_statements() -> None:
    """From now on, in this process."""

    @event.listens_for(Engine, "engine_connect")
    def share(connection: Connection) -> None:
        connection.execution_options(compiled_cache=_STATEMENTS)
