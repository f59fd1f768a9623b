"""Cloud KMS's provider on a running emulator."""

from collections.abc import AsyncIterator

import pytest

from ops.kms_emulator.emulator import Emulator, run_emulator
from shared.kms.gcp.settings import GcpKeySettings
from shared.kms.port import KmsKeyAdmin
from shared.kms.registry import connect_key

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with run_emulator(keys=[KEY]) as running:
        yield running


@pytest.fixture
async def provider(emulator: Emulator) -> AsyncIterator[KmsKeyAdmin]:
    key = connect_key(GcpKeySettings(key=KEY, endpoint=str(emulator.address), insecure=True))
    yield key
    await key.close()
