"""The buttons that break and heal KMS, against the real emulator and the official client."""

from collections.abc import AsyncIterator

import aiohttp
import grpc
import pytest
from google.api_core.exceptions import GoogleAPICallError
from google.cloud import kms_v1
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcAsyncIOTransport

from ops.demo.stand_ins.app import run_stand_ins
from ops.kms_emulator import emulator

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"


@pytest.fixture
async def kms() -> AsyncIterator[emulator.Emulator]:
    async with emulator.run_emulator(keys=[KEY]) as running:
        yield running


@pytest.fixture
async def buttons(kms: emulator.Emulator) -> AsyncIterator[aiohttp.ClientSession]:
    async with (
        run_stand_ins(emulator_faults=f"http://{kms.faults_address}") as stand_ins,
        aiohttp.ClientSession(f"http://{stand_ins.http}") as session,
    ):
        yield session


async def encrypt(kms: emulator.Emulator, timeout: float = 20.0) -> kms_v1.EncryptResponse:
    channel = grpc.aio.insecure_channel(str(kms.address))
    client = kms_v1.KeyManagementServiceAsyncClient(transport=KeyManagementServiceGrpcAsyncIOTransport(channel=channel))
    try:
        return await client.encrypt(request={"name": KEY, "plaintext": b"x"}, retry=None, timeout=timeout)
    finally:
        await channel.close()


async def break_(buttons: aiohttp.ClientSession, name: str) -> None:
    async with buttons.post("/api/kms/break", json={"fault": name}) as answer:
        assert answer.status == 201


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("permission_denied", "403 Permission 'cloudkms.cryptoKeyVersions.useToEncrypt' denied on resource"),
        ("unavailable", "503 The service is currently unavailable."),
        ("disabled", "400 The key version is not enabled, current state is: DISABLED."),
        ("latency", "504 "),
        ("stall", "504 "),
    ],
)
async def test_a_break_is_what_the_client_meets_until_it_is_healed(
    kms: emulator.Emulator, buttons: aiohttp.ClientSession, fault: str, sentence: str
) -> None:
    await break_(buttons, fault)
    with pytest.raises(GoogleAPICallError) as caught:
        await encrypt(kms, timeout=1.0 if sentence.startswith("504") else 20.0)
    assert str(caught.value).startswith(sentence)
    async with buttons.post("/api/kms/heal") as answer:
        assert answer.status == 204
    assert (await encrypt(kms)).ciphertext


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        (None, "no KMS emulator is connected"),
        ("http://127.0.0.1:1", "the KMS emulator at http://127.0.0.1:1 does not answer"),
    ],
)
async def test_without_an_emulator_the_answer_is_502_with_what_to_do(url: str | None, sentence: str) -> None:
    async with (
        run_stand_ins(emulator_faults=url) as stand_ins,
        aiohttp.ClientSession(f"http://{stand_ins.http}") as session,
    ):
        for method, path in (("GET", "/api/kms"), ("POST", "/api/kms/break"), ("POST", "/api/kms/heal")):
            async with session.request(method, path, json={"fault": "stall"}) as answer:
                assert answer.status == 502
                assert (await answer.json())["error"].startswith(sentence)
