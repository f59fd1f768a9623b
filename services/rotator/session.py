"""What every command uses, opened once for each: the keyring, the KMS key, the backups, and the progress display.

The lease of a rotation is renewed during the work, and released however the work ends.
"""

import asyncio
import getpass
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from services.rotator.backups import BackupFolder
from services.rotator.config import RotatorSettings
from services.rotator.drivers.registry import open_driver
from services.rotator.plan import list_unnamed
from services.rotator.report import ProgressReporter, RotatorError, StepResult
from shared.keyring.administration import Administration, AdministrationError, Lease, RefusedError, UnreachableError
from shared.keyring.wrapping import KeyWrapper
from shared.kms.port import KmsKeyAdmin
from shared.kms.registry import connect_keys
from shared.kms.retries import RetryingAdminKey, RetryingKey

_RELEASE_TIMEOUT: Final = 5.0
_RENEWALS_PER_LEASE: Final = 3
"""Per length of the lease: two may fail before it is lost."""


class RotationLeaseLostError(RotatorError):
    """The lease could not be renewed; another runner may have it, and the work was cancelled."""


def describe_holder() -> str:
    """The name of this runner, for another one that is refused: user, host and process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()} pid {os.getpid()}"


@asynccontextmanager
async def hold_lease(administration: Administration, seconds: float, holder: str) -> AsyncIterator[Lease]:
    """A lease of `seconds`, renewed while the body runs.

    Raises:
        RefusedError: another runner holds the lease; the message names it.
        RotationLeaseLostError: it could not be renewed, and the body was cancelled.
        AdministrationError: it could not be acquired.
    """
    lease = await administration.acquire_lease(holder, seconds)
    try:
        async with asyncio.TaskGroup() as tasks:
            renewal = tasks.create_task(_renew_lease(administration, seconds, holder, lease.token))
            yield lease
            renewal.cancel()
    except BaseExceptionGroup as failure:  # of the renewal, or of the body
        raise failure.exceptions[0] from None
    finally:
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


@dataclass(frozen=True, slots=True)
class CommandSession:
    settings: RotatorSettings
    administration: Administration
    kms: KmsKeyAdmin
    wrapping: KeyWrapper
    """By `kms`; it unwraps by the keys of `previous_kms`, too."""
    backups: BackupFolder
    progress: ProgressReporter
    clock: Callable[[], float]
    """Unix seconds."""
    steps: list[StepResult]
    """The steps so far, also for the report of an error."""

    @property
    def caller(self) -> str:
        """Who rotates, for logs and journal."""
        return describe_holder()

    def get_database_time(self, lease: Lease) -> datetime:
        """The database's time a moment ago, by a lease that was just taken: this machine's clock may be wrong."""
        return lease.expires_at - timedelta(seconds=self.settings.lease)

    @asynccontextmanager
    async def hold_lease(self) -> AsyncIterator[Lease]:
        """The lease while the body runs. Raises RotatorError if the service uses another KMS key than `kms.key`.

        The usage of one KMS key must not decide about another.
        """
        usage, key = await self.administration.count_key_usage(), self.settings.kms.key_name
        if usage.kek != key:
            raise RotatorError(
                f"the service wraps its data keys by {usage.kek or 'an unknown KMS key'}, and `kms.key` is {key}"
                "; expected the same key; nothing was changed",
                "census",
            )
        for sentence in list_unnamed(usage, key, has_own_keys=self.settings.driver.has_own_keys):
            self.progress.report_step("keys", sentence)
        async with hold_lease(self.administration, self.settings.lease, self.caller) as lease:
            yield lease


@asynccontextmanager
async def open_session(
    settings: RotatorSettings, progress: ProgressReporter, steps: list[StepResult], clock: Callable[[], float]
) -> AsyncIterator[CommandSession]:
    """Everything is closed when the body is left. `steps` gets each step that is done.

    Raises RotatorError if the state's folder cannot be used, AdministrationError if the keyring cannot be opened.
    """
    backups = await asyncio.to_thread(BackupFolder, settings.state_dir)
    key, previous = settings.kms.key_name, settings.previous_kms
    async with (
        connect_keys((settings.kms, *previous)) as keys,
        open_driver(settings.driver, settings.kms, previous, caller=describe_holder()) as administration,
    ):
        kms = RetryingAdminKey(keys[key])
        unwrapping = {each.key_name: RetryingKey(keys[each.key_name]) for each in previous}
        wrapping = KeyWrapper(kms, key, settings.kms_timeout, previous=unwrapping)
        yield CommandSession(settings, administration, kms, wrapping, backups, progress, clock, steps)
