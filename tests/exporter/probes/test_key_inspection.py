"""A look at a key: what is read of it, what is not, and the check with a wrong AAD."""

import asyncio

import pytest

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import EmulatorFault
from services.exporter.model import KeyInspection, KeyRead, Operation, TargetKey
from services.exporter.probes.key_inspection import KeyInspector
from services.exporter.web.findings import find_key_problems
from shared.kms.gcp.profile import GCP_PROFILE
from shared.kms.gcp.settings import GcpKeySettings
from shared.kms.port import KmsKey, VersionState
from shared.kms.registry import connect_key
from tests.exporter.collected_metrics import CollectedMetrics

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
TIMEOUT = 5.0
ONE_INSPECTION = {KeyRead.GET_KEY: 1, KeyRead.LIST_VERSIONS: 1, KeyRead.TEST_PERMISSIONS: 1}


@pytest.fixture
def lifecycle(key: KmsKey) -> KeyInspector:
    return KeyInspector("backend", "ledger-kek", key, TIMEOUT, wall_clock=lambda: 1_700_000_000.5)


async def test_a_healthy_key_is_read_whole(lifecycle: KeyInspector) -> None:
    snapshot = await lifecycle.inspect()
    assert snapshot.description is not None
    assert snapshot.description.primary_version == "1"
    assert [(one.id, one.state) for one in snapshot.description.versions] == [("1", VersionState.USABLE)]
    assert snapshot.permissions == dict.fromkeys(GCP_PROFILE.probe_permissions, True)
    assert snapshot.call_counts == ONE_INSPECTION
    assert (snapshot.service, snapshot.target, snapshot.inspected_at) == ("backend", "ledger-kek", 1_700_000_000.5)
    assert (snapshot.problems, snapshot.canaries) == ((), ())


async def test_what_iam_does_not_grant_is_0_and_the_rest_is_read(emulator: Emulator, lifecycle: KeyInspector) -> None:
    emulator.faults.add(EmulatorFault(kind="denied", permission="cloudkms.cryptoKeyVersions.useToDecrypt"))
    snapshot = await lifecycle.inspect()
    assert snapshot.permissions == {
        one: one != "cloudkms.cryptoKeyVersions.useToDecrypt" for one in GCP_PROFILE.probe_permissions
    }
    assert snapshot.description is not None


async def test_where_the_key_may_not_be_read_the_permissions_and_the_wrong_aad_still_are(
    emulator: Emulator, lifecycle: KeyInspector
) -> None:
    emulator.faults.add(EmulatorFault(kind="denied", operation="GetCryptoKey"))
    for _ in range(2):
        snapshot = await lifecycle.inspect()
        assert snapshot.description is None
        assert snapshot.permissions == {one: one != "cloudkms.cryptoKeys.get" for one in GCP_PROFILE.probe_permissions}
        assert snapshot.call_counts == {**ONE_INSPECTION, KeyRead.LIST_VERSIONS: 0}
        (problem,) = snapshot.problems
        assert problem.startswith(
            "the key cannot be read: permission_denied: Permission 'cloudkms.cryptoKeys.get' denied"
        )
        assert refused(snapshot)
        assert snapshot.encrypt_call is not None  # only what it encrypts tells the version


async def test_of_a_key_that_is_not_there_no_permission_is_reported_to_be_missing(emulator: Emulator) -> None:
    absent = connect_key(GcpKeySettings(key=f"{KEY}-absent", endpoint=str(emulator.address), insecure=True))
    snapshot = await KeyInspector("backend", "ledger-kek", absent, TIMEOUT).inspect()
    await absent.close()
    assert snapshot.permissions is None
    assert snapshot.call_counts == {KeyRead.GET_KEY: 1, KeyRead.LIST_VERSIONS: 0, KeyRead.TEST_PERMISSIONS: 0}
    assert [problem.partition(": ")[2].partition(":")[0] for problem in snapshot.problems] == ["key_not_found"] * 2
    assert [finding.title for finding in find_key_problems(snapshot, 0.0, TargetKey("gcp", KEY, GCP_PROFILE))] == [
        "not all could be read or kept"
    ]
    metrics = CollectedMetrics([("backend", "ledger-kek")], [])
    metrics.add_inspection(snapshot)
    assert [family.samples for family in metrics.collect() if family.name == "kms_key_permission"] == [[]]


async def test_where_kms_stalls_an_inspection_ends_in_time_and_says_so(emulator: Emulator, key: KmsKey) -> None:
    lifecycle = KeyInspector("backend", "ledger-kek", key, 0.5)
    emulator.faults.add(EmulatorFault(kind="stall"))
    async with asyncio.timeout(20):
        snapshot = await lifecycle.inspect()
    assert (snapshot.description, snapshot.permissions, snapshot.wrong_aad_check) == (None, None, None)
    assert len(snapshot.problems) == 3
    assert all("timeout" in problem for problem in snapshot.problems)
    assert snapshot.encrypt_call is not None
    assert snapshot.encrypt_call.failure is not None
    assert snapshot.encrypt_call.seconds >= 0.5
    emulator.faults.clear()
    assert (await KeyInspector("backend", "ledger-kek", key, TIMEOUT).inspect()).problems == ()


def refused(snapshot: KeyInspection) -> bool:
    assert snapshot.wrong_aad_check is not None
    assert snapshot.wrong_aad_check.operation is Operation.DECRYPT
    return snapshot.wrong_aad_check.failure is None


async def test_a_wrong_aad_is_refused_at_each_inspection_and_costs_one_encryption(lifecycle: KeyInspector) -> None:
    first, second = await lifecycle.inspect(), await lifecycle.inspect()
    assert refused(first)
    assert refused(second)
    assert first.encrypt_call is not None
    assert first.encrypt_call.operation is Operation.ENCRYPT
    assert second.encrypt_call is None


@pytest.mark.parametrize(
    ("fault", "reported"),
    [
        (EmulatorFault(kind="status", operation="Decrypt", status="UNAVAILABLE"), "unavailable"),
        (EmulatorFault(kind="denied", operation="Decrypt"), "permission_denied"),
        (EmulatorFault(kind="stall", operation="Decrypt"), "timeout"),
    ],
    ids=lambda value: value.kind if isinstance(value, EmulatorFault) else value,
)
async def test_another_error_says_nothing_of_the_wrong_aad(
    emulator: Emulator, lifecycle: KeyInspector, fault: EmulatorFault, reported: str
) -> None:
    emulator.faults.add(fault)
    snapshot = await lifecycle.inspect()
    assert snapshot.wrong_aad_check is None
    assert snapshot.problems[0].startswith(f"whether a wrong AAD is refused is not known: {reported}: ")
