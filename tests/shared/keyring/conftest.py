from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.cloud.kms_v1 import KeyManagementServiceAsyncClient
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcAsyncIOTransport
from grpc.aio import insecure_channel
from sqlalchemy import URL

from ops.kms_emulator.emulator import Emulator, run_emulator
from shared.kms.gcp.client import GcpKmsKey
from shared.sql.database_url import create_sqlite_url
from tests.key_versions import Versions
from tests.shared.keyring.keyring import KEY, Keyring, Meddled, opened


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    """An empty database: the test runs once with each kind."""
    if request.param == "sqlite":
        return create_sqlite_url(tmp_path / "keyring.db")
    database_url: URL = request.getfixturevalue("postgres_database")
    return database_url


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """A real Cloud KMS emulator over gRPC that holds KEY."""
    async with run_emulator(keys=[KEY]) as running:
        yield running


@pytest.fixture
async def versions(emulator: Emulator) -> AsyncIterator[Versions]:
    channel = insecure_channel(str(emulator.address))
    transport = KeyManagementServiceGrpcAsyncIOTransport(channel=channel)
    yield Versions(KeyManagementServiceAsyncClient(transport=transport), KEY)
    await channel.close()


@pytest.fixture
async def kms(emulator: Emulator) -> AsyncIterator[GcpKmsKey]:
    provider = GcpKmsKey(KEY, endpoint=str(emulator.address), insecure=True)
    yield provider
    await provider.close()


@pytest.fixture
def meddled(kms: GcpKmsKey) -> Meddled:
    """The emulator's key, with which the keyring works."""
    return Meddled(kms)


@pytest.fixture
async def keyring(url: URL, meddled: Meddled) -> AsyncIterator[Keyring]:
    """An empty keyring, whose lease the test holds."""
    async with opened(url, meddled) as keyring:
        await keyring.take_lease()
        yield keyring
