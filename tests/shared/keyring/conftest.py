from collections.abc import AsyncIterator

import pytest
from sqlalchemy import URL

from ops.kms_emulator.emulator import Emulator
from shared.kms.gcp.client import GcpKmsKey
from tests.key_versions import emulator_fixture, versions_fixture  # noqa: F401 - fixtures
from tests.shared.keyring.keyring import KEY, Keyring, Meddled, opened


@pytest.fixture
def url(empty_database: URL) -> URL:
    """An empty database."""
    return empty_database


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
