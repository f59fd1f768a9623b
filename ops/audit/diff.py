"""Changes → lines for a person: `-` removed, `+` added. Pure."""

from collections.abc import Callable, Iterator
from typing import Final

from ops.audit.model import BIGQUERY_SINK, DATASET, KMS, STORAGE_SINK, AuditPart, Change, DesiredState, Resource


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
    """Yield the changed lines of the part."""
    facts = _FORMATTERS[change.part]
    old, new = list(facts(change.old)) if change.old else [], list(facts(change.new))
    return [f"- {fact}" for fact in old if fact not in new] + [f"+ {fact}" for fact in new if fact not in old]


def _format_api(api: Resource) -> Iterator[str]:
    yield str(api["state"]).lower()


def _format_policy(policy: Resource) -> Iterator[str]:
    for config in policy.get("auditConfigs", []):
        if config["service"] == KMS:
            for log in config.get("auditLogConfigs", []):
                exempted = sorted(log.get("exemptedMembers", []))
                yield log["logType"] + (f" of all but {', '.join(exempted)}" if exempted else "")


def _format_dataset(dataset: Resource) -> Iterator[str]:
    yield f"in {dataset['location']}"


def _format_sink(sink: Resource) -> Iterator[str]:
    yield f"to {sink['destination']}"
    yield f"of {sink.get('filter') or 'everything'}"
    yield f"as {sink.get('writerIdentity')}"
    yield "off" if sink.get("disabled") else "on"
    if sink["destination"].startswith("bigquery."):
        partitioned = sink.get("bigqueryOptions", {}).get("usePartitionedTables")
        yield "in partitioned tables" if partitioned else "in a table for each day"


def _format_dataset_access(dataset: Resource) -> Iterator[str]:
    for entry in dataset.get("access", []):
        yield " ".join(str(value) for value in entry.values())


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


_FORMATTERS: Final[dict[AuditPart, Callable[[Resource], Iterator[str]]]] = {
    AuditPart.API: _format_api,
    AuditPart.POLICY: _format_policy,
    AuditPart.DATASET: _format_dataset,
    AuditPart.BIGQUERY_SINK: _format_sink,
    AuditPart.DATASET_ACCESS: _format_dataset_access,
    AuditPart.BUCKET: _format_bucket,
    AuditPart.STORAGE_SINK: _format_sink,
    AuditPart.BUCKET_ACCESS: _format_bucket_access,
}
