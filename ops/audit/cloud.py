"""Each part as it is read from Google, and as a change of it is written, so that a concurrent change is not lost."""

from typing import Any, Final, Protocol

from ops.audit.model import BIGQUERY_SINK, DATASET, KMS, STORAGE_SINK, Change, Document, Part, Wish
from ops.audit.refusal import GoogleError, Kind

_SINKS: Final = {Part.BIGQUERY_SINK: BIGQUERY_SINK, Part.STORAGE_SINK: STORAGE_SINK}
_VERSION: Final = 3
"""Of a policy: a lower one would lose the conditions of its bindings."""


class Caller(Protocol):
    """Calls Google's methods."""

    def call(self, name: str, /, *, headers: dict[str, str] | None = None, **parameters: Any) -> Any:
        """The answer of a method; see `ops.audit.client.Google.call`."""


def read(google: Caller, part: Part, wish: Wish) -> Document | None:
    """What is there; None where nothing is.

    Raises:
        GoogleError: it cannot be read.
    """
    try:
        return _read(google, part, wish)
    except GoogleError as error:
        if error.kind is Kind.MISSING and part not in {Part.API, Part.POLICY}:
            return None
        raise


def _read(google: Caller, part: Part, wish: Wish) -> Document:
    answer: Document
    match part:
        case Part.API:
            answer = google.call("serviceusage.services.get", name=_api(wish))
            return {"parent": answer["parent"], "state": answer["state"]}
        case Part.POLICY:
            answer = google.call(
                "cloudresourcemanager.projects.getIamPolicy",
                resource=f"projects/{wish.project}",
                body={"options": {"requestedPolicyVersion": _VERSION}},
            )
        case Part.DATASET | Part.DATASET_ACCESS:
            answer = google.call("bigquery.datasets.get", accessPolicyVersion=_VERSION, **_dataset(wish))
        case Part.BIGQUERY_SINK | Part.STORAGE_SINK:
            answer = google.call("logging.projects.sinks.get", sinkName=_sink(part, wish))
        case Part.BUCKET:
            answer = google.call("storage.buckets.get", bucket=wish.bucket)
        case Part.BUCKET_ACCESS:
            answer = google.call(
                "storage.buckets.getIamPolicy", bucket=wish.bucket, optionsRequestedPolicyVersion=_VERSION
            )
    return answer


def write(google: Caller, change: Change, wish: Wish) -> Document | None:
    """Writes a change of what is as it was read.

    Returns:
        The operation that it has become, where it is not done yet: see `finished`.

    Raises:
        GoogleError: it was refused, with Kind.CONFLICT where it is no longer as it was read.
    """
    old, new = change.old or {}, change.new
    match change.part:
        case Part.API:
            operation: Document = google.call("serviceusage.services.enable", name=_api(wish), body={})
            return operation
        case Part.POLICY:
            # Without a mask that names auditConfigs they would be ignored; with this one bindings are.
            body = {"policy": new | {"version": _VERSION}, "updateMask": "auditConfigs,etag"}
            google.call("cloudresourcemanager.projects.setIamPolicy", resource=f"projects/{wish.project}", body=body)
        case Part.DATASET:
            google.call("bigquery.datasets.insert", projectId=wish.project, body=new)
        case Part.DATASET_ACCESS:
            google.call(
                "bigquery.datasets.patch",
                headers={"if-match": old["etag"]},
                accessPolicyVersion=_VERSION,
                updateMode="UPDATE_ACL",
                body={"access": new["access"]},
                **_dataset(wish),
            )
        case Part.BIGQUERY_SINK | Part.STORAGE_SINK:
            _write_sink(google, change, wish)
        case Part.BUCKET if not old:
            google.call("storage.buckets.insert", project=wish.project, body=new)
        case Part.BUCKET:
            google.call(
                "storage.buckets.patch",
                bucket=wish.bucket,
                ifMetagenerationMatch=old["metageneration"],
                body={key: new[key] for key in ("iamConfiguration", "lifecycle") if old.get(key) != new[key]},
            )
        case Part.BUCKET_ACCESS:
            google.call("storage.buckets.setIamPolicy", bucket=wish.bucket, body=new | {"version": _VERSION})
    return None


def finished(google: Caller, operation: Document) -> bool:
    """Whether an operation has come to its end.

    Raises:
        GoogleError: it cannot be read, or has failed.
    """
    now = operation if operation.get("done") else google.call("serviceusage.operations.get", name=operation["name"])
    if "error" in now:
        raise GoogleError(Kind.FAILED, f"{KMS} could not be enabled: {now['error'].get('message', 'without a reason')}")
    return bool(now.get("done"))


def _write_sink(google: Caller, change: Change, wish: Wish) -> None:
    """Sinks have no etag: the mask names what is ours, so that the rest, such as exclusions, stays."""
    ours = ["destination", "filter", "disabled"] + (["bigqueryOptions"] if change.part is Part.BIGQUERY_SINK else [])
    body = {key: change.new[key] for key in ["name", *ours] if key in change.new}
    if "bigqueryOptions" in body:
        body["bigqueryOptions"] = {"usePartitionedTables": True}  # the other one is Google's to write
    if change.old is None:
        parent = f"projects/{wish.project}"
        google.call("logging.projects.sinks.create", parent=parent, uniqueWriterIdentity=True, body=body)
    else:
        google.call(
            "logging.projects.sinks.update",
            sinkName=_sink(change.part, wish),
            uniqueWriterIdentity=True,
            updateMask=",".join(ours),
            body=body,
        )


def _api(wish: Wish) -> str:
    return f"projects/{wish.project}/services/{KMS}"


def _sink(part: Part, wish: Wish) -> str:
    return f"projects/{wish.project}/sinks/{_SINKS[part]}"


def _dataset(wish: Wish) -> dict[str, Any]:
    return {"projectId": wish.project, "datasetId": DATASET}
