"""A KMS key whose calls stay below the provider's quota, which a rotation and a verification share with the services.

Over the quota, KMS refuses the next call of any caller, such as a service that starts. What the project may really use
is found out by what is refused: a refusal halves the pace at once, and all callers of this key wait; then it grows
slowly, up to a part of the documented limit.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from shared.kms.port import DecryptResult, EncryptResult, KmsError, KmsKey
from shared.kms.reason import Reason

MAX_CONCURRENT_CALLS: Final = 32
"""Data keys of a rotation in flight: enough to use the whole quota while an answer takes 45 ms or less."""
SHARE: Final = 0.7
"""The fastest pace, as a part of the documented limit: the rest is the services'."""
BURST_SHARE: Final = 2 / 15
"""The calls at once after a rest, as a part of the limit. No minute has more than five sixths of it."""
_GROWTH: Final = 1 / 50
"""How much the pace grows in a minute, as a part of the fastest."""
_SLOWEST: Final = 60.0
"""Calls a minute, below which the pace does not fall."""
_MAX_REFUSALS: Final = 7
"""Of one call in a row; then it fails, after a little over the minute of the quota at least."""
LONGEST_PAUSE: Final = 120.0
"""Seconds, whatever KMS asks for."""
_SHORTEST_WAIT: Final = 0.001
"""Seconds: an event loop's clock is not finer."""

R = TypeVar("R", EncryptResult, DecryptResult)

log = structlog.get_logger(__name__)


class QuotaLimitedKey:
    """`kms` with calls of `encrypt` and `decrypt` spaced by the quota of its profile; all else passes through.

    `clock` and `sleep` are the event loop's, in seconds.
    """

    def __init__(
        self,
        kms: KmsKey,
        *,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._kms = kms
        self.profile = kms.profile
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._sleep = sleep
        self._turn = asyncio.Lock()
        self._next_call_at = float("-inf")
        self._level = ""
        """The key's protection level, known from the first answer on."""
        self._pace, self._pace_at = float("inf"), 0.0
        """Calls a minute after the last refusal, and since when the pace grows again."""
        self._refusals = 0
        """How often the pace was halved."""
        self._calls: deque[float] = deque()
        """When the calls of the last minute were made."""
        self.describe_key, self.check_permissions = kms.describe_key, kms.check_permissions
        self.explain_denial = kms.explain_denial
        self.check_key_store = kms.check_key_store
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

    async def _call_within_quota(self, call: Callable[[], Awaitable[R]]) -> R:
        refusals = 0
        while True:
            halved = await self._wait_for_turn()
            try:
                answer = await call()
            except KmsError as error:
                if error.reason is not Reason.QUOTA_EXHAUSTED:
                    raise
                refusals += 1
                if refusals == _MAX_REFUSALS:
                    raise
                self._slow_down(error, 2.0 ** (refusals - 1), is_first=halved == self._refusals)
            else:
                self._level = answer.protection_level or self._level
                return answer

    async def _wait_for_turn(self) -> int:
        """Waits until the next call is due. Returns how often the pace was halved by then."""
        async with self._turn:  # callers wait in line, so that a pause or another pace concerns all of them
            while (wait := self._next_call_at - self._clock()) > 0:
                await self._sleep(max(wait, _SHORTEST_WAIT))
            now = self._clock()
            rested_since = max(self._next_call_at, now - 60 * BURST_SHARE / SHARE)
            self._next_call_at = rested_since + 60 / self._compute_pace()
            self._calls.append(now)
            while self._calls[0] <= now - 60:
                self._calls.popleft()
            return self._refusals

    def _compute_pace(self) -> float:
        """Calls a minute, now."""
        fastest = self.profile.get_call_limit(self._level) * SHARE
        return min(fastest, self._pace + fastest * _GROWTH * max(0.0, self._clock() - self._pace_at) / 60)

    def _slow_down(self, error: KmsError, default_pause: float, *, is_first: bool) -> None:
        """Halves the pace, and pauses for `default_pause`, or as long as KMS asks for if that is longer.

        `is_first`: whether the call began after the pace was halved last: calls in flight are refused together.
        """
        now = self._clock()
        pause = max(default_pause, min(error.retry_after or 0.0, LONGEST_PAUSE))
        self._next_call_at = max(self._next_call_at, now + pause)
        if not is_first:
            return
        # Not the allowed pace but the calls of the last minute: after a rest they may be far fewer.
        self._pace = max(min(self._compute_pace(), len(self._calls)) / 2, _SLOWEST)
        self._pace_at = self._next_call_at
        self._refusals += 1
        log.warning(
            "KMS refused a call for its quota; the calls of this process are slower now",
            error=error.detail,
            reason=error.reason,
            calls_per_minute=round(self._pace),
            retry_in=round(pause, 1),
        )
