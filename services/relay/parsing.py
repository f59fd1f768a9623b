"""Where large documents are parsed: off the event loop and one at a time, so that their memory does not add up."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from shared.memory import release_free_memory

_LARGE_WORK: Final = ThreadPoolExecutor(1, "parse")

T = TypeVar("T")


async def run_large(work: Callable[[], T]) -> T:
    """What `work` returns; the memory that it needed meanwhile goes back to the system."""

    def parsed() -> T:
        try:
            return work()
        finally:
            release_free_memory()

    return await asyncio.get_running_loop().run_in_executor(_LARGE_WORK, parsed)
