"""A method of Google's that was refused → the permission that it needs, and the role to ask for. Pure.

The roles are predefined ones, and narrow: https://cloud.google.com/iam/docs/roles-permissions
"""

from typing import Final

_USAGE_ADMIN: Final = "roles/serviceusage.serviceUsageAdmin"
_DATA_OWNER: Final = "roles/bigquery.dataOwner"
_BUCKET_ADMIN: Final = "roles/storage.admin"
_OBJECT_VIEWER: Final = "roles/storage.objectViewer"
_LOG_VIEWER: Final = "roles/logging.privateLogViewer"
_LOG_CONFIG_WRITER: Final = "roles/logging.configWriter"

READ_LOGS_PERMISSION: Final = "logging.privateLogEntries.list"
"""Without it, a list of entries leaves the Data Access logs out, and says nothing of that."""

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
    """What to ask for, in words; Google answers the same to a name that is somebody else's or nobody's."""
    if method not in PERMISSIONS_BY_METHOD:  # it needs none
        return "look whether the names are right"
    permission, role = PERMISSIONS_BY_METHOD[method]
    return f"it needs {permission}: ask for {role} on the project, and look whether the names are right"
