"""What is planned, from documents as Google writes them."""

from typing import Any

import pytest

from ops.audit.plan import (
    KMS,
    SINK_FILTER,
    WRITER_AFTER_CREATION,
    AuditPart,
    Change,
    DesiredState,
    Resource,
    diff_change,
    list_warnings,
    plan_change,
)
from tests.ops.audit.logs import selects

FULL = DesiredState(
    "acme-prod",
    frozenset({"serviceAccount:exporter@x"}),
    bigquery=True,
    bucket="acme-kms-audit",
    location="europe-west3",
)
WRITER = "serviceAccount:service-1@gcp-sa-logging.iam.gserviceaccount.com"
SHARED = "serviceAccount:cloud-logs@system.gserviceaccount.com"
ENABLED: Resource = {"parent": "projects/1234", "state": "ENABLED"}
EMPTY: dict[AuditPart, Resource | None] = {
    **dict.fromkeys(FULL.list_parts),
    AuditPart.API: {"parent": "projects/1234", "state": "DISABLED"},
    AuditPart.POLICY: {"etag": "a", "bindings": []},
}
COLD: Resource = {"action": {"type": "SetStorageClass", "storageClass": "COLDLINE"}, "condition": {"age": 90}}
BUCKET: Resource = {
    "name": "acme-kms-audit",
    "location": "EUROPE-WEST3",
    "projectNumber": "1234",
    "iamConfiguration": {"uniformBucketLevelAccess": {"enabled": True}, "publicAccessPrevention": "enforced"},
    "lifecycle": {"rule": [COLD, {"action": {"type": "Delete"}, "condition": {"age": 730}}]},
}


def plan_part(part: AuditPart, old: Resource | None, desired: DesiredState = FULL, **others: Resource) -> Any:
    state = EMPTY | {AuditPart.API: ENABLED, part: old} | {AuditPart[name]: value for name, value in others.items()}
    change = plan_change(part, state, desired)
    return change and change.new


def logs(*configs: Resource) -> Resource:
    return {"etag": "a", "bindings": [], "auditConfigs": list(configs)}


def test_all_three_types_are_logged_and_only_reads_are_exempted() -> None:
    (ours,) = plan_part(AuditPart.POLICY, EMPTY[AuditPart.POLICY])["auditConfigs"]
    reads = {"exemptedMembers": ["serviceAccount:exporter@x"]}
    assert ours == {
        "service": KMS,
        "auditLogConfigs": [
            {"logType": "ADMIN_READ"} | reads,
            {"logType": "DATA_READ"} | reads,
            {"logType": "DATA_WRITE"},
        ],
    }


def test_who_is_exempted_for_all_services_is_reported() -> None:
    config = {"service": "allServices", "auditLogConfigs": [{"logType": "DATA_READ", "exemptedMembers": ["user:a@x"]}]}
    assert [warning.partition(" ")[0] for warning in list_warnings(EMPTY | {AuditPart.POLICY: logs(config)})] == [
        "user:a@x"
    ]


def test_what_keeps_entries_from_a_sink_or_deletes_them_sooner_is_reported() -> None:
    exclusions = [
        {"name": "quiet", "filter": 'protoPayload.methodName="Decrypt"'},
        {"name": "off", "filter": "true", "disabled": True},
    ]
    cold = {"action": {"type": "SetStorageClass", "storageClass": "ARCHIVE"}, "condition": {"isLive": True}}
    soon = {"action": {"type": "Delete"}, "condition": {"age": 30, "isLive": True}}
    state = EMPTY | {
        AuditPart.STORAGE_SINK: {"exclusions": exclusions},
        AuditPart.BUCKET: BUCKET | {"lifecycle": {"rule": [*BUCKET["lifecycle"]["rule"], cold, soon]}},
    }
    assert list(list_warnings(state)) == [
        'the sink to Cloud Storage leaves out protoPayload.methodName="Decrypt"; check whether that is intended',
        "another rule of the bucket deletes files, too: {'age': 30, 'isLive': True}; check whether that is intended",
    ]


@pytest.mark.parametrize(
    ("defaults", "days"),
    [
        ({}, None),
        ({"defaultTableExpirationMs": "5184000000"}, "60"),
        ({"defaultPartitionExpirationMs": "63071999999"}, "730"),
        ({"defaultPartitionExpirationMs": "63072000000", "defaultTableExpirationMs": "5184000000"}, None),
        ({"defaultPartitionExpirationMs": "43200000", "defaultTableExpirationMs": "63072000000"}, "0.5"),
    ],
)
def test_a_dataset_that_keeps_entries_for_less_than_two_years_is_reported(
    defaults: dict[str, str], days: str | None
) -> None:
    found = list(list_warnings(EMPTY | {AuditPart.DATASET: {"location": "EU", **defaults}}))
    assert [warning.partition(" days ")[0].rpartition(" ")[2] for warning in found] == [days] * bool(days)
    assert all("bq update --default_partition_expiration 63072000 kms_audit" in warning for warning in found)


def test_a_grant_with_a_condition_is_not_enough_and_stays() -> None:
    bindings = [
        {"role": "roles/storage.objectCreator", "members": [WRITER], "condition": {"expression": "false"}},
        {"role": "roles/storage.objectCreator", "members": ["user:a@x"]},
        {"role": "roles/storage.admin", "members": [WRITER]},
    ]
    new = plan_part(AuditPart.BUCKET_ACCESS, {"bindings": bindings}, STORAGE_SINK={"writerIdentity": WRITER})[
        "bindings"
    ]
    assert new == [
        bindings[0],
        bindings[2],
        {"role": "roles/storage.objectCreator", "members": ["user:a@x", WRITER]},
    ]


@pytest.mark.parametrize(
    ("drift", "lines"),
    [
        ({"filter": "severity>=ERROR"}, ["- of severity>=ERROR", f"+ of {SINK_FILTER}"]),
        ({"disabled": True}, ["- off", "+ on"]),
        ({"bigqueryOptions": {}}, ["- in a table for each day", "+ in partitioned tables"]),
        ({"writerIdentity": "group:a@x"}, ["- as group:a@x", f"+ as {WRITER_AFTER_CREATION}"]),
        ({"writerIdentity": SHARED}, [f"- as {SHARED}", f"+ as {WRITER_AFTER_CREATION}"]),
        (
            {"destination": "bigquery.googleapis.com/x"},
            ["- to bigquery.googleapis.com/x", "+ to bigquery.googleapis.com/projects/acme-prod/datasets/kms_audit"],
        ),
    ],
)
def test_a_sink_that_was_changed_is_set_right_and_its_exclusions_stay(drift: Resource, lines: list[str]) -> None:
    right = plan_part(AuditPart.BIGQUERY_SINK, None) | {"writerIdentity": WRITER, "exclusions": [{"name": "mine"}]}
    assert plan_part(AuditPart.BIGQUERY_SINK, right) is None
    new = plan_part(AuditPart.BIGQUERY_SINK, right | drift)
    assert new["exclusions"] == [{"name": "mine"}]
    assert diff_change(Change(AuditPart.BIGQUERY_SINK, right | drift, new)) == lines


@pytest.mark.parametrize(
    ("log", "service", "wanted"),
    [
        ("cloudaudit.googleapis.com%2Fdata_access", KMS, True),
        ("cloudaudit.googleapis.com%2Factivity", KMS, True),
        ("cloudaudit.googleapis.com%2Fdata_access", "storage.googleapis.com", False),
        ("requests", KMS, False),
    ],
)
def test_a_sink_takes_the_audit_logs_of_kms_and_nothing_else(log: str, service: str, wanted: bool) -> None:
    entry = {"logName": f"projects/acme-prod/logs/{log}", "protoPayload": {"serviceName": service}}
    assert selects(SINK_FILTER, entry) is wanted


def test_what_deletes_by_another_age_is_replaced_and_other_rules_stay() -> None:
    soon = {"action": {"type": "Delete"}, "condition": {"age": 30}}
    cold = {"action": {"type": "SetStorageClass", "storageClass": "ARCHIVE"}, "condition": {"age": 90}}
    drafts = {"action": {"type": "Delete"}, "condition": {"age": 1, "matchesPrefix": ["drafts/"]}}
    new = plan_part(AuditPart.BUCKET, BUCKET | {"lifecycle": {"rule": [soon, cold, drafts]}})
    assert new["lifecycle"]["rule"] == [cold, drafts, *BUCKET["lifecycle"]["rule"]]
    assert diff_change(Change(AuditPart.BUCKET, BUCKET | {"lifecycle": {"rule": [soon, cold, drafts]}}, new)) == [
        "- Delete at age 30 days",
        "+ SetStorageClass COLDLINE at age 90 days",
        "+ Delete at age 730 days",
    ]


@pytest.mark.parametrize(
    ("switches", "changed"),
    [
        ({"uniformBucketLevelAccess": {"enabled": False}, "publicAccessPrevention": "enforced"}, True),
        ({"uniformBucketLevelAccess": {"enabled": True}, "publicAccessPrevention": "inherited"}, True),
        (
            {"uniformBucketLevelAccess": {"enabled": True, "lockedTime": "x"}, "publicAccessPrevention": "enforced"},
            False,
        ),
    ],
)
def test_access_by_object_and_publicity_are_switched_off(switches: Resource, changed: bool) -> None:
    new = plan_part(
        AuditPart.BUCKET, BUCKET | {"iamConfiguration": switches | {"bucketPolicyOnly": {"enabled": False}}}
    )
    assert (new is not None) == changed
    assert not changed or new["iamConfiguration"] == BUCKET["iamConfiguration"]
