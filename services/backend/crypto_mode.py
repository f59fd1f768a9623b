"""The mode of the service, `kms`, or `env` while KMS fails: checks of KMS decide it.

KMS is checked with a real round trip, once at the start and then at each interval:

- It succeeds: the active data key is unwrapped, and the mode is `kms`. The remaining data keys are unwrapped after the
  check, several at a time, or when a record needs them; KMS re-wraps what the local key wrapped.
- It fails at the start, or for the second time in a row: the mode is `env`. One failure may be a lost packet or a slow
  answer, and would page somebody; a start cannot wait for a second try. A running service whose quota is exhausted
  stays in mode `kms`: KMS answers, and the data keys in memory stay usable.
"""

import asyncio
from collections.abc import Awaitable
from typing import Final

import structlog

from services.backend.keyring import Keyring
from services.backend.local_key_file import LocalKeyError
from shared.backend_contract import CryptoMode
from shared.keyring.database import DatabaseError
from shared.keyring.store import RetiredVersionError
from shared.kms.port import KmsError
from shared.kms.reason import Reason
from shared.process.concurrency import is_task_cancelled

_FAILURES_BEFORE_ENV_MODE: Final = 2

log = structlog.get_logger(__name__)


class KmsChecker:
    """Checks KMS, and sets the mode of `keyring`."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._failures = 0

    async def run(self, interval: float, checked: asyncio.Event) -> None:
        """Checks now and at each `interval` seconds, until it is cancelled; sets `checked` after the first time.

        After each check the remaining data keys are unwrapped in the background, unless that is still going on.
        """
        unwrapping: asyncio.Task[None] | None = None
        try:
            while True:
                await self._run_safely(self.check(), interval)
                checked.set()
                if unwrapping is None or unwrapping.done():
                    unwrapping = asyncio.create_task(self._run_safely(self._keyring.unwrap_remaining(), interval))
                await asyncio.sleep(interval)
        finally:
            if unwrapping:
                unwrapping.cancel()
                await asyncio.gather(unwrapping, return_exceptions=True)

    async def _run_safely(self, action: Awaitable[None], interval: float) -> None:
        try:
            await action
        except DatabaseError as error:
            if not self._keyring.can_encrypt:
                self._keyring.reason = f"the keyring's database cannot be used: {error}"
            log.warning("keyring database cannot be used; it is tried again", error=str(error), retry_in=interval)
        except (Exception, asyncio.CancelledError):
            # A defect must not end the checks: nothing would bring KMS back. Nor must a library's CancelledError.
            if is_task_cancelled():
                raise
            log.exception("KMS check failed unexpectedly; it is tried again", retry_in=interval)

    async def check(self) -> None:
        """One round trip, and the mode that follows. Raises DatabaseError; the next check continues from there."""
        async with self._keyring.lock:
            try:
                await self._keyring.use_kms()
            except RetiredVersionError as error:
                await self._handle_failed_check(KmsError(Reason.KEY_DISABLED, str(error)))
            except KmsError as error:
                await self._handle_failed_check(error)
            else:
                self._failures = 0
                self._keyring.set_mode(CryptoMode.KMS, None, None)
            await self._keyring.send_heartbeat()

    async def _handle_failed_check(self, error: KmsError) -> None:
        if self._keyring.mode is CryptoMode.KMS and error.reason is Reason.QUOTA_EXHAUSTED:
            self._keyring.set_mode(CryptoMode.KMS, f"KMS refuses: {error.label}", error.detail)
            await self._keyring.reload_keys()
            return
        self._failures += 1
        if self._keyring.mode is CryptoMode.KMS and self._failures < _FAILURES_BEFORE_ENV_MODE:
            log.warning("KMS check failed; a second failure in a row changes the mode to env", error=str(error))
            return
        reason = f"KMS cannot be used: {error.label}"
        try:
            await self._keyring.use_local_key()
        except LocalKeyError as missing:
            reason += f"; {missing}"
        finally:  # also if the database fails
            self._keyring.set_mode(CryptoMode.ENV, reason, error.detail)
