"""Verifies that operations in KMS are logged: sends one with a marker, and searches it in the log and in each sink."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import Any, Final

from ops.audit.google_api import READ_LOGS_PERMISSION, ErrorKind, GoogleError, build_permission_hint
from ops.audit.google_parts import GoogleCaller, read_part
from ops.audit.plan import DATASET, KMS, DesiredState, UnchangeableError, plan_changes
from shared.check import CheckOutcome, CheckResult

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


_POLL_INTERVAL: Final = 10.0
"""Seconds between two searches; the quota for reading the log is 60 a minute for each project."""
_TIME_FORMAT: Final = "%Y%m%dT%H%M%SZ"

SearchProbe = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class AuditProbe:
    """A probe: when it was sent, and its marker."""

    sent_at: datetime
    marker: str
    """In its User-Agent, which the log keeps; the time is part of it."""

    @staticmethod
    def create(at: datetime, token: str) -> "AuditProbe":
        """The probe of a time, with a few random characters."""
        return AuditProbe(at, f"keypulse-{at.strftime(_TIME_FORMAT)}-{token}")

    @staticmethod
    def parse(marker: str) -> "AuditProbe":
        """Return the probe of an earlier run. Raises ValueError if its name is invalid."""
        found = re.fullmatch(r"keypulse-(\d{8}T\d{6}Z)-[0-9a-f]{1,32}", marker)
        try:
            at = datetime.strptime(found[1] if found else "", _TIME_FORMAT).replace(tzinfo=UTC)
        except ValueError:
            example = "keypulse-20260101T000000Z-1a2b3c4d"
            raise ValueError(f"expected the name that an earlier run printed, such as {example}") from None
        return AuditProbe(at, marker)


@dataclass(frozen=True, slots=True)
class Clock:
    seconds: Callable[[], float]
    """Monotonic."""
    sleep: Callable[[float], None]


def verify_logging(
    api: GoogleCaller,
    desired_states: list[DesiredState],
    probe: AuditProbe,
    clock: Clock,
    *,
    send_probe: bool,
    timeout: float,
) -> Iterator[CheckResult]:
    """Check every project's settings, then the arrival of a probe in all of them.

    Args:
        api: of Google.
        desired_states: one for each project.
        probe: to search.
        clock: of the run.
        send_probe: whether to send it; else an earlier run has.
        timeout: seconds from the probe to its last arrival.
    """
    waiting: dict[str, tuple[SearchProbe, str]] = {}
    for desired in desired_states:
        before = list(_check_prerequisites(api, desired, probe if send_probe else None, clock))
        yield from before
        destinations = dict(_list_searches(api, desired, probe))
        if all(result.is_ok for result in before):
            waiting |= destinations
        else:
            cause = "not checked: first fix what failed above"
            yield from (CheckResult(name, CheckOutcome.SKIPPED, cause) for name in destinations)
    started_at = clock.seconds()
    while waiting:
        for name, (search, late) in list(waiting.items()):
            outcome, detail, hint = CheckOutcome.FAILED, f"{probe.marker} has not arrived", late
            try:
                if search():
                    outcome, detail, hint = CheckOutcome.PASSED, "it has arrived", ""
                elif clock.seconds() - started_at < timeout:
                    continue
            except GoogleError as error:
                detail, hint = error.error, error.hint
            del waiting[name]
            yield CheckResult(name, outcome, detail, hint, clock.seconds() - started_at)
        if waiting:
            clock.sleep(min(_POLL_INTERVAL, max(0.0, timeout - (clock.seconds() - started_at))))


def _check_prerequisites(
    api: GoogleCaller, desired: DesiredState, probe: AuditProbe | None, clock: Clock
) -> Iterator[CheckResult]:
    checks: dict[str, Callable[[], tuple[str, str]]] = {
        "settings": partial(_check_settings, api, desired),
        "access to the log": partial(_check_log_access, api, desired),
    }
    if probe:
        checks["probe"] = partial(_send_probe, api, desired, probe)
    for name, check in checks.items():
        started_at = clock.seconds()
        try:
            detail, hint = check()
        except (GoogleError, UnchangeableError) as error:
            detail, hint = error.error, error.hint
            outcome = CheckOutcome.FAILED
        else:
            outcome = CheckOutcome.FAILED if hint else CheckOutcome.PASSED
        yield CheckResult(f"{desired.project}: {name}", outcome, detail, hint, clock.seconds() - started_at)


def _check_settings(api: GoogleCaller, desired: DesiredState) -> tuple[str, str]:
    """A detail and a hint, as of the others; the hint is empty where all is well."""
    due = plan_changes({part: read_part(api, part, desired) for part in desired.list_parts}, desired)
    if due:
        return f"not as configured: {', '.join(change.part for change in due)}", "see `plan`, then use `apply`"
    return "as configured", ""


def _check_log_access(api: GoogleCaller, desired: DesiredState) -> tuple[str, str]:
    answer = api.call(
        "cloudresourcemanager.projects.testIamPermissions",
        resource=f"projects/{desired.project}",
        body={"permissions": [READ_LOGS_PERMISSION]},
    )
    granted = READ_LOGS_PERMISSION in answer.get("permissions", [])
    return ("granted", "") if granted else ("not granted", build_permission_hint("logging.entries.list"))


def _send_probe(api: GoogleCaller, desired: DesiredState, probe: AuditProbe) -> tuple[str, str]:
    """Lists key rings: it changes nothing, needs no key, and is logged as ADMIN_READ."""
    api.call(
        "cloudkms.projects.locations.keyRings.list",
        headers={"user-agent": probe.marker},
        parent=f"projects/{desired.project}/locations/global",
        pageSize=1,
    )
    return f"{probe.marker} was sent", ""


def _list_searches(
    api: GoogleCaller, desired: DesiredState, probe: AuditProbe
) -> Iterator[tuple[str, tuple[SearchProbe, str]]]:
    """The destinations of the probe, with what to do if it is late."""
    since = probe.sent_at - timedelta(hours=1)  # this machine's clock may be wrong
    pending = f"search again later with --probe {probe.marker}"
    exempted = "check whether your own account is exempted"
    log = partial(search_log, api, desired.project, probe.marker, since)
    yield f"{desired.project}: log", (log, f"it takes a minute; {exempted}, or {pending}")
    if desired.bigquery:
        rows = partial(search_bigquery, api, desired.project, probe.marker, since, desired.location)
        yield f"{desired.project}: BigQuery", (rows, f"the first rows take minutes; {pending}")
    if desired.bucket:
        files = partial(search_bucket, api, desired.bucket, probe.marker, since)
        yield f"{desired.project}: bucket", (files, f"files come once an hour, the first after 2 to 3 hours; {pending}")
