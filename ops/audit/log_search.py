"""Searches an operation's entry by its marker: in the log, the dataset and the bucket."""

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final

from ops.audit.google_errors import ErrorKind, GoogleError
from ops.audit.google_parts import GoogleCaller
from ops.audit.model import DATASET, KMS

_TABLE: Final = "cloudaudit_googleapis_com_data_access"
_OBJECT_PREFIX: Final = "cloudaudit.googleapis.com/data_access/"
_MAX_PAGES: Final = 20
_CHUNK_BYTES: Final = 4 * 1024 * 1024
_SEARCHED_HOURS: Final = 3
"""How long after the first searched hour: a file is named after the hour of its first entry."""


def search_log(api: GoogleCaller, project: str, marker: str, since: datetime) -> bool:
    """Whether the Data Access log has an entry of the mark."""
    body: dict[str, Any] = {
        "resourceNames": [f"projects/{project}"],
        "filter": f'logName="projects/{project}/logs/cloudaudit.googleapis.com%2Fdata_access" '
        f'AND protoPayload.serviceName="{KMS}" '
        f'AND protoPayload.requestMetadata.callerSuppliedUserAgent:"{marker}" AND timestamp>="{since.isoformat()}"',
        "pageSize": 1,
    }
    for _ in range(_MAX_PAGES):  # a page may be empty although another follows
        answer = api.call("logging.entries.list", body=body)
        if answer.get("entries"):
            return True
        if not answer.get("nextPageToken"):
            return False
        body["pageToken"] = answer["nextPageToken"]
    return False


def search_bigquery(api: GoogleCaller, project: str, marker: str, since: datetime, location: str) -> bool:
    """Whether the dataset has a row with the marker; a table exists only after the first write."""
    # The columns depend on what was logged so far, so none can be named safely.
    sql = (
        f"SELECT COUNT(*) FROM `{project}.{DATASET}.{_TABLE}` AS entry "  # noqa: S608 - a validated project, constants
        "WHERE timestamp >= @since AND STRPOS(TO_JSON_STRING(entry), @mark) > 0"
    )
    parameters = [
        {"name": name, "parameterType": {"type": kind}, "parameterValue": {"value": value}}
        for name, kind, value in (("since", "TIMESTAMP", since.isoformat()), ("mark", "STRING", marker))
    ]
    body = {
        "query": sql,
        "useLegacySql": False,
        "location": location,
        "parameterMode": "NAMED",
        "queryParameters": parameters,
        "timeoutMs": 30_000,
    }
    try:
        answer = api.call("bigquery.jobs.query", projectId=project, body=body)
    except GoogleError as error:
        if error.kind is ErrorKind.MISSING:
            return False
        raise
    return bool(answer.get("jobComplete")) and answer["rows"][0]["f"][0]["v"] != "0"


def search_bucket(api: GoogleCaller, bucket: str, marker: str, since: datetime) -> bool:
    """Whether a file in the bucket has the mark."""
    token: str | None = None
    for _ in range(_MAX_PAGES):
        answer = api.call(
            "storage.objects.list",
            bucket=bucket,
            prefix=_OBJECT_PREFIX,
            startOffset=f"{_OBJECT_PREFIX}{since:%Y/%m/%d/%H}",
            endOffset=f"{_OBJECT_PREFIX}{since + timedelta(hours=_SEARCHED_HOURS):%Y/%m/%d/%H}",
            pageToken=token,
        )
        if any(_contains_marker(api, bucket, each, marker.encode()) for each in answer.get("items", [])):
            return True
        token = answer.get("nextPageToken")
        if not token:
            break
    return False


def _contains_marker(api: GoogleCaller, bucket: str, item: dict[str, Any], marker: bytes) -> bool:
    """Whether the file has the mark; read in pieces that overlap, since a busy hour fills more than the memory."""
    edges = [*range(0, int(item["size"]), _CHUNK_BYTES), int(item["size"])]
    for start, end in pairwise(edges):
        span = f"bytes={max(0, start - len(marker))}-{end - 1}"
        if marker in api.call("storage.objects.get_media", headers={"range": span}, bucket=bucket, object=item["name"]):
            return True
    return False
