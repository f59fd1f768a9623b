"""A look at a key: what is read of it, what is not, and the check with a wrong AAD."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from ops.kms_emulator.emulator import Emulator
from ops.kms_emulator.faults import Fault
from ops.kms_emulator.model import State
from services.exporter.lifecycle import LEAST_SECONDS, PERMISSIONS, READS, Lifecycle, beat
from services.exporter.metrics import ExporterMetrics
from services.exporter.model import KeySnapshot, Operation, Read
from services.exporter.web.findings import of_snapshot
from shared.kms.provider import KeyProvider
from shared.kms.reason import Reason
from shared.kms.registry import connect
from shared.kms.settings import KeySettings

KEY = "projects/demo/locations/global/keyRings/app/cryptoKeys/ledger"
DAY = 86400.0
TIMEOUT = 5.0
ONE_LOOK = {Read.GET_KEY: 1, Read.LIST_VERSIONS: 1, Read.TEST_PERMISSIONS: 1}


@pytest.fixture
async def key(emulator: Emulator) -> AsyncIterator[KeyProvider]:
    provider = connect(KeySettings(key=KEY, endpoint=str(emulator.address), insecure=True))
    yield provider
    await provider.close()


@pytest.fixture
def lifecycle(key: KeyProvider) -> Lifecycle:
    return Lifecycle("backend", "ledger-kek", key, TIMEOUT, wall=lambda: 1_700_000_000.5)


async def test_a_healthy_key_is_read_whole(lifecycle: Lifecycle) -> None:
    snapshot = await lifecycle.read()
    assert snapshot.description is not None
    assert snapshot.description.primary == "1"
    assert [(one.number, one.state) for one in snapshot.description.versions] == [("1", "ENABLED")]
    assert snapshot.permissions == dict.fromkeys(PERMISSIONS, True)
    assert snapshot.reads == ONE_LOOK
    assert (snapshot.service, snapshot.target, snapshot.at) == ("backend", "ledger-kek", 1_700_000_000.5)
    assert (snapshot.problems, snapshot.canaries) == ((), ())


async def test_versions_are_read_with_their_states_and_the_times_of_their_destruction(
    emulator: Emulator, lifecycle: Lifecycle
) -> None:
    now = emulator.store.clock()
    for _ in range(3):
        await emulator.store.change(KEY, lambda key: key.with_new_version(bytes(32), now))
    await emulator.store.change(KEY, lambda key: key.with_primary(4, now).with_state(3, State.DISABLED))
    await emulator.store.change(KEY, lambda key: key.with_destruction(2, now).with_destruction(1, now - 31 * DAY))
    snapshot = await lifecycle.read()
    assert snapshot.description is not None
    assert snapshot.description.primary == "4"
    assert {one.number: (one.state, one.destroy_at, one.destroyed_at) for one in snapshot.description.versions} == {
        "1": ("DESTROYED", None, pytest.approx(now - DAY)),
        "2": ("DESTROY_SCHEDULED", pytest.approx(now + 30 * DAY), None),
        "3": ("DISABLED", None, None),
        "4": ("ENABLED", None, None),
    }


async def test_what_iam_does_not_grant_is_0_and_the_rest_is_read(emulator: Emulator, lifecycle: Lifecycle) -> None:
    emulator.faults.add(Fault(kind="denied", permission="cloudkms.cryptoKeyVersions.useToDecrypt"))
    snapshot = await lifecycle.read()
    assert snapshot.permissions == {one: one != "cloudkms.cryptoKeyVersions.useToDecrypt" for one in PERMISSIONS}
    assert snapshot.description is not None


async def test_where_the_key_may_not_be_read_the_permissions_and_the_wrong_aad_still_are(
    emulator: Emulator, lifecycle: Lifecycle
) -> None:
    emulator.faults.add(Fault(kind="denied", operation="GetCryptoKey"))
    for _ in range(2):
        snapshot = await lifecycle.read()
        assert snapshot.description is None
        assert snapshot.permissions == {one: one != "cloudkms.cryptoKeys.get" for one in PERMISSIONS}
        assert snapshot.reads == {**ONE_LOOK, Read.LIST_VERSIONS: 0}
        (problem,) = snapshot.problems
        assert problem.startswith(
            "the key cannot be read: permission_denied: Permission 'cloudkms.cryptoKeys.get' denied"
        )
        assert refused(snapshot)
        assert snapshot.encrypt is not None  # only what it encrypts tells the version


async def test_of_a_key_that_is_not_there_no_permission_is_said_to_be_missing(emulator: Emulator) -> None:
    absent = connect(KeySettings(key=f"{KEY}-absent", endpoint=str(emulator.address), insecure=True))
    snapshot = await Lifecycle("backend", "ledger-kek", absent, TIMEOUT).read()
    await absent.close()
    assert snapshot.permissions is None
    assert snapshot.reads == {Read.GET_KEY: 1, Read.LIST_VERSIONS: 0, Read.TEST_PERMISSIONS: 0}
    assert [problem.partition(": ")[2].partition(":")[0] for problem in snapshot.problems] == ["key_not_found"] * 2
    assert [finding.title for finding in of_snapshot(snapshot, 0.0)] == ["not all could be read or kept"]
    metrics = ExporterMetrics([("backend", "ledger-kek")], [])
    metrics.lifecycle(snapshot)
    assert [family.samples for family in metrics.collect() if family.name == "kms_key_permission"] == [[]]


async def test_permissions_that_cannot_be_asked_for_are_unknown_and_not_0(
    emulator: Emulator, lifecycle: Lifecycle
) -> None:
    emulator.faults.add(Fault(kind="status", operation="TestIamPermissions", status="UNAVAILABLE"))
    snapshot = await lifecycle.read()
    assert snapshot.permissions is None
    assert snapshot.problems[0].startswith("its permissions cannot be read: unavailable: ")
    assert snapshot.description is not None
    assert snapshot.reads == ONE_LOOK


async def test_where_kms_stalls_a_look_ends_in_time_and_says_so(emulator: Emulator, key: KeyProvider) -> None:
    lifecycle = Lifecycle("backend", "ledger-kek", key, 0.5)
    emulator.faults.add(Fault(kind="stall"))
    async with asyncio.timeout(20):
        snapshot = await lifecycle.read()
    assert (snapshot.description, snapshot.permissions, snapshot.wrong_aad) == (None, None, None)
    assert len(snapshot.problems) == 3
    assert all("timeout" in problem for problem in snapshot.problems)
    assert snapshot.encrypt is not None
    assert snapshot.encrypt.failure is not None
    assert snapshot.encrypt.seconds >= 0.5
    emulator.faults.clear()
    assert (await Lifecycle("backend", "ledger-kek", key, TIMEOUT).read()).problems == ()


async def test_a_key_without_a_version_that_encrypts_is_no_crash(emulator: Emulator, lifecycle: Lifecycle) -> None:
    await emulator.store.change(KEY, lambda key: key.with_state(1, State.DISABLED))
    snapshot = await lifecycle.read()
    assert snapshot.description is not None
    assert snapshot.encrypt is not None
    assert snapshot.encrypt.failure is not None
    assert snapshot.encrypt.failure.reason is Reason.KEY_DISABLED
    assert snapshot.wrong_aad is None
    assert snapshot.problems[0].startswith("no canary could be made: key_disabled: ")


def refused(snapshot: KeySnapshot) -> bool:
    assert snapshot.wrong_aad is not None
    assert snapshot.wrong_aad.operation is Operation.DECRYPT
    return snapshot.wrong_aad.failure is None


async def test_a_wrong_aad_is_refused_at_each_look_and_costs_one_encryption(lifecycle: Lifecycle) -> None:
    first, second = await lifecycle.read(), await lifecycle.read()
    assert refused(first)
    assert refused(second)
    assert first.encrypt is not None
    assert first.encrypt.operation is Operation.ENCRYPT
    assert second.encrypt is None


async def test_after_a_rotation_a_wrong_aad_is_tried_on_the_new_version(
    emulator: Emulator, lifecycle: Lifecycle
) -> None:
    await lifecycle.read()
    await emulator.store.change(KEY, lambda key: key.with_new_version(bytes(32), 0.0).with_primary(2, 0.0))
    await emulator.store.change(KEY, lambda key: key.with_state(1, State.DISABLED))
    after = await lifecycle.read()
    assert after.encrypt is not None
    assert refused(after)
    assert (await lifecycle.read()).encrypt is None


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault(kind="status", operation="Decrypt", status="UNAVAILABLE"), "unavailable"),
        (Fault(kind="denied", operation="Decrypt"), "permission_denied"),
        (Fault(kind="stall", operation="Decrypt"), "timeout"),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else value,
)
async def test_another_error_says_nothing_of_the_wrong_aad(
    emulator: Emulator, lifecycle: Lifecycle, fault: Fault, told: str
) -> None:
    emulator.faults.add(fault)
    snapshot = await lifecycle.read()
    assert snapshot.wrong_aad is None
    assert snapshot.problems[0].startswith(f"whether a wrong AAD is refused is not known: {told}: ")


@pytest.mark.parametrize("targets", [1, 20, 21, 100, 1000])
def test_all_targets_together_keep_to_the_quota_of_300_reads_a_minute(targets: int) -> None:
    seconds = beat(targets)
    assert seconds >= LEAST_SECONDS == 60
    assert targets * READS * 60 / seconds <= 200
    assert beat(targets, 22) == max(60, targets * 22 * 60 / 200)
