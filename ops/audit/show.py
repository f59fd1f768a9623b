"""Changes → lines that a person reads: what is taken away behind `-`, what is added behind `+`. Pure."""

from collections.abc import Callable, Iterator
from typing import Final

from ops.audit.model import BIGQUERY_SINK, DATASET, KMS, STORAGE_SINK, Change, Document, Part, Wish


def title(part: Part, wish: Wish) -> str:
    """The part by its name in this project."""
    return {
        Part.API: f"API {KMS}",
        Part.POLICY: f"Data Access logs of {KMS}",
        Part.DATASET: f"dataset {wish.project}.{DATASET}",
        Part.BIGQUERY_SINK: f"sink {BIGQUERY_SINK}",
        Part.DATASET_ACCESS: f"access to the dataset {DATASET}",
        Part.BUCKET: f"bucket {wish.bucket}",
        Part.STORAGE_SINK: f"sink {STORAGE_SINK}",
        Part.BUCKET_ACCESS: f"access to the bucket {wish.bucket}",
    }[part]


def diff(change: Change) -> list[str]:
    """What of the part changes; what stays is not told."""
    facts = _FACTS[change.part]
    old, new = list(facts(change.old)) if change.old else [], list(facts(change.new))
    return [f"- {fact}" for fact in old if fact not in new] + [f"+ {fact}" for fact in new if fact not in old]


def _api(api: Document) -> Iterator[str]:
    yield str(api["state"]).lower()


def _policy(policy: Document) -> Iterator[str]:
    for config in policy.get("auditConfigs", []):
        if config["service"] == KMS:
            for log in config.get("auditLogConfigs", []):
                exempted = sorted(log.get("exemptedMembers", []))
                yield log["logType"] + (f" of all but {', '.join(exempted)}" if exempted else "")


def _dataset(dataset: Document) -> Iterator[str]:
    yield f"in {dataset['location']}"


def _sink(sink: Document) -> Iterator[str]:
    yield f"to {sink['destination']}"
    yield f"of {sink.get('filter') or 'everything'}"
    yield f"as {sink.get('writerIdentity')}"
    yield "off" if sink.get("disabled") else "on"
    if sink["destination"].startswith("bigquery."):
        partitioned = sink.get("bigqueryOptions", {}).get("usePartitionedTables")
        yield "in partitioned tables" if partitioned else "in a table for each day"


def _dataset_access(dataset: Document) -> Iterator[str]:
    for entry in dataset.get("access", []):
        yield " ".join(str(value) for value in entry.values())


def _bucket(bucket: Document) -> Iterator[str]:
    access = bucket.get("iamConfiguration", {})
    yield f"in {bucket['location']}"
    yield "uniform access" if access.get("uniformBucketLevelAccess", {}).get("enabled") else "access by object"
    yield "never public" if access.get("publicAccessPrevention") == "enforced" else "may be made public"
    for rule in bucket.get("lifecycle", {}).get("rule", []):
        conditions = ", ".join(f"{name} {value}" for name, value in rule["condition"].items())
        yield f"{rule['action']['type']} at {conditions}" + (" days" if set(rule["condition"]) == {"age"} else "")


def _bucket_access(policy: Document) -> Iterator[str]:
    for binding in policy.get("bindings", []):
        for member in binding["members"]:
            yield f"{binding['role']} {member}" + (" with a condition" if "condition" in binding else "")


_FACTS: Final[dict[Part, Callable[[Document], Iterator[str]]]] = {
    Part.API: _api,
    Part.POLICY: _policy,
    Part.DATASET: _dataset,
    Part.BIGQUERY_SINK: _sink,
    Part.DATASET_ACCESS: _dataset_access,
    Part.BUCKET: _bucket,
    Part.STORAGE_SINK: _sink,
    Part.BUCKET_ACCESS: _bucket_access,
}
