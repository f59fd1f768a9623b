import pytest
from google.api_core import exceptions
from google.cloud.kms_v1 import KeyManagementServiceAsyncClient

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
USE_TO_ENCRYPT = "cloudkms.cryptoKeyVersions.useToEncrypt"
USE_TO_DECRYPT = "cloudkms.cryptoKeyVersions.useToDecrypt"
BOTH = [USE_TO_ENCRYPT, USE_TO_DECRYPT]


async def test_every_permission_is_granted_on_a_key_and_on_a_key_ring(client: KeyManagementServiceAsyncClient) -> None:
    for resource in (KEY, KEY.partition("/cryptoKeys/")[0]):
        assert await _granted(client, resource, BOTH) == BOTH


async def test_a_wildcard_is_refused(client: KeyManagementServiceAsyncClient) -> None:
    with pytest.raises(exceptions.InvalidArgument, match="wildcard"):
        await _granted(client, KEY, ["cloudkms.*"])


async def test_a_denied_permission_is_not_granted_and_its_operation_answers_permission_denied(
    client: KeyManagementServiceAsyncClient, emulator: Emulator
) -> None:
    denied = emulator.faults.add(EmulatorFault(kind="denied", key=KEY, permission=USE_TO_ENCRYPT))
    assert await _granted(client, KEY, BOTH) == [USE_TO_DECRYPT]
    text = rf"Permission '{USE_TO_ENCRYPT}' denied on resource '{KEY}' \(or it may not exist\)."
    with pytest.raises(exceptions.PermissionDenied, match=text):
        await client.encrypt(name=KEY, plaintext=b"x", retry=None, timeout=20)

    emulator.faults.remove(denied)
    assert await _granted(client, KEY, BOTH) == BOTH
    await client.encrypt(name=KEY, plaintext=b"x", retry=None, timeout=20)


async def test_asking_for_permissions_uses_up_no_count(
    client: KeyManagementServiceAsyncClient, emulator: Emulator
) -> None:
    emulator.faults.add(EmulatorFault(kind="denied", operation="Encrypt", count=1))
    for _ in range(3):
        assert await _granted(client, KEY, BOTH) == [USE_TO_DECRYPT]
    with pytest.raises(exceptions.PermissionDenied):
        await client.encrypt(name=KEY, plaintext=b"x", retry=None, timeout=20)
    assert await _granted(client, KEY, BOTH) == BOTH


async def _granted(client: KeyManagementServiceAsyncClient, resource: str, permissions: list[str]) -> list[str]:
    answer = await client.test_iam_permissions(
        request={"resource": resource, "permissions": permissions}, retry=None, timeout=20
    )
    return list(answer.permissions)
