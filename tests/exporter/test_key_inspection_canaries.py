"""Canaries over a rotation: each inspection decrypts those of older versions until the version is destroyed."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from ops.kms_emulator.model import EmulatedState, Key
from services.exporter.model import KeyInspection, Operation
from services.exporter.probes.canaries import CanaryFile
from services.exporter.probes.key_inspection import DESTROYED_CANARY_MAX_AGE, KeyInspector
from shared.kms.gcp.client import GcpKmsKey
from shared.kms.port import DecryptResult, VersionState
from shared.kms.reason import Reason

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
DAY = 86400.0
TIMEOUT = 5.0


class Counting(GcpKmsKey):
    """A key that counts how many decryptions run at once."""

    now = most = 0

    async def decrypt(self, ciphertext: bytes, aad: bytes, *, timeout: float) -> DecryptResult:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await super().decrypt(ciphertext, aad, timeout=timeout)
        finally:
            self.now -= 1


@pytest.fixture
async def key(emulator: Emulator) -> AsyncIterator[Counting]:
    provider = Counting(KEY, endpoint=str(emulator.address), insecure=True)
    yield provider
    await provider.close()


Start = Callable[[], KeyInspector]


@pytest.fixture
def start(key: Counting, tmp_path: Path) -> Start:
    """Starts an exporter anew: nothing is in memory, the folder is what it was."""
    return lambda: KeyInspector("backend", "ledger-kek", key, TIMEOUT, CanaryFile(tmp_path, "ledger-kek", KEY).sync)


@pytest.fixture
def change(emulator: Emulator) -> Callable[[Callable[[Key], Key]], "asyncio.Task[Key]"]:
    return lambda what: asyncio.create_task(emulator.store.update_key(KEY, what))


Change = Callable[[Callable[[Key], Key]], "asyncio.Task[Key]"]


def rotated(key: Key) -> Key:
    after = key.with_new_version(bytes(32), time.time())
    return after.with_primary(len(after.versions), time.time())


def found(snapshot: KeyInspection) -> dict[str, Reason | None]:
    """What became of each canary."""
    calls = {canary.version: canary.call for canary in snapshot.canaries}
    assert all(call.operation is Operation.CANARY_DECRYPT for call in calls.values())
    return {version: call.failure.reason if call.failure else None for version, call in calls.items()}


async def test_what_an_older_version_encrypted_is_decrypted_at_each_inspection(start: Start, change: Change) -> None:
    lifecycle = start()
    assert found(await lifecycle.inspect()) == {}  # the present version made one, which is not old yet
    await change(rotated)
    assert found(await lifecycle.inspect()) == {"1": None}
    await change(rotated)
    assert found(await lifecycle.inspect()) == {"1": None, "2": None}
    snapshot = await lifecycle.inspect()
    assert found(snapshot) == {"1": None, "2": None}
    assert all(0 < canary.call.seconds < TIMEOUT for canary in snapshot.canaries)
    assert snapshot.encrypt_call is None
    assert snapshot.problems == ()


async def test_a_version_that_was_disabled_is_reported_and_healthy_again_when_it_is_enabled(
    start: Start, change: Change
) -> None:
    lifecycle = start()
    await lifecycle.inspect()
    await change(rotated)
    await change(lambda key: key.with_state(1, EmulatedState.DISABLED))
    assert found(await lifecycle.inspect()) == {"1": Reason.KEY_DISABLED}
    assert found(await start().inspect()) == {"1": Reason.KEY_DISABLED}
    await change(lambda key: key.with_state(1, EmulatedState.ENABLED))
    assert found(await lifecycle.inspect()) == {"1": None}


async def test_a_destruction_is_reported_from_its_scheduling_until_a_day_after_it_happened(
    start: Start, change: Change
) -> None:
    lifecycle = start()
    await lifecycle.inspect()
    await change(rotated)
    await change(lambda key: key.with_destruction(1, time.time()))
    assert found(await lifecycle.inspect()) == {"1": Reason.KEY_DESTROYED}
    # Taken back, and scheduled again so long ago that it happened an hour short of a day ago.
    hour_short = time.time() - 30 * DAY - DESTROYED_CANARY_MAX_AGE + 3600
    await change(lambda key: key.with_restored_version(1).with_destruction(1, hour_short))
    for _ in range(2):
        snapshot = await lifecycle.inspect()
        assert snapshot.description is not None
        assert snapshot.description.versions[0].state is VersionState.DESTROYED
        assert found(snapshot) == {"1": Reason.KEY_DESTROYED}


async def test_a_canary_ends_a_day_after_its_version_was_destroyed_and_is_reported_once_more(
    start: Start, change: Change
) -> None:
    await start().inspect()
    await change(rotated)
    await start().inspect()
    await change(lambda key: key.with_destruction(1, time.time() - 30 * DAY - DESTROYED_CANARY_MAX_AGE - 60))
    lifecycle = start()  # which was away for all that time
    assert found(await lifecycle.inspect()) == {"1": Reason.KEY_DESTROYED}
    assert found(await lifecycle.inspect()) == {}
    assert found(await start().inspect()) == {}


async def test_where_encrypt_goes_on_with_the_old_primary_the_new_one_gets_its_canary_as_soon_as_it_is_used(
    emulator: Emulator, start: Start, change: Change
) -> None:
    lifecycle = start()
    await lifecycle.inspect()
    emulator.faults.add(EmulatorFault(kind="slow_primary", seconds=3600))
    await change(rotated)
    slow = await lifecycle.inspect()
    assert slow.encrypt_call is not None
    assert found(slow) == {"1": None}
    emulator.faults.clear()
    assert (await lifecycle.inspect()).encrypt_call is not None
    assert (await lifecycle.inspect()).encrypt_call is None
    await change(rotated)
    assert found(await lifecycle.inspect()) == {"1": None, "2": None}


async def test_without_the_right_to_read_the_key_canaries_are_made_and_decrypted_all_the_same(
    emulator: Emulator, start: Start, change: Change
) -> None:
    emulator.faults.add(EmulatorFault(kind="denied", operation="GetCryptoKey"))
    lifecycle = start()
    assert found(await lifecycle.inspect()) == {}
    await change(rotated)
    assert found(await lifecycle.inspect()) == {"1": None}
