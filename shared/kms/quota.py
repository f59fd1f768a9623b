"""A KMS key whose calls stay below the provider's quota, which a rotation and a verification share with the services.

Over the quota, KMS refuses the next call of any caller, such as a service that starts. Where KMS refuses a call for its
quota all the same, all callers of this key wait.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from shared.kms.port import DecryptResult, EncryptResult, KmsError, KmsKey
from shared.kms.reason import Reason

MAX_CONCURRENT_CALLS: Final = 32
"""Data keys of a rotation in flight: enough to use the whole quota while an answer takes 45 ms or less."""
_FIRST_PAUSE: Final = 1.0
_SHORTEST_WAIT: Final = 0.001
"""Seconds: an event loop's clock is not finer."""
_LONGEST_PAUSE: Final = 32.0
"""Seconds. The sum of all pauses is a little over the minute of the quota."""

T = TypeVar("T")


class QuotaLimitedKey:
    """`kms` with calls of `encrypt` and `decrypt` spaced by the quota of its profile; all else passes through."""

    def __init__(self, kms: KmsKey) -> None:
        self._kms = kms
        self.profile = kms.profile
        self._next_call_at = float("-inf")
        """When the next call is due; by the event loop's clock, as the next one."""
        self._paused_until = float("-inf")
        self.describe_key, self.check_permissions = kms.describe_key, kms.check_permissions
        self.explain_denial = kms.explain_denial
        self.measure_connectivity, self.read_service_clock = kms.measure_connectivity, kms.read_service_clock
        self.close = kms.close

    @property
    def account(self) -> str:
        return self._kms.account

    async def encrypt(self, plaintext: bytes, aad: bytes, *, timeout: float) -> EncryptResult:
        """`timeout` begins when the call is made, as in `decrypt`."""
        return await self._call_within_quota(lambda: self._kms.encrypt(plaintext, aad, timeout=timeout))

    async def decrypt(self, ciphertext: bytes, aad: bytes, *, timeout: float) -> DecryptResult:
        return await self._call_within_quota(lambda: self._kms.decrypt(ciphertext, aad, timeout=timeout))

    async def _call_within_quota(self, call: Callable[[], Awaitable[T]]) -> T:
        now, pause = asyncio.get_running_loop().time, _FIRST_PAUSE
        while True:
            spacing = 60 / self.profile.calls_per_minute
            earliest = now() - self.profile.burst_calls * spacing
            due = self._next_call_at = max(self._next_call_at, earliest) + spacing
            while (wait := max(due, self._paused_until) - now()) > 0:  # noqa: ASYNC110 - a clock's state
                await asyncio.sleep(max(wait, _SHORTEST_WAIT))
            try:
                return await call()
            except KmsError as error:
                if error.reason is not Reason.QUOTA_EXHAUSTED or pause > _LONGEST_PAUSE:
                    raise
                self._paused_until = max(self._paused_until, now() + pause)
                pause *= 2
