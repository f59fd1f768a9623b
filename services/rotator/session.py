"""What every command works with, opened once for each: the keyring, the KMS key, the backups, and who is told."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from services.rotator.backups import Backups
from services.rotator.config import Settings
from services.rotator.drivers.registry import connect as connect_keyring
from services.rotator.lease import holder, holding
from services.rotator.model import RotatorError, Tell, Took
from shared.keyring.administration import Administration, Lease
from shared.kms.provider import KeyAdmin
from shared.kms.registry import connect as connect_kms

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Session:
    """The way to everything."""

    settings: Settings
    administration: Administration
    kms: KeyAdmin
    backups: Backups
    tell: Tell
    clock: Callable[[], float]
    """Unix seconds."""
    took: list[Took]
    """The steps so far; whoever reports an error has them, too."""

    @property
    def now(self) -> datetime:
        """Aware, in UTC."""
        return datetime.fromtimestamp(self.clock(), UTC)

    @property
    def caller(self) -> str:
        """Who rotates, for logs and journal."""
        return holder()

    def database_now(self, lease: Lease) -> datetime:
        """The database's time a moment ago, by a lease that was just taken: this machine's clock may be wrong."""
        return lease.expires_at - timedelta(seconds=self.settings.lease)

    async def holding(self, work: Callable[[Lease], Awaitable[T]]) -> T:
        """What `work` returns, done while the lease is held. Raises RotatorError, and as `lease.holding` does.

        Every command that changes anything passes here: one key must not be retired by the census of another.
        """
        kek, key = (await self.administration.census()).kek, self.settings.kms.key
        if kek != key:
            raise RotatorError(
                f"the service wraps its data keys by {kek or 'a KMS key that it does not tell'}, and `kms.key` is {key}"
                "; expected the same key; nothing was changed",
                "census",
            )
        return await holding(self.administration, self.settings.lease, work, self.caller)


@asynccontextmanager
async def opened(
    settings: Settings, tell: Tell, took: list[Took], clock: Callable[[], float]
) -> AsyncIterator[Session]:
    """Everything is closed when the body is left.

    Args:
        settings: of the rotator.
        tell: who is told what happens.
        took: gets each step that is done.
        clock: Unix seconds.

    Raises:
        RotatorError: the state's folder cannot be used.
        AdministrationError: the keyring cannot be opened.
    """
    backups = await asyncio.to_thread(Backups, settings.state_dir)
    kms = connect_kms(settings.kms)
    try:
        async with connect_keyring(settings.driver, settings.kms, caller=holder()) as administration:
            yield Session(settings, administration, kms, backups, tell, clock, took)
    finally:
        await kms.close()
