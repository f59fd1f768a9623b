"""A task that goes on, whatever one of its turns meets."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from services.relay.channels.defect import describe_exception
from services.relay.outbox.waiting import StoreUnavailableError
from shared.cancelled import is_task_cancelled

_OUTBOX_RETRY_SECONDS: Final = 1.0
_DEFECT_RETRY_SECONDS: Final = 60.0

log = structlog.get_logger(__name__)


async def run_forever(name: str, step: Callable[[], Awaitable[float]]) -> None:
    """Takes turns until cancelled.

    Args:
        name: what the log calls it.
        step: gives the seconds until the next one.
    """
    while True:
        try:
            pause = await step()
        except StoreUnavailableError:  # the store itself has logged why
            pause = _OUTBOX_RETRY_SECONDS
        except (Exception, asyncio.CancelledError) as error:  # of one watch, it must end none
            if isinstance(error, asyncio.CancelledError) and is_task_cancelled():
                raise  # else a library let its own cancellation out
            log.error("unexpected error in a monitor; it is retried", monitor=name, **describe_exception(error))  # noqa: TRY400  # its text may hold a secret
            pause = _DEFECT_RETRY_SECONDS
        await asyncio.sleep(pause)
