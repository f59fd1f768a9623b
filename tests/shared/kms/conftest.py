"""Cloud KMS's provider on a running emulator."""

from collections.abc import AsyncIterator

import pytest

from ops.kms_emulator.emulator import Emulator
from shared.kms.gcp.settings import GcpKeySettings
from shared.kms.port import KmsKeyAdmin
from shared.kms.registry import connect_key
from tests.key_versions import KEY, emulator_fixture  # noqa: F401 - fixtures


@pytest.fixture
async def provider(emulator: Emulator) -> AsyncIterator[KmsKeyAdmin]:
    key = connect_key(GcpKeySettings(key=KEY, endpoint=str(emulator.address), insecure=True))
    yield key
    await key.close()
