"""A KMS key that is called at a pace: a rotation and a verification stay below the quota, which the services share.

Google grants a project 60,000 cryptographic requests a minute (https://cloud.google.com/kms/quotas). What is over that
is refused to whoever comes next, such as a service that starts. Where KMS refuses all the same, everybody here waits.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from shared.kms.provider import Decrypted, Encrypted, KeyProvider, KmsError
from shared.kms.reason import Reason

CALLS_A_MINUTE: Final = 42_000
"""While it lasts."""
CALLS_AT_ONCE: Final = 8_000
"""After a rest. So no minute has over 50,000, and a keyring of 2,000 data keys never waits."""
_FIRST_PAUSE: Final = 1.0
_SHORTEST_WAIT: Final = 0.001
"""Seconds: an event loop's clock is not finer."""
_LONGEST_PAUSE: Final = 32.0
"""Seconds. All pauses together are a little over the minute that the quota is of."""

T = TypeVar("T")


class PacedKey:
    """`kms`, whose `encrypt` and `decrypt` wait for their turn; all else passes through."""

    def __init__(self, kms: KeyProvider) -> None:
        self._kms = kms
        self._turn = float("-inf")
        """When the next call is due; by the event loop's clock, as the next one."""
        self._quiet_until = float("-inf")
        self.describe, self.permissions, self.way, self.close = kms.describe, kms.permissions, kms.way, kms.close

    async def encrypt(self, plaintext: bytes, aad: bytes, *, timeout: float) -> Encrypted:
        """See `KeyProvider`; `timeout` begins with the turn."""
        return await self._paced(lambda: self._kms.encrypt(plaintext, aad, timeout=timeout))

    async def decrypt(self, ciphertext: bytes, aad: bytes, *, timeout: float) -> Decrypted:
        """See `encrypt`."""
        return await self._paced(lambda: self._kms.decrypt(ciphertext, aad, timeout=timeout))

    async def _paced(self, call: Callable[[], Awaitable[T]]) -> T:
        now, pause = asyncio.get_running_loop().time, _FIRST_PAUSE
        while True:
            apart = 60 / CALLS_A_MINUTE
            turn = self._turn = max(self._turn, now() - CALLS_AT_ONCE * apart) + apart
            while (wait := max(turn, self._quiet_until) - now()) > 0:  # noqa: ASYNC110 - a clock's state
                await asyncio.sleep(max(wait, _SHORTEST_WAIT))
            try:
                return await call()
            except KmsError as error:
                if error.reason is not Reason.QUOTA_EXHAUSTED or pause > _LONGEST_PAUSE:
                    raise
                self._quiet_until = max(self._quiet_until, now() + pause)
                pause *= 2
