"""Older versions without a canary are not checked: their number and names are reported."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from ops.kms_emulator.model import EmulatedState, Key
from services.exporter.model import KeyInspection
from services.exporter.probes.canaries import CanaryFile
from services.exporter.probes.key_inspection import KeyInspector
from shared.kms.port import KmsKey
from tests.exporter.collected_metrics import CollectedMetrics
from tests.exporter.running_exporter import KEY

Start = Callable[[], KeyInspector]
DAY = 86400.0


@pytest.fixture
def start(key: KmsKey, tmp_path: Path) -> Start:
    """Starts an exporter anew: nothing is in memory, the folder is what it was."""
    return lambda: KeyInspector("backend", "ledger-kek", key, 5, CanaryFile(tmp_path, "ledger-kek", KEY).sync)


def rotated(key: Key) -> Key:
    after = key.with_new_version(bytes(32), 0.0)
    return after.with_primary(len(after.versions), 0.0)


def read_metrics(inspection: KeyInspection) -> list[float]:
    metrics = CollectedMetrics([("backend", "ledger-kek")], [])
    metrics.add_inspection(inspection)
    name = "kms_key_versions_without_canary"
    return [sample.value for family in metrics.collect() for sample in family.samples if sample.name == name]


async def test_a_file_that_is_lost_while_nothing_runs_is_seen(emulator: Emulator, start: Start, tmp_path: Path) -> None:
    running = start()
    await running.inspect()
    await emulator.store.update_key(KEY, rotated)
    inspection = await running.inspect()
    assert (inspection.versions_without_canary, read_metrics(inspection)) == ((), [0])
    assert (await start().inspect()).versions_without_canary == ()  # as after any restart
    await emulator.store.update_key(KEY, lambda key: key.with_state(1, EmulatedState.DISABLED))
    (file,) = await asyncio.to_thread(lambda: list(tmp_path.iterdir()))
    file.unlink()
    inspection = await start().inspect()
    assert (inspection.versions_without_canary, read_metrics(inspection)) == (("1",), [1])
    assert inspection.problems == ()  # no failure: of versions that are older than the first start there never is one


async def test_versions_that_were_never_primary_yet_or_are_gone_for_good_need_none(
    emulator: Emulator, start: Start
) -> None:
    for _ in range(11):
        await emulator.store.update_key(KEY, rotated)
    now = emulator.store.clock()
    await emulator.store.update_key(KEY, lambda key: key.with_primary(11, now).with_state(2, EmulatedState.DISABLED))
    await emulator.store.update_key(KEY, lambda key: key.with_destruction(3, now).with_destruction(4, now - 31 * DAY))
    inspection = await start().inspect()
    assert inspection.versions_without_canary == ("10", "9", "8", "7", "6", "5", "3", "2", "1")


async def test_where_the_key_cannot_be_read_or_no_folder_is_configured_nothing_is_reported(
    emulator: Emulator, key: KmsKey, start: Start
) -> None:
    await emulator.store.update_key(KEY, rotated)
    inspection = await KeyInspector("backend", "ledger-kek", key, 5).inspect()
    assert (inspection.versions_without_canary, read_metrics(inspection)) == (None, [])
    emulator.faults.add(EmulatorFault(kind="denied", operation="GetCryptoKey"))
    inspection = await start().inspect()
    assert (inspection.versions_without_canary, read_metrics(inspection)) == (None, [])
