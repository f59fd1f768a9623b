"""One read for all who want it at the same time, kept for a moment: many viewers cost as much as one."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedRead(Generic[T]):
    """A read and its last result.

    Args:
        read: reads, with what is given to `get`; of several at once, with that of the first.
        max_age: seconds for which a result counts.
    """

    def __init__(self, read: Callable[..., Awaitable[T]], max_age: float) -> None:
        self._read = read
        self._max_age = max_age
        self._task: asyncio.Future[T] | None = None
        self._version = 0
        self._started_at = 0.0

    async def get(self, version: int = 0, *arguments: object) -> T:
        """A result that was read for this version or a later one, and is not too old. Raises what `read` raises.

        Args:
            version: of what is read, where a change of it is known.
            arguments: for `read`.
        """
        now = asyncio.get_running_loop().time()
        task = self._task
        if task is None or version > self._version or now - self._started_at > self._max_age or _has_failed(task):
            self._version, self._started_at = version, now
            task = self._task = asyncio.ensure_future(self._read(*arguments))
            task.add_done_callback(_has_failed)  # whoever wanted it may be gone
        return await asyncio.shield(task)


def _has_failed(task: "asyncio.Future[T]") -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
