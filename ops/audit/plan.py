"""State and wish → the state that is wished, and the changes that lead there. Pure.

Nothing that the wish does not speak of is changed: other services, bindings and their conditions, labels, other rules.
"""

from collections.abc import Callable, Iterator
from typing import Final

from ops.audit.model import (
    BIGQUERY_SINK,
    DATASET,
    KMS,
    RETENTION_DAYS,
    STORAGE_SINK,
    Change,
    Document,
    Part,
    State,
    Wish,
)

UNKNOWN_WRITER: Final = "serviceAccount:(known when the sink is there)"
SINK_FILTER: Final = f'logName:"cloudaudit.googleapis.com" AND protoPayload.serviceName="{KMS}"'
"""Data Access and Admin Activity: who used a key, and who changed one."""
_SHARED_WRITER: Final = "serviceAccount:cloud-logs@system.gserviceaccount.com"
"""Of any project's sink that was made without `uniqueWriterIdentity`: what it is granted, all of them are granted.
https://registry.terraform.io/providers/hashicorp/google/latest/docs/resources/logging_project_sink
"""
_OBJECT_CREATOR: Final = "roles/storage.objectCreator"
_WRITER_ROLES: Final = ("WRITER", "roles/bigquery.dataEditor")
"""BigQuery answers with the first where the second was written."""


class ImpossibleError(Exception):
    """The wish cannot come true by changing what is there; the message says what to do."""


def changes(state: State, wish: Wish) -> list[Change]:
    """What has to change, in the order in which it can; empty where all is as wished.

    Raises:
        ImpossibleError: something that cannot be changed is in the way.
    """
    found = (change_of(part, state, wish) for part in wish.parts)
    return [change for change in found if change]


def change_of(part: Part, state: State, wish: Wish) -> Change | None:
    """What has to change of one part; of the state, it and what comes before it are looked at.

    Raises:
        ImpossibleError: it cannot be changed.
    """
    _refuse(part, state, wish)
    new = _WISHED[part](state[part] or {}, state, wish)
    return None if new == state[part] else Change(part, state[part], new)


def notes(state: State) -> Iterator[str]:
    """What a person should know, and what this tool leaves alone."""
    for config in (state[Part.POLICY] or {}).get("auditConfigs", []):
        if config["service"] == "allServices":
            logs = config.get("auditLogConfigs", [])
            for member in sorted({member for log in logs for member in log.get("exemptedMembers", [])}):
                yield f"{member} is exempted for all services, so for Cloud KMS too; look whether that is meant"
    for part in (Part.BIGQUERY_SINK, Part.STORAGE_SINK):
        for exclusion in (state.get(part) or {}).get("exclusions", []):
            if not exclusion.get("disabled"):
                yield f"the {part} leaves out {exclusion['filter']}; look whether that is meant"
    for rule in (state.get(Part.BUCKET) or {}).get("lifecycle", {}).get("rule", []):
        if rule["action"]["type"] == "Delete" and set(rule["condition"]) != {"age"}:
            yield f"another rule of the bucket deletes files, too: {rule['condition']}; look whether that is meant"


def _refuse(part: Part, state: State, wish: Wish) -> None:
    there = state[part]
    if part not in {Part.DATASET, Part.BUCKET} or not there:
        return
    named = f"the dataset {DATASET}" if part is Part.DATASET else f"the bucket {wish.bucket}"
    if there["location"].lower() != wish.location.lower():
        raise ImpossibleError(
            f"{named} is in {there['location']}, and Google moves none; say --location {there['location']}, "
            "or copy what it holds elsewhere and remove it"
        )
    if part is Part.BUCKET and f"projects/{there['projectNumber']}" != (state[Part.API] or {}).get("parent"):
        raise ImpossibleError(
            f"{named} belongs to another project, number {there['projectNumber']}; "
            "the whole world shares the names of buckets: choose another one"
        )


def _api(old: Document, _state: State, _wish: Wish) -> Document:
    return old | {"state": "ENABLED"}


def _policy(old: Document, _state: State, wish: Wish) -> Document:
    configs = old.get("auditConfigs", [])
    ours: Document = next((config for config in configs if config["service"] == KMS), {"service": KMS})
    wished = {"ADMIN_READ": set(wish.exempted), "DATA_READ": set(wish.exempted), "DATA_WRITE": set()}
    there = {log["logType"]: set(log.get("exemptedMembers", [])) for log in ours.get("auditLogConfigs", [])}
    if there == wished:
        return old
    logs = [
        {"logType": kind} | ({"exemptedMembers": sorted(members)} if members else {})
        for kind, members in wished.items()
    ]
    new = ours | {"auditLogConfigs": logs}
    kept = [new if config is ours else config for config in configs]
    return old | {"auditConfigs": kept if ours in configs else [*kept, new]}


def _dataset(old: Document, _state: State, wish: Wish) -> Document:
    reference = {"projectId": wish.project, "datasetId": DATASET}
    return old or {"datasetReference": reference, "location": wish.location}


def _bigquery_sink(old: Document, _state: State, wish: Wish) -> Document:
    options = old.get("bigqueryOptions", {}) | {"usePartitionedTables": True}
    destination = f"bigquery.googleapis.com/projects/{wish.project}/datasets/{DATASET}"
    return _sink(old, BIGQUERY_SINK, destination) | {"bigqueryOptions": options}


def _storage_sink(old: Document, _state: State, wish: Wish) -> Document:
    return _sink(old, STORAGE_SINK, f"storage.googleapis.com/{wish.bucket}")


def _sink(old: Document, name: str, destination: str) -> Document:
    wished: Document = {"name": name, "destination": destination, "filter": SINK_FILTER}
    if old.get("disabled"):
        wished["disabled"] = False
    if not _of_its_own(old):
        wished["writerIdentity"] = UNKNOWN_WRITER
    return old | wished


def _of_its_own(sink: Document) -> bool:
    """Whether its writer is of this project; old sinks write as a group or an account that all projects share."""
    writer = str(sink.get("writerIdentity", ""))
    return writer.startswith("serviceAccount:") and writer != _SHARED_WRITER


def _writer(sink: Document | None) -> str:
    return sink["writerIdentity"] if sink and _of_its_own(sink) else UNKNOWN_WRITER


def _dataset_access(old: Document, state: State, _wish: Wish) -> Document:
    email = _writer(state[Part.BIGQUERY_SINK]).removeprefix("serviceAccount:")
    access = old.get("access", [])
    if any(entry in access for entry in ({"role": role, "userByEmail": email} for role in _WRITER_ROLES)):
        return old
    return old | {"access": [*access, {"role": "WRITER", "userByEmail": email}]}


def _bucket(old: Document, _state: State, wish: Wish) -> Document:
    new = old or {"name": wish.bucket, "location": wish.location}
    access = {"uniformBucketLevelAccess": {"enabled": True}, "publicAccessPrevention": "enforced"}
    there = old.get("iamConfiguration", {})
    uniform = there.get("uniformBucketLevelAccess", {}).get("enabled")
    if not uniform or there.get("publicAccessPrevention") != "enforced":
        kept = {
            key: value for key, value in there.items() if key != "bucketPolicyOnly"
        }  # an old name of the same switch
        new = new | {"iamConfiguration": kept | access}
    rules = old.get("lifecycle", {}).get("rule", [])
    ours = {"action": {"type": "Delete"}, "condition": {"age": RETENTION_DAYS}}
    ages = [rule for rule in rules if rule["action"] == ours["action"] and set(rule["condition"]) == {"age"}]
    if ages != [ours]:
        new = new | {"lifecycle": {"rule": [*(rule for rule in rules if rule not in ages), ours]}}
    return new


def _bucket_access(old: Document, state: State, _wish: Wish) -> Document:
    writer = _writer(state[Part.STORAGE_SINK])
    bindings = old.get("bindings", [])
    granted = [each for each in bindings if each["role"] == _OBJECT_CREATOR and "condition" not in each]
    if any(writer in binding["members"] for binding in granted):
        return old
    members = [*(granted[0]["members"] if granted else []), writer]
    others = [binding for binding in bindings if binding not in granted[:1]]
    return old | {"bindings": [*others, {"role": _OBJECT_CREATOR, "members": members}]}


_WISHED: Final[dict[Part, Callable[[Document, State, Wish], Document]]] = {
    Part.API: _api,
    Part.POLICY: _policy,
    Part.DATASET: _dataset,
    Part.BIGQUERY_SINK: _bigquery_sink,
    Part.DATASET_ACCESS: _dataset_access,
    Part.BUCKET: _bucket,
    Part.STORAGE_SINK: _storage_sink,
    Part.BUCKET_ACCESS: _bucket_access,
}
