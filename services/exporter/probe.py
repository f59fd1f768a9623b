"""What: one round trip through a key → ProbeResult. Random plaintext and AAD, encrypt, decrypt, compare.

Where it fails on the way to the service, the way is measured too. The key stands behind the port, which checks every
checksum; no vendor's library is known here.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from secrets import token_bytes
from typing import TypeVar

import structlog

from services.exporter.call import AAD_BYTES, PLAINTEXT_BYTES, tried
from services.exporter.model import Call, Failure, Operation, ProbeResult
from shared.kms.provider import KeyProvider, Phase
from shared.kms.reason import Reason

WAY_SECONDS = 60.0
"""How long a measured way stands for the same failure, before it is measured anew."""
_ON_THE_WAY = frozenset({Reason.UNAVAILABLE, Reason.TIMEOUT})

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Way:
    """The way as it was measured last."""

    reason: Reason | None = None
    """Why the last round trip failed; None where it was right, or where its failure has no way yet."""
    at: float = 0.0
    """When it was measured, by the monotonic clock."""
    phases: tuple[Phase, ...] = ()


@dataclass(frozen=True, slots=True)
class Prober:
    """Probes one target."""

    service: str
    target: str
    key: KeyProvider
    timeout: float
    """Seconds for each call."""
    monotonic: Callable[[], float] = time.perf_counter
    wall: Callable[[], float] = time.time
    random_bytes: Callable[[int], bytes] = token_bytes
    _way: _Way = field(default_factory=_Way, repr=False)

    async def probe(self) -> ProbeResult:
        """One round trip, within twice `timeout` and what the port adds to each call's bound.

        Raises nothing but cancellation: a defect of our own is a failure like any other.
        """
        begin = self.monotonic()
        result = await self._round_trip()
        failure = result.failed.failure if result.failed else None
        if failure is None or failure.reason not in _ON_THE_WAY:
            self._way.reason = None
            return result
        await self._measure(failure.reason, 2 * self.timeout - (self.monotonic() - begin))
        return replace(result, way=self._way.phases if self._way.reason is failure.reason else ())

    async def _round_trip(self) -> ProbeResult:
        plaintext, aad = self.random_bytes(PLAINTEXT_BYTES), self.random_bytes(AAD_BYTES)
        encrypt, encrypted = await self._call(
            Operation.ENCRYPT, lambda: self.key.encrypt(plaintext, aad, timeout=self.timeout)
        )
        if encrypted is None:
            return ProbeResult(self.service, self.target, self.wall(), (encrypt,), None)
        decrypt, decrypted = await self._call(
            Operation.DECRYPT, lambda: self.key.decrypt(encrypted.ciphertext, aad, timeout=self.timeout)
        )
        if decrypted is not None and decrypted.plaintext != plaintext:
            wrong = Failure(Reason.PLAINTEXT_MISMATCH, "decrypt gave back another plaintext than was encrypted")
            decrypt = replace(decrypt, failure=wrong)
        return ProbeResult(
            self.service,
            self.target,
            self.wall(),
            (encrypt, decrypt),
            encrypted.key_version,
            encrypted.protection_level,
        )

    async def _measure(self, reason: Reason, left: float) -> None:
        """Measures the way within `left` seconds, unless it is known for this failure."""
        now = self.monotonic()
        if self._way.reason is reason and now - self._way.at < WAY_SECONDS:
            return
        self._way.reason = None
        # In almost no time any way is too long, and the network would be blamed: the next probe may have more.
        if left < self.timeout / 4:
            return

        async def measured() -> tuple[Phase, ...]:
            async with asyncio.timeout(left):  # whatever it does, the result waits no longer
                return await self.key.way(timeout=0.9 * left)

        _, failure, phases = await tried(measured, timeout=left, monotonic=self.monotonic)
        if failure:
            log.error("the way could not be measured", target=self.target, why=failure.detail, exc_info=failure.error)
        self._way.reason, self._way.at, self._way.phases = reason, now, phases or ()

    async def _call(self, operation: Operation, call: Callable[[], Awaitable[T]]) -> tuple[Call, T | None]:
        seconds, failure, answer = await tried(call, timeout=self.timeout, monotonic=self.monotonic)
        return Call(operation, seconds, failure), answer
