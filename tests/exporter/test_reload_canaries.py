"""What a key's older versions encrypted is not forgotten by a reload, wherever it is kept."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest

from ops.kms_emulator.emulator import Emulator
from services.exporter.config import Target
from services.exporter.jobs import start_jobs
from services.exporter.model import KeyInspection
from services.exporter.results import Results
from shared.http.server import StartError
from shared.kms.port import KmsKey
from shared.kms.registry import connect_key
from shared.kms.settings import ProviderSettings
from tests.exporter.running_exporter import KEY, configured, target

Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


def with_canary_dir(emulator: Emulator, folder: Path | None) -> Target:
    return target(emulator).model_copy(update={"canary_dir": folder})


async def reloaded(record: Results, until: Until, *targets: Target) -> dict[str, KeyInspection]:
    """The first look at each key of a generation, which has ended by then."""
    for target_record in record.history.targets.values():
        target_record.inspection = None
    inspections: dict[str, KeyInspection] = {}
    async with start_jobs(configured(targets=targets, interval=10), record, connect_key, Random(1)):  # noqa: S311  jitter

        async def all_inspected() -> bool:
            inspections.update({name: one.inspection for name, one in record.history.targets.items() if one.inspection})
            return inspections.keys() == {each.name for each in targets}

        await until(all_inspected)
    return inspections


async def rotated(emulator: Emulator, version: int) -> None:
    await emulator.store.update_key(KEY, lambda key: key.with_new_version(bytes(32), 0.0).with_primary(version, 0.0))


def versions(inspections: dict[str, KeyInspection]) -> list[str]:
    return [canary.version for canary in inspections["ledger-kek"].canaries]


def read_canaries(folder: Path) -> list[str]:
    (file,) = folder.glob("*.json")
    return [entry["canary"]["version"] for entry in json.loads(file.read_text())[KEY]]


def take_out_the_first(folder: Path) -> None:
    (file,) = folder.glob("*.json")
    file.write_text(json.dumps({KEY: json.loads(file.read_text())[KEY][1:]}))


async def test_what_only_memory_contains_goes_into_the_folder_that_a_reload_brings(
    emulator: Emulator, until: Until, tmp_path: Path
) -> None:
    record = Results()
    await reloaded(record, until, with_canary_dir(emulator, tmp_path / "missing"))
    await rotated(emulator, 2)
    assert versions(await reloaded(record, until, with_canary_dir(emulator, tmp_path / "missing"))) == ["1"]
    assert versions(await reloaded(record, until, with_canary_dir(emulator, tmp_path))) == ["1"]
    assert read_canaries(tmp_path) == ["1", "2"]


async def test_what_a_person_took_out_of_the_file_stays_out_over_a_reload(
    emulator: Emulator, until: Until, tmp_path: Path
) -> None:
    record = Results()
    await reloaded(record, until, with_canary_dir(emulator, tmp_path))
    await rotated(emulator, 2)
    assert versions(await reloaded(record, until, with_canary_dir(emulator, tmp_path))) == ["1"]
    take_out_the_first(tmp_path)
    assert versions(await reloaded(record, until, with_canary_dir(emulator, tmp_path))) == []
    assert read_canaries(tmp_path) == ["2"]


async def test_a_reload_that_fails_forgets_nothing(emulator: Emulator, until: Until, tmp_path: Path) -> None:
    def refused(_key: ProviderSettings) -> KmsKey:
        raise StartError("this key cannot be connected")

    record, missing = Results(), tmp_path / "missing"
    await reloaded(record, until, with_canary_dir(emulator, missing))
    await rotated(emulator, 2)
    with pytest.raises(StartError):
        async with start_jobs(configured(targets=(target(emulator, "other"),)), record, refused, Random(1)):  # noqa: S311
            pass
    assert versions(await reloaded(record, until, with_canary_dir(emulator, missing))) == ["1"]
