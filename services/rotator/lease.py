"""The lease: who holds it may rotate. Taken, kept while the work goes on, and given up whatever the work comes to."""

import asyncio
import getpass
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

from services.rotator.model import RotatorError
from shared.keyring.administration import Administration, AdministrationError, Lease, RefusedError, UnreachableError

_RELEASE_SECONDS: Final = 5.0
_RENEWALS: Final = 3
"""In each of the lease's lengths: two may fail, and it is still kept."""

T = TypeVar("T")


class LeaseLostError(RotatorError):
    """Another runner may hold the lease by now; the work was stopped."""


def holder() -> str:
    """This runner, for the person who is refused because of it: user, host and process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()} pid {os.getpid()}"


async def holding(
    administration: Administration, seconds: float, work: Callable[[Lease], Awaitable[T]], name: str
) -> T:
    """What `work` returns, done while the lease is held.

    Args:
        administration: the keyring.
        seconds: of the lease; it is renewed three times in that.
        work: gets the lease as it was taken.
        name: of the holder.

    Raises:
        RefusedError: another runner holds it; the message names that.
        LeaseLostError: it could not be kept, and the work was cancelled.
        AdministrationError: nobody gave it. And whatever `work` raises.
    """
    lease = await administration.lease(name, seconds)
    working = asyncio.ensure_future(work(lease))
    keeping = asyncio.create_task(_kept(administration, seconds, name, lease.token))
    try:
        await asyncio.wait({working, keeping}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            await keeping  # it ends only by raising
        return await working
    finally:
        for task in (working, keeping):
            task.cancel()
        await asyncio.gather(working, keeping, return_exceptions=True)
        with suppress(AdministrationError, TimeoutError):  # it ends by itself
            async with asyncio.timeout(_RELEASE_SECONDS):
                await administration.release(lease.token)


async def _kept(administration: Administration, seconds: float, name: str, token: str) -> None:
    """Renews for ever. Raises LeaseLostError."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds
    while True:
        await asyncio.sleep(seconds / _RENEWALS)
        begun = loop.time()
        try:
            async with asyncio.timeout_at(ends):
                await administration.lease(name, seconds, token)
            ends = begun + seconds
        except RefusedError as error:
            raise LeaseLostError(f"the lease was lost in the middle: {error}", "status") from None
        except (UnreachableError, TimeoutError) as error:
            if loop.time() + seconds / _RENEWALS >= ends:
                why = str(error) or "no answer"
                raise LeaseLostError(f"the lease could not be renewed within {seconds:g} s: {why}", "status") from None
