"""What the provider's products protect with a version is shown and stops its end; not to know it stops nothing."""

import sys
from typing import Any

import pytest

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from ops.kms_emulator.model import EmulatedState
from services.rotator.inspection import show_plans
from services.rotator.report import CommandOutcome, format_markdown
from services.rotator.retirement import destroy_version, retire_version
from shared.keyring.administration import RotationType
from tests.rotator.keyring_to_rotate import KEY, NewVersion, Rotated
from tests.rotator.versions import passed, refusal, rewrap, state

NAME = f"{KEY}/cryptoKeyVersions/1"
PROTECTED: dict[str, Any] = {
    "resource_count": 3,
    "project_count": 2,
    "resource_types": {"storage.googleapis.com/Bucket": 2, "compute.googleapis.com/Disk": 1},
    "cloud_products": {"Cloud Storage": 2, "Compute Engine": 1},
    "locations": {"europe-west1": 3},
    "warnings": [{"warning_code": "INSUFFICIENT_PERMISSIONS_PARTIAL_DATA"}],
}
SENTENCE = (
    "3 resources in 2 projects (1 compute.googleapis.com/Disk, 2 storage.googleapis.com/Bucket; in europe-west1); "
    "perhaps more: INSUFFICIENT_PERMISSIONS_PARTIAL_DATA"
)
REWRAP = (RotationType.REWRAP_KEK,)


async def test_a_version_that_protects_resources_is_neither_retired_nor_destroyed(
    rotated: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await rewrap(rotated, new_version)
    emulator.store.protected[NAME] = PROTECTED
    assert f"version 1 protects {SENTENCE}; nothing was changed." in (await refusal(rotated, retire_version, 1)).message
    assert await state(emulator, 1) is EmulatedState.ENABLED
    plan = await rotated.do(show_plans, REWRAP)
    assert SENTENCE in format_markdown(plan, "rotator.yml")
    assert plan.model_dump(mode="json")["protected"][0]["products"] == {"Cloud Storage": 2, "Compute Engine": 1}
    del emulator.store.protected[NAME]
    report = await rotated.do(retire_version, "1")
    assert "0 resources in 0 projects" in format_markdown(report, "rotator.yml")
    assert "No API knows what applications decrypt by themselves" in format_markdown(report, "rotator.yml")
    await passed(rotated, 31)
    emulator.store.protected[NAME] = PROTECTED
    assert SENTENCE in (await refusal(rotated, destroy_version, 1)).message
    assert await state(emulator, 1) is EmulatedState.DISABLED


async def test_where_the_organization_cannot_be_searched_the_project_is_and_an_unknown_warning_is_its_number(
    rotated: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await rewrap(rotated, new_version)
    emulator.store.protected[NAME] = {"resource_count": 1, "warnings": [{"warning_code": 77}]}
    denied = {"kind": "status", "status": "PERMISSION_DENIED", "operation": "GetProtectedResourcesSummary", "count": 1}
    emulator.faults.add(EmulatorFault.model_validate(denied))
    message = (await refusal(rotated, retire_version, 1)).message
    assert "version 1 protects 1 resources in 0 projects" in message
    assert "perhaps more: only the key's own project was searched" in message
    assert "(permission_denied), 77; nothing" in message


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ({"kind": "cause", "cause": "api_disabled"}, "the KMS Inventory API: api_disabled (permission_denied): "),
        (
            {"kind": "status", "status": "PERMISSION_DENIED"},
            "the KMS Inventory API: role_missing (permission_denied): ",
        ),
        ({"kind": "status", "status": "UNIMPLEMENTED"}, "the KMS Inventory API: unavailable: "),
        (None, "keypulse[kms-inventory] is not installed"),
    ],
)
async def test_an_inventory_that_does_not_answer_is_named_and_stops_nothing(
    rotated: Rotated,
    new_version: NewVersion,
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    fault: dict[str, str] | None,
    problem: str,
) -> None:
    await rewrap(rotated, new_version)
    if fault:
        emulator.faults.add(
            EmulatorFault.model_validate({"operation": "GetProtectedResourcesSummary", "message": "no", **fault})
        )
    else:
        monkeypatch.setitem(sys.modules, "google.cloud.kms_inventory_v1", None)
    report = await rotated.do(retire_version, "1")
    assert report.outcome is CommandOutcome.DONE
    (found,) = report.protected
    assert (found.resources, found.problem[: len(problem)]) == (0, problem)
    assert f"not known: {problem.partition(':')[0].partition('[')[0]}" in format_markdown(report, "rotator.yml")
    assert len((await rotated.do(show_plans, REWRAP)).protected) == 1


async def test_a_plan_reads_the_key_once_so_that_a_second_read_cannot_fail(
    rotated: Rotated, new_version: NewVersion, emulator: Emulator
) -> None:
    await rewrap(rotated, new_version)
    each_read = {"kind": "latency", "operation": "GetCryptoKey", "seconds": 0.001, "count": 9}
    emulator.faults.add(EmulatorFault.model_validate(each_read))
    await rotated.do(show_plans, REWRAP)
    assert [fault.count for fault in emulator.faults.list_active().values()] == [8]
