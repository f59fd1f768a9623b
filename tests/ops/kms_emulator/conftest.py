"""A running emulator with one key, and Google's own client on it."""

from collections.abc import AsyncIterator

import grpc
import pytest
from google.cloud.kms_v1 import KeyManagementServiceAsyncClient
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcAsyncIOTransport

from ops.kms_emulator.emulator import Emulator, run_emulator

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"


@pytest.fixture
def now() -> list[float]:
    """The emulator's clock: a test sets `now[0]`."""
    return [1_800_000_000.0]


@pytest.fixture
async def emulator(now: list[float]) -> AsyncIterator[Emulator]:
    async with run_emulator(keys=[KEY], clock=lambda: now[0]) as running:
        yield running


@pytest.fixture
async def client(emulator: Emulator) -> AsyncIterator[KeyManagementServiceAsyncClient]:
    channel = grpc.aio.insecure_channel(str(emulator.address))
    transport = KeyManagementServiceGrpcAsyncIOTransport(channel=channel)
    yield KeyManagementServiceAsyncClient(transport=transport)
    await channel.close()
