"""Audit logging is set up against Google's own schemas, whatever goes wrong meanwhile."""

from collections.abc import Callable

import pytest

from ops.audit.apply import apply_changes
from ops.audit.google_api import PERMISSIONS_BY_METHOD, GoogleApi, GoogleError
from ops.audit.plan import AuditPart, DesiredState
from tests.ops.audit.conftest import Waits
from tests.ops.audit.logs import LoggingWorld
from tests.ops.audit.server import Fault, RefusedError, Stand

DESIRED = DesiredState("acme-prod", bigquery=True, bucket="acme-kms-audit", location="europe-west3")
GET_POLICY = "cloudresourcemanager.projects.getIamPolicy"
SET_POLICY = "cloudresourcemanager.projects.setIamPolicy"
WRITES = {
    "serviceusage.services.enable",
    SET_POLICY,
    "bigquery.datasets.insert",
    "logging.projects.sinks.create",
    "bigquery.datasets.patch",
    "storage.buckets.insert",
    "storage.buckets.setIamPolicy",
}
UPDATES = {"logging.projects.sinks.update", "storage.buckets.patch"}
WRITER = "serviceAccount:service-1234@gcp-sa-logging.iam.gserviceaccount.com"

Run = Callable[[], list[AuditPart]]


@pytest.fixture
def run(google: GoogleApi, waits: Waits) -> Run:
    return lambda: [change.part for change in apply_changes(google, DESIRED, waits.sleep)]


def test_everything_is_set_up_and_a_second_run_changes_nothing(run: Run, world: LoggingWorld, stand: Stand) -> None:
    assert run() == list(DESIRED.list_parts)
    assert set(stand.names()) >= WRITES
    assert world.enabled == {"projects/acme-prod/services/cloudkms.googleapis.com"}
    (config,) = world.policies["acme-prod"]["auditConfigs"]
    assert [log["logType"] for log in config["auditLogConfigs"]] == ["ADMIN_READ", "DATA_READ", "DATA_WRITE"]
    to_bigquery, to_storage = (world.sinks[f"projects/acme-prod/sinks/kms-audit-{x}"] for x in ("bigquery", "storage"))
    assert to_bigquery["bigqueryOptions"] == {"usePartitionedTables": True}
    assert to_storage["writerIdentity"] == to_bigquery["writerIdentity"] == WRITER
    assert world.datasets["acme-prod.kms_audit"]["location"] == "europe-west3"
    bucket = world.buckets["acme-kms-audit"]
    assert bucket["iamConfiguration"]["uniformBucketLevelAccess"] == {"enabled": True}
    assert bucket["lifecycle"]["rule"] == [
        {"action": {"type": "SetStorageClass", "storageClass": "COLDLINE"}, "condition": {"age": 90}},
        {"action": {"type": "Delete"}, "condition": {"age": 730}},
    ]
    assert bucket["storageClass"] == "STANDARD"
    stand.requests.clear()
    assert run() == []
    assert not set(stand.names()) & (WRITES | UPDATES)


def test_the_writers_are_granted_what_they_need_and_no_more(run: Run, world: LoggingWorld) -> None:
    run()
    email = WRITER.removeprefix("serviceAccount:")
    entries = [entry for entry in world.datasets["acme-prod.kms_audit"]["access"] if entry.get("userByEmail") == email]
    assert entries == [{"role": "WRITER", "userByEmail": email}]
    granted = [
        binding for binding in world.bucket_policies["acme-kms-audit"]["bindings"] if WRITER in binding["members"]
    ]
    assert granted == [{"role": "roles/storage.objectCreator", "members": [WRITER]}]
    assert WRITER not in str(world.policies)


def test_a_policy_that_changes_between_read_and_write_keeps_the_change(
    run: Run, world: LoggingWorld, stand: Stand, waits: Waits
) -> None:
    guest = {"role": "roles/viewer", "members": ["user:a@x"], "condition": {"expression": "true"}}
    storage = {"service": "storage.googleapis.com", "auditLogConfigs": [{"logType": "DATA_READ"}]}

    def somebody_else() -> None:
        policy = world.project("acme-prod")
        policy["bindings"].append(guest)
        policy.setdefault("auditConfigs", []).append(storage)
        policy["etag"] = world.etag()

    stand.faults.append(Fault(SET_POLICY, before=somebody_else))
    run()
    policy = world.policies["acme-prod"]
    assert guest in policy["bindings"]
    assert [config["service"] for config in policy["auditConfigs"]] == [
        "storage.googleapis.com",
        "cloudkms.googleapis.com",
    ]
    assert stand.names().count(SET_POLICY) == 2
    assert len(waits.pauses) == 1


def test_the_policy_is_written_with_its_etag_its_version_and_a_mask_that_names_the_logs(run: Run, stand: Stand) -> None:
    run()
    read, replacement = (
        next(request for request in stand.requests if request.method == name) for name in (GET_POLICY, SET_POLICY)
    )
    assert read.body == {"options": {"requestedPolicyVersion": 3}}
    assert replacement.body["updateMask"] == "auditConfigs,etag"
    assert replacement.body["policy"]["version"] == 3
    assert replacement.body["policy"]["etag"]


def change_dataset(world: LoggingWorld) -> None:
    dataset = world.datasets["acme-prod.kms_audit"]
    dataset["access"].append({"role": "READER", "userByEmail": "auditor@x"})
    dataset["etag"] = world.etag()


def change_bucket_policy(world: LoggingWorld) -> None:
    policy = world.bucket_policies["acme-kms-audit"]
    policy["bindings"].append({"role": "roles/storage.objectViewer", "members": ["user:auditor@x"]})
    policy["etag"] = world.etag()


def change_bucket(world: LoggingWorld) -> None:
    cold = {"action": {"type": "SetStorageClass", "storageClass": "ARCHIVE"}, "condition": {"age": 90}}
    world.buckets["acme-kms-audit"]["lifecycle"]["rule"].append(cold)
    world.buckets["acme-kms-audit"]["metageneration"] += "0"


@pytest.mark.parametrize(
    ("method", "change", "preserved"),
    [
        ("bigquery.datasets.patch", change_dataset, "auditor@x"),
        ("storage.buckets.setIamPolicy", change_bucket_policy, "user:auditor@x"),
        ("storage.buckets.patch", change_bucket, "ARCHIVE"),
    ],
)
def test_every_other_concurrent_change_survives(
    method: str, change: Callable[[LoggingWorld], None], preserved: str, run: Run, world: LoggingWorld, stand: Stand
) -> None:
    if method == "storage.buckets.patch":
        run()
        world.buckets["acme-kms-audit"]["lifecycle"]["rule"] = []
    stand.faults.append(Fault(method, before=lambda: change(world)))
    run()
    assert preserved in str((world.datasets, world.buckets, world.bucket_policies))
    assert run() == []


def test_conditions_of_others_stay_where_a_policy_is_written(run: Run, world: LoggingWorld) -> None:
    run()
    condition = {"expression": "request.time < timestamp('2030-01-01T00:00:00Z')"}
    entry = {"role": "READER", "userByEmail": "a@x", "condition": condition}
    binding = {"role": "roles/storage.objectViewer", "members": ["user:a@x"], "condition": condition}
    world.datasets["acme-prod.kms_audit"]["access"] = [entry]
    world.bucket_policies["acme-kms-audit"]["bindings"] = [binding]
    assert run() == [AuditPart.DATASET_ACCESS, AuditPart.BUCKET_ACCESS]
    assert entry in world.datasets["acme-prod.kms_audit"]["access"]
    assert binding in world.bucket_policies["acme-kms-audit"]["bindings"]


@pytest.mark.parametrize("method", ["serviceusage.services.get", GET_POLICY])
def test_a_project_that_is_not_there_is_not_mistaken_for_an_empty_one(method: str, run: Run, stand: Stand) -> None:
    stand.faults.append(Fault(method, times=9, refuse=RefusedError(404, "no project")))
    with pytest.raises(GoogleError, match="check whether the names are right"):
        run()
    assert SET_POLICY not in stand.names()


def test_a_change_that_never_shows_is_given_up_on(run: Run, stand: Stand, world: LoggingWorld) -> None:
    def undone() -> None:
        world.project("acme-prod").pop("auditConfigs", None)

    stand.faults.append(Fault(GET_POLICY, times=1000, before=undone))
    with pytest.raises(GoogleError, match="changes it again and again"):
        run()


@pytest.mark.parametrize(("status", "late"), [(429, False), (503, True)])
@pytest.mark.parametrize("method", sorted(WRITES | {GET_POLICY}))
def test_what_passes_by_itself_is_retried(
    method: str, status: int, late: bool, run: Run, stand: Stand, waits: Waits
) -> None:
    stand.faults.append(Fault(method, times=2, refuse=RefusedError(status), late=late))
    assert run() == list(DESIRED.list_parts), "what was done although its answer was lost is told, too"
    assert waits.pauses[0] >= (7 if status == 429 else 1)
    assert run() == []


@pytest.mark.parametrize("method", sorted(WRITES | {GET_POLICY, "storage.buckets.get", "logging.projects.sinks.get"}))
def test_a_missing_permission_names_the_role_and_the_rest_is_done_when_it_is_there(
    method: str, run: Run, stand: Stand
) -> None:
    stand.denied.add(method)
    with pytest.raises(GoogleError) as refused:
        run()
    permission, role = PERMISSIONS_BY_METHOD[method]
    assert f"it needs {permission}: ask for {role} on the project" in str(refused.value)
    assert stand.names().count(method) == 1
    stand.denied.clear()
    run()
    assert run() == []


def test_every_method_that_is_called_has_its_permission_listed(run: Run, stand: Stand, world: LoggingWorld) -> None:
    world.slowness = 1
    run()
    world.buckets["acme-kms-audit"]["lifecycle"] = {"rule": []}
    world.sinks["projects/acme-prod/sinks/kms-audit-storage"]["disabled"] = True
    run()
    assert set(stand.names()) >= WRITES | UPDATES
    assert set(stand.names()) <= set(PERMISSIONS_BY_METHOD)
