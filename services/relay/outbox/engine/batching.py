"""Many jobs in one transaction (group commit), and statements for many rows.

Each job gets its own result, and one that fails undoes itself alone. A statement for many rows is compiled once for
each kind of database: SQLAlchemy inspects every value of every row at each execution, which takes longer than SQLite
needs for the row.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Dialect, Insert, Update, exc

JobResult = tuple[Any, Exception | None]
"""A result, or what was raised instead."""


class Transaction(NamedTuple):
    """A transaction that has started."""

    connection: Connection
    now: float
    """Unix seconds by the database's clock."""
    unmerged_channels: frozenset[str]
    """The channels that get every event as a delivery of its own."""


Handler = Callable[[Transaction, Sequence[Any]], Sequence[Any]]
"""Does all of its items at once, and gives the result of each in its place."""


class Job(NamedTuple):
    """An item of work, and its handler."""

    handler: Handler
    item: Any


def group_by_handler(jobs: Sequence[Job]) -> dict[Handler, list[int]]:
    """The indexes of the jobs of each handler."""
    indexes: dict[Handler, list[int]] = {}
    for index, job in enumerate(jobs):
        indexes.setdefault(job.handler, []).append(index)
    return indexes


def run_jobs(transaction: Transaction, jobs: Sequence[Job]) -> list[JobResult]:
    """The result of each job, in its place. Raises DBAPIError, and then nothing was done."""
    outcomes: list[JobResult] = [(None, None)] * len(jobs)
    for handler, indexes in group_by_handler(jobs).items():
        items = [jobs[index].item for index in indexes]
        for index, outcome in zip(indexes, _run_in_savepoint(transaction, handler, items), strict=True):
            outcomes[index] = outcome
    return outcomes


def _run_in_savepoint(transaction: Transaction, handler: Handler, items: list[Any]) -> list[JobResult]:
    """Where one of several items raises, each is done by itself."""
    # Not `begin_nested`: if the database fails, SQLite has ended the transaction, and a rollback of the savepoint fails
    # too.
    connection = transaction.connection
    connection.exec_driver_sql("SAVEPOINT work")
    try:
        outcomes: list[JobResult] = [(result, None) for result in handler(transaction, items)]
    except exc.DBAPIError:
        raise
    except Exception as error:  # noqa: BLE001  # raised for whoever waits for this job
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT work")
        connection.exec_driver_sql("RELEASE SAVEPOINT work")
        if len(items) == 1:
            return [(None, error)]
        return [outcome for item in items for outcome in _run_in_savepoint(transaction, handler, [item])]
    connection.exec_driver_sql("RELEASE SAVEPOINT work")
    return outcomes


RowValues = Mapping[str, Any]


class BulkStatement:
    """An insert or an update. Values go to the driver as they are: texts, numbers, bytes, None.

    Args:
        statement: without RETURNING.
        columns: of an insert; each row has all of them.
    """

    def __init__(self, statement: Insert | Update, columns: Sequence[str] | None = None) -> None:
        self._statement = statement
        self._columns = columns
        self._compiled: dict[str, tuple[str, Callable[[RowValues], Any]]] = {}

    def execute(self, connection: Connection, rows: Sequence[RowValues]) -> None:
        """Does it for each row; there has to be one."""
        compiled = self._compiled.get(connection.dialect.name)
        if compiled is None:
            compiled = self._compiled[connection.dialect.name] = self._compile(connection.dialect)
        sql, to_parameters = compiled
        connection.exec_driver_sql(sql, [to_parameters(row) for row in rows])

    def _compile(self, dialect: Dialect) -> tuple[str, Callable[[RowValues], Any]]:
        """The text for a driver, and what it takes for a row: a tuple or a mapping."""
        compiled = self._statement.compile(dialect=dialect, column_keys=self._columns, for_executemany=True)
        # What the statement itself holds, and what it awaits of each row.
        constants = {name: value for name, value in compiled.params.items() if not compiled.binds[name].required}
        order = compiled.positiontup
        if order is None:
            return compiled.string, lambda row: {**constants, **row}
        return compiled.string, lambda row: tuple(map({**constants, **row}.__getitem__, order))
