"""Cloud KMS's provider on a running emulator."""

from collections.abc import AsyncIterator

import pytest

from ops.kms_emulator.emulator import Emulator, start
from shared.kms.provider import KeyAdmin
from shared.kms.registry import connect
from shared.kms.settings import GcpKeySettings

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with start(keys=[KEY]) as running:
        yield running


@pytest.fixture
async def provider(emulator: Emulator) -> AsyncIterator[KeyAdmin]:
    key = connect(GcpKeySettings(key=KEY, endpoint=str(emulator.address), insecure=True))
    yield key
    await key.close()
