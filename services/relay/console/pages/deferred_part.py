"""A page that does not wait long for a part of it: the browser asks for that part after the first paint."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from starlette.requests import Request

T = TypeVar("T")
_MAX_WAIT: Final = 0.15
"""Seconds."""


async def read_part(request: Request, part: str, reading: Coroutine[Any, Any, T]) -> T | None:
    """What is read; None if that takes long, and the request is for the whole page.

    Args:
        request: of the page, or of htmx for a part of it.
        part: the id of the element that shows what is read.
        reading: it continues where this returns None, for the request that follows. Its exceptions are raised.
    """
    task = asyncio.ensure_future(reading)
    if request.headers.get("hx-target") == part:
        return await task
    await asyncio.wait({task}, timeout=_MAX_WAIT)
    if task.done():
        return task.result()
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return None
