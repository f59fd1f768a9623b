"""Where large documents are parsed: off the event loop and one at a time, so that their memory does not add up."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from shared.memory import give_back

_PARSER: Final = ThreadPoolExecutor(1, "parse")

T = TypeVar("T")


async def parse_apart(parse: Callable[[], T]) -> T:
    """What `parse` returns; the memory that it needed meanwhile goes back to the system."""

    def parsed() -> T:
        try:
            return parse()
        finally:
            give_back()

    return await asyncio.get_running_loop().run_in_executor(_PARSER, parsed)
