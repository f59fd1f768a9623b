"""States of a project before setup: empty, half configured, and configured by others."""

from typing import Any

from hypothesis import strategies as st

from tests.ops.audit.logs import LoggingWorld
from tests.ops.audit.simulated_google import KMS, SHARED_WRITERS, Document

PROJECT, BUCKET = "acme-prod", "acme-prod-kms-audit"
_WRITER = "service-1234@gcp-sa-logging.iam.gserviceaccount.com"
_CONDITION = {"expression": "request.time < timestamp('2030-01-01T00:00:00Z')"}
FOREIGN_BINDING = {"role": "roles/viewer", "members": ["user:a@x"], "condition": _CONDITION}

_members = st.lists(st.sampled_from(["user:a@x", "user:b@x", "serviceAccount:exporter@x"]), unique=True, max_size=2)
_logs = st.lists(
    st.builds(
        lambda kind, members: {"logType": kind} | ({"exemptedMembers": members} if members else {}),
        st.sampled_from(["ADMIN_READ", "DATA_READ", "DATA_WRITE"]),
        _members,
    ),
    unique_by=lambda log: str(log["logType"]),
    max_size=3,
)
_configs = st.lists(
    st.builds(
        lambda service, logs: {"service": service, "auditLogConfigs": logs},
        st.sampled_from([KMS, "storage.googleapis.com", "allServices"]),
        _logs,
    ),
    unique_by=lambda config: str(config["service"]),
)
_access = st.lists(
    st.sampled_from(
        [
            {"role": "OWNER", "specialGroup": "projectOwners"},
            {"role": "READER", "userByEmail": "a@x", "condition": _CONDITION},
            {"role": "WRITER", "userByEmail": _WRITER},
        ]
    ),
    unique_by=str,
)


def _sink(destination: str, **options: Any) -> st.SearchStrategy[Document]:
    return st.fixed_dictionaries(
        {
            "destination": st.just(destination),
            "writerIdentity": st.sampled_from([f"serviceAccount:{_WRITER}", *SHARED_WRITERS]),
            "exclusions": st.just([{"name": "mine", "filter": "severity=DEBUG"}]),
        },
        optional={"filter": st.just("severity>=ERROR"), "disabled": st.booleans()} | options,
    )


_rules = st.lists(
    st.sampled_from(
        [
            {"action": {"type": "Delete"}, "condition": {"age": 30}},
            {"action": {"type": "Delete"}, "condition": {"age": 730}},
            {"action": {"type": "SetStorageClass", "storageClass": "ARCHIVE"}, "condition": {"age": 90}},
        ]
    ),
    unique_by=str,
)
_bindings = st.lists(
    st.sampled_from(
        [
            {"role": "roles/storage.objectCreator", "members": ["user:a@x"]},
            {"role": "roles/storage.objectCreator", "members": [f"serviceAccount:{_WRITER}"], "condition": _CONDITION},
            {"role": "roles/storage.admin", "members": ["user:b@x"]},
        ]
    ),
    unique_by=str,
)


@st.composite
def half_done(draw: st.DrawFn) -> LoggingWorld:
    """A world that somebody, or an earlier run, has left like this."""
    world = LoggingWorld(slowness=draw(st.integers(0, 2)))
    if draw(st.booleans()):
        world.enabled.add(f"projects/{PROJECT}/services/{KMS}")
    world.project(PROJECT)["auditConfigs"] = draw(_configs)
    world.project(PROJECT)["bindings"].append(FOREIGN_BINDING)
    if draw(st.booleans()):
        reference = {"projectId": PROJECT, "datasetId": "kms_audit"}
        dataset = {"datasetReference": reference, "location": "europe-west3", "access": draw(_access), "etag": "a"}
        world.datasets[f"{PROJECT}.kms_audit"] = dataset
    if draw(st.booleans()):
        options = {"bigqueryOptions": st.sampled_from([{}, {"usePartitionedTables": True}])}
        sink = draw(_sink(f"bigquery.googleapis.com/projects/{PROJECT}/datasets/kms_audit", **options))
        world.sinks[f"projects/{PROJECT}/sinks/kms-audit-bigquery"] = sink | {"name": "kms-audit-bigquery"}
    if draw(st.booleans()):
        sink = draw(_sink(draw(st.sampled_from([f"storage.googleapis.com/{BUCKET}", "storage.googleapis.com/other"]))))
        world.sinks[f"projects/{PROJECT}/sinks/kms-audit-storage"] = sink | {"name": "kms-audit-storage"}
    if draw(st.booleans()):
        uniform = {"enabled": draw(st.booleans())}
        world.buckets[BUCKET] = {
            "name": BUCKET,
            "location": "EUROPE-WEST3",
            "projectNumber": "1234",
            "metageneration": "4",
            "iamConfiguration": {"uniformBucketLevelAccess": uniform, "bucketPolicyOnly": uniform},
            "lifecycle": {"rule": draw(_rules)},
        }
        world.bucket_policies[BUCKET] = {"version": 3, "etag": "CAE=", "bindings": draw(_bindings)}
    return world
