"""A key whose calls do what a test says, and are right otherwise."""

from collections.abc import Sequence

from services.exporter.probes.round_trip import AAD_BYTES
from shared.kms.denial import diagnose_denial
from shared.kms.fixes import GENERIC_PROFILE, KmsProfile
from shared.kms.port import DecryptResult, Diagnosis, EncryptResult, KeyDescription, KeyStore, KmsError
from shared.kms.reason import Reason


class PlayedKey:
    """A key of one version, without its connectivity: that is as slow or broken as the calls."""

    profile: KmsProfile = GENERIC_PROFILE
    account = ""

    async def play(self, operation: str, timeout: float) -> None:
        """What becomes of a call: it takes its time, and raises KmsError where it fails."""
        raise NotImplementedError

    async def encrypt(self, plaintext: bytes, aad: bytes, *, timeout: float) -> EncryptResult:
        await self.play("encrypt", timeout)
        return EncryptResult(aad + plaintext, "1", "SOFTWARE", 1)

    async def decrypt(self, ciphertext: bytes, aad: bytes, *, timeout: float) -> DecryptResult:
        await self.play("decrypt", timeout)
        if ciphertext[:AAD_BYTES] != aad:
            raise KmsError(Reason.INVALID_REQUEST, "another AAD")
        return DecryptResult(ciphertext[AAD_BYTES:], is_primary=True)

    async def describe_key(self, *, timeout: float) -> KeyDescription:
        await self.play("describe", timeout)
        return KeyDescription("1", None, (), 2)

    async def check_permissions(self, permissions: Sequence[str], *, timeout: float) -> frozenset[str]:
        await self.play("permissions", timeout)
        return frozenset(permissions)

    async def explain_denial(self, permission: str, *, timeout: float) -> Diagnosis:
        return await diagnose_denial(permission, lambda: self.check_permissions((permission,), timeout=timeout))

    async def check_key_store(self, store: KeyStore, *, timeout: float) -> KeyStore:  # noqa: ARG002  the port's
        return store

    async def read_service_clock(self, *, timeout: float) -> float | None:  # noqa: ARG002  the port's
        return None

    async def close(self) -> None:
        """Nothing is open."""
