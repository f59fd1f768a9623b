"""Runs work beside other work: in tasks, in threads that may hang, in bounded concurrency, or large one at a time.

Returns freed memory to the system: glibc would keep that of a large request, counted against the limit, for ever.

glibc has one heap for each thread and adapts its thresholds to large allocations. With another C library nothing is
done. https://man7.org/linux/man-pages/man3/mallopt.3.html
"""

import asyncio
import ctypes
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

_ARENA_MAX: Final = -8
_MMAP_THRESHOLD: Final = -3
_MMAP_THRESHOLD_BYTES: Final = 256 * 1024
"""Bytes of an allocation from which on the memory goes back to the system as soon as it is freed."""


def limit_retained_memory() -> None:
    """Limit what glibc retains; call it at the start of a server."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_ARENA_MAX, 2)
    mallopt(_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)


def release_free_memory() -> None:
    """Give free memory back to the system; call it after large work."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return
    trim(0)


T = TypeVar("T")


def start_in_thread(name: str, work: Callable[[], T]) -> "Future[T]":
    """Start `work`, which may hang for ever, in a daemon thread of its own.

    The event loop's own threads are few and shared, and the end of the process waits for them, but not for this one.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # running, so that a wait that ends early leaves it to the thread

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001  the future carries every error
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


@asynccontextmanager
async def run_beside(*loops: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs loops while the body runs."""
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def is_task_cancelled() -> bool:
    """Whether the running task was cancelled: a library may raise CancelledError although nobody cancelled anything.

    Call it where a CancelledError is caught. A frame that kept its own task in a variable would form a cycle with it,
    and keep its locals, such as an open connection, alive until the garbage collector runs.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


_BATCH_SIZE: Final = 64
"""Results in one batch, at most: a commit takes as long for one as for many."""

I = TypeVar("I")  # noqa: E741  # an item of work
O = TypeVar("O")  # noqa: E741  # its result


async def run_concurrently(
    items: Sequence[I],
    call: Callable[[I], Awaitable[O]],
    handle_batch: Callable[[Sequence[tuple[I, O]]], Awaitable[None]],
    max_concurrent: int,
) -> None:
    """Call `call` for each item, several at a time, and pass the results to `handle_batch` in batches, in their order.

    One call after the other to KMS, which answers in tens of milliseconds, would take hours. After the first exception
    no further item starts; the exception is raised once all finished results were handled, so that none is lost.
    """
    failures: list[BaseException] = []
    slots = asyncio.Semaphore(max_concurrent)

    async def start(item: I) -> O:
        async with slots:
            if failures:
                raise failures[0]
            try:
                return await call(item)
            except BaseException as error:
                failures.append(error)
                raise

    remaining = [(item, asyncio.create_task(start(item))) for item in items]
    tasks = [task for _, task in remaining]
    try:
        while remaining:
            some = remaining[:_BATCH_SIZE]
            await asyncio.wait([task for _, task in some])
            if failures:
                some = remaining
                await asyncio.wait(tasks)
            remaining = remaining[len(some) :]
            await handle_batch(
                [(item, task.result()) for item, task in some if not task.cancelled() and not task.exception()]
            )
            if failures:
                raise failures[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


LARGE_BYTES: Final = 16 * 1024
"""Bytes up to which parsing, encoding or rendering is quicker than a change of threads."""


async def run_in_thread_if_large(size: int, work: Callable[[], T]) -> T:
    """Run `work`, whose time grows with `size` bytes: in a thread if they are many, else on the event loop."""
    return await asyncio.to_thread(work) if size > LARGE_BYTES else work()


_LARGE_WORK: Final = ThreadPoolExecutor(1, "large")
"""One at a time, so that the memory of several does not add up."""


async def run_large(work: Callable[[], T]) -> T:
    """Run `work` off the event loop, after what runs there; then give the freed memory back to the system."""

    def run() -> T:
        try:
            return work()
        finally:
            release_free_memory()

    return await asyncio.get_running_loop().run_in_executor(_LARGE_WORK, run)
