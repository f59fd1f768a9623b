"""What every test stands on."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

# looptime asks for the event loop before each test; before the first asynchronous one, Python 3.11 would make a loop
# that nobody closes, and the warning of it would hit whichever test comes next. Having set none once, it makes none.
asyncio.set_event_loop(None)


Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


@pytest.fixture
def until() -> Until:
    """Waits for a condition, 15 s at most, and says how it ended."""

    async def wait(condition: Callable[[], Awaitable[bool]]) -> None:
        deadline = time.monotonic() + 15
        while not await condition():
            assert time.monotonic() < deadline, "the condition did not come true within 15 s"
            await asyncio.sleep(0.02)

    return wait
