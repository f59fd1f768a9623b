"""A statement for many rows, on both stores: each row gets its own values and those that the statement holds."""

import pytest
from sqlalchemy import bindparam, exc, insert, select, update

from services.relay.outbox.store import BulkStatement, Store, Transaction
from services.relay.outbox.tables import channels

COLUMNS = ("name", "paused_until", "next_token_at", "failures", "is_down")
NEW = BulkStatement(insert(channels), COLUMNS)
REFUSED = BulkStatement(
    update(channels)
    .where(channels.c.name == bindparam("of"))
    .values(is_down=1, reason=None, failures=bindparam("after"), next_token_at=channels.c.next_token_at + 1)
)


def row(name: str, failures: int) -> dict[str, object]:
    return dict(zip(COLUMNS, (name, 0.5, 2.0, failures, 0), strict=True))


async def test_each_row_gets_its_own_values_and_those_of_the_statement(either: Store) -> None:
    def write(transaction: Transaction) -> None:
        NEW.execute(transaction.connection, [row("a", 1), row("b%s :x ? '", 2), row("c", 3)])
        REFUSED.execute(transaction.connection, [{"of": "b%s :x ? '", "after": 7}, {"of": "c", "after": 8}])

    await either.run(write)
    wanted = select(*(channels.c[name] for name in (*COLUMNS, "reason"))).order_by(channels.c.name)
    assert await either.read(lambda connection: [tuple(each) for each in connection.execute(wanted)]) == [
        ("a", 0.5, 2.0, 1, 0, None),
        ("b%s :x ? '", 0.5, 3.0, 7, 1, None),
        ("c", 0.5, 3.0, 8, 1, None),
    ]


async def test_a_row_that_lacks_a_value_is_an_error_and_nothing_is_written(either: Store) -> None:
    lacking: list[dict[str, object]] = [row("a", 1), {"name": "b"}]
    with pytest.raises((KeyError, exc.ProgrammingError)):
        await either.run(lambda transaction: NEW.execute(transaction.connection, lacking))
    assert not await either.read(lambda connection: connection.execute(select(channels.c.name)).all())
