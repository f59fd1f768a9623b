"""Many readers of the same kind in one read: while one read runs, the next items wait for the one after it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from sqlalchemy import Connection

_MAX_ITEMS: Final = 128
"""Items of one read: few enough that what it reads for them fits into memory."""

I = TypeVar("I")  # noqa: E741  # an item of work
T = TypeVar("T")
ReadHandler = Callable[[Connection, Sequence[I]], Sequence[T]]
"""Reads for all of its items at once, and gives the result of each in its place."""


class ReadBatches:
    """The reads that wait.

    Args:
        read: runs a query on a connection of its own.
    """

    def __init__(self, read: Callable[[Callable[[Connection], Sequence[Any]]], Awaitable[Sequence[Any]]]) -> None:
        self._read = read
        self._waiting: dict[ReadHandler[Any, Any], list[tuple[Any, asyncio.Future[Any]]]] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def read(self, handler: ReadHandler[I, T], item: I) -> T:
        """What `handler` reads for `item`. Raises what the read raises."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if handler in self._waiting:
            self._waiting[handler].append((item, done))
        else:
            self._waiting[handler] = [(item, done)]
            task = asyncio.create_task(self._run(handler), name="batched read")
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return await done

    async def _run(self, handler: ReadHandler[Any, Any]) -> None:
        waiting = self._waiting[handler]
        try:
            while waiting:
                batch = [each for each in waiting[:_MAX_ITEMS] if not each[1].done()]  # else its reader is gone
                del waiting[:_MAX_ITEMS]
                if batch:
                    await self._read_batch(handler, batch)
        finally:
            del self._waiting[handler]
            for _, done in waiting:
                done.cancel()

    async def _read_batch(
        self, handler: ReadHandler[Any, Any], batch: Sequence[tuple[Any, asyncio.Future[Any]]]
    ) -> None:
        error, results = None, [None] * len(batch)
        try:
            results[:] = await self._read(partial(_call, handler, [item for item, _ in batch]))
        except Exception as raised:  # noqa: BLE001  # each reader gets it
            error = raised
        for (_, done), result in zip(batch, results, strict=True):
            if not done.done():
                done.set_exception(error) if error else done.set_result(result)


def _call(handler: ReadHandler[Any, Any], items: Sequence[Any], connection: Connection) -> Sequence[Any]:
    return handler(connection, items)
