"""Several pieces of work in one transaction: each gets its own result, and one that fails undoes itself alone."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, exc

Outcome = tuple[Any, Exception | None]
"""A result, or what was raised instead."""


class Transaction(NamedTuple):
    """One that is under way."""

    connection: Connection
    now: float
    """Unix seconds by the database's clock."""
    unmerged: frozenset[str]
    """The channels on which every event is told by itself."""


Do = Callable[[Transaction, Sequence[Any]], Sequence[Any]]
"""One kind of work: does all of its items at once, and gives the result of each in its place."""


class Piece(NamedTuple):
    """One item, and what is to be done with it."""

    do: Do
    item: Any


def by_kind(pieces: Sequence[Piece]) -> dict[Do, list[int]]:
    """The places of the pieces of each kind."""
    places: dict[Do, list[int]] = {}
    for place, piece in enumerate(pieces):
        places.setdefault(piece.do, []).append(place)
    return places


def do_all(transaction: Transaction, pieces: Sequence[Piece]) -> list[Outcome]:
    """The outcome of each piece, in its place. Raises DBAPIError, and then nothing was done."""
    outcomes: list[Outcome] = [(None, None)] * len(pieces)
    for do, places in by_kind(pieces).items():
        items = [pieces[place].item for place in places]
        for place, outcome in zip(places, _in_savepoint(transaction, do, items), strict=True):
            outcomes[place] = outcome
    return outcomes


def _in_savepoint(transaction: Transaction, do: Do, items: list[Any]) -> list[Outcome]:
    """Where one of several items raises, each is done by itself."""
    # By hand: where the database fails, SQLite has ended the transaction, and undoing the savepoint would fail again.
    connection = transaction.connection
    connection.exec_driver_sql("SAVEPOINT work")
    try:
        outcomes: list[Outcome] = [(result, None) for result in do(transaction, items)]
    except exc.DBAPIError:
        raise
    except Exception as error:  # noqa: BLE001  # handed to whoever waits for this piece of work
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT work")
        connection.exec_driver_sql("RELEASE SAVEPOINT work")
        if len(items) == 1:
            return [(None, error)]
        return [outcome for item in items for outcome in _in_savepoint(transaction, do, [item])]
    connection.exec_driver_sql("RELEASE SAVEPOINT work")
    return outcomes
