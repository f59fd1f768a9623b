"""A refused call to Google → its kind, the permission and role that it needs, and a sentence with what to do. Pure.

The roles are predefined and narrow: https://cloud.google.com/iam/docs/roles-permissions
"""

from enum import Enum, auto
from typing import Final

from shared.check import HintedError

_USAGE_ADMIN: Final = "roles/serviceusage.serviceUsageAdmin"
_DATA_OWNER: Final = "roles/bigquery.dataOwner"
_BUCKET_ADMIN: Final = "roles/storage.admin"
_OBJECT_VIEWER: Final = "roles/storage.objectViewer"
_LOG_VIEWER: Final = "roles/logging.privateLogViewer"
_LOG_CONFIG_WRITER: Final = "roles/logging.configWriter"

READ_LOGS_PERMISSION: Final = "logging.privateLogEntries.list"
"""Without it, a list of entries silently omits the Data Access logs."""

PERMISSIONS_BY_METHOD: Final = {
    "serviceusage.services.get": ("serviceusage.services.get", "roles/serviceusage.serviceUsageViewer"),
    "serviceusage.services.enable": ("serviceusage.services.enable", _USAGE_ADMIN),
    "serviceusage.operations.get": ("serviceusage.operations.get", _USAGE_ADMIN),
    "cloudresourcemanager.projects.getIamPolicy": (
        "resourcemanager.projects.getIamPolicy",
        "roles/iam.securityReviewer",
    ),
    "cloudresourcemanager.projects.setIamPolicy": (
        "resourcemanager.projects.setIamPolicy",
        "roles/resourcemanager.projectIamAdmin",
    ),
    "logging.projects.sinks.get": ("logging.sinks.get", _LOG_CONFIG_WRITER),
    "logging.projects.sinks.create": ("logging.sinks.create", _LOG_CONFIG_WRITER),
    "logging.projects.sinks.update": ("logging.sinks.update", _LOG_CONFIG_WRITER),
    "logging.entries.list": (READ_LOGS_PERMISSION, _LOG_VIEWER),
    "bigquery.datasets.get": ("bigquery.datasets.get", "roles/bigquery.metadataViewer"),
    "bigquery.datasets.insert": ("bigquery.datasets.create", _DATA_OWNER),
    "bigquery.datasets.patch": ("bigquery.datasets.update", _DATA_OWNER),
    "bigquery.jobs.query": (
        "bigquery.jobs.create and bigquery.tables.getData",
        "roles/bigquery.jobUser and roles/bigquery.dataViewer",
    ),
    "storage.buckets.get": ("storage.buckets.get", _BUCKET_ADMIN),
    "storage.buckets.insert": ("storage.buckets.create", _BUCKET_ADMIN),
    "storage.buckets.patch": ("storage.buckets.update", _BUCKET_ADMIN),
    "storage.buckets.getIamPolicy": ("storage.buckets.getIamPolicy", _BUCKET_ADMIN),
    "storage.buckets.setIamPolicy": ("storage.buckets.setIamPolicy", _BUCKET_ADMIN),
    "storage.objects.list": ("storage.objects.list", _OBJECT_VIEWER),
    "storage.objects.get_media": ("storage.objects.get", _OBJECT_VIEWER),
    "cloudkms.projects.locations.keyRings.list": ("cloudkms.keyRings.list", "roles/cloudkms.viewer"),
}
"""By API and method."""


def build_permission_hint(method: str) -> str:
    """Describe the permission to ask for; Google answers the same for a foreign name and for a missing one."""
    if method not in PERMISSIONS_BY_METHOD:  # it needs none
        return "check whether the names are right"
    permission, role = PERMISSIONS_BY_METHOD[method]
    return f"it needs {permission}: ask for {role} on the project, and check whether the names are right"


LOGIN_HINT: Final = (
    "log in with `gcloud auth application-default login`, or name a file in GOOGLE_APPLICATION_CREDENTIALS"
)
RETRY_HINT: Final = "run this again: it goes on where it stopped"


class ErrorKind(Enum):
    """The kind of a refusal, by what the caller can do."""

    MISSING = auto()
    CONFLICT = auto()
    """It has changed since it was read, or is there already."""
    INVALID = auto()
    FAILED = auto()


_KINDS: Final = {400: ErrorKind.INVALID, 404: ErrorKind.MISSING, 409: ErrorKind.CONFLICT, 412: ErrorKind.CONFLICT}


class GoogleError(HintedError):
    """Google refused a call.

    Args:
        kind: of the refusal.
        error: what was refused; no secret.
        hint: what to do.
    """

    def __init__(self, kind: ErrorKind, error: str, hint: str = "") -> None:
        super().__init__(error, hint)
        self.kind = kind


def is_transient(status: int, reasons: set[str]) -> bool:
    """Whether it may pass by itself; BigQuery and Cloud Storage have rate limits that answer 403."""
    return status == 429 or status >= 500 or "rateLimitExceeded" in reasons


def build_error(name: str, status: int, google_message: str, reasons: set[str]) -> GoogleError:
    """Classify an error response.

    Args:
        name: of API and method.
        status: of HTTP.
        google_message: Google's text.
        reasons: Google's error codes.
    """
    kind, api = _KINDS.get(status, ErrorKind.FAILED), name.partition(".")[0]
    if status == 401:
        return GoogleError(kind, "the credentials are not taken", LOGIN_HINT)
    if is_transient(status, reasons):
        return GoogleError(
            kind, f"{name} still fails with {status} ({google_message})", f"wait a minute and {RETRY_HINT}"
        )
    if "quota project" in google_message:  # a person's credentials need a project that pays for the calls
        hint = "say which with `gcloud auth application-default set-quota-project PROJECT`"
    elif reasons & {"SERVICE_DISABLED", "accessNotConfigured"}:
        hint = f"switch the API on with `gcloud services enable {api}.googleapis.com`, and wait a minute"
    elif status == 403:
        hint = build_permission_hint(name)
    else:
        hint = "check whether the names are right"
    return GoogleError(kind, f"{name} is refused with {status} ({google_message})", hint)
