"""The metrics of a key, from its inspections."""

from dataclasses import replace

import pytest

from services.exporter.model import (
    Call,
    CanaryResult,
    Failure,
    KeyInspection,
    KeyRead,
    Operation,
    ProbeResult,
    TargetKey,
)
from shared.kms.gcp.profile import GCP_PROFILE
from shared.kms.port import KeyDescription, KeyVersion, VersionState
from shared.kms.reason import Cause, Reason
from tests.exporter.collected_metrics import CollectedMetrics

KEY = KeyDescription(
    primary_version="3",
    next_rotation_at=1_800_000_000.0,
    versions=(
        KeyVersion("1", VersionState.DESTROYED, "SOFTWARE", None),
        KeyVersion("2", VersionState.PENDING_DESTRUCTION, "SOFTWARE", 1_750_000_000.0),
        KeyVersion("3", VersionState.USABLE, "HSM", None, number=3),
        KeyVersion("4", VersionState.USABLE, "HSM", None),
    ),
    call_count=2,
)
ENCRYPT, DECRYPT = "cloudkms.cryptoKeyVersions.useToEncrypt", "cloudkms.cryptoKeyVersions.useToDecrypt"
WHOLE = KeyInspection(
    "backend",
    "ledger-kek",
    1_700_000_000.0,
    KEY,
    {ENCRYPT: True, DECRYPT: False},
    (CanaryResult("1", Call(Operation.CANARY_DECRYPT, 0.3)),),
    None,
    {KeyRead.GET_KEY: 1, KeyRead.LIST_VERSIONS: 2, KeyRead.TEST_PERMISSIONS: 1},
)


@pytest.fixture
def metrics() -> CollectedMetrics:
    return CollectedMetrics(
        [("backend", "ledger-kek"), ("backend", "other-kek")], [], TargetKey("gcp", "", GCP_PROFILE)
    )


def read_samples(metrics: CollectedMetrics, name: str, label: str | None = None) -> dict[str, float]:
    """The samples of ledger-kek by the value of a label."""
    return {
        sample.labels[label] if label else "": sample.value
        for family in metrics.collect()
        for sample in family.samples
        if sample.name == name and sample.labels["target"] == "ledger-kek"
    }


def keys_families(metrics: CollectedMetrics) -> set[str]:
    samples = [sample for family in metrics.collect() for sample in family.samples]
    return {sample.name for sample in samples if sample.name.startswith("kms_key_")}


def test_a_key_is_shown_whole(metrics: CollectedMetrics) -> None:
    metrics.add_inspection(WHOLE)
    assert read_samples(metrics, "kms_key_primary_version") == {"": 3}
    assert read_samples(metrics, "kms_key_next_rotation_timestamp_seconds") == {"": 1_800_000_000}
    assert read_samples(metrics, "kms_key_version_destroy_timestamp_seconds", "version") == {"2": 1_750_000_000}
    assert read_samples(metrics, "kms_key_permission", "permission") == {ENCRYPT: 1, DECRYPT: 0}
    assert read_samples(metrics, "kms_key_active_versions", "protection_level") == {"HSM": 2}


def test_the_quota_that_refused_the_last_round_trip_is_named_and_no_other(metrics: CollectedMetrics) -> None:
    values = {"quota_metric": "hsm_usage", "quota_location": "europe-west1", "consumer": "projects/1"}
    for cause, named in (Cause.RATE_LIMIT, {"hsm_usage": 1}), (Cause.NONE, {}):
        failure = Failure(Reason.QUOTA_EXHAUSTED, "because", cause=cause, values=values)
        call = Call(Operation.ENCRYPT, 0.1, failure)
        metrics.add_probe(ProbeResult("backend", "ledger-kek", 1.0, (call,), None))
        assert read_samples(metrics, "kms_probe_quota_info", "quota") == named
    metrics.add_probe(ProbeResult("backend", "ledger-kek", 2.0, (Call(Operation.ENCRYPT, 0.1),), None))
    assert read_samples(metrics, "kms_probe_quota_info", "quota") == {}


def test_the_primary_version_is_named_and_has_a_number_only_where_the_provider_counts(
    metrics: CollectedMetrics,
) -> None:
    metrics.add_inspection(WHOLE)
    assert read_samples(metrics, "kms_key_primary_version_info", "version") == {"3": 1}
    autumn = KeyVersion("autumn", VersionState.USABLE, "HSM", None)
    metrics.add_inspection(replace(WHOLE, description=KeyDescription("autumn", None, (autumn,), 1)))
    assert read_samples(metrics, "kms_key_primary_version_info", "version") == {"autumn": 1}
    assert read_samples(metrics, "kms_key_primary_version") == {}


def test_a_round_trip_that_succeeds_after_the_inspection_proves_that_its_calls_work(metrics: CollectedMetrics) -> None:
    """So the alerts about a role end with the one that inhibits them, and tell nobody of it after the fix."""
    get = "cloudkms.cryptoKeys.get"
    problems = ("the key cannot be read: permission_denied", "no canary could be made: permission_denied")
    permissions = {ENCRYPT: False, DECRYPT: False, get: False}
    denied = replace(WHOLE, permissions=permissions, problems=problems, call_problems=problems[1:])
    failed = Call(Operation.ENCRYPT, 0.1, Failure(Reason.PERMISSION_DENIED, "because"))
    granted = {ENCRYPT: 1, DECRYPT: 1, get: 0}
    for ended, call, expected in (
        (-1.0, Call(Operation.ENCRYPT, 0.1), dict.fromkeys(granted, 0)),
        (30.0, Call(Operation.ENCRYPT, 0.1), granted),
        (60.0, failed, dict.fromkeys(granted, 0)),
    ):
        metrics.add_probe(ProbeResult("backend", "ledger-kek", WHOLE.inspected_at + ended, (call,), None))
        metrics.add_inspection(denied)
        assert read_samples(metrics, "kms_key_permission", "permission") == expected
        assert read_samples(metrics, "kms_key_inspection_problems") == {"": 1 if expected is granted else 2}


def test_of_a_key_that_cannot_be_read_nothing_old_is_shown(metrics: CollectedMetrics) -> None:
    metrics.add_inspection(WHOLE)
    metrics.add_inspection(replace(WHOLE, description=None, problems=("cloudkms.cryptoKeys.get is not granted",)))
    assert keys_families(metrics) == {"kms_key_permission", "kms_key_inspection_problems"}
    metrics.add_inspection(replace(WHOLE, permissions=None))
    assert "kms_key_permission" not in keys_families(metrics)


def canary(version: str, reason: Reason | None = None) -> CanaryResult:
    return CanaryResult(version, Call(Operation.CANARY_DECRYPT, 0.1, Failure(reason, "because") if reason else None))


def canaries(metrics: CollectedMetrics) -> set[tuple[str, str, float]]:
    return {
        (sample.labels["version"], sample.labels["reason"], sample.value)
        for family in metrics.collect()
        for sample in family.samples
        if sample.name == "kms_canary_success"
    }


def test_a_canary_tells_of_no_loss_while_round_trips_fail_nor_until_it_is_inspected_again(
    metrics: CollectedMetrics,
) -> None:
    lost = replace(WHOLE, canaries=(canary("1"), canary("2", Reason.KEY_NOT_FOUND), canary("4", Reason.TIMEOUT)))
    failed = Call(Operation.ENCRYPT, 0.1, Failure(Reason.KEY_NOT_FOUND, "because"))

    def probe(call: Call) -> None:
        metrics.add_probe(ProbeResult("backend", "ledger-kek", 1.0, (call,), None))

    without_the_loss = {("1", "", 1.0), ("4", "timeout", 0.0)}
    all_three = {*without_the_loss, ("2", "key_not_found", 0.0)}
    metrics.add_inspection(lost)
    assert canaries(metrics) == all_three
    probe(failed)
    assert canaries(metrics) == without_the_loss
    metrics.add_inspection(lost)
    probe(Call(Operation.ENCRYPT, 0.1))
    assert canaries(metrics) == without_the_loss
    metrics.add_inspection(lost)
    assert canaries(metrics) == all_three


def test_a_canary_that_fails_says_which_version_and_why_and_is_healthy_again_when_it_works(
    metrics: CollectedMetrics,
) -> None:
    metrics.add_inspection(replace(WHOLE, canaries=(canary("1"), canary("2", Reason.KEY_DISABLED))))
    assert canaries(metrics) == {("1", "", 1), ("2", "key_disabled", 0)}
    metrics.add_inspection(replace(WHOLE, canaries=(canary("1"), canary("2", Reason.KEY_DESTROYED))))
    assert canaries(metrics) == {("1", "", 1), ("2", "key_destroyed", 0)}
    metrics.add_inspection(replace(WHOLE, canaries=(canary("1"), canary("2"))))
    assert canaries(metrics) == {("1", "", 1), ("2", "", 1)}
    metrics.add_inspection(replace(WHOLE, canaries=()))
    assert canaries(metrics) == set()


@pytest.mark.parametrize("reason", [None, *Reason])
def test_a_wrong_aad_counts_as_accepted_only_where_kms_decrypted_with_it(
    metrics: CollectedMetrics, reason: Reason | None
) -> None:
    failure = Failure(reason, "because") if reason else None
    metrics.add_inspection(replace(WHOLE, wrong_aad_check=Call(Operation.DECRYPT, 0.1, failure)))
    expected = {None: {"": 1}, Reason.PLAINTEXT_MISMATCH: {"": 0}}
    assert read_samples(metrics, "kms_wrong_aad_refused") == expected.get(reason, {})
    metrics.add_inspection(WHOLE)
    assert read_samples(metrics, "kms_wrong_aad_refused") == {}
