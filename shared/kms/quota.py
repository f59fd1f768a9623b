"""A KMS key that is called at a pace: a rotation and a verification stay below the quota, which the services share.

Google grants a project 60,000 cryptographic requests a minute (https://cloud.google.com/kms/quotas). What is over that
is refused to whoever comes next, such as a service that starts. Where KMS refuses all the same, everybody here waits.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from shared.kms.port import DecryptResult, EncryptResult, KmsError, KmsKey
from shared.kms.reason import Reason

CALLS_PER_MINUTE: Final = 42_000
"""While it lasts."""
BURST_CALLS: Final = 8_000
"""After a rest. So no minute has over 50,000, and a keyring of 2,000 data keys never waits."""
_FIRST_PAUSE: Final = 1.0
_SHORTEST_WAIT: Final = 0.001
"""Seconds: an event loop's clock is not finer."""
_LONGEST_PAUSE: Final = 32.0
"""Seconds. All pauses together are a little over the minute that the quota is of."""

T = TypeVar("T")


class QuotaLimitedKey:
    """`kms`, whose `encrypt` and `decrypt` wait for their turn; all else passes through."""

    def __init__(self, kms: KmsKey) -> None:
        self._kms = kms
        self._next_call_at = float("-inf")
        """When the next call is due; by the event loop's clock, as the next one."""
        self._paused_until = float("-inf")
        self.describe_key, self.check_permissions, self.measure_connectivity, self.close = (
            kms.describe_key,
            kms.check_permissions,
            kms.measure_connectivity,
            kms.close,
        )

    async def encrypt(self, plaintext: bytes, aad: bytes, *, timeout: float) -> EncryptResult:
        """See `KmsKey`; `timeout` begins with the turn."""
        return await self._call_within_quota(lambda: self._kms.encrypt(plaintext, aad, timeout=timeout))

    async def decrypt(self, ciphertext: bytes, aad: bytes, *, timeout: float) -> DecryptResult:
        """See `encrypt`."""
        return await self._call_within_quota(lambda: self._kms.decrypt(ciphertext, aad, timeout=timeout))

    async def _call_within_quota(self, call: Callable[[], Awaitable[T]]) -> T:
        now, pause = asyncio.get_running_loop().time, _FIRST_PAUSE
        while True:
            apart = 60 / CALLS_PER_MINUTE
            turn = self._next_call_at = max(self._next_call_at, now() - BURST_CALLS * apart) + apart
            while (wait := max(turn, self._paused_until) - now()) > 0:  # noqa: ASYNC110 - a clock's state
                await asyncio.sleep(max(wait, _SHORTEST_WAIT))
            try:
                return await call()
            except KmsError as error:
                if error.reason is not Reason.QUOTA_EXHAUSTED or pause > _LONGEST_PAUSE:
                    raise
                self._paused_until = max(self._paused_until, now() + pause)
                pause *= 2
