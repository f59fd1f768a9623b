"""Current and desired state → the changes. Pure.

Nothing outside the desired state is changed: other services, bindings and their conditions, labels, other rules.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from shared.check import HintedError

KMS: Final = "cloudkms.googleapis.com"
DATASET: Final = "kms_audit"
BIGQUERY_SINK: Final = "kms-audit-bigquery"
STORAGE_SINK: Final = "kms-audit-storage"
RETENTION_DAYS: Final = 730
COLD_STORAGE_CLASS: Final = "COLDLINE"
COLD_AFTER_DAYS: Final = 90
"""Auditors read the dataset; the bucket's old files are kept for the law, and cost a fifth in this class."""

Resource = dict[str, Any]
"""A resource as Google's API writes it in JSON."""


@dataclass(frozen=True, slots=True)
class DesiredState:
    """Audit logging as it shall be in one project."""

    project: str
    exempted: frozenset[str] = frozenset()
    """Members whose reads are not logged, such as `serviceAccount:exporter@…`; their changes are."""
    bigquery: bool = False
    """Whether the logs also go to the dataset `kms_audit`."""
    bucket: str | None = None
    """The bucket that they also go to."""
    location: str = ""
    """The location of dataset and bucket, such as `europe-west3` or `EU`; unused without either."""

    @property
    def list_parts(self) -> tuple["AuditPart", ...]:
        """The parts in the order of their set-up: each needs only those before it."""
        return (
            AuditPart.API,
            AuditPart.POLICY,
            *((AuditPart.DATASET, AuditPart.BIGQUERY_SINK, AuditPart.DATASET_ACCESS) if self.bigquery else ()),
            *((AuditPart.BUCKET, AuditPart.STORAGE_SINK, AuditPart.BUCKET_ACCESS) if self.bucket else ()),
        )


class AuditPart(StrEnum):
    """A part that is read and written as a whole."""

    API = "API"
    POLICY = "Data Access logs"
    DATASET = "BigQuery dataset"
    BIGQUERY_SINK = "sink to BigQuery"
    DATASET_ACCESS = "who may write to the dataset"
    BUCKET = "bucket"
    STORAGE_SINK = "sink to Cloud Storage"
    BUCKET_ACCESS = "who may write to the bucket"


CurrentState = Mapping[AuditPart, Resource | None]
"""The current state of each part of the desired state; None if it does not exist."""


@dataclass(frozen=True, slots=True)
class Change:
    """One part that is not as configured."""

    part: AuditPart
    old: Resource | None
    new: Resource


def format_title(part: AuditPart, desired: DesiredState) -> str:
    """The part by its name in this project."""
    return {
        AuditPart.API: f"API {KMS}",
        AuditPart.POLICY: f"Data Access logs of {KMS}",
        AuditPart.DATASET: f"dataset {desired.project}.{DATASET}",
        AuditPart.BIGQUERY_SINK: f"sink {BIGQUERY_SINK}",
        AuditPart.DATASET_ACCESS: f"access to the dataset {DATASET}",
        AuditPart.BUCKET: f"bucket {desired.bucket}",
        AuditPart.STORAGE_SINK: f"sink {STORAGE_SINK}",
        AuditPart.BUCKET_ACCESS: f"access to the bucket {desired.bucket}",
    }[part]


def diff_change(change: Change) -> list[str]:
    """Return the changed lines of the part."""
    facts = _FORMATTERS[change.part]
    old, new = list(facts(change.old)) if change.old else [], list(facts(change.new))
    return [f"- {fact}" for fact in old if fact not in new] + [f"+ {fact}" for fact in new if fact not in old]


def _format_policy(policy: Resource) -> Iterator[str]:
    for config in policy.get("auditConfigs", []):
        if config["service"] == KMS:
            for log in config.get("auditLogConfigs", []):
                exempted = sorted(log.get("exemptedMembers", []))
                yield log["logType"] + (f" of all but {', '.join(exempted)}" if exempted else "")


def _format_sink(sink: Resource) -> Iterator[str]:
    yield f"to {sink['destination']}"
    yield f"of {sink.get('filter') or 'everything'}"
    yield f"as {sink.get('writerIdentity')}"
    yield "off" if sink.get("disabled") else "on"
    if sink["destination"].startswith("bigquery."):
        partitioned = sink.get("bigqueryOptions", {}).get("usePartitionedTables")
        yield "in partitioned tables" if partitioned else "in a table for each day"


def _format_bucket(bucket: Resource) -> Iterator[str]:
    access = bucket.get("iamConfiguration", {})
    yield f"in {bucket['location']}"
    yield "uniform access" if access.get("uniformBucketLevelAccess", {}).get("enabled") else "access by object"
    yield "never public" if access.get("publicAccessPrevention") == "enforced" else "may be made public"
    for rule in bucket.get("lifecycle", {}).get("rule", []):
        conditions = ", ".join(f"{name} {value}" for name, value in rule["condition"].items())
        yield f"{' '.join(rule['action'].values())} at {conditions}" + (
            " days" if set(rule["condition"]) == {"age"} else ""
        )


def _format_bucket_access(policy: Resource) -> Iterator[str]:
    for binding in policy.get("bindings", []):
        for member in binding["members"]:
            yield f"{binding['role']} {member}" + (" with a condition" if "condition" in binding else "")


_FORMATTERS: Final[dict[AuditPart, Callable[[Resource], Iterable[str]]]] = {
    AuditPart.API: lambda api: [str(api["state"]).lower()],
    AuditPart.POLICY: _format_policy,
    AuditPart.DATASET: lambda dataset: [f"in {dataset['location']}"],
    AuditPart.BIGQUERY_SINK: _format_sink,
    AuditPart.DATASET_ACCESS: lambda dataset: [
        " ".join(map(str, entry.values())) for entry in dataset.get("access", [])
    ],
    AuditPart.BUCKET: _format_bucket,
    AuditPart.STORAGE_SINK: _format_sink,
    AuditPart.BUCKET_ACCESS: _format_bucket_access,
}


WRITER_AFTER_CREATION: Final = "serviceAccount:(known when the sink is there)"
SINK_FILTER: Final = f'logName:"cloudaudit.googleapis.com" AND protoPayload.serviceName="{KMS}"'
"""Data Access and Admin Activity: who used a key, and who changed one."""
_SHARED_WRITER_IDENTITY: Final = "serviceAccount:cloud-logs@system.gserviceaccount.com"
"""The writer of every project's sinks without `uniqueWriterIdentity`: a grant to one is a grant to all.
https://registry.terraform.io/providers/hashicorp/google/latest/docs/resources/logging_project_sink
"""
_OBJECT_CREATOR: Final = "roles/storage.objectCreator"
_WRITER_ROLES: Final = ("WRITER", "roles/bigquery.dataEditor")
"""BigQuery returns the first for the second."""


class UnchangeableError(HintedError):
    """The desired state cannot be reached by a change."""


def plan_changes(state: CurrentState, desired: DesiredState) -> list[Change]:
    """Return the changes in their order; empty if the state is the desired one.

    Raises:
        UnchangeableError: something that cannot be changed is in the way.
    """
    found = (plan_change(part, state, desired) for part in desired.list_parts)
    return [change for change in found if change]


def plan_change(part: AuditPart, state: CurrentState, desired: DesiredState) -> Change | None:
    """Return the change of one part; it may depend on the parts before it.

    Raises:
        UnchangeableError: it cannot be changed.
    """
    _refuse_unchangeable(part, state, desired)
    new = _DESIRED_BY_PART[part](state[part] or {}, state, desired)
    return None if new == state[part] else Change(part, state[part], new)


def list_warnings(state: CurrentState) -> Iterator[str]:
    """Return what a person should know, and what this tool does not change."""
    for config in (state[AuditPart.POLICY] or {}).get("auditConfigs", []):
        if config["service"] == "allServices":
            logs = config.get("auditLogConfigs", [])
            for member in sorted({member for log in logs for member in log.get("exemptedMembers", [])}):
                yield f"{member} is exempted for all services, so for Cloud KMS too; check whether that is intended"
    for part in (AuditPart.BIGQUERY_SINK, AuditPart.STORAGE_SINK):
        for exclusion in (state.get(part) or {}).get("exclusions", []):
            if not exclusion.get("disabled"):
                yield f"the {part} leaves out {exclusion['filter']}; check whether that is intended"
    # For partitioned tables, as the sink's are, the second has precedence, and applies to tables that are new
    # (https://cloud.google.com/bigquery/docs/reference/rest/v2/datasets).
    dataset = state.get(AuditPart.DATASET) or {}
    expiration = dataset.get("defaultPartitionExpirationMs") or dataset.get("defaultTableExpirationMs")
    if expiration and (days := int(expiration) / 86_400_000) < RETENTION_DAYS:
        yield (
            f"the dataset {DATASET} deletes entries after {days:g} days instead of {RETENTION_DAYS}; run "
            f"bq update --default_partition_expiration {RETENTION_DAYS * 86_400} {DATASET}, and change its tables too"
        )
    for rule in (state.get(AuditPart.BUCKET) or {}).get("lifecycle", {}).get("rule", []):
        if rule["action"]["type"] == "Delete" and set(rule["condition"]) != {"age"}:
            yield f"another rule of the bucket deletes files, too: {rule['condition']}; check whether that is intended"


def _refuse_unchangeable(part: AuditPart, state: CurrentState, desired: DesiredState) -> None:
    existing = state[part]
    if part not in {AuditPart.DATASET, AuditPart.BUCKET} or not existing:
        return
    named = f"the dataset {DATASET}" if part is AuditPart.DATASET else f"the bucket {desired.bucket}"
    if existing["location"].lower() != desired.location.lower():
        raise UnchangeableError(
            f"{named} is in {existing['location']}, and Google moves none",
            f"say --location {existing['location']}, or copy what it holds elsewhere and remove it",
        )
    if part is AuditPart.BUCKET and f"projects/{existing['projectNumber']}" != (state[AuditPart.API] or {}).get(
        "parent"
    ):
        raise UnchangeableError(
            f"{named} belongs to another project, number {existing['projectNumber']}",
            "the whole world shares the names of buckets: choose another one",
        )


def _add_audit_config(old: Resource, _state: CurrentState, desired: DesiredState) -> Resource:
    configs = old.get("auditConfigs", [])
    ours: Resource = next((config for config in configs if config["service"] == KMS), {"service": KMS})
    desired_value = {"ADMIN_READ": set(desired.exempted), "DATA_READ": set(desired.exempted), "DATA_WRITE": set()}
    there = {log["logType"]: set(log.get("exemptedMembers", [])) for log in ours.get("auditLogConfigs", [])}
    if there == desired_value:
        return old
    logs = [
        {"logType": kind} | ({"exemptedMembers": sorted(members)} if members else {})
        for kind, members in desired_value.items()
    ]
    new = ours | {"auditLogConfigs": logs}
    others = [new if config is ours else config for config in configs]
    return old | {"auditConfigs": others if ours in configs else [*others, new]}


def _build_bigquery_sink(old: Resource, _state: CurrentState, desired: DesiredState) -> Resource:
    options = old.get("bigqueryOptions", {}) | {"usePartitionedTables": True}
    destination = f"bigquery.googleapis.com/projects/{desired.project}/datasets/{DATASET}"
    return _build_sink(old, BIGQUERY_SINK, destination) | {"bigqueryOptions": options}


def _build_sink(old: Resource, name: str, destination: str) -> Resource:
    desired_value: Resource = {"name": name, "destination": destination, "filter": SINK_FILTER}
    if old.get("disabled"):
        desired_value["disabled"] = False
    if not _has_own_writer(old):
        desired_value["writerIdentity"] = WRITER_AFTER_CREATION
    return old | desired_value


def _has_own_writer(sink: Resource) -> bool:
    """Whether its writer is of this project; old sinks write as a group or an account that all projects share."""
    writer = str(sink.get("writerIdentity", ""))
    return writer.startswith("serviceAccount:") and writer != _SHARED_WRITER_IDENTITY


def _get_writer(sink: Resource | None) -> str:
    return sink["writerIdentity"] if sink and _has_own_writer(sink) else WRITER_AFTER_CREATION


def _grant_dataset_access(old: Resource, state: CurrentState, _desired: DesiredState) -> Resource:
    email = _get_writer(state[AuditPart.BIGQUERY_SINK]).removeprefix("serviceAccount:")
    access = old.get("access", [])
    if any(entry in access for entry in ({"role": role, "userByEmail": email} for role in _WRITER_ROLES)):
        return old
    return old | {"access": [*access, {"role": "WRITER", "userByEmail": email}]}


def _build_bucket(old: Resource, _state: CurrentState, desired: DesiredState) -> Resource:
    new = old or {"name": desired.bucket, "location": desired.location, "storageClass": "STANDARD"}
    access = {"uniformBucketLevelAccess": {"enabled": True}, "publicAccessPrevention": "enforced"}
    existing = old.get("iamConfiguration", {})
    uniform = existing.get("uniformBucketLevelAccess", {}).get("enabled")
    if not uniform or existing.get("publicAccessPrevention") != "enforced":
        others = {
            name: value for name, value in existing.items() if name != "bucketPolicyOnly"
        }  # the switch's old name
        new = new | {"iamConfiguration": others | access}
    rules = old.get("lifecycle", {}).get("rule", [])
    delete_rule = {"action": {"type": "Delete"}, "condition": {"age": RETENTION_DAYS}}
    ages = [rule for rule in rules if rule["action"] == delete_rule["action"] and set(rule["condition"]) == {"age"}]
    cold_rule = {
        "action": {"type": "SetStorageClass", "storageClass": COLD_STORAGE_CLASS},
        "condition": {"age": COLD_AFTER_DAYS},
    }
    if ages != [delete_rule] or cold_rule not in rules:
        other_rules = [rule for rule in rules if rule not in [*ages, cold_rule]]
        new = new | {"lifecycle": {"rule": [*other_rules, cold_rule, delete_rule]}}
    return new


def _grant_bucket_access(old: Resource, state: CurrentState, _desired: DesiredState) -> Resource:
    writer = _get_writer(state[AuditPart.STORAGE_SINK])
    bindings = old.get("bindings", [])
    granted = [each for each in bindings if each["role"] == _OBJECT_CREATOR and "condition" not in each]
    if any(writer in binding["members"] for binding in granted):
        return old
    members = [*(granted[0]["members"] if granted else []), writer]
    others = [binding for binding in bindings if binding not in granted[:1]]
    return old | {"bindings": [*others, {"role": _OBJECT_CREATOR, "members": members}]}


_DESIRED_BY_PART: Final[dict[AuditPart, Callable[[Resource, CurrentState, DesiredState], Resource]]] = {
    AuditPart.API: lambda old, _state, _desired: old | {"state": "ENABLED"},
    AuditPart.POLICY: _add_audit_config,
    AuditPart.DATASET: lambda old, _state, desired: (
        old
        or {
            "datasetReference": {"projectId": desired.project, "datasetId": DATASET},
            "location": desired.location,
        }
    ),
    AuditPart.BIGQUERY_SINK: _build_bigquery_sink,
    AuditPart.DATASET_ACCESS: _grant_dataset_access,
    AuditPart.BUCKET: _build_bucket,
    AuditPart.STORAGE_SINK: lambda old, _state, desired: _build_sink(
        old, STORAGE_SINK, f"storage.googleapis.com/{desired.bucket}"
    ),
    AuditPart.BUCKET_ACCESS: _grant_bucket_access,
}
