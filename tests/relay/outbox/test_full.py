"""What lies in the outbox costs nobody time: no more steps beside thousands that were delivered than beside a few.

The steps are SQLite's own instructions, which no machine takes more or fewer of than another.
"""

import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from services.relay.outbox import query
from services.relay.outbox.again import again_all
from services.relay.outbox.schema import State
from services.relay.outbox.store import Store, opened
from services.relay.outbox.together import Transaction
from shared.sql import location
from tests.bench.filled import CHANNEL, fill
from tests.relay.outbox.acts import claimed, end, take, told

FEW, MANY = 20, 2000
WORK: dict[str, Callable[[Store], Awaitable[object]]] = {
    "an acceptance": lambda store: told(store, "new", CHANNEL),
    "a claim": lambda store: take(store, CHANNEL, limit=10),
    "a look that finds nothing": lambda store: take(store, "another"),
    "a scrape": lambda store: store.run(lambda transaction: query.counts(transaction.connection)),
    "dead letters again": lambda store: again_all(store, CHANNEL, 100),
}


class Steps:
    """What SQLite takes on the connection that writes, from `count` on."""

    def __init__(self) -> None:
        self.taken = 0

    def count(self, transaction: Transaction) -> None:
        driver = transaction.connection.connection.driver_connection
        assert driver is not None
        driver.set_progress_handler(self._step, 1)

    def _step(self) -> int:
        self.taken += 1
        return 0


async def taken(file: Path, delivered: int, work: Callable[[Store], Awaitable[object]]) -> int:
    async with opened(location.sqlite(file), time.time) as store:
        await fill(store, delivered, State.DELIVERED)
        await fill(store, 3, State.DEAD)
        for number in range(10):
            await told(store, f"incident {number}", CHANNEL)
        steps = Steps()
        await store.run(steps.count)
        await work(store)
        return steps.taken


@pytest.mark.parametrize("work", WORK)
async def test_what_was_delivered_before_is_not_looked_through(tmp_path: Path, work: str) -> None:
    few, many = [await taken(tmp_path / f"{number}.db", number, WORK[work]) for number in (FEW, MANY)]
    assert 50 < many < 1.05 * few + 20


async def test_a_receipt_looks_through_nothing_either(tmp_path: Path) -> None:
    async def receipt(store: Store) -> None:
        await end(store, await claimed(store, CHANNEL))

    few, many = [await taken(tmp_path / f"{number}.db", number, receipt) for number in (FEW, MANY)]
    assert 50 < many < 1.05 * few + 20
