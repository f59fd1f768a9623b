"""The contract of the port `KmsKey`, held against a running emulator."""

import asyncio
import time

import pytest

from ops.kms_emulator.emulator import Emulator, run_emulator
from ops.kms_emulator.faults import EmulatorFault
from shared.config.settings import Address
from shared.kms.gcp.client import GcpKmsKey
from shared.kms.port import KmsError, KmsKey, KmsKeyAdmin
from shared.kms.reason import Reason

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"


# All examples share one emulator on purpose: a round trip must not depend on what was encrypted before.


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (EmulatorFault(kind="status", status="UNAVAILABLE"), Reason.UNAVAILABLE),
        (EmulatorFault(kind="status", status="INTERNAL"), Reason.UNAVAILABLE),
        (EmulatorFault(kind="status", status="UNAUTHENTICATED"), Reason.UNAUTHENTICATED),
        (EmulatorFault(kind="status", status="RESOURCE_EXHAUSTED"), Reason.QUOTA_EXHAUSTED),
        (EmulatorFault(kind="status", status="DEADLINE_EXCEEDED"), Reason.TIMEOUT),
        (EmulatorFault(kind="status", status="INVALID_ARGUMENT"), Reason.INVALID_REQUEST),
        (EmulatorFault(kind="denied"), Reason.PERMISSION_DENIED),
        (EmulatorFault(kind="corrupt_crc"), Reason.CRC_MISMATCH),
    ],
)
async def test_what_goes_wrong_has_its_reason_for_both_operations(
    provider: KmsKey, emulator: Emulator, fault: EmulatorFault, reason: Reason
) -> None:
    ciphertext = (await provider.encrypt(b"x", b"aad", timeout=5)).ciphertext
    emulator.faults.add(fault)
    with pytest.raises(KmsError) as encrypting:
        await provider.encrypt(b"x", b"aad", timeout=5)
    with pytest.raises(KmsError) as decrypting:
        await provider.decrypt(ciphertext, b"aad", timeout=5)
    assert (encrypting.value.reason, decrypting.value.reason) == (reason, reason)
    assert encrypting.value.detail
    emulator.faults.clear()
    assert (await provider.decrypt(ciphertext, b"aad", timeout=5)).plaintext == b"x"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(EmulatorFault(kind="denied"), Reason.PERMISSION_DENIED), (EmulatorFault(kind="stall"), Reason.TIMEOUT)],
)
async def test_a_change_of_a_version_that_is_refused_or_unanswered_is_an_error_with_its_reason(
    provider: KmsKeyAdmin, emulator: Emulator, fault: EmulatorFault, reason: Reason
) -> None:
    emulator.faults.add(fault)
    for call in (
        provider.set_version_enabled("1", is_enabled=False, timeout=0.3),
        provider.schedule_destruction("1", timeout=0.3),
        provider.set_version_enabled("9", is_enabled=True, timeout=0.3),
    ):
        with pytest.raises(KmsError) as refused:
            await call
        assert refused.value.reason is reason


async def test_a_stalled_service_is_a_timeout_after_the_callers_own_bound(provider: KmsKey, emulator: Emulator) -> None:
    await provider.encrypt(b"x", b"", timeout=5)  # connected
    emulator.faults.add(EmulatorFault(kind="stall"))
    before = time.monotonic()
    with pytest.raises(KmsError) as late:
        await provider.encrypt(b"x", b"", timeout=0.3)
    assert late.value.reason is Reason.TIMEOUT
    assert 0.25 < time.monotonic() - before < 2


async def test_a_service_that_is_not_there_is_unavailable_and_comes_back_by_itself() -> None:
    async with run_emulator(keys=[KEY]) as emulator:
        address: Address = emulator.address
    key = GcpKmsKey(KEY, endpoint=str(address), insecure=True)
    with pytest.raises(KmsError) as raised:
        await key.encrypt(b"x", b"", timeout=2)
    assert raised.value.reason is Reason.UNAVAILABLE
    async with run_emulator(listen=address, keys=[KEY]):
        async with asyncio.timeout(15):
            while not await _works(key):  # noqa: ASYNC110 - whoever calls is whoever finds out
                await asyncio.sleep(0.05)
    await key.close()


async def test_closing_twice_is_no_error_and_leaves_no_task_behind(emulator: Emulator) -> None:
    before = asyncio.all_tasks()
    key = GcpKmsKey(KEY, endpoint=str(emulator.address), insecure=True)
    await key.encrypt(b"x", b"", timeout=5)
    await key.close()
    await key.close()
    async with asyncio.timeout(5):
        while asyncio.all_tasks() > before:  # noqa: ASYNC110 - the server's side of the connection ends on its own
            await asyncio.sleep(0.01)


async def _works(key: KmsKey) -> bool:
    try:
        await key.encrypt(b"x", b"", timeout=1)
    except KmsError:
        return False
    return True
