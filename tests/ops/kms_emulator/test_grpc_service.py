import asyncio
from typing import Any

import aiohttp
import grpc
import pytest
from google.api_core import exceptions
from google.cloud.kms_v1 import KeyManagementServiceAsyncClient

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from shared.kms.gcp.client import compute_crc32c

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
V1 = f"{KEY}/cryptoKeyVersions/1"
ONCE: dict[str, Any] = {"retry": None, "timeout": 20}


class Call:
    """What gRPC asks a handler with."""

    def __init__(self, operation: str) -> None:
        iam = operation == "TestIamPermissions"
        service_name = "google.iam.v1.IAMPolicy" if iam else "google.cloud.kms.v1.KeyManagementService"
        self.method = f"/{service_name}/{operation}"


# CANCELLED is left out: a client on asyncio shows it as the cancellation of the waiting task.
@pytest.mark.parametrize("status", sorted(set(grpc.StatusCode.__members__) - {"OK", "CANCELLED"}))
async def test_a_status_fault_answers_any_status_with_its_text(
    client: KeyManagementServiceAsyncClient, emulator: Emulator, status: str
) -> None:
    emulator.faults.add(EmulatorFault(kind="status", status=status, message="out to lunch", count=1))
    with pytest.raises(exceptions.GoogleAPICallError) as answer:
        await client.encrypt(name=KEY, plaintext=b"x", **ONCE)
    assert answer.value.grpc_status_code == grpc.StatusCode[status]
    assert answer.value.message == "out to lunch"
    assert (await client.encrypt(name=KEY, plaintext=b"x", **ONCE)).name == V1


async def test_a_stalled_call_is_bounded_by_the_deadline_of_its_caller(
    client: KeyManagementServiceAsyncClient, emulator: Emulator
) -> None:
    await client.encrypt(name=KEY, plaintext=b"x", **ONCE)  # connected
    emulator.faults.add(EmulatorFault(kind="stall", operation="Encrypt"))
    with pytest.raises(exceptions.DeadlineExceeded):
        await client.encrypt(name=KEY, plaintext=b"x", retry=None, timeout=1)
    cancelled = 'emulator_requests_total{code="CANCELLED",operation="Encrypt"}'
    async with asyncio.timeout(20):
        while (await _requests(emulator)).get(cancelled) != "1.0":  # noqa: ASYNC110 - gRPC tells nobody that it cancels
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("operation", ["Encrypt", "Decrypt"])
async def test_a_corrupted_checksum_is_wrong_and_the_rest_is_right(
    client: KeyManagementServiceAsyncClient, emulator: Emulator, operation: str
) -> None:
    emulator.faults.add(EmulatorFault(kind="corrupt_crc", operation=operation))
    encrypted = await client.encrypt(name=KEY, plaintext=b"x", **ONCE)
    decrypted = await client.decrypt(name=KEY, ciphertext=encrypted.ciphertext, **ONCE)
    assert decrypted.plaintext == b"x"
    wrong = [
        encrypted.ciphertext_crc32c != compute_crc32c(encrypted.ciphertext),
        decrypted.plaintext_crc32c != compute_crc32c(decrypted.plaintext),
    ]
    assert wrong == [operation == "Encrypt", operation == "Decrypt"]


async def test_a_slow_change_of_primary_encrypts_with_the_old_one_for_a_while(
    client: KeyManagementServiceAsyncClient, emulator: Emulator, now: list[float]
) -> None:
    emulator.faults.add(EmulatorFault(kind="slow_primary", seconds=60))
    assert (await client.encrypt(name=KEY, plaintext=b"x", **ONCE)).name == V1
    await client.create_crypto_key_version(parent=KEY, **ONCE)
    key = await client.update_crypto_key_primary_version(name=KEY, crypto_key_version_id="2", **ONCE)
    assert key.primary.name == f"{KEY}/cryptoKeyVersions/2"
    assert (await client.encrypt(name=KEY, plaintext=b"x", **ONCE)).name == V1
    now[0] += 59
    assert (await client.encrypt(name=KEY, plaintext=b"x", **ONCE)).name == V1
    now[0] += 1
    assert (await client.encrypt(name=KEY, plaintext=b"x", **ONCE)).name == f"{KEY}/cryptoKeyVersions/2"


async def test_calls_are_counted_by_operation_and_status(
    client: KeyManagementServiceAsyncClient, emulator: Emulator
) -> None:
    for name in (KEY, KEY, f"{KEY}2"):
        try:
            await client.encrypt(name=name, plaintext=b"x", **ONCE)
        except exceptions.NotFound:
            assert name != KEY
    assert await _requests(emulator) == {
        'emulator_requests_total{code="OK",operation="Encrypt"}': "2.0",
        'emulator_requests_total{code="NOT_FOUND",operation="Encrypt"}': "1.0",
    }


async def _requests(emulator: Emulator) -> dict[str, str]:
    async with aiohttp.ClientSession() as http, http.get(f"http://{emulator.faults_address}/metrics") as answer:
        lines = [line.rsplit(" ", 1) for line in (await answer.text()).splitlines()]
    return {name: value for name, value in lines if name.startswith("emulator_requests_total{")}
