"""What an operator does to the versions of a key, over Google's own client."""

from dataclasses import dataclass

from google.cloud.kms_v1 import (
    CreateCryptoKeyVersionRequest,
    CryptoKeyVersion,
    KeyManagementServiceAsyncClient,
    UpdateCryptoKeyPrimaryVersionRequest,
    UpdateCryptoKeyVersionRequest,
)


@dataclass
class Versions:
    """What an operator does to the key's versions."""

    client: KeyManagementServiceAsyncClient
    key: str

    async def rotate(self) -> None:
        version = await self.client.create_crypto_key_version(
            CreateCryptoKeyVersionRequest(parent=self.key, crypto_key_version=CryptoKeyVersion())
        )
        await self.client.update_crypto_key_primary_version(
            UpdateCryptoKeyPrimaryVersionRequest(name=self.key, crypto_key_version_id=version.name.rpartition("/")[2])
        )

    async def disable(self, number: int) -> None:
        await self._state(number, CryptoKeyVersion.CryptoKeyVersionState.DISABLED)

    async def enable(self, number: int) -> None:
        await self._state(number, CryptoKeyVersion.CryptoKeyVersionState.ENABLED)

    async def _state(self, number: int, state: int) -> None:
        version = CryptoKeyVersion(name=f"{self.key}/cryptoKeyVersions/{number}", state=state)
        request = UpdateCryptoKeyVersionRequest(crypto_key_version=version, update_mask={"paths": ["state"]})
        await self.client.update_crypto_key_version(request)
