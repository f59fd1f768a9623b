"""What every command uses, opened once for each: the keyring, the KMS key, the backups, and the progress display."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from services.rotator.backups.folder import BackupFolder
from services.rotator.config import RotatorSettings
from services.rotator.drivers.registry import open_driver
from services.rotator.lease_renewal import describe_holder, run_with_lease
from services.rotator.model import ProgressReporter, RotatorError, StepResult
from shared.keyring.administration import Administration, Lease
from shared.kms.port import KmsKeyAdmin
from shared.kms.registry import connect_key
from shared.kms.retries import RetryingAdminKey

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CommandSession:
    """What a command uses."""

    settings: RotatorSettings
    administration: Administration
    kms: KmsKeyAdmin
    backups: BackupFolder
    progress: ProgressReporter
    clock: Callable[[], float]
    """Unix seconds."""
    steps: list[StepResult]
    """The steps so far; whoever reports an error has them, too."""

    @property
    def now_utc(self) -> datetime:
        """Aware, in UTC."""
        return datetime.fromtimestamp(self.clock(), UTC)

    @property
    def caller(self) -> str:
        """Who rotates, for logs and journal."""
        return describe_holder()

    def get_database_time(self, lease: Lease) -> datetime:
        """The database's time a moment ago, by a lease that was just taken: this machine's clock may be wrong."""
        return lease.expires_at - timedelta(seconds=self.settings.lease)

    async def run_with_lease(self, run: Callable[[Lease], Awaitable[T]]) -> T:
        """Calls `run` under the lease, and returns its result. Raises RotatorError, and what `run_with_lease` raises.

        Every command that changes something uses it: the usage of one KMS key must not decide about another.
        """
        kek, key = (await self.administration.count_key_usage()).kek, self.settings.kms.key
        if kek != key:
            raise RotatorError(
                f"the service wraps its data keys by {kek or 'an unknown KMS key'}, and `kms.key` is {key}"
                "; expected the same key; nothing was changed",
                "census",
            )
        return await run_with_lease(self.administration, self.settings.lease, run, self.caller)


@asynccontextmanager
async def open_session(
    settings: RotatorSettings, progress: ProgressReporter, steps: list[StepResult], clock: Callable[[], float]
) -> AsyncIterator[CommandSession]:
    """Everything is closed when the body is left.

    Args:
        settings: of the rotator.
        progress: shows what happens.
        steps: gets each step that is done.
        clock: Unix seconds.

    Raises:
        RotatorError: the state's folder cannot be used.
        AdministrationError: the keyring cannot be opened.
    """
    backups = await asyncio.to_thread(BackupFolder, settings.state_dir)
    kms = RetryingAdminKey(connect_key(settings.kms))
    try:
        async with open_driver(settings.driver, settings.kms, caller=describe_holder()) as administration:
            yield CommandSession(settings, administration, kms, backups, progress, clock, steps)
    finally:
        await kms.close()
