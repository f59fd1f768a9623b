"""Acquires the lease of a rotation, renews it during the work, and releases it however the work ends."""

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
"""Per length of the lease: two may fail before it is lost."""

T = TypeVar("T")


class RotationLeaseLostError(RotatorError):
    """The lease could not be renewed; another runner may have it, and the work was cancelled."""


def describe_holder() -> str:
    """Names this runner for whoever is refused because of it: user, host and process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()} pid {os.getpid()}"


async def run_with_lease(
    administration: Administration, seconds: float, run: Callable[[Lease], Awaitable[T]], holder: str
) -> T:
    """Calls `run` under the lease, and returns its result.

    Args:
        administration: the keyring.
        seconds: the length of the lease; it is renewed three times in that time.
        run: gets the acquired lease.
        holder: the name of this runner.

    Raises:
        RefusedError: another runner holds the lease; the message names it.
        RotationLeaseLostError: it could not be renewed, and the work was cancelled.
        AdministrationError: it could not be acquired. And whatever `run` raises.
    """
    lease = await administration.acquire_lease(holder, seconds)
    work = asyncio.ensure_future(run(lease))
    renewal = asyncio.create_task(_renew_lease(administration, seconds, holder, lease.token))
    try:
        await asyncio.wait({work, renewal}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            await renewal  # it only ends with an exception
        return await work
    finally:
        for task in (work, renewal):
            task.cancel()
        await asyncio.gather(work, renewal, return_exceptions=True)
        with suppress(AdministrationError, TimeoutError):  # it expires by itself
            async with asyncio.timeout(_RELEASE_TIMEOUT):
                await administration.release_lease(lease.token)


async def _renew_lease(administration: Administration, seconds: float, holder: str, token: str) -> None:
    """Renews the lease until it is cancelled. Raises RotationLeaseLostError."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds
    while True:
        await asyncio.sleep(seconds / _RENEWALS_PER_LEASE)
        requested_at = loop.time()
        try:
            async with asyncio.timeout_at(ends):
                await administration.acquire_lease(holder, seconds, token)
            ends = requested_at + seconds
        except RefusedError as error:
            raise RotationLeaseLostError(f"the lease was lost: {error}", "status") from None
        except (UnreachableError, TimeoutError) as error:
            if loop.time() + seconds / _RENEWALS_PER_LEASE >= ends:
                cause = str(error) or "no answer"
                raise RotationLeaseLostError(
                    f"the lease could not be renewed within {seconds:g} s: {cause}", "status"
                ) from None
