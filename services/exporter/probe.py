"""What: one round trip through a key → ProbeResult. Random plaintext and AAD, encrypt, decrypt, compare.

The key stands behind the port, which checks every checksum; no vendor's library is known here.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from secrets import token_bytes
from typing import TypeVar

from services.exporter.model import Call, Failure, Operation, ProbeResult
from shared.kms.provider import KeyProvider, KmsError
from shared.kms.reason import Reason

PLAINTEXT_BYTES = 32
"""The size of a data key, which is what services encrypt with KMS."""
AAD_BYTES = 16

T = TypeVar("T")


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

    async def probe(self) -> ProbeResult:
        """One round trip. Raises nothing but cancellation: a defect of our own is a failure like any other."""
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
        return ProbeResult(self.service, self.target, self.wall(), (encrypt, decrypt), encrypted.key_version)

    async def _call(self, operation: Operation, call: Callable[[], Awaitable[T]]) -> tuple[Call, T | None]:
        begin = self.monotonic()
        try:
            answer = await call()
        except KmsError as error:
            failure = Failure(error.reason, error.detail)
        except asyncio.CancelledError as error:
            # A library may raise it although nobody cancelled us; let through, it would leave the last success on show.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            failure = Failure(Reason.INTERNAL, repr(error), error)
        except Exception as error:  # noqa: BLE001  the reason `internal`; its trace travels in the result
            failure = Failure(Reason.INTERNAL, repr(error), error)
        else:
            return Call(operation, self.monotonic() - begin), answer
        seconds = self.monotonic() - begin
        if failure.reason is Reason.TIMEOUT:
            # A service may report its own deadline before ours has passed; for us it took at least all of it.
            seconds = max(seconds, self.timeout)
        return Call(operation, seconds, failure), None
