"""What may hang for ever, a disk or a name server, done in a thread that holds up nobody.

The event loop's own few threads serve everybody, and the end of the process waits for them; one of these ends with it.

Whether a CancelledError is meant for us: a library may raise one although nobody cancelled anything.

Work at KMS, several pieces at a time: it answers in tens of milliseconds, one after the other would take hours.

Where large documents are parsed: off the event loop and one at a time, so that their memory does not add up.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from shared.process.memory import release_free_memory

T = TypeVar("T")


def start_in_thread(name: str, work: Callable[[], T]) -> "Future[T]":
    """Begins `work` in a thread of that name; what it gives or raises comes to whoever waits."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # running, so that a wait that ends early leaves it to the thread

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001  whatever it is, whoever waits is told
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def is_task_cancelled() -> bool:
    """Whether somebody asked the running task to end.

    To be called where a CancelledError is caught. A frame that held its own task in a variable would be held by the
    task's end in turn, and with it all that it knows, such as an open connection, until cycles are looked for.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


MAX_CONCURRENT_CALLS: Final = 32
"""Pieces under way: enough for all that `paced` allows, while an answer takes 45 ms or less."""
_BATCH_SIZE: Final = 64
"""Outcomes at a time, at most: a commit takes as long for one as for many."""

I = TypeVar("I")  # noqa: E741  # an item of work
O = TypeVar("O")  # noqa: E741  # its outcome


async def run_concurrently(
    items: Sequence[I],
    call: Callable[[I], Awaitable[O]],
    handle_batch: Callable[[Sequence[tuple[I, O]]], Awaitable[None]],
    max_concurrent: int = MAX_CONCURRENT_CALLS,
) -> None:
    """Hands the items with what `call` made of them to `handle_batch`, some at a time, in their order, while others are done.

    After the first exception of `call` no further item is begun. It comes out once what was done was handed over, so that
    nothing of it is lost.
    """
    failures: list[BaseException] = []
    room = asyncio.Semaphore(max_concurrent)

    async def begin(item: I) -> O:
        async with room:
            if failures:
                raise failures[0]
            try:
                return await call(item)
            except BaseException as error:
                failures.append(error)
                raise

    left = [(item, asyncio.create_task(begin(item))) for item in items]
    tasks = [task for _, task in left]
    try:
        while left:
            some = left[:_BATCH_SIZE]
            await asyncio.wait([task for _, task in some])
            if failures:
                some = left
                await asyncio.wait(tasks)
            left = left[len(some) :]
            await handle_batch(
                [(item, task.result()) for item, task in some if not task.cancelled() and not task.exception()]
            )
            if failures:
                raise failures[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


_LARGE_WORK: Final = ThreadPoolExecutor(1, "parse")


async def run_large(work: Callable[[], T]) -> T:
    """What `work` returns; the memory that it needed meanwhile goes back to the system."""

    def parsed() -> T:
        try:
            return work()
        finally:
            release_free_memory()

    return await asyncio.get_running_loop().run_in_executor(_LARGE_WORK, parsed)
