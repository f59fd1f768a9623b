"""Reads each part from Google, and writes its changes without losing concurrent ones."""

from typing import Any, Final, Protocol

from ops.audit.google_api import ErrorKind, GoogleError
from ops.audit.plan import BIGQUERY_SINK, DATASET, KMS, STORAGE_SINK, AuditPart, Change, DesiredState, Resource

_SINKS: Final = {AuditPart.BIGQUERY_SINK: BIGQUERY_SINK, AuditPart.STORAGE_SINK: STORAGE_SINK}
_VERSION: Final = 3
"""Of a policy: a lower one would lose the conditions of its bindings."""


class GoogleCaller(Protocol):
    def call(self, name: str, /, *, headers: dict[str, str] | None = None, **parameters: Any) -> Any:
        """The answer of a method; see `ops.audit.google_api.GoogleApi.call`."""


def read_part(api: GoogleCaller, part: AuditPart, desired: DesiredState) -> Resource | None:
    """Return the part's current state, or None if it does not exist.

    Raises:
        GoogleError: it cannot be read.
    """
    try:
        return _fetch_part(api, part, desired)
    except GoogleError as error:
        if error.kind is ErrorKind.MISSING and part not in {AuditPart.API, AuditPart.POLICY}:
            return None
        raise


def _fetch_part(api: GoogleCaller, part: AuditPart, desired: DesiredState) -> Resource:
    answer: Resource
    match part:
        case AuditPart.API:
            answer = api.call("serviceusage.services.get", name=_get_api_name(desired))
            return {"parent": answer["parent"], "state": answer["state"]}
        case AuditPart.POLICY:
            answer = api.call(
                "cloudresourcemanager.projects.getIamPolicy",
                resource=f"projects/{desired.project}",
                body={"options": {"requestedPolicyVersion": _VERSION}},
            )
        case AuditPart.DATASET | AuditPart.DATASET_ACCESS:
            answer = api.call("bigquery.datasets.get", accessPolicyVersion=_VERSION, **_get_dataset_parameters(desired))
        case AuditPart.BIGQUERY_SINK | AuditPart.STORAGE_SINK:
            answer = api.call("logging.projects.sinks.get", sinkName=_get_sink_name(part, desired))
        case AuditPart.BUCKET:
            answer = api.call("storage.buckets.get", bucket=desired.bucket)
        case AuditPart.BUCKET_ACCESS:
            answer = api.call(
                "storage.buckets.getIamPolicy", bucket=desired.bucket, optionsRequestedPolicyVersion=_VERSION
            )
    return answer


def write_change(api: GoogleCaller, change: Change, desired: DesiredState) -> Resource | None:
    """Write a change, unless the part has changed since it was read.

    Returns:
        The long-running operation, if it is not done yet: see `is_finished`.

    Raises:
        GoogleError: it was refused; a conflict if the part has changed since.
    """
    old, new = change.old or {}, change.new
    match change.part:
        case AuditPart.API:
            operation: Resource = api.call("serviceusage.services.enable", name=_get_api_name(desired), body={})
            return operation
        case AuditPart.POLICY:
            # Without a mask that names auditConfigs they would be ignored; with this one bindings are.
            body = {"policy": new | {"version": _VERSION}, "updateMask": "auditConfigs,etag"}
            api.call("cloudresourcemanager.projects.setIamPolicy", resource=f"projects/{desired.project}", body=body)
        case AuditPart.DATASET:
            api.call("bigquery.datasets.insert", projectId=desired.project, body=new)
        case AuditPart.DATASET_ACCESS:
            api.call(
                "bigquery.datasets.patch",
                headers={"if-match": old["etag"]},
                accessPolicyVersion=_VERSION,
                updateMode="UPDATE_ACL",
                body={"access": new["access"]},
                **_get_dataset_parameters(desired),
            )
        case AuditPart.BIGQUERY_SINK | AuditPart.STORAGE_SINK:
            _write_sink(api, change, desired)
        case AuditPart.BUCKET if not old:
            api.call("storage.buckets.insert", project=desired.project, body=new)
        case AuditPart.BUCKET:
            api.call(
                "storage.buckets.patch",
                bucket=desired.bucket,
                ifMetagenerationMatch=old["metageneration"],
                body={key: new[key] for key in ("iamConfiguration", "lifecycle") if old.get(key) != new[key]},
            )
        case AuditPart.BUCKET_ACCESS:
            api.call("storage.buckets.setIamPolicy", bucket=desired.bucket, body=new | {"version": _VERSION})
    return None


def is_finished(api: GoogleCaller, operation: Resource) -> bool:
    """Whether an operation has come to its end.

    Raises:
        GoogleError: it cannot be read, or has failed.
    """
    now = operation if operation.get("done") else api.call("serviceusage.operations.get", name=operation["name"])
    if "error" in now:
        raise GoogleError(
            ErrorKind.FAILED, f"{KMS} could not be enabled: {now['error'].get('message', 'without a reason')}"
        )
    return bool(now.get("done"))


def _write_sink(api: GoogleCaller, change: Change, desired: DesiredState) -> None:
    """Sinks have no etag: the mask names our fields, so the others, such as exclusions, stay."""
    ours = ["destination", "filter", "disabled"] + (
        ["bigqueryOptions"] if change.part is AuditPart.BIGQUERY_SINK else []
    )
    body = {key: change.new[key] for key in ["name", *ours] if key in change.new}
    if "bigqueryOptions" in body:
        body["bigqueryOptions"] = {"usePartitionedTables": True}  # the other one is Google's to write
    if change.old is None:
        parent = f"projects/{desired.project}"
        api.call("logging.projects.sinks.create", parent=parent, uniqueWriterIdentity=True, body=body)
    else:
        api.call(
            "logging.projects.sinks.update",
            sinkName=_get_sink_name(change.part, desired),
            uniqueWriterIdentity=True,
            updateMask=",".join(ours),
            body=body,
        )


def _get_api_name(desired: DesiredState) -> str:
    return f"projects/{desired.project}/services/{KMS}"


def _get_sink_name(part: AuditPart, desired: DesiredState) -> str:
    return f"projects/{desired.project}/sinks/{_SINKS[part]}"


def _get_dataset_parameters(desired: DesiredState) -> dict[str, Any]:
    return {"projectId": desired.project, "datasetId": DATASET}
