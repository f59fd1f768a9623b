"""A KMS in memory, for tests of many thousand data keys: gRPC from Python answers a thousand times a second.

It refuses what Cloud KMS refuses: other authenticated data, other bytes, a version that is not enabled.
"""

import asyncio
from collections.abc import Sequence
from hashlib import sha256

from shared.kms.gcp.profile import GCP_PROFILE
from shared.kms.port import (
    ConnectivityPhase,
    DecryptResult,
    EncryptResult,
    KeyDescription,
    KeyVersion,
    KmsError,
    VersionState,
)
from shared.kms.reason import Reason


class FakeKms:
    profile = GCP_PROFILE
    account = ""

    def __init__(self) -> None:
        self.primary = 1
        self.disabled: set[int] = set()
        self.calls_to_failure: int | None = None
        self._count = 0

    async def encrypt(self, plaintext: bytes, aad: bytes, *, timeout: float) -> EncryptResult:  # noqa: ARG002
        await self._called()
        self._refuse(self.primary)
        self._count += 1
        head = b"%04d%08d" % (self.primary, self._count)
        body = bytes(a ^ b for a, b in zip(plaintext, sha256(head).digest(), strict=True))
        return EncryptResult(head + body + _tag(head + body, aad), str(self.primary), "SOFTWARE", self.primary)

    async def decrypt(self, ciphertext: bytes, aad: bytes, *, timeout: float) -> DecryptResult:  # noqa: ARG002
        await self._called()
        head, body, tag = ciphertext[:12], ciphertext[12:-8], ciphertext[-8:]
        if len(ciphertext) != 52 or tag != _tag(head + body, aad):
            raise KmsError(Reason.INVALID_REQUEST, "decryption failed")
        self._refuse(int(head[:4]))
        plaintext = bytes(a ^ b for a, b in zip(body, sha256(head).digest(), strict=True))
        return DecryptResult(plaintext, int(head[:4]) == self.primary)

    async def describe_key(self, *, timeout: float) -> KeyDescription:  # noqa: ARG002
        versions = tuple(
            KeyVersion(
                str(number),
                VersionState.DISABLED if number in self.disabled else VersionState.USABLE,
                "SOFTWARE",
                None,
                number=number,
            )
            for number in range(1, self.primary + 1)
        )
        return KeyDescription(str(self.primary), None, versions, 1)

    async def check_permissions(self, permissions: Sequence[str], *, timeout: float) -> frozenset[str]:  # noqa: ARG002
        return frozenset(permissions)

    async def measure_connectivity(self, *, timeout: float) -> tuple[ConnectivityPhase, ...]:  # noqa: ARG002
        return ()

    async def read_service_clock(self, *, timeout: float) -> float | None:  # noqa: ARG002
        return None

    async def close(self) -> None:
        pass

    async def _called(self) -> None:
        await asyncio.sleep(0)
        if self.calls_to_failure is not None:
            self.calls_to_failure -= 1
            if self.calls_to_failure < 0:
                raise KmsError(Reason.UNAVAILABLE, "out")

    def _refuse(self, version: int) -> None:
        if version in self.disabled:
            raise KmsError(Reason.KEY_DISABLED, f"version {version} is not enabled")


def _tag(content: bytes, aad: bytes) -> bytes:
    return sha256(content + b"\0" + aad).digest()[:8]
