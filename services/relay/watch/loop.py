"""A task that goes on, whatever one of its turns meets."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from services.relay.channels.defect import defect
from services.relay.outbox.waiting import StoreUnavailableError
from shared.cancelled import task_is_cancelled

_STORE_SECONDS: Final = 1.0
_DEFECT_SECONDS: Final = 60.0

log = structlog.get_logger(__name__)


async def again_and_again(name: str, turn: Callable[[], Awaitable[float]]) -> None:
    """Takes turns until cancelled.

    Args:
        name: what the log calls it.
        turn: gives the seconds until the next one.
    """
    while True:
        try:
            pause = await turn()
        except StoreUnavailableError:  # the store itself has logged why
            pause = _STORE_SECONDS
        except (Exception, asyncio.CancelledError) as error:  # of one watch, it must end none
            if isinstance(error, asyncio.CancelledError) and task_is_cancelled():
                raise  # else a library let its own cancellation out
            log.error("a defect of the watch", watch=name, **defect(error))  # noqa: TRY400  # its text may hold a secret
            pause = _DEFECT_SECONDS
        await asyncio.sleep(pause)
