"""A KMS emulator with one key, and what an operator does to its versions, over Google's own client."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import pytest
from google.cloud.kms_v1 import (
    CreateCryptoKeyVersionRequest,
    CryptoKeyVersion,
    EncryptRequest,
    KeyManagementServiceAsyncClient,
    UpdateCryptoKeyPrimaryVersionRequest,
    UpdateCryptoKeyVersionRequest,
)
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcAsyncIOTransport
from grpc.aio import insecure_channel

from ops.kms_emulator.emulator import Emulator, run_emulator

KEY: Final = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"


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

    async def encrypt(self, plaintext: bytes, aad: bytes) -> bytes:
        request = EncryptRequest(name=self.key, plaintext=plaintext, additional_authenticated_data=aad)
        return (await self.client.encrypt(request)).ciphertext

    async def _state(self, number: int, state: int) -> None:
        version = CryptoKeyVersion(name=f"{self.key}/cryptoKeyVersions/{number}", state=state)
        request = UpdateCryptoKeyVersionRequest(crypto_key_version=version, update_mask={"paths": ["state"]})
        await self.client.update_crypto_key_version(request)


@pytest.fixture(name="emulator")
async def emulator_fixture() -> AsyncIterator[Emulator]:
    """A real Cloud KMS emulator over gRPC that holds KEY."""
    async with run_emulator(keys=[KEY]) as running:
        yield running


@pytest.fixture(name="versions")
async def versions_fixture(emulator: Emulator) -> AsyncIterator[Versions]:
    channel = insecure_channel(str(emulator.address))
    transport = KeyManagementServiceGrpcAsyncIOTransport(channel=channel)
    yield Versions(KeyManagementServiceAsyncClient(transport=transport), KEY)
    await channel.close()
