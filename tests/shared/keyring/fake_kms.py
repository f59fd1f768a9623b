"""A KMS in memory, for tests of many thousand data keys: gRPC from Python answers a thousand times a second."""

import asyncio
from uuid import uuid4

from shared.kms.gcp.profile import GCP_PROFILE
from shared.kms.port import DecryptResult, EncryptResult, KeyDescription, KeyVersion, KmsError, VersionState
from shared.kms.reason import Reason
from tests.memory_kms import MemoryKey, create_key


class FakeKms(MemoryKey):
    """A key whose versions are numbers, as those of Cloud KMS."""

    profile = GCP_PROFILE

    def __init__(self) -> None:
        super().__init__(uuid4().hex)
        self.calls_to_failure: int | None = None
        self.disabled: set[int] = set()
        self._stored = create_key(self._name, "1")

    @property
    def primary(self) -> int:
        return len(self._stored.versions)

    @primary.setter
    def primary(self, number: int) -> None:
        while self.primary < number:
            self._stored.add_version(str(self.primary + 1))

    async def encrypt(self, plaintext: bytes, aad: bytes, *, timeout: float) -> EncryptResult:
        await self._called()
        return await super().encrypt(plaintext, aad, timeout=timeout)

    async def decrypt(self, ciphertext: bytes, aad: bytes, *, timeout: float) -> DecryptResult:
        await self._called()
        return await super().decrypt(ciphertext, aad, timeout=timeout)

    async def _called(self) -> None:
        await asyncio.sleep(0)
        for name in self._stored.versions:
            is_disabled = int(name) in self.disabled
            state = VersionState.DISABLED if is_disabled else VersionState.USABLE
            if self._stored.versions[name].state is not state:
                self._stored.set_state(name, state)
        if self.calls_to_failure is not None:
            self.calls_to_failure -= 1
            if self.calls_to_failure < 0:
                raise KmsError(Reason.UNAVAILABLE, "out")


class FailingKms(FakeKms):
    """Fails its next calls, and keeps when each one was made."""

    def __init__(
        self, failures: int = 0, reason: Reason = Reason.QUOTA_EXHAUSTED, retry_after: float | None = None
    ) -> None:
        super().__init__()
        self.called: list[float] = []
        self._failures, self._reason, self._retry_after = failures, reason, retry_after

        self.latency = 0.0

    def fail(self, failures: int) -> None:
        self._failures = failures

    async def describe_key(self, *, timeout: float) -> KeyDescription:
        await self._called()
        return await super().describe_key(timeout=timeout)

    async def set_version_enabled(self, version: str, *, is_enabled: bool, timeout: float) -> KeyVersion:
        await self._called()
        return await super().set_version_enabled(version, is_enabled=is_enabled, timeout=timeout)

    async def schedule_destruction(self, version: str, *, timeout: float) -> KeyVersion:
        await self._called()
        return await super().schedule_destruction(version, timeout=timeout)

    async def _called(self) -> None:
        self.called.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.latency)
        self._failures -= 1
        if self._failures >= 0:
            raise KmsError(self._reason, "failed", retry_after=self._retry_after)
        await super()._called()
