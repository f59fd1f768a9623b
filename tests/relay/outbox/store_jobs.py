"""Work for a store that shows what was committed, and a store that is busy."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from sqlalchemy import insert, select

from services.relay.outbox.store import Store, Transaction
from services.relay.outbox.tables import quarantine
from tests.relay.served_relay import until


def write(transaction: Transaction, body: bytes = b"") -> None:
    row = insert(quarantine).values(received_at=0, source="", code=400, reason="", body=body)
    transaction.connection.execute(row)


def write_all(transaction: Transaction, bodies: Sequence[bytes]) -> list[int]:
    """One piece of work of a kind that does many at once; gives how many came together."""
    for body in bodies:
        write(transaction, body)
    return [len(bodies)] * len(bodies)


async def bodies(store: Store) -> list[bytes]:
    query = select(quarantine.c.body).order_by(quarantine.c.seq)
    return await store.read(lambda connection: list(connection.execute(query).scalars()))


@asynccontextmanager
async def blocked(store: Store, size: int = 0) -> AsyncIterator[None]:
    """While the body runs, the thread of the store is busy with something of so many bytes."""
    started, going_on = threading.Event(), threading.Event()

    def wait(_transaction: Transaction, items: Sequence[None]) -> Sequence[None]:
        started.set()
        going_on.wait(30)
        return items

    task = asyncio.create_task(store.batch(wait, None, size))
    await until(started.is_set)
    try:
        yield
    finally:
        going_on.set()
        await asyncio.gather(task, return_exceptions=True)
