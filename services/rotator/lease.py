"""The lease: its holder may rotate. It is renewed during the work, and released however the work ends."""

import asyncio
import getpass
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

from services.rotator.model import RotatorError
from shared.keyring.administration import Administration, AdministrationError, Lease, RefusedError, UnreachableError

_RELEASE_TIMEOUT: Final = 5.0
_RENEWALS_PER_LEASE: Final = 3
"""In each of the lease's lengths: two may fail, and it is still kept."""

T = TypeVar("T")


class LeaseLostError(RotatorError):
    """Another runner may hold the lease by now; the work was stopped."""


def describe_holder() -> str:
    """This runner, for the person who is refused because of it: user, host and process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()} pid {os.getpid()}"


async def run_with_lease(
    administration: Administration, seconds: float, run: Callable[[Lease], Awaitable[T]], holder: str
) -> T:
    """What `run` returns, done while the lease is held.

    Args:
        administration: the keyring.
        seconds: of the lease; it is renewed three times in that.
        run: gets the lease as it was taken.
        holder: of the holder.

    Raises:
        RefusedError: another runner holds it; the message names that.
        LeaseLostError: it could not be kept, and the work was cancelled.
        AdministrationError: nobody gave it. And whatever `run` raises.
    """
    lease = await administration.acquire_lease(holder, seconds)
    working = asyncio.ensure_future(run(lease))
    keeping = asyncio.create_task(_renew_lease(administration, seconds, holder, lease.token))
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
            async with asyncio.timeout(_RELEASE_TIMEOUT):
                await administration.release_lease(lease.token)


async def _renew_lease(administration: Administration, seconds: float, holder: str, token: str) -> None:
    """Renews for ever. Raises LeaseLostError."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds
    while True:
        await asyncio.sleep(seconds / _RENEWALS_PER_LEASE)
        begun = loop.time()
        try:
            async with asyncio.timeout_at(ends):
                await administration.acquire_lease(holder, seconds, token)
            ends = begun + seconds
        except RefusedError as error:
            raise LeaseLostError(f"the lease was lost in the middle: {error}", "status") from None
        except (UnreachableError, TimeoutError) as error:
            if loop.time() + seconds / _RENEWALS_PER_LEASE >= ends:
                why = str(error) or "no answer"
                raise LeaseLostError(f"the lease could not be renewed within {seconds:g} s: {why}", "status") from None
